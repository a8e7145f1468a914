"""What the labels of a window can bear: whether they are a fair sample of its predictions, and what follows if not.

Labels of a sample drawn at random speak for the whole window. Labels of another choice may be those of
the hardest images, of the easiest, or of one class. So the labelled predictions are compared with all of
the window, by confidence and by predicted class. Where they differ, accuracy is estimated by
post-stratification: each stratum (band of confidence, class, or both: whatever differs) counts with its
share of all predictions. What few labels, or none, tell of a stratum is taken to be as on the held-out
images; the interval counts that part as all wrong and as all right.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.cli.commands import command_line
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.stats.hypothesis_tests import chi_square, degradation_lower_bound, total_variation
from toolkit.monitoring.windows.summary import BANDS, WindowSummary
from toolkit.statistics.intervals import Interval, wilson

SURE = 0.001  # chance that a fair sample is taken for an unfair one
USUAL_LABELS = 5.0  # that the held-out images count for in each stratum, beside the labels in it
COMMAND = command_line("monitoring", "labels")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelBias:
    """The labelled predictions of a window that its accuracy is told from.

    Parameters
    ----------
    kind
        ``drawn`` by the monitor at random; ``all`` of the predictions; ``chosen`` in another way.
    fair
        Whether they look like the predictions of the window; None where that is not known.
    n
        How many there are.
    told
        Share of them that was right.
    accuracy, interval
        Of the window: as told when the sample is fair, else weighted; with its 95 % interval.
    effective_n
        How many independent labels they are worth.
    accuracy_n
        How many would be as certain of ``accuracy``, if what they do not tell is as on the held-out images.
    best, best_n
        The accuracy if all that they do not tell was right, and how many labels would be as certain of it.
    difference
        Where they differ most, as a clause; empty when they are fair.
    may_confirm
        The worst level that they can confirm.
    """

    kind: str
    fair: bool | None
    n: int
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
        """What a reader must know of them, as a clause; empty when they are a fair sample that was drawn.

        >>> half = Interval(0.4, 0.6)
        >>> LabelBias("chosen", True, 60, 0.5, 0.5, half, 60, 60, 0.5, 60, "", "critical").note
        'labels of a choice of your own, which confirm no more than critical: see python monitoring.py labels'
        """
        confirms = "nothing" if self.may_confirm == LEVELS[0] else f"no more than {self.may_confirm}"
        if self.fair is False:
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
    """How many independent labels the labels of a window are worth, when its predictions come in bursts.

    Predictions that are worth 1 / d each are labels that are worth 1 / d each when all are labelled. Of a
    burst of which a share f is labelled, they are worth 1 / (1 + f (d - 1)).

    Parameters
    ----------
    n
        How many of the predictions are labelled; as many as the counts say when None.

    References
    ----------
    Kish, L. (1965). Survey Sampling. Wiley, section 5.4: the design effect of clusters of a size.
    """
    n = counts.n_labels if n is None else n
    if not n:
        return 0.0
    apiece = max(1.0, counts.n_finite / max(counts.effective_n, 1.0))
    return n / (1 + min(1.0, n / counts.n_finite) * (apiece - 1))


def label_bias(counts: WindowSummary, reference: WindowSummary | None, thresholds: Thresholds) -> LabelBias | None:
    """The labels of a window and what they can bear; None when there is none.

    Labels of a drawn sample count alone, as soon as there are enough of them: those of another choice
    beside them would only blur it.

    Parameters
    ----------
    reference
        What the held-out images gave; none for a model without a baseline.
    thresholds
        With ``trust_labels`` all labels count as those of a fair sample.

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
    told, worth = hits / n, effective_labels(counts, n)
    accuracy, interval, accuracy_n, best, best_n = told, wilson(told * worth, worth), worth, told, worth
    axes = {} if thresholds.trust_labels else _differences(counts, labelled, worth / n, thresholds)
    if axes:
        accuracy, interval, accuracy_n, best, best_n = _weighted(
            counts, labelled, right, worth / n, reference, tuple(axes)
        )
    interval = Interval(min(interval.low, accuracy), max(interval.high, accuracy))  # whatever rounding does
    fair = None if axes is None else not axes
    bears = _can_confirm(kind, fair, counts, reference, thresholds)
    return LabelBias(
        kind, fair, n, told, accuracy, interval, worth, accuracy_n, best, best_n,
        next(iter(axes.values())) if axes else "", bears,
    )  # fmt: skip


