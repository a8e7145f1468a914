"""Bias of the labels of a window: whether they are a fair sample of its predictions, and the accuracy if not.

Labels of a random sample represent the whole window. Other labels may be those of the hardest images, of the easiest,
or of one class. So the labelled predictions are compared with all of the window, by confidence and by predicted class.
Where they differ, accuracy is estimated by post-stratification: each stratum (band of confidence, class, or both)
counts with its share of all predictions. Strata with few labels, or none, are supplemented by the held-out images; for
the interval that part counts as all wrong and as all right.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.cli.script_commands import command_line
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.stats.hypothesis_tests import chi_square, degradation_lower_bound, total_variation
from toolkit.monitoring.windows.summary import BANDS, WindowSummary
from toolkit.statistics.intervals import Interval, wilson

SURE = 0.001  # chance that a fair sample is taken for a biased one
PRIOR_LABELS = 5.0  # that the held-out images count as in each stratum
COMMAND = command_line("monitoring", "labels")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelBias:
    """The labels of a window from which its accuracy is estimated.

    Parameters
    ----------
    kind
        ``drawn`` by the monitor at random; ``all`` of the predictions; ``chosen`` in another way.
    fair
        Whether their predictions are distributed like all predictions of the window.
    n, n_drawn
        Number of labels, and of those of the window that are of a sample drawn at random.
    unweighted_accuracy
        Share of them that was right.
    accuracy, interval
        Accuracy of the window with its 95 % interval: unweighted when the sample is fair, else weighted.
    effective_n
        Number of independent labels that they are equivalent to.
    accuracy_n
        Number of independent labels with the standard error of ``accuracy``.
    best_case, best_case_n
        The accuracy if all that is unknown was right, and the number of labels with its standard error.
    difference
        The largest difference to all predictions, as a clause; empty when the sample is fair.
    may_confirm
        The worst level that they can confirm.
    """

    kind: str
    fair: bool
    n: int
    n_drawn: int
    unweighted_accuracy: float
    accuracy: float
    interval: Interval
    effective_n: float
    accuracy_n: float
    best_case: float
    best_case_n: float
    difference: str
    may_confirm: str

    @property
    def note(self) -> str:
        """Restrictions of the labels, as a clause; empty for a fair sample that was drawn.

        >>> half = Interval(0.4, 0.6)
        >>> LabelBias("chosen", True, 60, 0, 0.5, 0.5, half, 60, 60, 0.5, 60, "", "critical").note
        'labels of a choice of your own, which confirm no more than critical: see python monitoring.py labels'
        """
        confirms = "nothing" if self.may_confirm == LEVELS[0] else f"no more than {self.may_confirm}"
        if not self.fair:
            low, high = self.interval
            return (
                f"no fair sample: {self.difference}; {self.unweighted_accuracy:.1%} of these {self.n:,} labels were "
                f"right, weighted by confidence and class that is {self.accuracy:.1%} ({low:.1%} to {high:.1%}), which "
                f"confirms {confirms}: see {COMMAND}"
            )
        if self.kind == "chosen" and self.may_confirm != LEVELS[-1]:
            return f"labels of a choice of your own, which confirm {confirms}: see {COMMAND}"
        return ""


def effective_labels(counts: WindowSummary, n: int | None = None) -> float:
    """Number of independent labels that ``n`` labels of a window are equivalent to, all of them when None.

    Where predictions in bursts are equivalent to 1 / d independent ones each, and a share f of them is labelled,
    each label is equivalent to 1 / (1 + f (d - 1)).

    References
    ----------
    Kish, L. (1965). Survey Sampling. Wiley, section 5.4: the design effect of clusters of a size.
    """
    n = counts.n_labels if n is None else n
    if not n:
        return 0.0
    burst = max(1.0, counts.n_finite / max(counts.effective_n, 1.0))
    return n / (1 + min(1.0, n / counts.n_finite) * (burst - 1))


def label_bias(counts: WindowSummary, reference: WindowSummary | None, thresholds: Thresholds) -> LabelBias | None:
    """The bias of the labels of a window; None without labels.

    Labels of a drawn sample count alone, as soon as there are ``minimum_labels`` of them. With
    ``thresholds.trust_labels`` all labels count as a fair sample.

    References
    ----------
    Holt, D. and Smith, T. M. F. (1979). Post stratification. Journal of the Royal Statistical Society A
    142, 33-46.
    Manski, C. F. (1989). Anatomy of the selection problem. Journal of Human Resources 24, 343-360.
    """
    if not counts.n_labels:
        return None
    _, labelled, right, drawn, drawn_right = counts.strata
    n, hits, kind = counts.n_labels, counts.n_correct, "chosen" if counts.n_labels < counts.n_finite else "all"
    if not thresholds.trust_labels and drawn.sum() >= thresholds.minimum_labels:
        labelled, right, kind = drawn, drawn_right, "drawn"
        n, hits = int(drawn.sum()), int(drawn_right.sum())
    unweighted, total = hits / n, effective_labels(counts, n)
    estimate = unweighted, wilson(unweighted * total, total), total, unweighted, total
    axes = {} if thresholds.trust_labels else _differences(counts, labelled, total / n, thresholds)
    if axes:
        estimate = _weighted(counts, labelled, right, total / n, reference, tuple(axes))
    accuracy, interval, accuracy_n, best_case, best_case_n = estimate
    return LabelBias(
        kind=kind,
        fair=not axes,
        n=n,
        n_drawn=int(drawn.sum()),
        unweighted_accuracy=unweighted,
        accuracy=accuracy,
        interval=Interval(min(interval.low, accuracy), max(interval.high, accuracy)),  # also after rounding
        effective_n=total,
        accuracy_n=accuracy_n,
        best_case=best_case,
        best_case_n=best_case_n,
        difference=next(iter(axes.values()), ""),
        may_confirm=_can_confirm(kind, not axes, counts, reference, thresholds),
    )


def _can_confirm(
    kind: str, fair: bool, counts: WindowSummary, reference: WindowSummary | None, thresholds: Thresholds
) -> str:
    """The worst level that labels can confirm."""
    if thresholds.trust_labels or (kind == "drawn" and fair):
        return LEVELS[-1]
    least = LEVELS[-2] if fair else LEVELS[0]
    if reference is None or not reference.n_correct:
        return least
    # A drop that remains if every prediction without a label was right holds for any choice of labels.
    share = (counts.n_correct + counts.n_finite - counts.n_labels) / counts.n_finite
    n = effective_labels(counts, counts.n_finite)
    certain = degradation_lower_bound(share * n, n, reference.n_correct, reference.n, thresholds.confidence)
    return max(least, thresholds.level(certain), key=thresholds.severity)


def _differences(
    counts: WindowSummary, labelled: NDArray[np.int64], scale: float, thresholds: Thresholds
) -> dict[int, str]:
    """Differences of labelled from all predictions: axis (0 confidence, 1 class) to a clause.

    Two chi-square tests of the labelled and the other predictions, Bonferroni over them; a total variation below
    the threshold could not move accuracy by as much.
    """
    everything = counts.strata[0]
    others = everything - labelled
    if not others.any():
        return {}
    independent = counts.effective_n / counts.n_finite
    shape = len(BANDS), len(counts.classes)
    found = {}
    for axis in (0, 1):
        some, rest, whole = (part.reshape(shape).sum(axis=1 - axis) for part in (labelled, others, everything))
        p_value = chi_square(some * scale, rest * independent).p_value
        if 2 * p_value < SURE and total_variation(some, whole) >= thresholds.total_variation:
            found[axis] = _described(axis, some / some.sum(), whole / whole.sum())
    return found


def _described(axis: int, some: Floats, whole: Floats) -> str:
    """The largest difference as a clause."""
    if axis == 1:
        place = int(np.abs(some - whole).argmax())
        return f"one class is predicted in {some[place]:.0%} of them and in {whole[place]:.0%} of all"
    cut = int(np.abs(np.cumsum(some) - np.cumsum(whole))[:-1].argmax()) + 1
    return (
        f"{some[:cut].sum():.0%} of them are of a confidence below {BANDS[cut]:g}, and {whole[:cut].sum():.0%} of all"
    )


def _weighted(
    counts: WindowSummary,
    labelled: NDArray[np.int64],
    right: NDArray[np.int64],
    scale: float,
    reference: WindowSummary | None,
    axes: tuple[int, ...],
) -> tuple[float, Interval, float, float, float]:
    """Post-stratified accuracy, its interval and equivalent labels; the best case and its equivalent labels."""
    shape = len(BANDS), len(counts.classes)
    others = tuple(axis for axis in (0, 1) if axis not in axes)

    def strata(part: NDArray[np.int64]) -> Floats:
        return np.asarray(part.reshape(shape).sum(axis=others).ravel(), np.float64)

    shares, n, hits = strata(counts.strata[0]) / counts.n_finite, strata(labelled), strata(right)
    prior = np.full(len(shares), 0.5)
    if reference is not None and reference.n_labels:
        seen = strata(reference.strata[1])
        prior = (strata(reference.strata[2]) + reference.n_correct / reference.n_labels) / (seen + 1)
    weight = shares / (n + PRIOR_LABELS)
    accuracy, best, least = (
        float(weight @ (hits + PRIOR_LABELS * rest)) for rest in (prior, np.ones_like(prior), np.zeros_like(prior))
    )
    likely = (hits + 1) / (n + 2)  # Laplace's rule: a stratum without errors still varies
    variance = float((weight**2 * n) @ (likely * (1 - likely))) / scale
    low, high = (wilson(share * _n_of(share, variance), _n_of(share, variance)) for share in (least, best))
    return accuracy, Interval(low.low, high.high), _n_of(accuracy, variance), best, _n_of(best, variance)


def _n_of(share: float, variance: float) -> float:
    """Number of independent labels that give a share this variance."""
    likely = min(max(share, 1e-3), 1 - 1e-3)
    return max(likely * (1 - likely) / max(variance, 1e-12), 1.0)
