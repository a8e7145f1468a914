"""Model versions side by side, from what each did on its held-out pictures.

A picture's content decides whether it is held out, so versions share held-out pictures that none of
them has seen, and can be compared picture by picture, which tells small differences apart that two
separate accuracies cannot.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from toolkit.baseline import Baseline
from toolkit.bundle import Card
from toolkit.registry.versions import Version

CONFIDENCE = 0.95
CARD_METRICS = (
    "precision_weighted",
    "recall_weighted",
    "f1_weighted",
    "mean_cv_accuracy",
    "calibration_error",
)


@dataclass(frozen=True)
class Candidate:
    """A version with what its bundle holds, and the size of the bundle in bytes."""

    version: Version
    card: Card
    baseline: Baseline
    size: int


@dataclass(frozen=True)
class Paired:
    """Two versions on the pictures that both held out.

    Parameters
    ----------
    pictures
        How many they share.
    accuracy
        Of the second version, on those.
    lost, gained
        Pictures that only the first, and only the second, classified rightly.
    """

    pictures: int
    accuracy: float
    lost: int
    gained: int

    @property
    def p_value(self) -> float:
        """McNemar's exact test that both are right equally often; NaN when they share no picture.

        >>> Paired(pictures=20, accuracy=0.9, lost=1, gained=6).p_value
        0.125
        """
        return mcnemar(self.lost, self.gained) if self.pictures else math.nan


def wilson(right: int, pictures: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, sound for small samples and near 0 and 1.

    References
    ----------
    E. B. Wilson: Probable inference, the law of succession, and statistical inference.
    Journal of the American Statistical Association 22, 1927.

    Examples
    --------
    >>> low, high = wilson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    if not pictures:
        return math.nan, math.nan
    interval = binomtest(right, pictures).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    Only the pictures on which two classifiers disagree tell them apart; if both are equally good,
    each disagreement falls to either side like a fair coin.

    References
    ----------
    Q. McNemar: Note on the sampling error of the difference between correlated proportions or
    percentages. Psychometrika 12, 1947.

    Examples
    --------
    >>> mcnemar(0, 5), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    disagreements = lost + gained
    return float(binomtest(lost, disagreements).pvalue) if disagreements else 1.0


def pair(first: Baseline, second: Baseline) -> Paired:
    """Compare two versions on the pictures that both held out under the same class name."""
    before, after = _verdicts(first), _verdicts(second)
    shared = before.keys() & after.keys()
    return Paired(
        pictures=len(shared),
        accuracy=sum(after[picture] for picture in shared) / len(shared) if shared else math.nan,
        lost=sum(before[picture] and not after[picture] for picture in shared),
        gained=sum(after[picture] and not before[picture] for picture in shared),
    )


def side_by_side(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """One row a version; the paired figures are against the first, which has none of its own.

    Columns that begin with ``setting.`` and ``data.`` are those in which the versions differ.
    """
    rows = [_row(candidate, candidates[0]) for candidate in candidates]
    for prefix, values in (
        ("setting.", [candidate.card.settings for candidate in candidates]),
        ("data.", [candidate.card.data for candidate in candidates]),
    ):
        for name in differing(values):
            for row, value in zip(rows, values, strict=True):
                row[prefix + name] = value.get(name)
    return pd.DataFrame(rows).set_index("version")


def differing(values: Iterable[dict[str, Any]]) -> list[str]:
    """The names whose values are not the same in all.

    >>> differing([{"seed": 1, "epochs": 5}, {"seed": 2, "epochs": 5}, {"seed": 1}])
    ['epochs', 'seed']
    """
    every = list(values)
    names = sorted({name for each in every for name in each})
    return [name for name in names if any(each.get(name) != every[0].get(name) for each in every)]


def _verdicts(baseline: Baseline) -> dict[tuple[str, str], bool]:
    """Whether each picture, known by content hash and true class, was classified rightly."""
    if not len(baseline.hashes):
        return {}
    right = baseline.predicted == baseline.labels
    return {
        (str(content), baseline.classes[label]): bool(verdict)
        for content, label, verdict in zip(baseline.hashes, baseline.labels, right, strict=True)
    }


def _row(candidate: Candidate, first: Candidate) -> dict[str, Any]:
    version, card, baseline = candidate.version, candidate.card, candidate.baseline
    low, high = wilson(int((baseline.predicted == baseline.labels).sum()), baseline.size)
    row: dict[str, Any] = {
        "version": version.version,
        "stage": version.stage,
        "network": card.network,
        "image_size": card.image_size,
        "accuracy": baseline.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "pictures": baseline.size,
    }
    paired = pair(first.baseline, baseline)
    row |= {"shared_pictures": paired.pictures, "shared_accuracy": paired.accuracy}
    itself = candidate is first
    row |= {
        "gained": None if itself else paired.gained,
        "lost": None if itself else paired.lost,
        "p_value": math.nan if itself else paired.p_value,
    }
    measured = dict(version.metrics) | {name: metric.value for name, metric in card.metrics.items()}
    row |= {name: measured.get(name, math.nan) for name in CARD_METRICS}
    return row | {"size_mb": candidate.size / 1e6, "created": version.created}
