"""E-detectors: sequential tests that may be read after every prediction and keep a budget of false alarms.

A test that is repeated on a window fires sooner or later. The detectors here hold a set of bets instead, each
on one kind of change. A bet multiplies its stakes by a factor with a mean of at most 1 as long as nothing has
changed. At every step one more unit is staked on each bet; when the average worth of the bets passes A, the
detector raises an alarm and is reset. Without a change this takes A steps or more on average: at most
a million / A false alarms in a million steps, however often the detector is read.

    run_length = 1e6 / (10 * 1 / 3)                # each detector has a third of a budget of ten in a million
    labelled = ErrorDetector(right=4520, n=5000, run_length=run_length)
    confidence = RankDetector(reference, run_length)
    classes = ClassDetector(counts, run_length)
    for alarm in classes.update(predicted):
        ...

A reference of m images gives the mean of a factor with an error of about sd / sqrt(m), where sd is the standard
deviation of the factor. A lasting error of that kind would be taken for a change. So every factor is divided by
c = A ** (1 / m). A bet with a true mean factor of 1 + d raises false alarms at a rate of
A ** (2 (d - log c) / sd**2 - 1) (lognormal factors). The mean of that over d, normal with variance sd**2 / m, is
exp(2 log(A) (log(A) / m - log(c)) / sd**2) / A, which is 1 / A exactly when log c = log(A) / m, for every bet.
The budget thus holds on average over the references that could have been drawn. In simulations with 500 to
10,000 images the rate was between none and all of the budget, mostly half.

The budget does not hold for predictions that depend on each other: a burst of near-identical images from one
client is a change to any detector without knowledge of clients.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.monitoring.base.predictions import NO_CLASS
from toolkit.monitoring.stats.splitmix import GAMMA, splitmix64
from toolkit.statistics.detection_power import DROPS

ODDS = (0.25, 0.5, 2.0, 4.0)  # by which a class is bet to become rarer or more frequent
POWER = 0.6  # of the bets on few, extreme values; above 1/2, where the variance becomes infinite
DIRECTIONS = ("lower", "higher", "wider", "narrower")
DISCOUNT = 1 - 1 / 500  # weight that a label keeps with each that follows, in the search for bursts
UNUSUAL_RUN = 0.001  # chance below which a run of one kind is a burst
PRIOR_LABELS = 20.0  # labels that the reference counts as
SURE_REPEATS = 2.326  # standard errors that chance exceeds once in a hundred times
MIN_EFFECTIVE = 1 / 50  # of a label: constant answers are not one endless burst
MAX_UNIT = 1e6
MIN_WEIGHT = 1e-3  # of a label, below which a kind is dropped
MIN_RANK = 2.0**-53  # keeps a rank of exactly 0 from winning an infinite bet

Floats = NDArray[np.float64]
Change = tuple[str, int | None]


@dataclass(frozen=True)
class Alarm:
    """A change that chance does not explain within the budget.

    Parameters
    ----------
    index
        Position in the batch of the value that raised it.
    length
        Estimated number of values since the change began, including that at ``index``, without skipped ones.
    evidence
        Average worth of the bets, at least the detector's run length.
    change
        Of the strongest bet: ``worse``; ``lower``, ``higher``, ``wider`` or ``narrower``;
        ``rarer`` or ``more frequent``.
    label
        The class that is rarer or more frequent; else None.
    """

    index: int
    length: int
    evidence: float
    change: str
    label: int | None = None


def uniform_ties(numbers: ArrayLike) -> Floats:
    """Uniform numbers in (0, 1) that follow from whole numbers, the same on every machine.

    Made of the sequence numbers of predictions, they give other processes and a replay the same alarms.

    >>> uniform_ties([1, 2, 3]).round(4).tolist()
    [0.4315, 0.0264, 0.9709]
    """
    bits = splitmix64(np.asarray(numbers, np.int64).astype(np.uint64) * GAMMA)
    return np.asarray(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


class Detector:
    """Base of all detectors: the worth of the bets, and the alarm when it passes the run length.

    The worth of a bet is a Shiryaev-Roberts sum, ``M = (M + 1) * e``: the sum, over all starts, of the product of
    the factors since. It is bounded by A times the number of bets and never less than the last factor. The start
    of a change is estimated by the best-timed stake (the last reset of a CUSUM) on the strongest bet.

    ``changes`` names the kind of change that each of the J bets is on, and its class or None; ``m`` is the size of the
    reference, ``run_length`` the average number of steps to a false alarm, A, more than 1.

    References
    ----------
    Shin, J., Ramdas, A. and Rinaldo, A. (2024). E-detectors: a nonparametric framework for sequential
    change detection. New England Journal of Statistics in Data Science 2 (2), 229-260.
    Page, E. S. (1954). Continuous inspection schemes. Biometrika 41, 100-115.
    """

    def __init__(self, changes: Sequence[Change], m: int, run_length: float) -> None:
        self.run_length = run_length
        self._changes = changes
        self._discount = run_length ** (1 / m)
        self._shares = np.full(len(changes), 1 / len(changes))  # of each bet in the average
        # of each bet: steps since its best-timed stake, worth of all stakes, worth of the best-timed one
        self._state = np.zeros((3, len(changes)))

    @property
    def evidence(self) -> float:
        """Worth of the bets on a logarithmic scale in [0, 1], where 1 is an alarm; 0.2 to 0.6 without a change."""
        return min(1.0, math.log1p(float(self._state[1] @ self._shares)) / math.log1p(self.run_length))

    def state(self) -> dict[str, Any]:
        """The exact worth of all bets, ready for JSON."""
        return {"bets": base64.b64encode(self._state.astype("<f8").tobytes()).decode()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of ``state()``; ignored when it is of other bets."""
        values = np.frombuffer(base64.b64decode(state["bets"]), "<f8")
        if values.size == self._state.size:
            self._state[:] = values.reshape(self._state.shape)

    def _advance(self, places: Iterable[int], bets: Iterable[Floats]) -> list[Alarm]:
        """Take one step for each array of factors (J,); reset after each alarm."""
        alarms = []
        shares, enough = self._shares, self.run_length
        ages, total, best = self._state
        counted, worths = self._state[:2], self._state[1:]
        for place, bet in zip(places, bets, strict=True):
            ages *= best > 1  # a stake worth no more than a new one is replaced by it
            np.maximum(best, 1, out=best)
            counted += 1
            worths *= bet
            average = total @ shares
            if average >= enough:
                strongest = int(best.argmax())
                alarms.append(Alarm(place, int(ages[strongest]), float(average), *self._changes[strongest]))
                self._state[:] = 0
        return alarms


