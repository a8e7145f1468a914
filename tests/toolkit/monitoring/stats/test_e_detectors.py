"""Detectors: false alarms within the budget, changes that are found, independence of batches, saved states."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toolkit.monitoring.stats.e_detectors import (
    BurstWeights,
    ClassDetector,
    Detector,
    ErrorDetector,
    RankDetector,
    uniform_ties,
)

A = 200  # run length of the simulations: small, so that there are false alarms to count
RUN_LENGTH = 3e6  # of a third of a budget of one false alarm in a million


def worth(detector):
    """The average worth of the bets, from the evidence."""
    return math.expm1(detector.evidence * math.log1p(detector.run_length))


# Breaking ties


def test_uniform_ties_are_outputs_of_splitmix64():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # of the seed 0
    assert uniform_ties([0, 1, 2]) == pytest.approx([bits / 2**64 for bits in published], abs=1e-15)


def test_uniform_ties_are_uniform_and_independent():
    uniform = uniform_ties(np.arange(20_000))
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(uniform[1:], uniform[:-1])[0, 1]) < 0.03
    assert 0 < uniform.min() < uniform.max() < 1


# The first steps, worked by hand


def test_bets_on_errors_by_hand():
    detector = ErrorDetector(right=90, n=99, run_length=2.0**99)  # error rate (9 + 1) / 100, discount 2
    detector.update([0])
    # a drop d makes the error rate 0.1 + 0.9 d, so a wrong answer wins 1 + 9 d and a right one 1 - d
    first = np.array([1.45, 1.9, 2.8, 3.7]) / 2
    assert worth(detector) == pytest.approx(first.mean())
    detector.update([1])
    assert worth(detector) == pytest.approx(((first + 1) * np.array([0.95, 0.9, 0.8, 0.7]) / 2).mean())


def test_bets_on_ranks_by_hand():
    detector = RankDetector([1.0, 2.0, 2.0], run_length=8.0)  # discount 2
    detector.update([2.0], [0.5])  # one below, two equal: the rank is (1 + 0.5 * 3) / 4 = 0.625
    turned = np.array([0.625, 0.375, 0.75, 0.25])  # lower, higher, wider, narrower
    bets = np.r_[0.6 / turned**0.4, np.exp(-turned) / (1 - math.exp(-1))]
    assert worth(detector) == pytest.approx(bets.mean() / 2)


def test_bets_on_classes_by_hand():
    detector = ClassDetector([2, 1], run_length=8.0)  # discount 2
    detector.update([1])
    # shares of a class that becomes rarer c / 4, of one that becomes more frequent (c + 1) / 4
    first = [1 / (0.5 + 0.5 / 4), 1 / (0.5 + 0.5 / 2), 1 / (0.25 + 0.75 * 2), 1 / (0.25 + 0.75 * 4)]
    second = [0.25 / (0.75 + 0.25 / 4), 0.5 / (0.75 + 0.25 / 2), 2 / (0.5 + 0.5 * 2), 4 / (0.5 + 0.5 * 4)]
    assert worth(detector) == pytest.approx(np.mean(first + second) / 2)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_alarms_equal_the_sum_over_all_starts(right):
    enough, drops = 4.0, np.array([0.05, 0.1, 0.2, 0.3])
    detector = ErrorDetector(right=90, n=99, run_length=enough)
    alarms = detector.update(right)
    factors = np.where(np.array(right)[:, None], 1 - drops, 1 + 9 * drops) / enough ** (1 / 99)  # (n, J)
    begin, expected = 0, []
    for place in range(len(right)):
        products = np.array([factors[start : place + 1].prod(axis=0) for start in range(begin, place + 1)])
        if (average := products.sum(axis=0).mean()) >= enough:
            start, _ = np.unravel_index(products.argmax(), products.shape)
            expected.append((place, place - begin - start + 1, pytest.approx(average)))
            begin = place + 1
    assert [(alarm.index, alarm.length, alarm.evidence) for alarm in alarms] == expected


def test_a_bet_on_ranks_is_fair():
    shares = (np.arange(2000) + 0.5) / 2000  # with nothing but ties, the tie breaker is the rank
    worths = []
    for share in shares:
        detector = RankDetector(np.ones(1000), run_length=A)
        detector.update([1.0], [share])
        worths.append(worth(detector))
    assert np.mean(worths) == pytest.approx(A ** (-1 / 1000), abs=2e-3)


# False alarms


def false_alarms(rng, make, references=40, steps=2000):
    """Alarms per run length without a change, over random references."""
    alarms = sum(make(rng, steps) for _ in range(references))
    return alarms * A / (references * steps)


def labels(rng, steps):
    return len(ErrorDetector(rng.binomial(500, 0.9), 500, A).update(rng.random(steps) < 0.9))


def confidences(rng, steps):
    def draw(n):
        return np.minimum(1, rng.normal(0.9, 0.1, n)).astype(np.float16)  # a sixth is exactly 1

    return len(RankDetector(draw(500), A).update(draw(steps), rng.random(steps)))


def classes(rng, steps):
    shares = [0.5, 0.3, 0.15, 0.049, 0.001]
    return len(ClassDetector(rng.multinomial(500, shares), A).update(rng.choice(5, steps, p=shares)))


@pytest.mark.parametrize("make", [labels, confidences, classes])
def test_false_alarms_stay_within_the_budget(make):
    # up to 400 are allowed in 80,000 steps; a fifth of that proves that the bets are alive
    assert 0.2 < false_alarms(np.random.default_rng(8), make) < 1


def test_a_small_reference_needs_the_discount():
    def careless(rng, steps):  # a discount close to 1, as for a huge reference, with only a hundred images
        return len(ErrorDetector(10_000 * rng.binomial(100, 0.8), 1_000_000, A).update(rng.random(steps) < 0.8))

    assert false_alarms(np.random.default_rng(8), careless) > 1


def test_a_rise_of_accuracy_raises_no_alarm():
    rng = np.random.default_rng(2)
    detector = ErrorDetector(right=700, n=1000, run_length=1000)
    assert detector.update(rng.random(20_000) < 0.8) == []


# Detection


@pytest.mark.parametrize(("drop", "goal"), [(0.1, 330), (0.2, 90)])
def test_a_drop_of_accuracy_is_found_soon(drop, goal):
    rng = np.random.default_rng(5)
    delays = []
    for _ in range(40):
        detector = ErrorDetector(right=rng.binomial(10_000, 0.9), n=10_000, run_length=1e6)
        delays.append(detector.update(rng.random(2000) < 0.9 * (1 - drop))[0].index + 1)
    assert np.median(delays) <= goal


@pytest.mark.parametrize(
    ("change", "shift", "scale"), [("lower", -1, 1), ("higher", 1, 1), ("wider", 0, 3), ("narrower", 0, 0.3)]
)
def test_a_change_of_values_is_found_and_named(change, shift, scale):
    rng = np.random.default_rng(3)
    detector = RankDetector(rng.normal(size=2000), run_length=1e5)
    assert detector.update(rng.normal(size=3000), uniform_ties(np.arange(3000))) == []
    alarm = detector.update(rng.normal(shift, scale, 200), uniform_ties(np.arange(3000, 3200)))[0]
    assert alarm.change == change
    assert alarm.index < 80
    assert alarm.evidence >= 1e5


@pytest.mark.parametrize(("counts", "label"), [([400, 300, 200, 100], 3), ([600, 400, 0], 2), ([500, 500, 0, 0], 3)])
def test_a_class_that_becomes_frequent_is_found_and_named(counts, label):
    rng = np.random.default_rng(4)
    shares = np.array(counts) / sum(counts)
    detector = ClassDetector(counts, run_length=1e5)
    assert detector.update(rng.choice(len(counts), 3000, p=shares)) == []
    shifted = np.where(rng.random(300) < 0.5, label, rng.choice(len(counts), 300, p=shares))
    alarm = detector.update(shifted)[0]
    assert (alarm.change, alarm.label) == ("more frequent", label)
    assert alarm.index < 80


def test_a_class_that_disappears_is_found_and_named():
    rng = np.random.default_rng(4)
    detector = ClassDetector(np.full(10, 500), run_length=1e4)
    alarm = detector.update(rng.integers(1, 10, 1000))[0]
    assert (alarm.change, alarm.label) == ("rarer", 0)


def test_a_class_of_a_thousand_is_found_and_named():
    rng = np.random.default_rng(7)
    detector = ClassDetector(np.full(1000, 10), run_length=1e5)
    assert detector.update(rng.integers(1000, size=2000)) == []
    alarm = detector.update(np.where(rng.random(300) < 0.3, 17, rng.integers(1000, size=300)))[0]
    assert (alarm.change, alarm.label) == ("more frequent", 17)


def test_the_begin_of_a_change_is_estimated():
    rng = np.random.default_rng(6)
    misses = []
    for _ in range(25):
        detector = ErrorDetector(right=9000, n=10_000, run_length=1e5)
        alarms = detector.update(np.r_[rng.random(300) < 0.9, rng.random(300) < 0.7])
        misses.append(alarms[0].index - alarms[0].length + 1 - 300)
    assert abs(np.median(misses)) < 10
    assert np.quantile(np.abs(misses), 0.9) < 60


# The state


def run(detector, batches):
    """Alarms with places in the whole stream, and the evidence at its end."""
    alarms, offset = [], 0
    for columns in batches:
        alarms += [(a.index + offset, a.length, a.evidence, a.change, a.label) for a in detector.update(*columns)]
        offset += len(columns[0])
    return alarms, detector.evidence


MAKERS = {
    "labels": lambda: ErrorDetector(right=80, n=100, run_length=20),
    "values": lambda: RankDetector(np.arange(10) / 10, run_length=20),
    "classes": lambda: ClassDetector([50, 30, 20], run_length=20),
}
CODES = {"labels": [0, 1], "values": [0.0, 0.05, 0.5, 2.0, math.nan], "classes": [0, 1, 2, -1]}


@pytest.mark.parametrize("kind", MAKERS)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_detectors_do_not_depend_on_batches(kind, data):
    values = np.array(data.draw(st.lists(st.sampled_from(CODES[kind]), max_size=80)), type(CODES[kind][0]))
    places = data.draw(st.lists(st.integers(0, len(values)), max_size=6))
    columns = (values, uniform_ties(np.arange(len(values)))) if kind == "values" else (values,)
    batches = zip(*(np.split(column, sorted(places)) for column in columns), strict=True)
    assert run(MAKERS[kind](), batches) == run(MAKERS[kind](), [columns])


def stream_of(kind, n, seed=0):
    """Arguments of ``update`` for n predictions."""
    values = np.random.default_rng(seed).choice(CODES[kind], n)
    more = {"labels": np.arange(n) % 7, "values": uniform_ties(np.arange(n))}
    return (values, more[kind]) if kind in more else (values,)


def test_every_detector_is_tested_and_has_an_example():
    assert {type(make()) for make in MAKERS.values()} == set(Detector.__subclasses__())
    assert all(">>> alarm" in (detector.__doc__ or "") for detector in Detector.__subclasses__())


@pytest.mark.parametrize("kind", MAKERS)
@given(place=st.integers(0, 300), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_a_restored_detector_continues_exactly(kind, place, seed):
    columns, unbroken, before, after = stream_of(kind, 300, seed), *(MAKERS[kind]() for _ in range(3))
    whole, _ = run(unbroken, [columns])
    first, _ = run(before, [tuple(column[:place] for column in columns)])
    after.restore(json.loads(json.dumps(before.state())))
    assert after.evidence == before.evidence
    rest, _ = run(after, [tuple(column[place:] for column in columns)])
    assert [*first, *((index + place, *alarm) for index, *alarm in rest)] == whole
    assert after.state() == unbroken.state()


@pytest.mark.parametrize("kind", MAKERS)
def test_the_state_does_not_grow_with_the_stream(kind):
    short, long = MAKERS[kind](), MAKERS[kind]()
    short.update(*stream_of(kind, 500))
    long.update(*stream_of(kind, 10_000))
    assert len(json.dumps(long.state())) < 1.2 * len(json.dumps(short.state()))


@pytest.mark.parametrize("kind", ["values", "classes"])
def test_unknown_values_are_skipped(kind):
    values, ties = np.full(60, CODES[kind][0]), uniform_ties(np.arange(60))
    every_third = np.arange(0, 60, 3)
    holes, with_ties = np.insert(values, every_third, CODES[kind][-1]), np.insert(ties, every_third, 0.5)
    more = ([ties], [with_ties]) if kind == "values" else ([], [])
    plain, gappy = MAKERS[kind]().update(values, *more[0]), MAKERS[kind]().update(holes, *more[1])
    assert plain
    known = np.flatnonzero((holes != -1) & ~np.isnan(holes))
    assert [(known[a.index], a.length, a.evidence) for a in plain] == [(a.index, a.length, a.evidence) for a in gappy]


def test_an_alarm_resets_the_detector():
    detector = ErrorDetector(right=90, n=100, run_length=50)
    (alarm,) = detector.update([0, 0, 0, 0])
    assert detector.evidence == 0
    (again,) = detector.update([0, 0, 0, 0])
    assert again == alarm


def test_evidence_grows_to_the_threshold():
    detector = ErrorDetector(right=9000, n=10_000, run_length=1e6)
    assert detector.evidence == 0
    shares = []
    while not detector.update([0]):
        shares.append(detector.evidence)
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1


@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("accuracy", [0, 50, 100])
def test_extreme_streams_stay_finite(right, accuracy):
    with np.errstate(all="raise"):
        detector = ErrorDetector(right=accuracy, n=100, run_length=1e9)
        detector.update(np.full(20_000, right))
        assert 0 <= detector.evidence <= 1


def test_ranks_at_both_ends_stay_finite():
    detector = RankDetector([1.0], run_length=10)
    with np.errstate(all="raise"):
        alarms = detector.update([0.0, 2.0, 1.0, -math.inf, math.inf], [0.0, 1.0, 0.5, 0.0, 1.0])
    assert all(math.isfinite(alarm.evidence) for alarm in alarms)
    assert math.isfinite(detector.evidence)


def test_saturated_confidences_raise_no_alarm():
    """Nine of ten confidences are exactly 1: ties within and between the samples."""
    rng = np.random.default_rng(9)
    detector = RankDetector(np.where(rng.random(2000) < 0.9, 1.0, rng.random(2000)), run_length=1e5)
    stream = np.where(rng.random(10_000) < 0.9, 1.0, rng.random(10_000))
    assert detector.update(stream, uniform_ties(np.arange(10_000))) == []
    assert detector.update(rng.random(100), uniform_ties(np.arange(100)))[0].change == "lower"


# Bursts of the same image


def labels_of(n, accuracy, rng, burst=1, k=10):
    """Whether each is right, and its kind; ``burst`` of them in a row are of the same image."""
    images = -(-n // burst)
    truth, right = rng.integers(0, k, images), rng.random(images) < accuracy
    predicted = np.where(right, truth, (truth + rng.integers(1, k, images)) % k)
    truth, predicted = (np.repeat(part, burst)[:n] for part in (truth, predicted))
    return truth == predicted, (truth << 32) + predicted


def reference_kinds(accuracy=0.84):
    kinds, numbers = np.unique(labels_of(10_000, accuracy, np.random.default_rng(99))[1], return_counts=True)
    return dict(zip(kinds.tolist(), numbers.tolist(), strict=True))


@pytest.mark.parametrize("burst", [2, 20, 60])
def test_bursts_of_the_same_image_raise_no_alarm(burst):
    detector = ErrorDetector(8400, 10_000, RUN_LENGTH, reference_kinds())
    assert detector.update(*labels_of(40_000, 0.84, np.random.default_rng(0), burst)) == []


def test_bursts_that_begin_late_raise_no_alarm():
    for seed in range(4):
        rng = np.random.default_rng(seed)
        detector = ErrorDetector(8400, 10_000, RUN_LENGTH, reference_kinds())
        assert detector.update(*labels_of(3000, 0.84, rng)) == []
        assert detector.update(*labels_of(3000, 0.84, rng, 20)) == []


@pytest.mark.parametrize("order", ["as they come", "by class", "one class only"])
def test_labels_without_bursts_keep_their_weight(order):
    kinds = labels_of(20_000, 0.84, np.random.default_rng(5))[1]
    if order == "one class only":
        kinds = kinds[kinds >> 32 == 3]
    worth = BurstWeights(reference_kinds()).weights(np.sort(kinds) if order == "by class" else kinds)
    if order == "by class":  # which is no fair order: the classes differ
        assert worth.mean() < 0.5
    else:
        assert worth.mean() > 0.9


def test_a_drop_is_found_in_bursts():
    reference = reference_kinds()
    delays = {}
    for burst in (1, 10):
        found = []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            detector = ErrorDetector(8400, 10_000, RUN_LENGTH, reference)
            detector.update(*labels_of(1000, 0.84, rng, burst))
            alarms = detector.update(*labels_of(12_000, 0.63, rng, burst))
            found.append(alarms[0].index if alarms else math.inf)
        delays[burst] = np.median(found)
    assert delays[1] < 150
    assert 3 * delays[1] < delays[10] < 40 * delays[1]


@given(st.integers(0, 2**32), st.lists(st.integers(1, 40), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_burst_weights_do_not_depend_on_batches(seed, sizes):
    right, kinds = labels_of(sum(sizes), 0.7, np.random.default_rng(seed), burst=4)
    whole, parts = (ErrorDetector(8400, 10_000, 1e4, reference_kinds()) for _ in range(2))
    whole.update(right, kinds)
    for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
        parts.update(right[stop - size : stop], kinds[stop - size : stop])
    assert parts.evidence == pytest.approx(whole.evidence, rel=1e-12)


def test_burst_weights_take_bounded_memory():
    rng = np.random.default_rng(7)
    bursts = BurstWeights({})
    assert bursts.weights(rng.integers(0, 50_000, 30_000)).min() > 0.5
    assert len(bursts._kinds) < 20_000
    assert bursts.weights(np.repeat(rng.integers(0, 50_000, 40), 20)).min() < 0.06
    assert bursts.weights(rng.integers(0, 50_000, 3000))[-500:].mean() > 0.98
