"""A trial is cut when it can no longer matter, never before, and the reason says so in numbers."""

from statistics import fmean, mean

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from toolkit.tuning.pruning import CATCH_UP, EPOCHS_SHARE, Incumbent, prune_after_epoch, prune_after_fold

#                 epoch  1    2    3    4    5    6    7    8
HOLDER = Incumbent(4, ((0.2, 0.5, 0.6, 0.7, 0.8, 0.8, 0.9, 0.9), (0.4, 0.3, 0.5, 0.6, 0.7, 0.9, 0.8, 0.8)), epochs=8)
# the worst fold's best    0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9


def flat(*accuracies):
    """One with folds of a single epoch."""
    return Incumbent(0, tuple((accuracy,) for accuracy in accuracies), epochs=1)


def epochs_until_cut(curve, epochs, holder):
    """The epoch, from 1, after which a first fold is cut."""
    return next((n for n in range(1, len(curve) + 1) if prune_after_epoch(curve[:n], epochs, holder)), None)


def folds_until_cut(accuracies, holder):
    """The fold, from 1, after which a trial is cut."""
    folds = len(accuracies)
    return next((n for n in range(1, folds + 1) if prune_after_fold(accuracies[:n], folds, holder)), None)


some_accuracies = st.floats(0, 1) | st.integers(0, 40).map(lambda right: right / 40)  # of 40 images: many are equal


@st.composite
def holders(draw):
    """Of up to five folds, each of which may have ended before its schedule."""
    epochs = draw(st.integers(1, 12))
    count = draw(st.integers(2, 5))
    curve = st.lists(some_accuracies, min_size=1, max_size=epochs)
    return Incumbent(draw(st.integers(0, 99)), tuple(tuple(draw(curve)) for _ in range(count)), epochs)


# --- the holder ---------------------------------------------------------------------------------


def test_the_holder_is_measured_by_its_best_epochs_until_then():
    assert HOLDER.accuracies == (0.9, 0.9)
    assert [HOLDER.worst_so_far(epoch) for epoch in range(1, 9)] == [0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9]
    assert HOLDER.worst_so_far(0) == 0.2, "at the beginning there is only the first epoch"
    stopped = Incumbent(0, ((0.5, 0.6), (0.4, 0.5, 0.8)), epochs=8)
    assert [stopped.worst_so_far(epoch) for epoch in (1, 2, 3, 8)] == [0.4, 0.5, 0.6, 0.6]


def test_the_noise_of_a_fold_is_at_least_one_image():
    assert flat(0.9, 0.8, 0.7).noise == pytest.approx(0.1)
    assert Incumbent(0, ((0.25, 0.75, 0.5), (0.5, 0.625, 0.75)), epochs=3).noise == 0.125, "0.625 to 0.75 is an image"
    assert Incumbent(0, ((0.25, 0.5), (1.0, 1.0)), epochs=2).noise == pytest.approx(np.sqrt(0.125)), "and that is more"
    assert flat(0.9, 0.9).noise == 0.0, "no curve has a step"


@budget(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=5), st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_the_noise_of_folds_is_their_spread_or_a_step(accuracies, curve):
    """Of folds of 40 images, whose curves are all alike but for their last epochs."""
    curves = [[*(min(right, last) for right in curve), last] for last in accuracies]
    steps = [abs(one - other) for some in curves for one in some for other in some if one != other]
    holder = Incumbent(0, tuple(tuple(right / 40 for right in some) for some in curves), epochs=9)
    assert holder.noise == pytest.approx(max(float(np.std(accuracies, ddof=1)), min(steps, default=0)) / 40)


# --- after a fold -------------------------------------------------------------------------------


NINETY = flat(0.9, 0.8, 1.0)


@pytest.mark.parametrize(
    ("so_far", "holder", "reason"),
    [
        ([0.8], NINETY, ""),  # 0.1 behind, 0.05 for each fold left: less than 0.75 * 0.1 / sqrt(2)
        (
            [0.78],
            flat(0.9, 0.7, 0.8),
            "after fold 1 of 3: the rest would have to beat trial 1 by 0.0600 a fold; chance is 0.0530",
        ),
        ([0.79], NINETY, "after fold 1 of 3: 0.7900 is below 0.8000, the worst fold of trial 1"),
        ([0.69], NINETY, "after fold 1 of 3: the mean could reach 0.8967 at the most, and trial 1 has 0.9000"),
        ([0.9, 0.82], NINETY, ""),
        ([0.9, 0.79], NINETY, "after fold 2 of 3: the mean could reach 0.8967 at the most, and trial 1 has 0.9000"),
        ([0.9, 0.8, 0.0], NINETY, ""),  # there is nothing left to be saved
        # a bad fold is forgiven while those left could make up for it by chance, also one that is the worst of all
        ([0.9, 0.77], flat(0.9, 0.8, 0.9, 0.8), ""),
        (
            [0.9, 0.72],
            flat(0.9, 0.8, 0.9, 0.8),
            "after fold 2 of 4: the rest would have to beat trial 1 by 0.0400 a fold; chance is 0.0306",
        ),
        (
            [0.9, 0.68],
            flat(0.9, 0.8, 0.9, 0.8),
            "after fold 2 of 4: the mean 0.7900 is below 0.8000, the worst fold of trial 1",
        ),
        # folds are compared one with one: 0.8 is the holder's first as well
        ([0.8], flat(0.8, 0.9, 1.0), ""),
        # of equals the one that ended first wins
        ([1.0], flat(1.0, 1.0), "after fold 1 of 2: the mean could reach 1.0000 at the most, and trial 1 has 1.0000"),
        # the last digit counts: 2.6 / 3 is more, though (0.8 + 0.8 + 3 - 2) / 3 is not in floating point
        ([0.8, 0.8], flat(0.8, 0.8, 0.9999999999999998), ""),
    ],
)
def test_a_trial_after_some_folds(so_far, holder, reason):
    assert prune_after_fold(so_far, len(holder.curves), holder) == reason


