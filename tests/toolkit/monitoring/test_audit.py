"""Audits: fair draws, the same ones everywhere, and what their labels tell about the window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toolkit.errors import SettingsError
from toolkit.monitoring.audit import audit, audited_accuracy, labels_to_settle, random_numbers, splitmix64
from toolkit.monitoring.ids import new_prediction_id, parse_prediction_id
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.statistics import labels_needed, wilson

windows = st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 3)), max_size=60, unique_by=lambda row: row[0])


def test_random_numbers_are_those_of_the_published_generator():
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + step * gamma) % 2**64 for step in range(3)], np.uint64)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(windows, st.integers(4, 30), st.integers(0, 5), st.booleans(), st.randoms())
@settings(max_examples=80, deadline=None)
def test_the_list_follows_from_the_window_and_grows_at_its_end(rows, n, seed, stratified, random):
    def draw(rows, n):
        return audit([i for i, _ in rows], n, seed, [c for _, c in rows] if stratified else None)

    drawn = draw(rows, n)
    shuffled = random.sample(rows, len(rows))
    assert draw(shuffled, n).ids.tolist() == drawn.ids.tolist()
    assert draw(rows, n + 7).ids[:n].tolist() == drawn.ids.tolist()
    assert len(set(drawn.ids.tolist())) == len(drawn.ids) == min(n, len(rows))
    assert drawn.weights.sum() == pytest.approx(len(rows))
    if stratified:
        assert set(drawn.strata.tolist()) == {c for _, c in rows}
        assert [dict(rows)[i] for i in drawn.ids.tolist()] == drawn.strata.tolist()


def test_every_prediction_is_drawn_equally_often_alone_and_in_pairs():
    ids = [parse_prediction_id(new_prediction_id(lambda: 1.7e9)) for _ in range(20)]  # of one burst
    draws = np.array([np.isin(ids, audit(ids, 5, seed).ids) for seed in range(4000)])  # (4000, 20)
    assert stats.chisquare(draws.sum(axis=0)).pvalue > 0.001
    pairs = (draws.T.astype(int) @ draws)[np.triu_indices(20, 1)]
    assert stats.chisquare(pairs).pvalue > 0.001
    assert pairs.mean() == pytest.approx(4000 * (5 / 20) * (4 / 19))


def test_a_window_that_moved_on_keeps_what_is_still_in_it():
    rng = np.random.default_rng(0)
    ids = rng.permutation(10**6)[:1100]
    before, after = audit(ids[:1000], 100).ids, audit(ids[100:], 100).ids
    assert len(set(before) & set(after)) > 75  # of the 90 that one would hope for


def test_classes_are_drawn_from_in_proportion_to_the_roots_of_their_sizes():
    predicted = np.repeat([0, 1, 2, 3], [1600, 400, 100, 1])
    drawn = audit(np.arange(2101), 71, predicted=predicted)
    assert np.bincount(drawn.strata).tolist() == [40, 20, 10, 1]
    assert sorted(set(drawn.weights.tolist())) == [1, 10, 20, 40]
    assert np.bincount(audit(np.arange(2101), 4, predicted=predicted).strata).tolist() == [1, 1, 1, 1]


def test_without_strata_the_interval_is_wilsons():
    drawn = audit(np.arange(500), 40)
    told = audited_accuracy(drawn, [1] * 33 + [0] * 7)
    assert (told.accuracy, told.n) == (33 / 40, 40)
    assert (told.low, told.high) == pytest.approx(wilson(33, 40))


def test_strata_count_by_their_share_of_the_window_not_of_the_labels():
    drawn = audit(np.arange(1000), 10, predicted=[0] * 900 + [1] * 100)  # 7 of the one, 3 of the other
    right = np.where(drawn.strata == 0, 1.0, 0.0)
    right[np.flatnonzero(drawn.strata == 1)[0]] = 1
    told = audited_accuracy(drawn, right)
    assert told.accuracy == pytest.approx(0.9 * 1 + 0.1 * 1 / 3)
    assert told.accuracy == pytest.approx(right @ drawn.weights / drawn.weights.sum())  # Horvitz and Thompson
    # Laplace: 8/9 and 2/5, so 0.84 in all; 0.9**2 * 8/81/7 + 0.1**2 * 6/25/3 = 0.0122286 is the variance
    assert (told.low, told.high) == pytest.approx(wilson(told.accuracy * 10.99069, 10.99069), abs=1e-5)


def test_labels_that_are_missing_make_it_less_certain():
    drawn = audit(np.arange(100), 10, predicted=[0] * 50 + [1] * 50)
    right = np.where(drawn.strata == 0, 1.0, np.nan)
    told = audited_accuracy(drawn, right)
    assert (told.accuracy, told.n) == (1.0, 5)
    assert told.low < 0.5  # the other half may be anything
    assert audited_accuracy(drawn, np.full(10, np.nan)) == audited_accuracy(audit([], 3), [])
    assert audited_accuracy(drawn, np.full(10, np.nan)).accuracy is None


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("right_in", "n"), [((0.95, 0.9, 0.6), 60), ((0.99, 0.97, 0.9), 150), ((0.5, 0.2, 0.8), 30)])
def test_the_estimate_is_unbiased_and_its_interval_holds_the_truth(stratified, right_in, n):
    rng = np.random.default_rng(n)
    chances, truth = np.array([0.7, 0.25, 0.05]), np.array([0.7, 0.25, 0.05]) @ right_in
    estimates, held = [], []
    for seed in range(400):
        ids, predicted = rng.integers(2**62, size=1000), rng.choice(3, 1000, p=chances)
        right = dict(zip(ids.tolist(), rng.random(1000) < np.array(right_in)[predicted], strict=True))
        drawn = audit(ids, n, seed, predicted if stratified else None)
        told = audited_accuracy(drawn, [right[i] for i in drawn.ids.tolist()])
        estimates.append(told.accuracy)
        held.append(told.low <= truth <= told.high)
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * np.std(estimates) / 20)
    assert np.mean(held) > 0.92  # of 0.95, less three standard errors


def test_the_number_of_labels_grows_as_the_suspicion_shrinks():
    limits = Limits()
    assert labels_to_settle(0.9, 0.2, limits) == labels_needed(0.9, drop=0.2)
    assert labels_to_settle(0.9, 0.4, limits) < 107 < labels_to_settle(0.9, 0.12, limits)
    assert labels_to_settle(0.9, -0.1, limits) == labels_needed(0.9, drop=0.1)


def test_seeds_and_ids_give_different_numbers():
    ids = np.arange(2000)
    assert len(np.unique([random_numbers(ids, seed) for seed in range(5)])) == 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [1, 1], "n": 1}, "ids to draw from must all be different"),
        ({"ids": [1, 2], "n": 0}, "at least 1 labels, one a predicted class, got 0"),
        ({"ids": [1, 2, 3], "n": 2, "predicted": [0, 1, 2]}, "at least 3 labels, one a predicted class, got 2"),
        ({"ids": [1, 2, 3], "n": 2, "predicted": [0, 1]}, "3 ids were given, but 2 predicted classes"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(arguments, message):
    with pytest.raises(SettingsError, match=message):
        audit(**arguments)


def test_answers_that_do_not_fit_the_list_are_refused():
    with pytest.raises(SettingsError, match="an audit of 3 predictions got 2 answers"):
        audited_accuracy(audit([1, 2, 3], 3), [1, 0])
