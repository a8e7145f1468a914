"""The progress of a search on the terminal, and tables of its results."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from tqdm import tqdm

from toolkit.cli.terminal import echo, on_terminal, silent_since, table
from toolkit.tuning.study import Proposal, Study
from toolkit.tuning.trial import STATES, Fold, Trial

LEADERBOARD_SIZE = 5  # trials
MIN_MEASURED = 5  # trials before the time left is estimated: the first ones are the cheapest
LONG_FOLD_S = 30.0  # seconds from which a fold has a line of its own without a bar
SHOWN = {  # the most important settings: in a line, and as the heading of a column
    "model_type": ("{}", "network"), "image_size": ("{} px", "size"), "optimizer": ("{}", "optimizer"),
    "batch_size": ("batch {}", "batch"), "epochs": ("{} epochs", "epochs"),
    "learning_rate": ("lr {:.2g}", "learning rate"),
}  # fmt: skip


class StudyProgressBar:
    """A bar on a terminal: trials done, of so many planned, the best so far with its settings, and the time left."""

    def __init__(self, study: Study, planned: int, folds: int, workers: int = 1) -> None:
        self._study, self._folds, self._paces = study, folds, dict[int, _Pace]()
        self._start, self._seconds_left, self._workers = time.monotonic(), math.inf, workers
        self._bar = tqdm(
            total=planned, initial=len(study.trials), desc="trials", unit="trial", disable=not on_terminal(),
            dynamic_ncols=True, leave=False,
        )  # fmt: skip

    def step(self, proposal: Proposal, fold: int, epoch: int, share: float) -> None:
        """Show the position of a trial: its fold, from 0, the epoch, from 1, and the share of the fold that is done."""
        pace = self._paces.setdefault(proposal.number, _Pace())
        pace.place = f"fold {fold + 1}/{self._folds}, epoch {epoch}/{proposal.settings['epochs']}"
        pace.reached((fold + share) / self._folds)
        self._draw()

    def tick(self, running: Iterable[int], seconds_left: float = math.inf) -> None:
        """Print a line for each running trial, by number, without a terminal and after a while of silence.

        Parameters
        ----------
        running
            Numbers of the trials that are running.
        seconds_left
            The rest of the time budget; infinity without one.
        """
        self._seconds_left = max(0.0, seconds_left)
        if self._bar.disable and silent_since(self._start):
            for number in running:
                echo(
                    f"trial {number + 1:>3}/{self._bar.total}  {self._paces.get(number, 'preparing its images')}"
                    f"{self._study_left()}"
                )

    def on_fold_end(self, proposal: Proposal, number: int, fold: Fold) -> None:
        """Print a line for a long fold, by its number from 0, without a terminal."""
        if self._bar.disable and fold.seconds > LONG_FOLD_S:
            plural = "" if len(fold.epochs) == 1 else "s"
            echo(
                f"trial {proposal.number + 1:>3}/{self._bar.total}  fold {number + 1}/{self._folds}"
                f"  accuracy {fold.accuracy:.4f} after {len(fold.epochs)} epoch{plural}, {fold.seconds:.0f} s"
            )

    def on_trial_end(self, trial: Trial) -> None:
        """Count a trial, unless it is paused."""
        self._paces.pop(trial.number, None)
        self._bar.update(trial.state != "paused")
        self._draw()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _draw(self) -> None:
        best = self._study.best
        text = [f"best {best.mean_accuracy:.4f} ({describe(best.settings)})"] if best else []
        running = [f"trial {number + 1}: {pace}" for number, pace in self._paces.items()]
        self._bar.set_postfix_str("; ".join([*text, *running]) + self._study_left())

    def _study_left(self) -> str:
        """The time until all trials are begun, at the median of those so far, or the rest of the time budget."""
        study, seconds = self._study, self._seconds_left
        taken = [trial.seconds for trial in (*study.trials, *study.paused.values()) if trial.folds]
        left = self._bar.total - study.n_proposed
        if left and len(taken) >= MIN_MEASURED:
            seconds = min(seconds, median(taken) * left / self._workers)
        return "" if math.isinf(seconds) else f"; study: about {tqdm.format_interval(seconds)} left"


class _Pace:
    """The position of a trial, and its remaining time at the present speed if it is not pruned."""

    def __init__(self) -> None:
        self.place = ""
        self._start, self._first, self._share = time.monotonic(), math.nan, 0.0

    def reached(self, share: float) -> None:
        """Set the share of all folds that is done."""
        self._share = share
        if math.isnan(self._first):  # not 0 in a resumed trial
            self._start, self._first = time.monotonic(), share

    def __str__(self) -> str:
        done = self._share - self._first
        left = (time.monotonic() - self._start) * (1 - self._share) / done if done > 0 else math.nan
        estimate = "" if math.isnan(left) else f", {tqdm.format_interval(left)} left"
        return f"{self.place}, {100 * self._share:.0f} % done{estimate}"


def trial_line(trial: Trial, planned: int, *, best: bool) -> str:
    """A finished trial in a line."""
    start = f"trial {trial.number + 1:>3}/{planned}"
    if trial.state == "failed":
        return f"{start}  failed after {trial.seconds:.0f} s: {trial.reason}  {describe(trial.settings)}"
    if trial.state == "paused":
        fold = trial.folds[0]
        return (
            f"{start}  {fold.accuracy:.4f} after {len(fold.epochs)} of {trial.settings['epochs']} epochs of fold 1;"
            f" {trial.seconds:.0f} s  {describe(trial.settings)}"
        )
    if trial.state == "pruned":
        return f"{start}  pruned {trial.reason}; {trial.seconds:.0f} s  {describe(trial.settings)}"
    known = f"  {trial.reason}" if trial.reason else ""
    return (
        f"{start}  mean accuracy {trial.mean_accuracy:.4f} (spread {trial.std_accuracy:.4f})  {trial.seconds:.0f} s"
        f"  {describe(trial.settings)}{'  best' if best else ''}{known}"
    )


def describe(settings: Mapping[str, Any]) -> str:
    """The most important settings in a few words.

    Examples
    --------
    >>> describe({"model_type": "resnet18", "image_size": 128, "learning_rate": 0.00123})
    'resnet18, 128 px, lr 0.0012'
    """
    return ", ".join(words.format(settings[name]) for name, (words, _) in SHOWN.items() if name in settings)


def leaderboard(study: Study) -> str:
    """The best complete trials with mean, spread and cost, and the counts of all states."""
    headings = ["trial", "mean", "spread", "multiply-adds", "seconds", *(heading for _, heading in SHOWN.values())]
    rows = [
        [
            trial.number + 1, f"{trial.mean_accuracy:.4f}", f"{trial.std_accuracy:.4f}", f"{trial.cost:,.3g}",
            f"{trial.seconds:.0f}", *(_cell(trial.settings.get(name, "-")) for name in SHOWN),
        ]
        for trial in study.ranking[:LEADERBOARD_SIZE]
    ]  # fmt: skip
    return "\n\n".join([*([table(headings, rows)] if rows else []), counts_text(study.trials)])


def counts_text(trials: Sequence[Trial]) -> str:
    """The number of trials by state, and their cost.

    Examples
    --------
    >>> counts_text([Trial(0, {}, "pruned", seconds=90.0), Trial(1, {}, "failed", seconds=40.0)])
    '2 trials: 0 complete, 1 pruned, 1 failed; 0 multiply-adds, 2 minutes'
    """
    counts = ", ".join(f"{sum(trial.state == state for trial in trials)} {state}" for state in STATES)
    cost, seconds = sum(trial.cost for trial in trials), sum(trial.seconds for trial in trials)
    took = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    plural = "" if len(trials) == 1 else "s"
    return f"{len(trials)} trial{plural}: {counts}; {cost:,.3g} multiply-adds, {took}"


def all_settings(settings: Mapping[str, Any]) -> str:
    """Every setting of a trial."""
    return ", ".join(f"{name} {_cell(value)}" for name, value in settings.items())


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
