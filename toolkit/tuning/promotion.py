"""Rules that decide how much of a proposal's training is run.

A trial trains its first fold in steps, its *rungs*, each a share of its own schedule, and pauses after each.
What it has shown there decides whether it goes on: from the rung where it paused, without repeating anything.
Only after its whole first fold come the others. Two rules hold, of which the first is successive halving without
waiting (Li et al.), and the second makes it aware of costs:

1. A trial is promoted within its first fold when it is among the best third of all that have reached its rung.
   As long as no trial is complete, the best of the random points that a search starts with goes on to the end, so
   that there is something to compare with. After its first fold only rule 2 and the pruning rules end it.
2. It is promoted only when it may beat the *incumbent*, the best complete trial, by more than its price: the
   most that it may reach must exceed the incumbent's mean by ``PRICE`` standard errors of that mean for each
   doubling of cost, from half the cost of the incumbent or of a typical trial on, whichever is more. A
   trial that is merely as good and dearer is not run to its end, nor begun when even an accuracy of 1 is too little.

Hyperopt learns from predictions: the error at the rung times the median share of its error at the same place
with which complete trials ended. Cost is counted in multiply-adds: the same on every machine, and comparable
between networks and image sizes.

References
----------
Li, Jamieson, Rostamizadeh, Gonina, Ben-Tzur, Hardt, Recht, Talwalkar: A System for Massively Parallel
Hyperparameter Tuning, MLSys 2020.
Falkner, Klein, Hutter: BOHB: Robust and Efficient Hyperparameter Optimization at Scale, ICML 2018.
"""

from collections.abc import Sequence
from math import ceil, log2
from statistics import fmean, median

from toolkit.tuning.trial import Trial

RUNGS = (1 / 6, 1 / 2, 1.0)  # shares of the schedule of the first fold
MIN_EPOCHS = 2  # before the first pause; an epoch alone says little
REDUCTION = 3  # of so many at a rung, one is promoted
HOPE = 0.5  # of the smallest share of an error that any trial kept: a trial may learn twice as well as all before
PRICE = 1.0  # standard errors of the incumbent's mean, for each doubling of cost
MIN_ERROR = 1e-3  # of an accuracy; folds may happen to be without one


def pause_epoch(rung: int, epochs: int) -> int:
    """The epoch of the first fold, from 1, after which a trial has finished a rung, from 0.

    Examples
    --------
    >>> [pause_epoch(rung, 45) for rung in range(3)], [pause_epoch(rung, 10) for rung in range(3)]
    ([8, 23, 45], [2, 5, 10])
    """
    return min(epochs, max(MIN_EPOCHS, ceil(RUNGS[rung] * epochs)))


def rung_of(done: int, epochs: int) -> int:
    """The number of rungs that so many epochs of the first fold finish, of its schedule.

    Examples
    --------
    >>> [rung_of(done, 10) for done in (1, 2, 9, 10)]
    [0, 1, 2, 3]
    """
    return sum(done >= pause_epoch(rung, epochs) for rung in range(len(RUNGS)))


def predicted_accuracy(trial: Trial, complete: Sequence[Trial]) -> float:
    """The mean accuracy over all folds with which a trial would end, from what it has shown.

    Parameters
    ----------
    trial
        A trial with at least one epoch.
    complete
        Trials with all folds; without any, what the trial has shown counts as it is.
    """
    if trial.state == "complete":
        return trial.mean_accuracy
    shares = [_error(other.mean_accuracy) / _error(_shown(other, trial)) for other in complete]
    return 1 - _error(_shown(trial, trial)) * min(1.0, median(shares or [1.0]))


def _shown(trial: Trial, like: Trial) -> float:
    """The accuracy of a trial at the place that another has reached: a share of the first fold, or whole folds."""
    if like.rung == len(RUNGS):
        return fmean(trial.accuracies[: len(like.folds)])
    done = len(like.folds[0].epochs) / like.settings["epochs"]
    return max(trial.folds[0].curve[: max(1, ceil(done * trial.settings["epochs"]))])


def _error(accuracy: float) -> float:
    return max(1 - accuracy, MIN_ERROR)


