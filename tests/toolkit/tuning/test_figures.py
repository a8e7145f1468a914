"""The picture of a study shows its trials."""

import numpy as np

from toolkit.tuning.figures import history_picture
from toolkit.tuning.study import Trial


def test_trials_with_their_spread_and_the_best_so_far() -> None:
    trials = [
        Trial(0, {}, "complete", 0.6, 0.1),
        Trial(1, {}, "failed", reason="diverged"),
        Trial(2, {}, "complete", 0.5, 0.2),
        Trial(3, {}, "complete", 0.8, 0.05),
    ]
    (axes,) = history_picture(trials).axes
    best = next(line for line in axes.lines if line.get_label() == "best so far")
    assert list(best.get_xdata()) == [0, 2, 3]
    assert list(best.get_ydata()) == [0.6, 0.6, 0.8]
    (container,) = axes.containers
    data, _, (bars,) = container.lines
    assert (list(data.get_xdata()), list(data.get_ydata())) == ([0, 2, 3], [0.6, 0.5, 0.8])
    ends = np.array([[point[1] for point in segment] for segment in bars.get_segments()])
    assert np.allclose(ends, [[0.5, 0.7], [0.3, 0.7], [0.75, 0.85]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("trial", "mean cross-validation accuracy")
