"""IDX files, written here as their authors define them, and broken in every way that files break."""

import gzip
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from torchvision.datasets.mnist import read_image_file, read_label_file

from support.image_folders import idx_images, idx_labels
from toolkit.errors import DataError
from toolkit.training.data.idx import holds_idx, read_idx

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 7, 5)).astype(np.uint8)
LABELS = [0, 1, 2, 0, 1, 2, 2, 1, 0, 2]


@pytest.fixture
def folder(tmp_path):
    """Six images to train on, in files as they are, and four to test with, compressed."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_images(PIXELS[:6]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_labels(LABELS[:6]))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_images(PIXELS[6:])))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_labels(LABELS[6:])))
    return tmp_path


def refusal(folder, classes=()):
    with pytest.raises(DataError) as caught:
        read_idx(folder, "signs", classes)
    return str(caught.value).replace(f"{folder}/", "").replace(str(folder), "FOLDER")


# --- what is read -------------------------------------------------------------------------------


def test_images_and_labels_are_read_the_test_part_first(folder):
    read = read_idx(folder, "signs", allow_flip=True)
    assert np.array_equal(read.pixels, [*PIXELS[6:], *PIXELS[:6]])
    assert read.labels.tolist() == [*LABELS[6:], *LABELS[:6]]
    assert read.parts.tolist() == ["test"] * 4 + ["train"] * 6
    assert (read.name, read.classes, read.allow_flip) == ("signs", ("0", "1", "2"), True)


def test_the_files_are_those_that_torchvision_reads(folder):
    read = read_idx(folder, "signs")
    assert np.array_equal(read.pixels[4:], read_image_file(str(folder / "train-images-idx3-ubyte")))
    assert np.array_equal(read.labels[4:], read_label_file(str(folder / "train-labels-idx1-ubyte")))


@pytest.mark.parametrize("stem", ["t10k", "test", "emnist-letters-test"])
def test_the_test_part_has_several_names(folder, stem):
    for path in folder.glob("t10k-*"):
        path.rename(folder / path.name.replace("t10k", stem))
    assert read_idx(folder, "signs").parts.tolist() == ["test"] * 4 + ["train"] * 6


def test_a_dot_before_idx_is_as_good_as_a_dash(folder):
    for path in [*folder.iterdir()]:
        path.rename(folder / path.name.replace("-idx", ".idx"))
    assert holds_idx(folder)
    assert len(read_idx(folder, "signs").pixels) == 10


def test_one_part_is_enough_and_uncompressed_files_take_precedence(folder):
    for path in folder.glob("t10k-*"):
        path.unlink()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"what was left of a download")
    read = read_idx(folder, "signs")
    assert np.array_equal(read.pixels, PIXELS[:6])
    assert set(read.parts) == {"train"}


def test_labels_need_not_start_at_zero(folder):
    """As in EMNIST's letters, which are labelled 1 to 26."""
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_labels([3, 10, 7, 7, 7, 3]))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_labels([10, 10, 3, 3])))
    read = read_idx(folder, "letters")
    assert read.classes == ("3", "7", "10")
    assert read.labels.tolist() == [2, 2, 0, 0, 0, 2, 1, 1, 1, 0]


def test_classes_can_have_names(folder):
    read = read_idx(folder, "signs", ["stop", "yield", "turn", "slow"])
    assert read.classes == ("stop", "yield", "turn", "slow")
    assert read.labels.tolist() == [*LABELS[6:], *LABELS[:6]]
    assert refusal(folder, ("stop", "yield")) == "FOLDER holds the label 2; labels are 0 to 1"


def test_a_folder_is_known_by_its_files_of_images(folder, tmp_path_factory):
    assert holds_idx(folder)
    other = tmp_path_factory.mktemp("other")
    (other / "train-labels-idx1-ubyte").write_bytes(idx_labels(LABELS))
    (other / "train-images-idx3-ubyte").mkdir()  # how some archives unpack
    assert not holds_idx(other)
    assert refusal(other) == "FOLDER holds no IDX files of images, such as train-images-idx3-ubyte.gz"


# --- what is refused ----------------------------------------------------------------------------


def test_parts_that_do_not_go_together_are_refused(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_labels([1, 2, 3])))
    assert refusal(folder) == "t10k-images-idx3-ubyte.gz holds 4 images, t10k-labels-idx1-ubyte.gz 3 labels"
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert refusal(folder) == (
        "t10k-images-idx3-ubyte.gz has no labels: t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz is missing"
    )
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_labels(LABELS[6:])))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_images(np.zeros((4, 5, 5), np.uint8))))
    assert refusal(folder) == "the images of FOLDER are of different sizes, 5 x 5 and 5 x 7"
    (folder / "emnist-test-images-idx3-ubyte").write_bytes(idx_images(PIXELS))
    assert refusal(folder) == (
        "FOLDER holds several data sets, such as emnist-test-images-idx3-ubyte and t10k-images-idx3-ubyte.gz;"
        " leave one in it"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends within its header"),
        (idx_labels(LABELS), "is no IDX file of its kind: it starts with 00000801, not with 00000803"),
        (idx_images(PIXELS)[:12], "ends within its header"),
        (idx_images(PIXELS)[:-1], "should hold 10 x 7 x 5 bytes after its header, and holds 349"),
        (idx_images(PIXELS) + b"x", "should hold 10 x 7 x 5 bytes after its header, and holds more"),
        (idx_images(PIXELS[:0]), "is empty: its header says 0 x 7 x 5"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(folder, content, message):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(content)
    assert refusal(folder) == f"{path.name} {message}"
    path.unlink()
    path.with_suffix(".gz").write_bytes(gzip.compress(content))
    assert refusal(folder) == f"{path.name}.gz {message}"


def test_a_broken_compression_is_named(folder):
    path = folder / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal(folder) == (
        f"{path.name} cannot be read: Compressed file ended before the end-of-stream marker was reached"
    )
    path.write_bytes(idx_images(PIXELS))
    assert refusal(folder).startswith(f"{path.name} cannot be read: Not a gzipped file")
    damaged = bytearray(whole)
    damaged[-6] ^= 1  # of the checksum
    path.write_bytes(damaged)
    assert refusal(folder).startswith(f"{path.name} cannot be read: CRC check failed")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    path.write_bytes(damaged)
    assert refusal(folder).startswith(f"{path.name} ")


def test_what_says_that_it_is_larger_than_memory_is_refused(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x0803, 2**31, 2**10, 2**10))
    assert refusal(folder).startswith("train-images-idx3-ubyte says that it holds 2097152.0 GiB, too much for the ")


def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(folder):
    """A file of 200 kB that would unpack to 200 MB."""
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(struct.pack(">IIII", 0x0803, 6, 7, 5))
    for _ in range(200):
        bomb += packer.compress(bytes(10**6))
    (folder / "train-images-idx3-ubyte").unlink()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(bomb + packer.flush())
    tracemalloc.start()
    assert refusal(folder).endswith("should hold 6 x 7 x 5 bytes after its header, and holds more")
    assert tracemalloc.get_traced_memory()[1] < 20 * 10**6
    tracemalloc.stop()
