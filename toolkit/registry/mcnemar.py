"""Two versions on the same images, image by image.

An image's content decides whether it is held out, so versions share held-out images that none of
them has seen. Two separate accuracies leave the luck of the images in their difference; compared
image by image only the disagreements count, which tells much smaller differences apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from toolkit.bundle.baseline import Baseline
from toolkit.statistics.intervals import mcnemar

CONFIDENCE = 0.95
Outcomes = dict[tuple[str, str], bool]  # whether the image with that content hash and true class was classified rightly


@dataclass(frozen=True)
class PairedCounts:
    """How two versions agree on a number of images.

    Parameters
    ----------
    both, neither
        Images that both, and that none of them classified rightly.
    lost, gained
        Images that only the first, and only the second, classified rightly.
    """

    both: int = 0
    lost: int = 0
    gained: int = 0
    neither: int = 0

    @property
    def images(self) -> int:
        """How many there are."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def accuracies(self) -> tuple[float, float]:
        """Of the first and of the second version, on these images; NaN when there is none."""
        if not self.images:
            return math.nan, math.nan
        return (self.both + self.lost) / self.images, (self.both + self.gained) / self.images

    @property
    def p_value(self) -> float:
        """McNemar's exact test that both are right equally often; NaN when there is no image.

        >>> Tally(both=13, lost=1, gained=6).p_value
        0.125
        """
        return mcnemar(self.lost, self.gained) if self.images else math.nan

    @property
    def difference(self) -> tuple[float, float, float]:
        """The second accuracy less the first, with a 95 % interval; NaN when there is no image.

        The interval is Wald's after half an image was added to each of the four counts, which keeps
        its promise for small samples too.

        References
        ----------
        A. Agresti, Y. Min: Simple improved confidence intervals for comparing matched proportions.
        Statistics in Medicine 24, 2005.

        Examples
        --------
        >>> [round(value, 4) for value in Tally(both=80, lost=2, gained=8, neither=10).difference]
        [0.06, -0.0039, 0.1215]
        """
        if not self.images:
            return math.nan, math.nan, math.nan
        n, lost, gained = self.images + 2, self.lost + 0.5, self.gained + 0.5
        middle = (gained - lost) / n
        half = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((lost + gained) / n - middle**2) / math.sqrt(n)
        return (self.gained - self.lost) / self.images, max(-1.0, middle - half), min(1.0, middle + half)

    def __add__(self, other: "PairedCounts") -> "PairedCounts":
        return PairedCounts(
            self.both + other.both, self.lost + other.lost, self.gained + other.gained, self.neither + other.neither
        )


@dataclass(frozen=True)
class PairedComparison:
    """Two versions on the images that both were measured on, by true class.

    Examples
    --------
    >>> Paired({"cat": Tally(both=4, lost=1), "dog": Tally(both=5)}).whole.images
    10
    """

    by_class: dict[str, PairedCounts]

    @property
    def whole(self) -> PairedCounts:
        """All classes together."""
        return sum(self.by_class.values(), PairedCounts())


def pair_by_hash(first: Baseline, second: Baseline) -> PairedComparison:
    """Compare two versions on the images that both were measured on under the same class name."""
    before, after = _verdicts(first), _verdicts(second)
    counts: dict[str, dict[tuple[bool, bool], int]] = {}
    for image in before.keys() & after.keys():
        outcomes = counts.setdefault(image[1], {})
        outcome = before[image], after[image]
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return PairedComparison({name: _tally(counts[name]) for name in sorted(counts)})


def on_shared(baselines: Sequence[Baseline]) -> list[Baseline]:
    """The part of each that is about the images which all were measured on under the same class name.

    Where there is no such image, the baselines as they are.

    Examples
    --------
    >>> import numpy as np
    >>> def baseline(*hashes):
    ...     return Baseline(("cat",), np.ones((len(hashes), 1)), np.zeros(len(hashes)), np.array(hashes))
    >>> [part.hashes.tolist() for part in on_shared([baseline("a", "b"), baseline("b", "c", "a")])]
    [['a', 'b'], ['b', 'a']]
    """
    names = [_names(baseline) for baseline in baselines]
    shared = set(names[0]).intersection(*names[1:])
    if not shared:
        return list(baselines)
    return [
        _part(baseline, np.array([name in shared for name in each]))
        for baseline, each in zip(baselines, names, strict=True)
    ]


def _tally(outcomes: dict[tuple[bool, bool], int]) -> PairedCounts:
    return PairedCounts(
        both=outcomes.get((True, True), 0),
        lost=outcomes.get((True, False), 0),
        gained=outcomes.get((False, True), 0),
        neither=outcomes.get((False, False), 0),
    )


def _verdicts(baseline: Baseline) -> Outcomes:
    right = (baseline.predicted == baseline.labels).tolist()
    return dict(zip(_names(baseline), right, strict=False))


def _names(baseline: Baseline) -> list[tuple[str, str]]:
    """The content hash and the true class of each image; none where the hashes are not known."""
    if not len(baseline.hashes):
        return []
    return [
        (str(content), baseline.classes[label]) for content, label in zip(baseline.hashes, baseline.labels, strict=True)
    ]


def _part(baseline: Baseline, chosen: NDArray[np.bool_]) -> Baseline:
    statistics = {name: column[chosen] for name, column in baseline.statistics.items()}
    return Baseline(
        baseline.classes, baseline.probabilities[chosen], baseline.labels[chosen], baseline.hashes[chosen], statistics
    )