def _can_confirm(
    kind: str, fair: bool | None, counts: WindowSummary, reference: WindowSummary | None, thresholds: Thresholds
) -> str:
    """The worst level that labels can confirm."""
    if thresholds.trust_labels or (kind == "drawn" and fair):
        return LEVELS[-1]
    least = LEVELS[-2] if fair else LEVELS[0]
    if reference is None or not reference.n_correct:
        return least
    # What holds even if every prediction without a label was right holds whoever chose the labels.
    worst = (counts.n_correct + counts.n_finite - counts.n_labels) / counts.n_finite
    worth = effective_labels(counts, counts.n_finite)
    certain = degradation_lower_bound(worst * worth, worth, reference.n_correct, reference.n, thresholds.confidence)
    return max(least, thresholds.level(certain), key=thresholds.severity)


def _differences(
    counts: WindowSummary, labelled: NDArray[np.int64], scale: float, thresholds: Thresholds
) -> dict[int, str] | None:
    """Where labelled predictions differ from all: axis (0 confidence, 1 class) to a clause; None if not known.

    Two chi-square tests of the labelled and the other predictions, Bonferroni over them; a difference of
    less than a twentieth of the predictions could not move accuracy by as much.
    """
    everything = counts.strata[0]
    if int(everything.sum()) != counts.n_finite:
        return None
    others = everything - labelled
    if not others.any():
        return {}
    kept = counts.effective_n / counts.n_finite
    shape = len(BANDS), len(counts.classes)
    found = {}
    for axis in (0, 1):
        told, rest, whole = (part.reshape(shape).sum(axis=1 - axis) for part in (labelled, others, everything))
        p_value = chi_square(told * scale, rest * kept).p_value
        if 2 * p_value < SURE and total_variation(told, whole) >= thresholds.total_variation:
            found[axis] = _described(axis, told / told.sum(), whole / whole.sum())
    return found


def _described(axis: int, told: Floats, whole: Floats) -> str:
    """The largest difference as a clause."""
    if axis == 1:
        place = int(np.abs(told - whole).argmax())
        return f"one class is predicted in {told[place]:.0%} of them and in {whole[place]:.0%} of all"
    cut = int(np.abs(np.cumsum(told) - np.cumsum(whole))[:-1].argmax()) + 1
    return (
        f"{told[:cut].sum():.0%} of them are of a confidence below {BANDS[cut]:g}, and {whole[:cut].sum():.0%} of all"
    )


def _weighted(
    counts: WindowSummary,
    labelled: NDArray[np.int64],
    right: NDArray[np.int64],
    scale: float,
    reference: WindowSummary | None,
    axes: tuple[int, ...],
) -> tuple[float, Interval, float, float, float]:
    """Post-stratified accuracy, its interval and what it is worth; the accuracy at best, and what that is worth."""
    shape = len(BANDS), len(counts.classes)
    others = tuple(axis for axis in (0, 1) if axis not in axes)

    def strata(part: NDArray[np.int64]) -> Floats:
        return np.asarray(part.reshape(shape).sum(axis=others).ravel(), np.float64)

    shares, told, hits = strata(counts.strata[0]) / counts.n_finite, strata(labelled), strata(right)
    usual = np.full(len(shares), 0.5)
    if reference is not None and reference.n_labels:
        seen = strata(reference.strata[1])
        usual = (strata(reference.strata[2]) + reference.n_correct / reference.n_labels) / (seen + 1)
    weight = shares / (told + USUAL_LABELS)
    accuracy, best, least = (
        float(weight @ (hits + USUAL_LABELS * rest)) for rest in (usual, np.ones_like(usual), np.zeros_like(usual))
    )
    likely = (hits + 1) / (told + 2)  # Laplace's rule: a stratum without errors still varies
    variance = float((weight**2 * told) @ (likely * (1 - likely))) / scale
    low, high = (wilson(share * _plain(share, variance), _plain(share, variance)) for share in (least, best))
    return accuracy, Interval(low.low, high.high), _plain(accuracy, variance), best, _plain(best, variance)


def _plain(share: float, variance: float) -> float:
    """Independent labels that would be as certain of a share."""
    likely = min(max(share, 1e-3), 1 - 1e-3)
    return max(likely * (1 - likely) / max(variance, 1e-12), 1.0)
