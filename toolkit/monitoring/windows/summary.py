"""Counts of consecutive predictions that add up exactly and take a few kilobytes, however many they are of."""

import json
import math
import zlib
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import PredictionStoreError
from toolkit.monitoring.base.predictions import NO_CLASS
from toolkit.monitoring.stats import hypothesis_tests
from toolkit.monitoring.stats.performance_estimation import STEP
from toolkit.statistics.calibration import CALIBRATION_BINS

STEPS = 2**24  # every float16 in [0, 1] is a whole number of these steps, so that sums are exact

# Upper ends of the latency bins in milliseconds, from 0.01 ms to 84 s: 11 to a doubling, so that the middle of a bin is
# off by 3.2 % at most. The last of the 256 bins holds NaN, for predictions without a latency.
LATENCY_EDGES = np.append(0.01 * 2 ** (np.arange(254) / 11), np.finfo(np.float64).max)
LATENCY_BINS = len(LATENCY_EDGES) + 1

# Lower ends of the bands of confidence, narrower where most predictions of a good model are. A stratum is a band and a
# predicted class; labelled predictions are compared with all predictions by stratum.
BANDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
_BAND_STEPS = np.ceil(np.array(BANDS[1:]) * STEPS).astype(np.int64)
STRATA_ROWS = 5  # all predictions; labelled, right; labelled in a drawn sample, right

Whole = NDArray[np.int64]


class Edge(NamedTuple):
    """The first or last finite prediction: its confidence in steps of 2^-24, and its class."""

    confidence: int
    predicted: int


@dataclass(frozen=True, eq=False)
class WindowSummary:
    """Counts of consecutive predictions of one model version, made by ``ReferenceBins.count``.

    ``a + b`` is the summary of the predictions of ``a`` followed by those of ``b``.

    Parameters
    ----------
    fingerprint
        Of the bins; only summaries with the same bins can be added.
    classes
        (K,), how often each class was predicted.
    cells
        (T,), number of values in each bin of each quantity, in the order of ``ReferenceBins``.
    latency
        (256,), number of predictions in each bin of ``LATENCY_EDGES``; the last is of those without a latency.
    calibration
        (3, 15), of the labelled predictions in 15 equal bins of confidence: number, number right, and sum of the
        confidence in steps of 2^-24.
    scores
        (2,), sums of ``PerformanceEstimator.score`` in steps of 2^-20.
    strata
        (5, 12 K), of the predictions in each stratum (band * K + class): number, number labelled, number right;
        number labelled in a drawn sample, number right.
    confusion
        Number of labelled predictions by true class * K + predicted class, where not 0.
    n, non_finite
        Number of predictions, and of those with probabilities that are not finite.
    confidence_sum, confidence_sum_sq
        Sum of the confidence in steps of 2^-24, and of its square in steps of 2^-48.
    pairs, products, repeats
        Number of pairs of successive finite predictions; sum of the products of their confidences in steps of
        2^-48; number of pairs of the same class.
    since, until
        Earliest and latest time, seconds since 1970; infinity and minus infinity without predictions.
    head, tail
        The first and the last finite prediction, which make a pair where two summaries meet.

    Examples
    --------
    >>> from toolkit.monitoring.base.predictions import Predictions
    >>> from toolkit.monitoring.windows.reference import ReferenceBins
    >>> bins = ReferenceBins(("cat", "dog"))
    >>> morning = Predictions(("cat", "dog"), np.arange(2.0), np.array([0, 1]), np.array([0.75, 0.5]), np.array([0, 0]))
    >>> evening = Predictions(("cat", "dog"), np.array([9.0]), np.array([1]), np.array([1.0]), np.array([1]))
    >>> day = bins.count(morning) + bins.count(evening)
    >>> day.n, day.n_correct, day.n_labels, day.mean_confidence, day.classes.tolist()
    (3, 2, 3, 0.75, [1, 2])
    >>> WindowSummary.from_bytes(day.to_bytes()) == day
    True
    """

    fingerprint: str
    classes: Whole
    cells: Whole
    strata: Whole
    latency: Whole = field(default_factory=lambda: np.zeros(LATENCY_BINS, np.int64))
    calibration: Whole = field(default_factory=lambda: np.zeros((3, CALIBRATION_BINS), np.int64))
    scores: Whole = field(default_factory=lambda: np.zeros(2, np.int64))
    confusion: Counter[int] = field(default_factory=Counter)
    n: int = 0
    non_finite: int = 0
    confidence_sum: int = 0
    confidence_sum_sq: int = 0
    pairs: int = 0
    products: int = 0
    repeats: int = 0
    since: float = math.inf
    until: float = -math.inf
    head: Edge | None = None
    tail: Edge | None = None

    def __add__(self, other: Self) -> Self:
        """The summary of these predictions followed by those of ``other``."""
        return replace(
            self,
            **self._sums(1, other, self.tail, other.head),
            confusion=Counter(self.confusion + other.confusion),
            since=min(self.since, other.since),
            until=max(self.until, other.until),
            head=self.head or other.head,
            tail=other.tail or self.tail,
        )

    def minus_head(self, beginning: Self, head: Edge | None, since: float, until: float) -> Self:
        """The summary without the oldest predictions; the other arguments are the bounds of those that remain."""
        return replace(
            self,
            **self._sums(-1, beginning, beginning.tail, head),
            confusion=self.confusion - beginning.confusion,
            since=since,
            until=until,
            head=head,
            tail=self.tail if head else None,
        )

    def _sums(self, sign: int, other: Self, before: Edge | None, after: Edge | None) -> dict[str, Any]:
        """The sums with those of ``other`` and of the pair of predictions where the two meet, added or subtracted."""
        if self.fingerprint != other.fingerprint:
            raise PredictionStoreError(
                f"counts in the bins {self.fingerprint} and {other.fingerprint} cannot be put together"
            )
        joint = {}
        if before is not None and after is not None:
            repeats = int(before.predicted == after.predicted)
            joint = {"pairs": 1, "products": before.confidence * after.confidence, "repeats": repeats}
        return {name: getattr(self, name) + sign * (getattr(other, name) + joint.get(name, 0)) for name in _SUMS}

    def with_labels(
        self, predicted: Whole, confidence: Whole, old: Whole, new: Whole, drawn: tuple[Any, Any] = (False, False)
    ) -> Self:
        """The summary after some labels were added, changed or removed.

        Parameters
        ----------
        predicted, confidence
            (m,), class and confidence in steps of 2^-24 of those predictions.
        old, new
            (m,), their labels before and now; -1 for none.
        drawn
            (m,) and (m,), whether they were labels of a drawn sample before and now.
        """
        confusion, calibration, strata = Counter(self.confusion), self.calibration.copy(), self.strata.copy()
        for sign, labels, sampled in ((-1, old, drawn[0]), (1, new, drawn[1])):
            known = (labels != NO_CLASS) & (predicted != NO_CLASS)
            codes, numbers = np.unique(labels[known] * len(self.classes) + predicted[known], return_counts=True)
            for code, number in zip(codes.tolist(), numbers.tolist(), strict=True):
                confusion[code] += sign * number
            place = np.minimum(confidence[known] * CALIBRATION_BINS // STEPS, CALIBRATION_BINS - 1)
            for row, weights in enumerate((None, labels[known] == predicted[known], confidence[known])):
                calibration[row] += sign * np.bincount(place, weights, CALIBRATION_BINS).astype(np.int64)
            hit = known & (labels == predicted)
            for row, which in enumerate((known, hit, known & sampled, hit & sampled), start=1):
                strata[row] += sign * count_strata(predicted[which], confidence[which], len(self.classes))
        held = Counter({k: v for k, v in confusion.items() if v})
        return replace(self, confusion=held, calibration=calibration, strata=strata)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WindowSummary) and all(
            np.array_equal(getattr(self, entry.name), getattr(other, entry.name)) for entry in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have none

    @property
    def n_finite(self) -> int:
        """Number of finite predictions."""
        return self.n - self.non_finite

    @property
    def n_labels(self) -> int:
        """Number of finite predictions with a label."""
        return int(self.calibration[0].sum())

    @property
    def n_correct(self) -> int:
        """Number of labelled predictions that were right."""
        return int(self.calibration[1].sum())

    @property
    def confusion_matrix(self) -> Whole:
        """(K true, K predicted), counts of labelled predictions."""
        k = len(self.classes)
        matrix = np.zeros(k * k, np.int64)
        matrix[list(self.confusion)] = list(self.confusion.values())
        return matrix.reshape(k, k)

    @property
    def score_sums(self) -> NDArray[np.float64]:
        """(2,), sums of ``PerformanceEstimator.score``."""
        return np.asarray(self.scores * STEP)

    @property
    def confidence(self) -> hypothesis_tests.Moments:
        """Number, mean and standard deviation of the confidence; NaN where there are too few predictions."""
        n = self.n_finite
        spread = n * self.confidence_sum_sq - self.confidence_sum**2  # exact, so never below 0
        deviation = math.sqrt(spread / (n * (n - 1))) / STEPS if n > 1 else math.nan
        return hypothesis_tests.Moments(n, self.confidence_sum / n / STEPS if n else math.nan, deviation)

    @property
    def mean_confidence(self) -> float:
        """Mean of the confidence; NaN without finite predictions."""
        return self.confidence.mean

    @property
    def autocorrelation(self) -> float:
        """Lag-1 autocorrelation of confidence or of class, whichever is larger; 0 without pairs.

        Near 0 for independent images, near 1 when one image is sent again and again.
        """
        if not self.pairs:
            return 0.0
        n = self.n_finite
        chance = float((self.classes / n) @ (self.classes / n))
        variance = n * self.confidence_sum_sq - self.confidence_sum**2  # times n * n
        covariance = n * n * self.products - self.pairs * self.confidence_sum**2  # times n * n * pairs
        confidence = covariance / (self.pairs * variance) if variance else 0.0
        repeats = (self.repeats / self.pairs - chance) / (1 - chance) if chance < 1 else 0.0
        return max(confidence, repeats)

    @property
    def effective_n(self) -> float:
        """Number of independent predictions that the finite ones are equivalent to."""
        return hypothesis_tests.effective_sample_size(self.n_finite, self.autocorrelation, self.pairs)

    def latency_quantile(self, share: float) -> float | None:
        """Quantile of the latencies in milliseconds, within 3.2 %; None without latencies."""
        reached = np.cumsum(self.latency[:-1])
        if not reached[-1]:
            return None
        place = int(np.searchsorted(reached, max(1, math.ceil(share * int(reached[-1])))))
        low, high = LATENCY_EDGES[max(place - 1, 0)], LATENCY_EDGES[min(place, len(LATENCY_EDGES) - 2)]
        return float(math.sqrt(low * high))

    def to_bytes(self) -> bytes:
        """The summary in a few kilobytes, with a checksum."""
        codes = sorted(self.confusion)
        arrays = {name: getattr(self, name).ravel() for name in _ARRAYS}
        arrays |= {"codes": np.array(codes, np.int64), "numbers": np.array([*map(self.confusion.get, codes)], np.int64)}
        small = {name: values.astype(_smallest(values)) for name, values in arrays.items()}
        header = {
            "numbers": {name: getattr(self, name) for name in _NUMBERS},
            "arrays": {name: [values.dtype.str, len(values)] for name, values in small.items()},
        }
        body = zlib.compress(b"\n".join([json.dumps(header).encode(), b"".join(map(bytes, small.values()))]))
        return _MAGIC + zlib.crc32(body).to_bytes(4) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote; a ``PredictionStoreError`` when it is damaged."""
        start = len(_MAGIC) + 4
        body = data[start:]
        if data[:start] != _MAGIC + zlib.crc32(body).to_bytes(4):
            raise PredictionStoreError(f"a summary is damaged: the checksum of its {len(data):,} bytes is wrong")
        try:
            numbers, arrays = _unpacked(body)
            confusion = Counter(dict(zip(arrays.pop("codes").tolist(), arrays.pop("numbers").tolist(), strict=True)))
            arrays["calibration"] = arrays["calibration"].reshape(3, CALIBRATION_BINS)
            arrays["strata"] = arrays["strata"].reshape(STRATA_ROWS, len(BANDS) * len(arrays["classes"]))
            numbers |= {name: Edge(*numbers[name]) if numbers[name] else None for name in ("head", "tail")}
            counts = cls(**numbers, **arrays, confusion=confusion)
            if counts.n != counts.non_finite + counts.classes.sum() or len(counts.latency) != LATENCY_BINS:
                raise ValueError("its numbers contradict each other")
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise PredictionStoreError(f"a summary is damaged: {error}") from None
        return counts


_MAGIC = b"counts 1\n"
_MAX_BYTES = 2**28  # uncompressed; ten thousand classes take a twentieth of it
_ARRAYS = ("classes", "cells", "latency", "calibration", "scores", "strata")
_SUMS = (*_ARRAYS, "n", "non_finite", "confidence_sum", "confidence_sum_sq", "pairs", "products", "repeats")
_NUMBERS = ("fingerprint", *_SUMS[len(_ARRAYS) :], "since", "until", "head", "tail")


def inner_product(a: Whole, b: Whole) -> int:
    """Sum of products of confidences in steps, exact beyond 64 bits.

    >>> inner_product(np.full(40_000, STEPS), np.full(40_000, STEPS)) == 40_000 * STEPS**2
    True
    """
    products = a * b  # each at most 2^48 and a little
    return (int((products >> 24).sum()) << 24) + int((products & (STEPS - 1)).sum())


def count_strata(predicted: Whole, confidence: Whole, k: int) -> Whole:
    """(12 k,), predictions in each band of confidence and class; confidence in steps of 2^-24.

    >>> np.flatnonzero(count_strata(np.array([1, 1]), np.array([STEPS // 2, STEPS]), 2)).tolist()
    [7, 23]
    """
    band = np.searchsorted(_BAND_STEPS, confidence, side="right")
    return np.bincount(band * k + predicted, minlength=len(BANDS) * k).astype(np.int64)


def _smallest(values: Whole) -> np.dtype[Any]:
    """The smallest type of the values, which are not negative."""
    return np.min_scalar_type(int(values.max(initial=0))).newbyteorder("<")


def _unpacked(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers and the arrays of a summary."""
    inflate = zlib.decompressobj()
    text = inflate.decompress(body, _MAX_BYTES)
    if not inflate.eof:
        raise ValueError(f"it has no end, or more than {_MAX_BYTES:,} bytes")
    end = text.index(b"\n") + 1
    header = json.loads(text[:end])
    arrays = {}
    for name, (kind, length) in header["arrays"].items():
        arrays[name] = np.frombuffer(text, kind, length, end).astype(np.int64)
        end += arrays[name].size * np.dtype(kind).itemsize
    return header["numbers"], arrays
