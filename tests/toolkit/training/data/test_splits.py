"""Splits: the held-out part by content, the rest by seed and class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import DataError
from toolkit.training.data.catalogue import Catalogue, open_catalogue
from toolkit.training.data.groups import Groups
from toolkit.training.data.splits import split, stratified, stratified_folds


def listed(hashes, labels=None, parts=None):
    """A catalogue of which only the hashes matter."""
    count = len(hashes)
    return Catalogue(
        name="listed",
        classes=("only",) if labels is None else tuple(f"class {label}" for label in range(max(labels) + 1)),
        sources=[b""] * count,
        labels=np.array(labels or [0] * count, np.int64),
        hashes=np.array(hashes),
        parts=np.array(parts or [""] * count),
    )


# --- held out -----------------------------------------------------------------------------------

HASHES = st.lists(
    st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}"), min_size=30, max_size=60, unique=True
)


@given(HASHES, st.floats(0.1, 0.5), st.randoms())
def test_an_image_is_held_out_by_its_content_whatever_else_there_is(hashes, share, random):
    """The place of each image is the same in the whole folder, in a part of it, and in any order.

    But the two largest hashes are never held out, and when nothing is below the share, the smallest is.
    """
    below = {digest for digest in hashes if int(digest[:13], 16) / 16**13 < share}
    if len({digest[:13] for digest in hashes}) < len(hashes):
        return  # of no two images do the first digits agree
    some = random.sample(hashes, len(hashes) // 2)
    for chosen in (hashes, some):
        expected = below & set(sorted(chosen)[:-2]) or {min(chosen)}
        catalogue = listed(chosen)
        divided = split(catalogue, share)
        assert set(catalogue.hashes[divided.held_out]) == expected
        assert set(catalogue.hashes[divided.development]) == set(chosen) - expected
        assert divided.validation.tolist() == []


def test_about_the_share_is_held_out():
    """Of 1,797 digits 270 are expected; four standard deviations are 61."""
    divided = split(open_catalogue("digits"), 0.15)
    assert 270 - 61 < len(divided.held_out) < 270 + 61


def test_a_split_that_leaves_a_part_empty_is_refused():
    high, low = "f" * 64, "0" * 64
    with pytest.raises(DataError, match=r"^none of the 2 images can be held out, since each class has only one to tra"):
        split(listed([high, low], [0, 1]), 0.15)
    with pytest.raises(DataError, match=r"^class 'class 1' has no image to train on$"):
        split(listed([high, low], [0, 1], ["train", "test"]), 0.15)


# --- few images a class -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("classes", [2, 1200])
def test_a_class_of_few_images_keeps_some_to_train_on(size, classes):
    """Of 1,200 classes of 3 images all three of a class are below the share in 4, and of 2 in 27."""
    labels = np.arange(classes).repeat(size)
    for seed in range(1 if classes > 2 else 40):
        generator = np.random.default_rng(seed)
        divided = split(listed([generator.bytes(32).hex() for _ in labels], labels.tolist()), 0.15)
        left = labels[divided.development]
        assert len(np.unique(left)) == classes
        assert len(divided.held_out) > 0
        training, validation = stratified(left, 0.15, seed)
        assert len(np.unique(left[training])) == classes
        assert len(validation) > 0
        if classes == 1200:
            assert abs(len(divided.held_out) - 0.15 * len(labels)) < 0.06 * len(labels)


@given(st.lists(st.integers(0, 2), min_size=4, max_size=40), st.integers(0, 10_000))
def test_held_out_images_stay_held_out_when_the_folder_grows(labels, seed):
    """Images come one by one; only the one that was held out for want of any below the share may go back."""
    labels, generator = [0, 0, 1, 1, 2, 2, *labels], np.random.default_rng(seed)
    hashes = [generator.bytes(32).hex() for _ in labels]
    held_out = set()
    for count in range(6, len(labels) + 1):
        divided = split(listed(hashes[:count], labels[:count]), 0.5)
        again = held_out & {hashes[index] for index in divided.development}
        assert [one for one in again if int(one, 16) / 16**64 < 0.5] == []
        held_out |= {hashes[index] for index in divided.held_out}


# --- what belongs together ----------------------------------------------------------------------


def copies(*pairs):
    return Groups(copies=np.array(pairs, np.int64).reshape(-1, 2))


def digest(first, last=0):
    """A hash that is a fraction of so many sixteenths, and that comes among copies at so many from the end."""
    return f"{first:x}{'7' * 62}{last:x}"


BULK = [digest(15, number) for number in range(4)] + [digest(14, number) for number in range(4)]


@pytest.mark.parametrize(("last", "held_out", "aside"), [((3, 1), [8], [9]), ((1, 3), [], [8])])
def test_copies_on_two_sides_are_used_on_one(last, held_out, aside):
    """None is moved, and which are used depends on their contents alone."""
    hashes = [*BULK, digest(0, last[0]), digest(9, last[1]), digest(1)]
    divided = split(listed(hashes), 0.25, copies((8, 9)))
    assert divided.held_out.tolist() == [*held_out, 10]
    assert divided.unused.tolist() == aside
    assert divided.groups is not None
    assert divided.groups[8] == divided.groups[9]


def test_of_copies_that_are_held_out_one_is_measured_on():
    hashes = [*BULK, digest(0, 1), digest(1, 2), digest(2, 3)]
    divided = split(listed(hashes), 0.25, copies((8, 9), (9, 10)))
    assert divided.held_out.tolist() == [10]
    assert divided.unused.tolist() == [8, 9]


def test_copies_that_are_trained_on_are_all_trained_on():
    divided = split(listed([*BULK, digest(0)]), 0.25, copies((0, 4), (1, 5)))
    assert (divided.development.tolist(), divided.unused.tolist()) == ([*range(8)], [])


def test_a_copy_never_takes_from_a_class_what_it_is_trained_on():
    """The only other image of class 1 is held out, and would come first among the copies."""
    hashes = [*BULK, digest(9, 1), digest(0, 9)]
    divided = split(listed(hashes, [0] * 8 + [1, 1]), 0.25, copies((8, 9)))
    assert 8 in divided.development
    assert divided.unused.tolist() == [9]


@given(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=40), st.integers(0, 10_000))
def test_a_group_is_on_one_side_and_no_image_crosses_when_copies_come(pairs, seed):
    """A side is that of the own hash, but for one image of each of the two classes and one more in all."""
    labels, generator = np.array([0, 1] * 20), np.random.default_rng(seed)
    hashes = [generator.bytes(32).hex() for _ in labels]
    below = np.array([int(one, 16) / 16**64 < 0.3 for one in hashes])
    links = [(a, b) for a, b in pairs if a != b]
    for count in range(len(links) + 1):
        try:
            divided = split(listed(hashes, labels.tolist()), 0.3, copies(*links[:count]))
        except DataError:  # everything is a copy of everything
            return
        if divided.groups is not None:
            assert not set(divided.groups[divided.held_out]) & set(divided.groups[divided.development])
            assert len(set(divided.groups[divided.held_out])) == len(divided.held_out)
        assert set(labels[divided.development]) == {0, 1}
        assert below[divided.held_out].all() or len(divided.held_out) == 1
        assert below[divided.development].sum() <= 3
        everything = [divided.development, divided.held_out, divided.validation, divided.unused]
        assert sorted(np.concatenate(everything).tolist()) == list(range(40))


def test_a_key_decides_for_its_images_and_keeps_its_side_as_it_grows():
    generator = np.random.default_rng(0)
    keys = np.array([f"patient {number}" for number in range(60)]).repeat(8)
    hashes, labels = [generator.bytes(32).hex() for _ in keys], generator.integers(0, 2, len(keys)).tolist()
    order = generator.permutation(len(keys))
    before = {}
    for count in (100, 250, len(keys)):
        some = order[:count]
        catalogue = listed([hashes[index] for index in some], [labels[index] for index in some])
        divided = split(catalogue, 0.2, Groups(keys=keys[some]))
        held_out, trained = set(keys[some][divided.held_out]), set(keys[some][divided.development])
        assert not held_out & trained
        assert len(divided.unused) == 0
        assert 4 <= len(held_out) <= 20
        now = dict.fromkeys(held_out, True) | dict.fromkeys(trained, False)
        assert {key: now[key] for key in before} == before
        before = now
        training, validation = stratified(
            catalogue.labels[divided.development], 0.2, 0, divided.groups[divided.development]
        )
        of = keys[some][divided.development]
        assert not set(of[training]) & set(of[validation])


def test_images_without_a_key_are_each_on_their_own():
    hashes = [*BULK, digest(0), digest(9)]
    divided = split(listed(hashes), 0.25, Groups(keys=np.array([""] * 10)))
    assert divided.held_out.tolist() == [8]
    assert divided.groups is None


@pytest.mark.parametrize("by", ["copies", "keys"])
def test_what_belongs_to_the_users_test_folder_is_not_trained_on(by):
    parts = ["train"] * 8 + ["val", "test", "train", "train"]
    keys = np.array([*map(str, range(8)), "v", "t", "t", "v"])
    pairs = Groups(keys=keys) if by == "keys" else copies((9, 10), (8, 11))
    divided = split(listed([*BULK, *(digest(5, number) for number in range(4))], [0] * 12, parts), 0.15, pairs)
    assert divided.held_out.tolist() == [9]
    assert divided.validation.tolist() == [8]
    assert divided.unused.tolist() == [10, 11]


def test_a_class_of_copies_of_the_test_folder_is_refused():
    catalogue = listed([*BULK, digest(5), digest(6)], [0] * 8 + [1, 1], ["train"] * 8 + ["test", "train"])
    with pytest.raises(DataError, match=r"^class 'class 1' has no image to train on: 1 belong to images in test/ or v"):
        split(catalogue, 0.15, copies((8, 9)))


# --- validation and folds -----------------------------------------------------------------------

LABELS = st.lists(st.integers(2, 30), min_size=2, max_size=5).flatmap(
    lambda counts: st.permutations([label for label, count in enumerate(counts) for _ in range(count)])
)


@given(LABELS, st.floats(0.05, 0.5), st.integers(0, 100))
def test_the_validation_part_has_its_share_of_every_class(labels, share, seed):
    array = np.array(labels)
    training, validation = stratified(array, share, seed)
    assert sorted([*training, *validation]) == list(range(len(labels)))
    for label in set(labels):
        members = labels.count(label)
        inside = int((array[validation] == label).sum())
        assert abs(inside - share * members) <= 1
        assert 1 <= inside < members
    again = stratified(array, share, seed)
    assert np.array_equal(training, again[0])


def test_another_seed_validates_on_other_images():
    labels = np.repeat([0, 1], 50)
    assert not np.array_equal(stratified(labels, 0.2, 0)[1], stratified(labels, 0.2, 1)[1])


def test_a_class_of_one_image_is_trained_on():
    training, validation = stratified(np.array([0, 1, 1, 1, 1]), 0.25, seed=0)
    assert 0 in training
    assert len(validation) == 1


@given(LABELS, st.integers(2, 6), st.integers(0, 100))
def test_each_fold_is_stratified_and_each_image_validated_once(labels, folds, seed):
    array = np.array(labels)
    names = [f"class {label}" for label in range(array.max() + 1)]
    counts = np.bincount(array)
    if counts.min() < folds:
        smallest = counts.argmin()
        with pytest.raises(DataError) as caught:
            stratified_folds(array, folds, seed, names)
        assert str(caught.value) == (
            f"class 'class {smallest}' has {counts[smallest]} images to cross-validate on,"
            f" fewer than the {folds} folds; add images or lower --folds"
        )
        return
    cuts = list(stratified_folds(array, folds, seed, names))
    assert len(cuts) == folds
    assert sorted(np.concatenate([validation for _, validation in cuts])) == list(range(len(labels)))
    for training, validation in cuts:
        assert sorted([*training, *validation]) == list(range(len(labels)))
        inside = np.bincount(array[validation], minlength=len(counts))
        assert (np.abs(inside - counts / folds) < 1).all()


GROUPED = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=2, max_size=60)


@given(GROUPED, st.floats(0.05, 0.5), st.integers(0, 100))
def test_validation_keeps_groups_whole_and_every_class_trained(rows, share, seed):
    labels, groups = np.array(rows).T
    training, validation = stratified(labels, share, seed, groups)
    assert sorted([*training, *validation]) == list(range(len(rows)))
    assert not set(groups[training]) & set(groups[validation])
    assert set(labels[training]) == set(labels)


def test_groups_are_validated_on_in_their_share():
    labels = np.repeat([0, 1, 2], [400, 400, 60])
    groups = np.concatenate([np.arange(400) // 8, 1000 + np.arange(400), 2000 + np.arange(60) // 20])
    shares = [np.bincount(labels[stratified(labels, 0.2, seed, groups)[1]], minlength=3) for seed in range(10)]
    assert all((76 <= counts[0] <= 84, counts[1] == 80, counts[2] == 20) == (True, True, True) for counts in shares)


@given(GROUPED, st.integers(2, 5), st.integers(0, 100))
def test_folds_tear_no_group_apart(rows, folds, seed):
    labels, groups = np.array(rows).T
    names = [str(label) for label in range(3)]
    apart = [len(set(groups[labels == label])) for label in range(3)]
    if min(apart) < folds:
        with pytest.raises(DataError, match=f"fewer than the {folds} folds; add images or lower --folds$"):
            stratified_folds(labels, folds, seed, names, groups)
        return
    mixed = max(len(set(labels[groups == group])) for group in set(groups)) > 1
    cuts, refused = [], ""
    try:
        cuts = list(stratified_folds(labels, folds, seed, names, groups))
    except DataError as error:
        refused = str(error)
    if refused:  # three groups that pair three classes cannot be divided in two
        assert mixed
        assert "would be in one of the" in refused
        return
    assert sorted(np.concatenate([validation for _, validation in cuts])) == list(range(len(rows)))
    for training, validation in cuts:
        assert not set(groups[training]) & set(groups[validation])
        assert set(labels[training]) == set(labels)


def test_a_class_in_two_groups_is_in_two_folds():
    labels = np.array([0, 0, 0, 1, 0, 1, 0, 0])
    groups = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    for seed in range(20):
        for training, _ in stratified_folds(labels, 2, seed, ["ape", "bee"], groups):
            assert set(labels[training]) == {0, 1}


def test_folds_with_a_few_groups_are_as_even_as_without():
    labels = np.arange(1000) % 4
    groups = np.arange(1000)
    groups[40:80:4] = 40
    for _, validation in stratified_folds(labels, 5, 0, list("abcd"), groups):
        assert np.bincount(labels[validation]).tolist() == [50, 50, 50, 50]


def test_images_of_one_group_are_too_few_for_folds():
    with pytest.raises(
        DataError, match=r"^class 'b' has 5 images in 1 groups to cross-validate on, fewer than the 2 folds"
    ):
        stratified_folds(np.array([0, 0, 1, 1, 1, 1, 1]), 2, 0, ["a", "b"], np.array([0, 1, 2, 2, 2, 2, 2]))


def test_a_class_without_any_image_is_the_smallest():
    with pytest.raises(DataError, match=r"^class 'b' has 0 images to cross-validate on, fewer than the 2 folds"):
        stratified_folds(np.array([0, 0, 0]), 2, 0, ["a", "b"])
