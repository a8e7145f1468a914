"""Who sees which picture: by content for the held-out part, by seed and class for the rest."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import encode
from toolkit.errors import DataError
from toolkit.training.datasets import Catalogue, open_catalogue
from toolkit.training.splits import split, stratified, stratified_folds


def picture(seed: int, size: int = 20) -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8))


def fill(folder: Path, count: int, first: int = 0) -> None:
    """Pictures no two of which are alike, as long as ``first`` differs."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(first + number))


def listed(hashes: list[str], labels: list[int] | None = None, parts: list[str] | None = None) -> Catalogue:
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
def test_a_picture_is_held_out_by_its_content_whatever_else_there_is(hashes: list[str], share: float, random) -> None:
    """The place of each picture is the same in the whole folder, in a part of it, and in any order."""
    below = {digest for digest in hashes if int(digest, 16) / 16**64 < share}
    some = random.sample(hashes, len(hashes) // 2)
    for chosen in (hashes, some):
        expected = below & set(chosen)
        if not 0 < len(expected) < len(chosen):
            with pytest.raises(DataError):
                split(listed(chosen), share)
            continue
        catalogue = listed(chosen)
        divided = split(catalogue, share)
        assert set(catalogue.hashes[divided.held_out]) == expected
        assert set(catalogue.hashes[divided.development]) == set(chosen) - expected
        assert divided.validation.tolist() == []


def test_about_the_share_is_held_out() -> None:
    """Of 1,797 digits 270 are expected; four standard deviations are 61."""
    divided = split(open_catalogue("digits"), 0.15)
    assert 270 - 61 < len(divided.held_out) < 270 + 61


def test_a_folder_that_grows_keeps_every_picture_in_its_place(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        fill(tmp_path / "pets" / name, 20, first=100 * label)
    before = open_catalogue("pets")
    fill(tmp_path / "pets" / "ant", 20, first=500)  # first in order, so that every index moves
    for number in range(20):
        (tmp_path / "pets" / "dog" / f"0{number}.png").write_bytes(picture(700 + number))
    after = open_catalogue("pets")
    held_out = set(before.hashes[split(before, 0.25).held_out])
    assert 0 < len(held_out) < 40
    assert set(after.hashes[split(after, 0.25).held_out]) & set(before.hashes) == held_out


def test_a_split_that_leaves_a_part_empty_is_refused() -> None:
    high, low = "f" * 64, "0" * 64
    with pytest.raises(
        DataError, match=r"^none of the 2 pictures falls into the held-out share of 0\.15; add pictures"
    ):
        split(listed([high, "e" * 64]), 0.15)
    with pytest.raises(DataError, match=r"^class 'class 1' has no picture to train on$"):
        split(listed([high, low], [0, 1]), 0.15)
    with pytest.raises(DataError, match=r"^class 'class 1' has no picture to train on$"):
        split(listed([high, low], [0, 1], ["train", "test"]), 0.15)


# --- validation and folds -----------------------------------------------------------------------

LABELS = st.lists(st.integers(2, 30), min_size=2, max_size=5).flatmap(
    lambda counts: st.permutations([label for label, count in enumerate(counts) for _ in range(count)])
)


@given(LABELS, st.floats(0.05, 0.5), st.integers(0, 100))
def test_the_validation_part_has_its_share_of_every_class(labels: list[int], share: float, seed: int) -> None:
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


def test_another_seed_validates_on_other_pictures() -> None:
    labels = np.repeat([0, 1], 50)
    assert not np.array_equal(stratified(labels, 0.2, 0)[1], stratified(labels, 0.2, 1)[1])


def test_a_class_of_one_picture_is_trained_on() -> None:
    training, validation = stratified(np.array([0, 1, 1, 1, 1]), 0.25, seed=0)
    assert 0 in training
    assert len(validation) == 1


@given(LABELS, st.integers(2, 6), st.integers(0, 100))
def test_each_fold_is_stratified_and_each_picture_validated_once(labels: list[int], folds: int, seed: int) -> None:
    array = np.array(labels)
    names = [f"class {label}" for label in range(array.max() + 1)]
    counts = np.bincount(array)
    if counts.min() < folds:
        smallest = counts.argmin()
        with pytest.raises(DataError) as caught:
            stratified_folds(array, folds, seed, names)
        assert str(caught.value) == (
            f"class 'class {smallest}' has {counts[smallest]} pictures to cross-validate on,"
            f" fewer than the {folds} folds; add pictures or lower --folds"
        )
        return
    cuts = list(stratified_folds(array, folds, seed, names))
    assert len(cuts) == folds
    assert sorted(np.concatenate([validation for _, validation in cuts])) == list(range(len(labels)))
    for training, validation in cuts:
        assert sorted([*training, *validation]) == list(range(len(labels)))
        inside = np.bincount(array[validation], minlength=len(counts))
        assert (np.abs(inside - counts / folds) < 1).all()


def test_a_class_without_any_picture_is_the_smallest() -> None:
    with pytest.raises(DataError, match=r"^class 'b' has 0 pictures to cross-validate on, fewer than the 2 folds"):
        stratified_folds(np.array([0, 0, 0]), 2, 0, ["a", "b"])
