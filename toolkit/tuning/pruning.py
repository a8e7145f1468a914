"""When a trial can no longer matter, and is cut.

Four rules, looked at after each epoch of a first fold and after each fold. *The holder* is the best
complete trial at the time a trial begins.

1. Out of reach: even folds without a mistake from here on would not bring the mean above the
   holder's. This rule is exact.
2. Behind the worst fold: the mean of the folds so far is lower than the holder's worst fold. This is
   the forgiving rule of Bergman et al.: a setting as good as the holder's is cut only when its first
   folds happen to be worse than all of the holder's.
3. Behind, fold by fold: all trials have the same folds, so one that lags in those so far has to beat
   the holder in those left, by the sum of its lags over their number on average. It is cut when that
   is more than chance gives a setting that is as good: ``CATCH_UP`` standard errors of their mean.
4. Behind the worst curve: in the first fold, from ``EPOCHS_SHARE`` of its epochs on, the best
   accuracy so far is lower than that of each of the holder's folds, both after as many epochs and
   at the same share of the schedule. So neither a short schedule nor a long one is held against
   a trial. Two looks in a row must agree.

A cut trial is marked, never wins, and counts in the search as worse than the holder.

References
----------
Bergman, Purucker, Hutter: Don't Waste Your Time: Early Stopping Cross-Validation, AutoML 2024.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean, mean, stdev

EPOCHS_SHARE = 0.25  # of a schedule, before which a curve says little
CATCH_UP = 0.75  # standard errors of the mean of the folds left: an image less is chance until one of five is left


@dataclass(frozen=True)
class Incumbent:
    """The best complete trial, as far as others are measured by it.

    Parameters
    ----------
    number
        Of the trial.
    curves
        Of each fold, the validation accuracy after each epoch.
    epochs
        Of its schedule, which early stopping may have ended before.
    """

    number: int
    curves: tuple[tuple[float, ...], ...]
    epochs: int

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Of each fold."""
        return tuple(map(max, self.curves))

    @property
    def noise(self) -> float:
        """By how much a fold's accuracy differs by chance.

        The standard deviation over the folds: that between equal trials in the same fold is not known.
        At least the smallest step of a curve, which is an image's worth; folds may happen to be alike.
        """
        steps = (after - before for curve in self.curves for before, after in pairwise(sorted(set(curve))))
        return max(stdev(self.accuracies), min(steps, default=0.0))

    def worst_so_far(self, epoch: int) -> float:
        """The lowest, over the folds, of the best accuracy until an epoch, from 1."""
        return min(max(curve[: max(1, epoch)]) for curve in self.curves)


def prune_after_epoch(curve: Sequence[float], epochs: int, holder: Incumbent) -> str:
    """Why a trial is cut after an epoch of its first fold; empty when it goes on.

    Parameters
    ----------
    curve
        The validation accuracy after each epoch so far.
    epochs
        Of the trial's schedule.

    Examples
    --------
    >>> holder = Holder(4, ((0.5, 0.8, 0.9, 0.9), (0.4, 0.7, 0.8, 0.9)), epochs=4)
    >>> prune_after_epoch([0.3, 0.5], 4, holder)
    'in fold 1 after epoch 2 of 4: 0.5000 is below 0.7000, the lowest of the folds of trial 5 by then'
    >>> prune_after_epoch([0.2, 0.3, 0.5, 0.6], 8, holder)  # the incumbent at that share: 0.4, then 0.7
    ''
    """
    done = len(curve)
    if done < 2 or done - 1 < EPOCHS_SHARE * epochs:
        return ""
    references = [_reference(epoch, epochs, holder) for epoch in (done - 1, done)]
    if max(curve[:-1]) >= references[0] or max(curve) >= references[1]:
        return ""
    return (
        f"in fold 1 after epoch {done} of {epochs}: {max(curve):.4f} is below {references[1]:.4f}, the lowest of the"
        f" folds of trial {holder.number + 1} by then"
    )


def prune_after_fold(accuracies: Sequence[float], folds: int, holder: Incumbent) -> str:
    """Why a trial is cut after some of its folds; empty when it goes on.

    Parameters
    ----------
    accuracies
        Of the folds so far.
    folds
        How many there are in all.

    Examples
    --------
    >>> holder = Holder(4, ((0.9,), (0.8,), (0.94,)), epochs=10)
    >>> prune_after_fold([0.85], 3, holder)
    ''
    >>> prune_after_fold([0.7], 3, holder)
    'after fold 1 of 3: 0.7000 is below 0.8000, the worst fold of trial 5'
    >>> prune_after_fold([0.81, 0.82], 3, holder)
    'after fold 2 of 3: the mean could reach 0.8767 at the most, and trial 5 has 0.8800'
    >>> prune_after_fold([0.8, 0.81], 3, Holder(4, ((0.9,), (0.8,), (0.7,)), epochs=10))
    'after fold 2 of 3: the rest would have to beat trial 5 by 0.0900 a fold; chance is 0.0750'
    """
    done, left = len(accuracies), folds - len(accuracies)
    if not left:
        return ""
    best, reachable = fmean(holder.accuracies), fmean([*accuracies, *[1.0] * left])
    behind, chance = (sum(holder.accuracies[:done]) - sum(accuracies)) / left, CATCH_UP * holder.noise / sqrt(left)
    if reachable <= best:
        reason = f"the mean could reach {reachable:.4f} at the most, and trial {holder.number + 1} has {best:.4f}"
    elif (own := mean(accuracies)) < (worst := min(holder.accuracies)):  # fmean of equal ones may be below them
        of_some = "the mean " if done > 1 else ""
        reason = f"{of_some}{own:.4f} is below {worst:.4f}, the worst fold of trial {holder.number + 1}"
    elif behind > chance:
        reason = f"the rest would have to beat trial {holder.number + 1} by {behind:.4f} a fold; chance is {chance:.4f}"
    else:
        return ""
    return f"after fold {done} of {folds}: {reason}"


def _reference(epoch: int, epochs: int, holder: Incumbent) -> float:
    """What the worst of the holder's folds had: after as many epochs or at the same share, whichever is less."""
    return holder.worst_so_far(min(epoch, epoch * holder.epochs // epochs))