def price(trial: Trial, incumbent: Trial, typical_cost: float) -> float:
    """The accuracy above the incumbent's mean that a trial must promise for its cost; less than 0 if it is cheap."""
    return PRICE * incumbent.standard_error * (log2(trial.full_cost / max(incumbent.full_cost, typical_cost)) + 1)


def hoped_accuracy(trial: Trial, incumbent: Trial, complete: Sequence[Trial]) -> float:
    """The most that a trial may reach: within its first fold twice as much better as any complete trial has become.

    After whole folds it is the incumbent's mean and what the trial is ahead or behind in the same folds. To either
    comes the noise of the incumbent's folds, for chance. Without an epoch it is 1, which it never exceeds.
    """
    if not trial.folds:
        return 1.0
    if trial.rung == len(RUNGS):
        reached = incumbent.mean_accuracy + fmean(trial.accuracies) - _shown(incumbent, trial)
    else:
        shares = [_error(other.mean_accuracy) / _error(_shown(other, trial)) for other in complete]
        reached = 1 - _error(_shown(trial, trial)) * HOPE * min(1.0, *shares)
    return min(1.0, reached + incumbent.noise)


def reason_to_end(trial: Trial, complete: Sequence[Trial], typical_cost: float) -> str:
    """The reason why a trial is not worth its next rung; empty if it is.

    Parameters
    ----------
    trial
        A paused trial, or one without an epoch.
    complete
        Trials with all folds, the incumbent first.
    typical_cost
        Multiply-adds of a whole trial of this study, the median.
    """
    if not complete:
        return ""
    incumbent = complete[0]
    hoped, mean = hoped_accuracy(trial, incumbent, complete), incumbent.mean_accuracy
    if hoped > mean + price(trial, incumbent, typical_cost):
        return ""
    times, number = trial.full_cost / incumbent.full_cost, incumbent.number + 1
    if not trial.folds:
        return f"before its first epoch: not worth {times:.2g} times the cost of trial {number}, which has {mean:.4f}"
    relation = "as good as" if hoped >= mean else "worse than"
    return f"{relation} trial {number} at {times:.2g} times its cost: {hoped:.4f} at best, and it has {mean:.4f}"


def next_promoted(paused: Sequence[Trial], reached: Sequence[Trial], *, last: bool, first: bool) -> Trial | None:
    """The paused trial to go on with, the cheapest of those that are promoted; None to try another proposal first.

    Parameters
    ----------
    paused
        Trials that are worth their next rung.
    reached
        All trials of the study that have reached a rung, these included.
    last
        Whether no further proposals come, so that a third is rounded up.
    first
        Whether the first complete trial is wanted: the best of those that have come furthest goes on.
    """
    furthest = max((trial.rung for trial in paused), default=0)

    def is_promoted(trial: Trial) -> bool:
        rank, rivals = _rank(trial, reached)
        places = ceil(rivals / REDUCTION) if last else rivals // REDUCTION
        return trial.rung == len(RUNGS) or rank < places or (first and trial.rung == furthest and rank == 0)

    return min(
        filter(is_promoted, paused),
        key=lambda trial: (-trial.rung if first else 0, trial.full_cost, trial.number),
        default=None,
    )


def is_left_behind(trial: Trial, reached: Sequence[Trial], to_come: int) -> bool:
    """Whether a paused trial is not promoted even if the trials to come are all worse at its rung."""
    rank, rivals = _rank(trial, reached)
    return trial.rung < len(RUNGS) and rank >= ceil((rivals + to_come) / REDUCTION)


def _rank(trial: Trial, reached: Sequence[Trial]) -> tuple[int, int]:
    """The number of trials that were better at a trial's rung, and of all that have reached it."""
    rivals = [_at_rung(other, trial.rung) for other in reached if other.rung >= trial.rung]
    return sum(rival > _at_rung(trial, trial.rung) for rival in rivals), len(rivals)


def _at_rung(trial: Trial, rung: int) -> tuple[float, float]:
    """The rank of a trial at a rung: by its accuracy, and among equals by its loss; more is better."""
    epochs = trial.folds[0].epochs[: pause_epoch(rung - 1, trial.settings["epochs"])]
    return max(epoch["val_accuracy"] for epoch in epochs), -min(epoch["val_loss"] for epoch in epochs)