class BurstWeights:
    """Weights of labels, less than 1 for those that come in bursts of the same image.

    A label repeats when its true and predicted class are those of the label before. The excess of repeats over
    chance, in about the last 500 labels, gives their autocorrelation r, and each label the weight
    (1 - r) / (1 + r). The last label of a run of n that chance gives less than once in a thousand times has at
    most the weight 1 / n, so that the first burst counts too. Chance follows from the frequencies of the labels and
    of the reference: labels of one class only are not a burst as long as right and wrong ones mix.

    ``reference`` has the frequency of each kind of label, a whole number for a pair of true and predicted class, among
    the held-out images; it may be empty.

    Examples
    --------
    >>> bursts = BurstWeights({kind: 10.0 for kind in range(20)})
    >>> bursts.weights(np.repeat([3, 8, 5], 20)).round(2)[[0, 4, 30, 59]].tolist()
    [1.0, 0.2, 0.02, 0.02]
    """

    def __init__(self, reference: Mapping[int, float]) -> None:
        total = sum(reference.values())
        self._kinds = {kind: PRIOR_LABELS * n / total for kind, n in reference.items()}
        self._total = math.fsum(self._kinds.values())
        self._squares = math.fsum(n * n for n in self._kinds.values())
        self._pairs = self._repeats = 0.0
        self._unit = 1.0  # weight of the next label; grows, so that older ones count less
        self._last: int | None = None
        self._run = 0  # labels of the last kind in a row
        self._share = 1.0  # of that kind before the run

    def weights(self, kinds: NDArray[np.integer[Any]]) -> Floats:
        """(n,) weights in (0, 1] of the next labels, in the order in which they came."""
        return np.array([self._next(kind) for kind in kinds.tolist()], np.float64)

    def state(self) -> dict[str, Any]:
        """All counts, ready for JSON."""
        return {**vars(self), "_kinds": list(self._kinds.items())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of ``state()``."""
        vars(self).update(state, _kinds=dict(state["_kinds"]))

    def _next(self, kind: int) -> float:
        self._count(kind)
        repeated = self._autocorrelation()
        weight = max((1 - repeated) / (1 + repeated), MIN_EFFECTIVE)
        if (self._run - 1) * math.log(self._share) < math.log(UNUSUAL_RUN):
            weight = min(weight, 1 / self._run)
        self._unit /= DISCOUNT
        if self._unit > MAX_UNIT:
            self._rescale()
        return weight

    def _count(self, kind: int) -> None:
        before, same = self._kinds.get(kind, 0.0), kind == self._last
        if self._last is not None:
            self._pairs += self._unit
            self._repeats += self._unit * same
        if not same:
            # A new kind counts as one case.
            self._run, self._share = 0, (before + self._unit) / (self._total + self._unit)
        self._last, self._run = kind, self._run + 1
        self._kinds[kind] = before + self._unit
        self._squares += self._unit * (2 * before + self._unit)
        self._total += self._unit

    def _autocorrelation(self) -> float:
        """Autocorrelation of the kinds, 0 where chance explains it."""
        chance = self._squares / self._total**2
        if not self._pairs or chance >= 1:
            return 0.0
        found = (self._repeats / self._pairs - chance) / (1 - chance)
        return found if found > SURE_REPEATS * math.sqrt(self._unit / self._pairs) else 0.0

    def _rescale(self) -> None:
        """Count in larger units, and drop the kinds that hardly weigh any more."""
        scale = 1 / self._unit
        self._kinds = {kind: n * scale for kind, n in self._kinds.items() if n * scale > MIN_WEIGHT}
        self._total = math.fsum(self._kinds.values())
        self._squares = math.fsum(n * n for n in self._kinds.values())
        self._pairs, self._repeats, self._unit = self._pairs * scale, self._repeats * scale, 1.0


class ErrorDetector(Detector):
    """Detector of a drop of accuracy, by labels; made from the number of held-out images and of right ones among them.

    It bets on relative drops of accuracy of 5, 10, 20 and 30 %, each by the likelihood ratio of the error rate
    after that drop and the reference's. With 90 % of 10,000 held-out images right and one false alarm per million
    labels, a drop of 10 % is detected after a median of about 280 labels and one of 20 % after 80; with 500 images
    after 600 and 100.

    Notes
    -----
    In a burst of d equal labels each factor is raised to the power 1 / d. By Hoelder's inequality the product over
    the burst has a mean of at most 1 without a change, however its labels depend on each other: a burst counts as
    one label.

    Examples
    --------
    >>> import numpy as np
    >>> random = np.random.default_rng(1)
    >>> detector = ErrorDetector(right=9000, n=10_000, run_length=100_000)
    >>> detector.update(random.random(5000) < 0.9)
    []
    >>> alarm = detector.update(random.random(80) < 0.6)[0]
    >>> alarm.index, alarm.length, alarm.change
    (22, 22, 'worse')
    """

    def __init__(self, right: int, n: int, run_length: float, kinds: Mapping[int, float] | None = None) -> None:
        error_rate = (n - right + 1) / (n + 1)  # the next label counts as one more wrong answer
        drops = np.array(DROPS)
        super().__init__([("worse", None)] * len(DROPS), n, run_length)
        wrong = 1 + drops * (1 - error_rate) / error_rate
        self._factors = np.stack([wrong, 1 - drops]) / self._discount  # (2, J): of a wrong answer, a right one
        self._bursts = BurstWeights(kinds or {})

    def update(self, right: ArrayLike, kinds: ArrayLike | None = None) -> list[Alarm]:
        """Take in whether (n,) predictions were right, in the order in which their labels came.

        ``kinds`` (n,) has a whole number for each pair of true and predicted class, to recognise bursts of the same
        image; when None all labels count as independent.
        """
        bets = self._factors[np.asarray(right, np.intp)]
        if kinds is not None:
            bets = bets ** self._bursts.weights(np.asarray(kinds, np.int64))[:, None]
        return self._advance(range(len(bets)), bets)

    def state(self) -> dict[str, Any]:
        """The worth of all bets, and the counts of ``BurstWeights``."""
        return {**super().state(), "bursts": self._bursts.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of ``state()``."""
        super().restore(state)
        self._bursts.restore(state["bursts"])


class RankDetector(Detector):
    """Detector of a change of the distribution of a number, such as the confidence.

    Each value is replaced by its rank among the reference values, in (0, 1) and with ties broken at random, which
    is uniform as long as nothing has changed (a conformal p-value). It bets on ranks that are lower, higher, wider
    (nearer to both ends) or narrower, each in two forms: a power for a few extreme values, an exponential for many
    values that are shifted a little.

    References
    ----------
    Vovk, V. (2021). Testing randomness online. Statistical Science 36 (4), 595-611.

    Examples
    --------
    >>> import numpy as np
    >>> random = np.random.default_rng(0)
    >>> detector = RankDetector(random.normal(0, 1, 2000), run_length=100_000)
    >>> detector.update(random.normal(0, 1, 5000), uniform_ties(np.arange(5000)))
    []
    >>> alarm, = detector.update(random.normal(-1, 1, 50), uniform_ties(np.arange(5000, 5050)))
    >>> alarm.index, alarm.length, alarm.change
    (43, 34, 'lower')
    """

    def __init__(self, reference: ArrayLike, run_length: float) -> None:
        self._reference = np.sort(np.asarray(reference, np.float64))
        super().__init__([(name, None) for name in DIRECTIONS] * 2, len(self._reference), run_length)

    def update(self, values: ArrayLike, ties: ArrayLike) -> list[Alarm]:
        """Take in (n,) values in the order of their predictions; NaN is skipped.

        ``ties`` (n,) are independent uniform numbers in [0, 1]; ``uniform_ties`` makes some.
        """
        numbers, uniform = np.asarray(values, np.float64), np.asarray(ties, np.float64)
        places = np.flatnonzero(~np.isnan(numbers))
        return self._advance(places.tolist(), self._bets(self._ranks(numbers[places], uniform[places])))

    def _ranks(self, values: Floats, uniform: Floats) -> Floats:
        """(n,) in [0, 1]: the rank of each value among the reference values and itself."""
        below = np.searchsorted(self._reference, values, side="left")
        equal = np.searchsorted(self._reference, values, side="right") - below
        return np.asarray((below + uniform * (equal + 1)) / (len(self._reference) + 1))

    def _bets(self, ranks: Floats) -> Floats:
        """(n, J) factors; for each direction the ranks are turned so that its change is towards 0."""
        centred = np.abs(2 * ranks - 1)
        turned = np.stack([ranks, 1 - ranks, 1 - centred, centred], axis=1)  # (n, 4), uniform like the ranks
        power = POWER * np.maximum(turned, MIN_RANK) ** (POWER - 1)
        exponential = np.exp(-turned) * (math.e / (math.e - 1))
        return np.asarray(np.hstack([power, exponential]) / self._discount)


class ClassDetector(Detector):
    """Detector of classes that are predicted more or less often than before.

    It bets that the odds of each class are a quarter, half, twice or four times the reference's. A class without
    cases in the reference counts as one case.

    Examples
    --------
    >>> import numpy as np
    >>> detector = ClassDetector([5000, 3000, 2000, 0], run_length=100_000)
    >>> detector.update(np.random.default_rng(0).choice(3, 5000, p=[0.5, 0.3, 0.2]))
    []
    >>> alarm, = detector.update([0, 3, 1, 3] * 6)
    >>> alarm.index, alarm.length, alarm.change, alarm.label
    (11, 11, 'more frequent', 3)
    """

    def __init__(self, counts: ArrayLike, run_length: float) -> None:
        cases = np.asarray(counts, np.float64)
        m = int(cases.sum())
        odds = np.array(ODDS)
        share = (cases[:, None] + (odds > 1)) / (m + 1)  # the next case counts for the change of the bet
        others = 1 / (1 - share + share * odds)  # (K, 4), factors of any other class
        names = ["more frequent" if odd > 1 else "rarer" for odd in ODDS]
        changes = [(name, label) for label in range(len(cases)) for name in names]
        super().__init__(changes, m, run_length)
        self._others = others.ravel() / self._discount

    def update(self, predicted: ArrayLike) -> list[Alarm]:
        """Take in (n,) predicted classes in the order of their predictions; -1 is skipped."""
        classes = np.asarray(predicted, np.intp)
        places = np.flatnonzero(classes != NO_CLASS)
        return self._advance(places.tolist(), map(self._bets, classes[places].tolist()))

    def _bets(self, label: int) -> Floats:
        """(J,) factors, made one at a time since a table would have 4 K * K of them."""
        bets: Floats = self._others.copy()
        bets[len(ODDS) * label : len(ODDS) * (label + 1)] *= ODDS
        return bets
