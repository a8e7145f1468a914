"""A trial is pruned when it can no longer become the best, never before, and the reason gives the numbers."""

from statistics import fmean, mean, stdev

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from toolkit.tuning.pruning import CATCH_UP, EPOCHS_SHARE, Incumbent, prune_after_epoch, prune_after_fold

#                 epoch  1    2    3    4    5    6    7    8
INCUMBENT = Incumbent(4, ((0.2, 0.5, 0.6, 0.7, 0.8, 0.8, 0.9, 0.9), (0.4, 0.3, 0.5, 0.6, 0.7, 0.9, 0.8, 0.8)), epochs=8)
# the worst fold's best    0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9


def flat(*accuracies):
    """One with folds of a single epoch."""
    noise = stdev(accuracies) if len(accuracies) > 1 else 0.0
    return Incumbent(0, tuple((accuracy,) for accuracy in accuracies), epochs=1, noise=noise)


def epochs_until_pruned(curve, epochs, incumbent):
    """The epoch, from 1, after which a first fold is pruned."""
    return next((n for n in range(1, len(curve) + 1) if prune_after_epoch(curve[:n], epochs, incumbent)), None)


def folds_until_pruned(accuracies, incumbent):
    """The fold, from 1, after which a trial is pruned."""
    folds = len(accuracies)
    return next((n for n in range(1, folds + 1) if prune_after_fold(accuracies[:n], folds, incumbent)), None)


some_accuracies = st.floats(0, 1) | st.integers(0, 40).map(lambda right: right / 40)  # of 40 images: many are equal


@st.composite
def incumbents(draw):
    """Of up to five folds, each of which may have ended before its schedule."""
    epochs = draw(st.integers(1, 12))
    count = draw(st.integers(2, 5))
    curve = st.lists(some_accuracies, min_size=1, max_size=epochs)
    return Incumbent(draw(st.integers(0, 99)), tuple(tuple(draw(curve)) for _ in range(count)), epochs)


# --- the incumbent ---------------------------------------------------------------------------------


def test_worst_so_far_takes_the_best_epoch_of_each_fold():
    assert INCUMBENT.accuracies == (0.9, 0.9)
    assert [INCUMBENT.worst_so_far(epoch) for epoch in range(1, 9)] == [0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9]
    assert INCUMBENT.worst_so_far(0) == 0.2, "at the beginning there is only the first epoch"
    stopped = Incumbent(0, ((0.5, 0.6), (0.4, 0.5, 0.8)), epochs=8)
    assert [stopped.worst_so_far(epoch) for epoch in (1, 2, 3, 8)] == [0.4, 0.5, 0.6, 0.6]


# --- after a fold -------------------------------------------------------------------------------


NINETY = flat(0.9, 0.8, 1.0)
# Folds of 50 images that differ by less than one: the noise is 0.02, though they spread by 0.009.
ALIKE = Incumbent(0, ((0.90, 0.94), (0.90, 0.92), (0.92, 0.94), (0.92, 0.94), (0.92, 0.94)), epochs=2, noise=0.02)
BEAT = "the rest would have to beat trial 1 by"