@budget(deadline=None)
@given(st.data(), holders())
def test_who_is_out_of_reach_could_not_have_won_whatever_followed(data, holder):
    """The first rule is exact, to the last digit: also when all other folds have no mistake."""
    folds = len(holder.curves)
    so_far = data.draw(st.lists(some_accuracies, min_size=1, max_size=folds - 1))
    rest = data.draw(
        st.lists(some_accuracies | st.just(1.0), min_size=folds - len(so_far), max_size=folds - len(so_far))
    )
    if "could reach" in prune_after_fold(so_far, folds, holder):
        assert fmean([*so_far, *rest]) <= fmean(holder.accuracies)


@budget(deadline=None)
@given(st.data(), holders())
def test_who_could_still_win_is_cut_only_behind_the_worst_fold_or_out_of_luck(data, holder):
    """The other way round: whoever perfect folds would make the winner goes on while chance could make it one."""
    folds = len(holder.curves)
    so_far = data.draw(st.lists(some_accuracies, min_size=1, max_size=folds - 1))
    assume(fmean([*so_far, *[1.0] * (folds - len(so_far))]) > fmean(holder.accuracies))
    reason = prune_after_fold(so_far, folds, holder)
    lucky = CATCH_UP * holder.noise / np.sqrt(folds - len(so_far))
    rest = [accuracy + lucky for accuracy in holder.accuracies[len(so_far) :]]
    ahead = fmean([*so_far, *rest]) - fmean(holder.accuracies)
    assert ("worst fold" in reason) == (mean(so_far) < min(holder.accuracies))
    assert "could reach" not in reason
    assert ahead < 1e-9 if "have to beat" in reason else reason or ahead > -1e-9


def test_a_image_less_is_chance_until_one_fold_is_left():
    """Folds of 50 images that differ by less than one: the noise is 0.02, though they spread by 0.009."""
    holder = Incumbent(0, ((0.90, 0.94), (0.90, 0.92), (0.92, 0.94), (0.92, 0.94), (0.92, 0.94)), epochs=2)
    assert prune_after_fold([0.92], 5, holder) == "", "0.02 / 4 = 0.0050 < 0.75 * 0.02 / sqrt(4) = 0.0075"
    assert prune_after_fold([0.92, 0.92], 5, holder) == "", "0.02 / 3 = 0.0067 < 0.75 * 0.02 / sqrt(3) = 0.0087"
    assert prune_after_fold([0.92, 0.92, 0.94], 5, holder) == "", "0.02 / 2 = 0.0100 < 0.75 * 0.02 / sqrt(2) = 0.0106"
    assert prune_after_fold([0.92, 0.92, 0.94, 0.94], 5, holder) == (
        "after fold 4 of 5: the rest would have to beat trial 1 by 0.0200 a fold; chance is 0.0150"
    )
    assert prune_after_fold([0.92, 0.92, 0.92], 5, holder) == (
        "after fold 3 of 5: the rest would have to beat trial 1 by 0.0200 a fold; chance is 0.0106"
    )


@budget(deadline=None)
@given(st.data(), holders())
def test_who_is_at_least_as_good_in_every_fold_goes_on_while_it_can_win(data, holder):
    """As good in all of them and better in one: never cut."""
    own = [data.draw(st.floats(accuracy, 1)) for accuracy in holder.accuracies]
    assume(fmean(own) > fmean(holder.accuracies))
    assert folds_until_cut(own, holder) is None


# --- after an epoch of the first fold -----------------------------------------------------------


