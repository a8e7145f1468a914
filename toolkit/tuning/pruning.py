"""Rules that prune a trial when it can no longer become the best.

Four rules are checked after each epoch of a first fold and after each fold. The *incumbent* is the best
complete trial at the time a trial starts.

1. Out of reach: even perfect folds from here on would not bring the mean above the incumbent's. This
   rule is exact.
2. Behind the worst fold: the mean of the folds so far is lower than the incumbent's worst fold. This is
   the forgiving rule of Bergman et al.: settings as good as the incumbent's are pruned only when their
   first folds happen to be worse than all of the incumbent's.
3. Behind, fold by fold: all trials have the same folds, so a trial that lags so far has to beat the
   incumbent in the remaining folds by the sum of its lags over their number. It is pruned when that is
   more than chance gives equally good settings: ``CATCH_UP`` standard errors of their mean.
4. Behind the worst curve: in the first fold, from ``EPOCHS_SHARE`` of its epochs on, the best
   accuracy so far is lower than that of each of the incumbent's folds, both after as many epochs and
   at the same share of the schedule, so that neither a short nor a long schedule is a disadvantage.
   Two epochs in a row must agree.

A pruned trial never wins, and counts in the search as worse than the incumbent.

References
----------
Bergman, Purucker, Hutter: Don't Waste Your Time: Early Stopping Cross-Validation, AutoML 2024.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, mean

EPOCHS_SHARE = 0.25  # of a schedule; earlier, a curve predicts little
CATCH_UP = 0.75  # standard errors of the mean of the folds left: an image less is chance until one of five is left


@dataclass(frozen=True)
class Incumbent:
    """The best complete trial, reduced to what others are compared with."""

    number: int  # of the trial, from 0
    curves: tuple[tuple[float, ...], ...]  # validation accuracy after each epoch, for each fold
    epochs: int  # of its schedule, which early stopping may have cut short
    noise: float = 0.0  # the random variation of a fold's accuracy

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The highest validation accuracy of each fold."""
        return tuple(map(max, self.curves))

    def worst_so_far(self, epoch: int) -> float:
        """The lowest, over the folds, of the best accuracy until an epoch, from 1."""
        return min(max(curve[: max(1, epoch)]) for curve in self.curves)


def prune_after_epoch(curve: Sequence[float], epochs: int, incumbent: Incumbent) -> str:
    """The reason to prune a trial by the curve of its first fold so far; empty when it continues.

    Examples
    --------
    >>> incumbent = Incumbent(4, ((0.5, 0.8, 0.9, 0.9), (0.4, 0.7, 0.8, 0.9)), epochs=4)
    >>> prune_after_epoch([0.3, 0.5], 4, incumbent)
    'in fold 1 after epoch 2 of 4: 0.5000 is below 0.7000, the lowest of the folds of trial 5 by then'
    >>> prune_after_epoch([0.2, 0.3, 0.5, 0.6], 8, incumbent)  # the incumbent at that share: 0.4, then 0.7
    ''
    """
    done = len(curve)
    if done < 2 or done - 1 < EPOCHS_SHARE * epochs:
        return ""
    # The incumbent after as many epochs, or at the same share of its schedule: whichever is less.
    before, now = (incumbent.worst_so_far(min(n, n * incumbent.epochs // epochs)) for n in (done - 1, done))
    if max(curve[:-1]) >= before or max(curve) >= now:
        return ""
    return (
        f"in fold 1 after epoch {done} of {epochs}: {max(curve):.4f} is below {now:.4f}, the lowest of the"
        f" folds of trial {incumbent.number + 1} by then"
    )


def prune_after_fold(accuracies: Sequence[float], folds: int, incumbent: Incumbent) -> str:
    """The reason to prune a trial by the accuracies of its folds so far, of so many; empty when it continues.

    Examples
    --------
    >>> incumbent = Incumbent(4, ((0.9,), (0.8,), (0.94,)), epochs=10, noise=0.07)
    >>> prune_after_fold([0.85], 3, incumbent)
    ''
    >>> prune_after_fold([0.7], 3, incumbent)
    'after fold 1 of 3: 0.7000 is below 0.8000, the worst fold of trial 5'
    >>> prune_after_fold([0.81, 0.82], 3, incumbent)
    'after fold 2 of 3: the mean could reach 0.8767 at the most, and trial 5 has 0.8800'
    >>> prune_after_fold([0.8, 0.81], 3, Incumbent(4, ((0.9,), (0.8,), (0.7,)), epochs=10, noise=0.1))
    'after fold 2 of 3: the rest would have to beat trial 5 by 0.0900 a fold; chance is 0.0750'
    """
    done, left = len(accuracies), folds - len(accuracies)
    if not left:
        return ""
    best, reachable = fmean(incumbent.accuracies), fmean([*accuracies, *[1.0] * left])
    behind = (sum(incumbent.accuracies[:done]) - sum(accuracies)) / left
    chance = CATCH_UP * incumbent.noise / sqrt(left)
    if reachable <= best:
        reason = f"the mean could reach {reachable:.4f} at the most, and trial {incumbent.number + 1} has {best:.4f}"
    elif (own := mean(accuracies)) < (worst := min(incumbent.accuracies)):  # fmean of equal ones may be below them
        of_some = "the mean " if done > 1 else ""
        reason = f"{of_some}{own:.4f} is below {worst:.4f}, the worst fold of trial {incumbent.number + 1}"
    elif behind > chance:
        reason = (
            f"the rest would have to beat trial {incumbent.number + 1} by {behind:.4f} a fold; chance is {chance:.4f}"
        )
    else:
        return ""
    return f"after fold {done} of {folds}: {reason}"