@pytest.mark.parametrize(
    ("so_far", "incumbent", "reason"),
    [
        ([0.8], NINETY, ""),  # 0.1 behind, 0.05 for each fold left: less than 0.75 * 0.1 / sqrt(2)
        ([0.78], flat(0.9, 0.7, 0.8), f"after fold 1 of 3: {BEAT} 0.0600 a fold; chance is 0.0530"),
        ([0.79], NINETY, "after fold 1 of 3: 0.7900 is below 0.8000, the worst fold of trial 1"),
        ([0.69], NINETY, "after fold 1 of 3: the mean could reach 0.8967 at the most, and trial 1 has 0.9000"),
        ([0.9, 0.82], NINETY, ""),
        ([0.9, 0.79], NINETY, "after fold 2 of 3: the mean could reach 0.8967 at the most, and trial 1 has 0.9000"),
        ([0.9, 0.8, 0.0], NINETY, ""),  # there is nothing left to be saved
        # a bad fold is forgiven while those left could make up for it by chance, also one that is the worst of all
        ([0.9, 0.77], flat(0.9, 0.8, 0.9, 0.8), ""),
        ([0.9, 0.72], flat(0.9, 0.8, 0.9, 0.8), f"after fold 2 of 4: {BEAT} 0.0400 a fold; chance is 0.0306"),
        (
            [0.9, 0.68],
            flat(0.9, 0.8, 0.9, 0.8),
            "after fold 2 of 4: the mean 0.7900 is below 0.8000, the worst fold of trial 1",
        ),
        # one image less is chance until one fold is left
        ([0.92], ALIKE, ""),  # 0.02 / 4 = 0.0050 < 0.75 * 0.02 / sqrt(4) = 0.0075
        ([0.92, 0.92], ALIKE, ""),  # 0.02 / 3 = 0.0067 < 0.75 * 0.02 / sqrt(3) = 0.0087
        ([0.92, 0.92, 0.94], ALIKE, ""),  # 0.02 / 2 = 0.0100 < 0.75 * 0.02 / sqrt(2) = 0.0106
        ([0.92, 0.92, 0.94, 0.94], ALIKE, f"after fold 4 of 5: {BEAT} 0.0200 a fold; chance is 0.0150"),
        ([0.92, 0.92, 0.92], ALIKE, f"after fold 3 of 5: {BEAT} 0.0200 a fold; chance is 0.0106"),
        # folds are compared one with one: 0.8 is the incumbent's first as well
        ([0.8], flat(0.8, 0.9, 1.0), ""),
        # of equals the one that ended first wins
        ([1.0], flat(1.0, 1.0), "after fold 1 of 2: the mean could reach 1.0000 at the most, and trial 1 has 1.0000"),
        # the last digit counts: 2.6 / 3 is more, though (0.8 + 0.8 + 3 - 2) / 3 is not in floating point
        ([0.8, 0.8], flat(0.8, 0.8, 0.9999999999999998), ""),
    ],
)
def test_a_trial_after_some_folds(so_far, incumbent, reason):
    assert prune_after_fold(so_far, len(incumbent.curves), incumbent) == reason


@given(st.data(), incumbents())
def test_a_trial_out_of_reach_could_not_have_won(data, incumbent):
    """The first rule is exact, to the last digit: also when all other folds have no mistake."""
    folds = len(incumbent.curves)
    so_far = data.draw(st.lists(some_accuracies, min_size=1, max_size=folds - 1))
    rest = data.draw(
        st.lists(some_accuracies | st.just(1.0), min_size=folds - len(so_far), max_size=folds - len(so_far))
    )
    if "could reach" in prune_after_fold(so_far, folds, incumbent):
        assert fmean([*so_far, *rest]) <= fmean(incumbent.accuracies)


@given(st.data(), incumbents())
def test_pruning_by_the_worst_fold_or_by_chance(data, incumbent):
    """Conversely, a trial that perfect folds would make the best continues while chance could do so."""
    folds = len(incumbent.curves)
    so_far = data.draw(st.lists(some_accuracies, min_size=1, max_size=folds - 1))
    assume(fmean([*so_far, *[1.0] * (folds - len(so_far))]) > fmean(incumbent.accuracies))
    reason = prune_after_fold(so_far, folds, incumbent)
    lucky = CATCH_UP * incumbent.noise / np.sqrt(folds - len(so_far))
    rest = [accuracy + lucky for accuracy in incumbent.accuracies[len(so_far) :]]
    ahead = fmean([*so_far, *rest]) - fmean(incumbent.accuracies)
    assert ("worst fold" in reason) == (mean(so_far) < min(incumbent.accuracies))
    assert "could reach" not in reason
    assert ahead < 1e-9 if "have to beat" in reason else reason or ahead > -1e-9


@given(st.data(), incumbents())
def test_a_trial_as_good_in_every_fold_is_not_pruned(data, incumbent):
    """As good in all of them and better in one: never pruned."""
    own = [data.draw(st.floats(accuracy, 1)) for accuracy in incumbent.accuracies]
    assume(fmean(own) > fmean(incumbent.accuracies))
    assert folds_until_pruned(own, incumbent) is None


# --- after an epoch of the first fold -----------------------------------------------------------


def test_a_curve_is_pruned_when_two_epochs_agree():
    """With the incumbent's schedule of 8 epochs, epochs count from 2 on, where its worst fold had 0.4, on."""
    assert epochs_until_pruned([0.0, 0.3, 0.4], 8, INCUMBENT) == 3
    assert prune_after_epoch([0.0, 0.3, 0.4], 8, INCUMBENT) == (
        "in fold 1 after epoch 3 of 8: 0.4000 is below 0.5000, the lowest of the folds of trial 5 by then"
    )
    assert epochs_until_pruned([0.0, 0.4, 0.4], 8, INCUMBENT) is None, "the epoch before did not agree"
    assert epochs_until_pruned([0.0, 0.3, 0.5], 8, INCUMBENT) is None, "the epoch after did not agree"
    assert epochs_until_pruned([0.0, 0.3, 0.5, 0.5, 0.5], 8, INCUMBENT) == 5, "0.5 < 0.6 and 0.5 < 0.7"
    assert epochs_until_pruned([0.0, 0.4, 0.1, 0.1], 8, INCUMBENT) == 4, (
        "what counts is the best epoch so far: 0.4 in both"
    )