def test_a_curve_is_cut_when_two_looks_agree():
    """With the holder's schedule of 8 epochs looks count from epoch 2, where its worst fold had 0.4, on."""
    assert epochs_until_cut([0.0, 0.3, 0.4], 8, HOLDER) == 3
    assert prune_after_epoch([0.0, 0.3, 0.4], 8, HOLDER) == (
        "in fold 1 after epoch 3 of 8: 0.4000 is below 0.5000, the lowest of the folds of trial 5 by then"
    )
    assert epochs_until_cut([0.0, 0.4, 0.4], 8, HOLDER) is None, "the look before did not agree"
    assert epochs_until_cut([0.0, 0.3, 0.5], 8, HOLDER) is None, "the look after did not agree"
    assert epochs_until_cut([0.0, 0.3, 0.5, 0.5, 0.5], 8, HOLDER) == 5, "0.5 < 0.6 and 0.5 < 0.7"
    assert epochs_until_cut([0.0, 0.4, 0.1, 0.1], 8, HOLDER) == 4, "what counts is the best epoch so far: 0.4 in both"


def test_a_short_schedule_is_measured_after_as_many_epochs():
    """After 3 and 4 of 4 epochs by the holder's 3rd and 4th of 8, where it had 0.5 and 0.6, not by its last."""
    assert epochs_until_cut([0.2, 0.4, 0.5, 0.5], 4, HOLDER) is None
    assert epochs_until_cut([0.2, 0.3, 0.5, 0.5], 4, HOLDER) is None
    assert epochs_until_cut([0.2, 0.4, 0.4, 0.5], 4, HOLDER) == 4
    assert epochs_until_cut([0.1, 0.3], 4, HOLDER) == 2, "0.1 < 0.2 and 0.3 < 0.4"


def test_a_long_schedule_is_measured_at_the_same_share_of_it():
    """After 15 and 16 of 32 epochs by the holder's 3rd and 4th of 8, where it had 0.5 and 0.6, not by its 8th."""
    slow = [0.0, *[0.5] * 14]  # 0.5 suffices until 15 // 4 = 3
    assert epochs_until_cut([*slow, 0.6], 32, HOLDER) is None
    assert epochs_until_cut([*slow, 0.5, 0.5], 32, HOLDER) == 17
    assert prune_after_epoch([*slow, 0.5, 0.5], 32, HOLDER) == (
        "in fold 1 after epoch 17 of 32: 0.5000 is below 0.6000, the lowest of the folds of trial 5 by then"
    )


def test_the_same_schedule_is_measured_epoch_by_epoch():
    """29 of 100 epochs are 29 of 100, though 29 / 100 * 100 is less than 29 in floating point."""
    holder = Incumbent(0, (tuple(epoch / 100 for epoch in range(1, 101)),) * 2, epochs=100)
    for epoch in range(26, 101):
        behind = [(number - 0.5) / 100 for number in range(1, epoch + 1)]
        assert prune_after_epoch(behind, 100, holder) == (
            f"in fold 1 after epoch {epoch} of 100: {(epoch - 0.5) / 100:.4f} is below {epoch / 100:.4f},"
            " the lowest of the folds of trial 1 by then"
        )
        assert prune_after_epoch([number / 100 for number in range(1, epoch + 1)], 100, holder) == ""


curves = st.lists(some_accuracies, min_size=1, max_size=40)


@budget(deadline=None)
@given(curves, st.integers(0, 60), holders())
def test_nothing_is_cut_before_a_quarter_of_the_schedule(curve, more, holder):
    epochs = len(curve) + more
    cut = epochs_until_cut(curve, epochs, holder)
    assert cut is None or cut > EPOCHS_SHARE * epochs >= 0.25


@budget(deadline=None)
@given(curves, st.integers(0, 60), holders())
def test_who_is_cut_was_behind_every_fold_at_both_looks_by_both_measures(curve, more, holder):
    """Worked out without the function's own helpers: the reference is what the holder had, fold by fold."""
    epochs = len(curve) + more
    if not prune_after_epoch(curve, epochs, holder):
        return
    assert len(curve) >= 2
    for done in (len(curve) - 1, len(curve)):
        for fold in holder.curves:
            as_many = fold[:done]
            same_share = [value for number, value in enumerate(fold, 1) if number * epochs <= done * holder.epochs]
            assert max(curve[:done]) < max(as_many)
            assert max(curve[:done]) < max(same_share or fold[:1])


@budget(deadline=None)
@given(st.data(), holders(), st.integers(1, 40))
def test_who_is_at_least_as_good_after_every_epoch_goes_on(data, holder, epochs):
    """As good as any one of the holder's folds is enough, whatever the schedule."""
    fold = data.draw(st.sampled_from(holder.curves))
    own = [data.draw(st.floats(fold[min(epoch, len(fold) - 1)], 1)) for epoch in range(epochs)]
    assert epochs_until_cut(own, epochs, holder) is None


@budget(deadline=None)
@given(holders())
@example(Incumbent(0, ((0.4980884688231998,),) * 3 + ((0.5,),), epochs=2))  # the mean of three is an ulp below each
def test_who_does_what_the_holder_did_is_cut_only_when_it_could_no_longer_be_better(holder):
    for curve in holder.curves:
        assert epochs_until_cut(curve, holder.epochs, holder) is None
    own = holder.accuracies
    assert all(
        "could reach" in (prune_after_fold(own[:done], len(own), holder) or "could reach")
        for done in range(1, len(own))
    )
