"""Pictures of a study."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from toolkit.tuning.study import Trial

BLUE, ORANGE = "#2563eb", "#ea580c"


def history_picture(trials: Sequence[Trial]) -> Figure:
    """Mean accuracy of each trial with its spread over the folds, and the best so far."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    done = [trial for trial in trials if trial.state == "complete"]
    numbers, means = [trial.number for trial in done], [trial.mean_accuracy for trial in done]
    axes.errorbar(
        numbers, means, [trial.std_accuracy for trial in done], fmt="o", color=BLUE, alpha=0.7, capsize=3, label="trial"
    )
    axes.step(numbers, np.maximum.accumulate(means), where="post", color=ORANGE, label="best so far")
    axes.set(xlabel="trial", ylabel="mean cross-validation accuracy")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure
