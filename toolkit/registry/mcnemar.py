"""McNemar's comparison of two versions, image by image.

An image's content decides whether it is held out, so versions share held-out images that none of them has
seen. The difference of two separate accuracies has the variance of both samples; compared image by image
only the disagreements count, so that much smaller differences become significant.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from toolkit.bundle.baseline import Baseline
from toolkit.statistics.intervals import mcnemar

CONFIDENCE = 0.95
Outcomes = dict[tuple[str, str], bool]  # by content hash and true class: whether the prediction was correct


@dataclass(frozen=True)
class PairedCounts:
    """Agreement of two versions: numbers of images by which of the two classified them correctly."""

    both: int = 0
    lost: int = 0  # only the first
    gained: int = 0  # only the second
    neither: int = 0

    @property
    def images(self) -> int:
        """Number of images."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def accuracies(self) -> tuple[float, float]:
        """Accuracy of the first and of the second version; NaN without images."""
        if not self.images:
            return math.nan, math.nan
        return (self.both + self.lost) / self.images, (self.both + self.gained) / self.images

    @property
    def p_value(self) -> float:
        """McNemar's exact test that both are correct equally often; NaN without images.

        >>> PairedCounts(both=13, lost=1, gained=6).p_value
        0.125
        """
        return mcnemar(self.lost, self.gained) if self.images else math.nan

    @property
    def difference(self) -> tuple[float, float, float]:
        """The second accuracy minus the first, and its 95 % interval; NaN without images.

        The interval is Wald's after adding half an image to each of the four counts, which keeps its coverage
        for small samples too.

        References
        ----------
        A. Agresti, Y. Min: Simple improved confidence intervals for comparing matched proportions.
        Statistics in Medicine 24, 2005.

        Examples
        --------
        >>> [round(value, 4) for value in PairedCounts(both=80, lost=2, gained=8, neither=10).difference]
        [0.06, -0.0039, 0.1215]
        """
        if not self.images:
            return math.nan, math.nan, math.nan
        n, lost, gained = self.images + 2, self.lost + 0.5, self.gained + 0.5
        middle = (gained - lost) / n
        half = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((lost + gained) / n - middle**2) / math.sqrt(n)
        return (self.gained - self.lost) / self.images, max(-1.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class PairedComparison:
    """Two versions on the images that both were measured on, by true class.

    Examples
    --------
    >>> PairedComparison({"cat": PairedCounts(both=4, lost=1), "dog": PairedCounts(both=5)}).whole.images
    10
    """

    by_class: dict[str, PairedCounts]

    @property
    def whole(self) -> PairedCounts:
        """All classes together."""
        return PairedCounts(*map(sum, zip(*map(astuple, self.by_class.values()), strict=True)))


def pair_by_hash(first: Baseline, second: Baseline) -> PairedComparison:
    """Compare two versions on the images that both were measured on under the same class name."""
    before, after = _outcomes(first), _outcomes(second)
    counts: dict[str, Counter[tuple[bool, bool]]] = defaultdict(Counter)
    for image in before.keys() & after.keys():
        counts[image[1]][before[image], after[image]] += 1
    outcomes = (True, True), (True, False), (False, True), (False, False)  # in the order of the fields
    return PairedComparison(
        {name: PairedCounts(*[found[each] for each in outcomes]) for name, found in sorted(counts.items())}
    )


def on_shared(baselines: Sequence[Baseline]) -> list[Baseline]:
    """The part of each baseline with the images that all have under the same class name.

    Without such images, the baselines as they are.

    Examples
    --------
    >>> import numpy as np
    >>> def baseline(*hashes):
    ...     return Baseline(("cat",), np.ones((len(hashes), 1)), np.zeros(len(hashes)), np.array(hashes))
    >>> [part.hashes.tolist() for part in on_shared([baseline("a", "b"), baseline("b", "c", "a")])]
    [['a', 'b'], ['b', 'a']]
    """
    images = [_images(baseline) for baseline in baselines]
    shared = set(images[0]).intersection(*images[1:])
    if not shared:
        return list(baselines)
    chosen = [np.array([image in shared for image in each]) for each in images]
    return [_part(baseline, some) for baseline, some in zip(baselines, chosen, strict=True)]


def are_same_images(baselines: Sequence[Baseline]) -> bool:
    """Whether all baselines are of the same images, under the same class names."""
    images = [set(_images(baseline)) for baseline in baselines]
    return all(
        each == images[0] and len(each) == baseline.size for each, baseline in zip(images, baselines, strict=True)
    )


def _outcomes(baseline: Baseline) -> Outcomes:
    return dict(zip(_images(baseline), (baseline.predicted == baseline.labels).tolist(), strict=False))


def _images(baseline: Baseline) -> list[tuple[str, str]]:
    """The content hash and the true class of each image; empty without hashes."""
    labels = baseline.labels[: len(baseline.hashes)]
    return [(str(content), baseline.classes[label]) for content, label in zip(baseline.hashes, labels, strict=True)]


def _part(baseline: Baseline, chosen: NDArray[np.bool_]) -> Baseline:
    columns = {name: getattr(baseline, name)[chosen] for name in ("probabilities", "labels", "hashes")}
    statistics = {name: column[chosen] for name, column in baseline.statistics.items()}
    return replace(baseline, **columns, statistics=statistics)