def test_a_short_schedule_is_compared_after_as_many_epochs():
    """After 3 and 4 of 4 epochs by the incumbent's 3rd and 4th of 8, where it had 0.5 and 0.6, not by its last."""
    assert epochs_until_pruned([0.2, 0.4, 0.5, 0.5], 4, INCUMBENT) is None
    assert epochs_until_pruned([0.2, 0.3, 0.5, 0.5], 4, INCUMBENT) is None
    assert epochs_until_pruned([0.2, 0.4, 0.4, 0.5], 4, INCUMBENT) == 4
    assert epochs_until_pruned([0.1, 0.3], 4, INCUMBENT) == 2, "0.1 < 0.2 and 0.3 < 0.4"


def test_a_long_schedule_is_compared_at_the_same_share():
    """After 15 and 16 of 32 epochs by the incumbent's 3rd and 4th of 8, where it had 0.5 and 0.6, not by its 8th."""
    slow = [0.0, *[0.5] * 14]  # 0.5 suffices until 15 // 4 = 3
    assert epochs_until_pruned([*slow, 0.6], 32, INCUMBENT) is None
    assert epochs_until_pruned([*slow, 0.5, 0.5], 32, INCUMBENT) == 17
    assert prune_after_epoch([*slow, 0.5, 0.5], 32, INCUMBENT) == (
        "in fold 1 after epoch 17 of 32: 0.5000 is below 0.6000, the lowest of the folds of trial 5 by then"
    )


def test_the_same_schedule_is_compared_epoch_by_epoch():
    """29 of 100 epochs are 29 of 100, though 29 / 100 * 100 is less than 29 in floating point."""
    incumbent = Incumbent(0, (tuple(epoch / 100 for epoch in range(1, 101)),) * 2, epochs=100)
    for epoch in range(26, 101):
        behind = [(number - 0.5) / 100 for number in range(1, epoch + 1)]
        assert prune_after_epoch(behind, 100, incumbent) == (
            f"in fold 1 after epoch {epoch} of 100: {(epoch - 0.5) / 100:.4f} is below {epoch / 100:.4f},"
            " the lowest of the folds of trial 1 by then"
        )
        assert prune_after_epoch([number / 100 for number in range(1, epoch + 1)], 100, incumbent) == ""


curves = st.lists(some_accuracies, min_size=1, max_size=40)


@given(curves, st.integers(0, 60), incumbents())
def test_nothing_is_pruned_before_a_quarter_of_the_schedule(curve, more, incumbent):
    epochs = len(curve) + more
    pruned = epochs_until_pruned(curve, epochs, incumbent)
    assert pruned is None or pruned > EPOCHS_SHARE * epochs >= 0.25


@given(curves, st.integers(0, 60), incumbents())
def test_a_pruned_curve_was_behind_every_fold_in_two_epochs(curve, more, incumbent):
    """Worked out without the function's own helpers: the reference is what the incumbent had, fold by fold."""
    epochs = len(curve) + more
    if not prune_after_epoch(curve, epochs, incumbent):
        return
    assert len(curve) >= 2
    for done in (len(curve) - 1, len(curve)):
        for fold in incumbent.curves:
            as_many = fold[:done]
            same_share = [value for number, value in enumerate(fold, 1) if number * epochs <= done * incumbent.epochs]
            assert max(curve[:done]) < max(as_many)
            assert max(curve[:done]) < max(same_share or fold[:1])


@given(st.data(), incumbents(), st.integers(1, 40))
def test_a_curve_as_good_after_every_epoch_is_not_pruned(data, incumbent, epochs):
    """As good as any one of the incumbent's folds is enough, whatever the schedule."""
    fold = data.draw(st.sampled_from(incumbent.curves))
    own = [data.draw(st.floats(fold[min(epoch, len(fold) - 1)], 1)) for epoch in range(epochs)]
    assert epochs_until_pruned(own, epochs, incumbent) is None


@given(incumbents())
@example(Incumbent(0, ((0.4980884688231998,),) * 3 + ((0.5,),), epochs=2))  # the mean of three is an ulp below each
def test_a_copy_of_the_incumbent_is_pruned_only_out_of_reach(incumbent):
    for curve in incumbent.curves:
        assert epochs_until_pruned(curve, incumbent.epochs, incumbent) is None
    own = incumbent.accuracies
    assert all(
        "could reach" in (prune_after_fold(own[:done], len(own), incumbent) or "could reach")
        for done in range(1, len(own))
    )
