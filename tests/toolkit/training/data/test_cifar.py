"""The binary form of CIFAR, written here record by record as its authors describe it."""

import io
import tarfile

import numpy as np
import pytest

from toolkit.errors import DataError
from toolkit.training.data.cifar import CIFAR10, CIFAR100, read_cifar

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
NAMES = b"bird\ncat\nsea_lion\n\n"


def record(pixels, *labels):
    """The labels, then all red values row by row, all green ones, all blue ones."""
    return bytes(labels) + b"".join(pixels[..., channel].tobytes() for channel in range(3))


def ten():
    """Two images a file, labelled 0, 1, 2, 0, ..."""
    records = [record(image, number % 3) for number, image in enumerate(PIXELS)]
    files = {"test_batch.bin": b"".join(records[:2]), "batches.meta.txt": NAMES}
    for number in range(1, 6):
        files[f"data_batch_{number}.bin"] = b"".join(records[2 * number : 2 * number + 2])
    return files


def hundred():
    """A coarse label, which is not learnt, before the fine one."""
    records = [record(image, 19, number % 3) for number, image in enumerate(PIXELS)]
    return {
        "train.bin": b"".join(records[2:]),
        "test.bin": b"".join(records[:2]),
        "fine_label_names.txt": NAMES,
        "coarse_label_names.txt": b"animals\n",
    }


def unpacked(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def packed(path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def refusal(path, files=CIFAR10):
    with pytest.raises(DataError) as caught:
        read_cifar(path, files, "cifar")
    return str(caught.value).replace(str(path), "PATH")


@pytest.mark.parametrize(("files", "contents"), [(CIFAR10, ten()), (CIFAR100, hundred())], ids=["ten", "hundred"])
def test_a_folder_and_an_archive_hold_the_same_images(tmp_path, files, contents):
    for path in (unpacked(tmp_path / "folder", contents), packed(tmp_path / "a.tar.gz", files.folder, contents)):
        read = read_cifar(path, files, "cifar")
        assert np.array_equal(read.pixels, PIXELS)
        assert read.labels.tolist() == [0, 1, 2] * 4
        assert read.parts.tolist() == ["test"] * 2 + ["train"] * 10
        assert read.classes == ("bird", "cat", "sea_lion")
        assert read.allow_flip
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.tar.gz"]  # nothing is unpacked to disk


def test_a_missing_file_is_named(tmp_path):
    contents = ten()
    del contents["data_batch_3.bin"]
    everything = (
        "test_batch.bin, data_batch_1.bin, data_batch_2.bin, data_batch_3.bin, data_batch_4.bin, data_batch_5.bin,"
        " batches.meta.txt"
    )
    for path in (unpacked(tmp_path / "folder", contents), packed(tmp_path / "a.tar.gz", CIFAR10.folder, contents)):
        assert refusal(path) == f"PATH lacks data_batch_3.bin; it should hold {everything}"


def test_what_is_broken_is_refused_in_one_sentence(tmp_path):
    folder = unpacked(tmp_path / "folder", ten())
    (folder / "test_batch.bin").write_bytes(ten()["test_batch.bin"][:-1])
    assert refusal(folder) == "PATH/test_batch.bin has 6,145 bytes, which is no whole number of records of 3,073"
    (folder / "test_batch.bin").write_bytes(b"")
    assert refusal(folder) == "PATH/test_batch.bin has 0 bytes, which is no whole number of records of 3,073"
    (folder / "test_batch.bin").write_bytes(record(PIXELS[0], 3))
    assert refusal(folder) == "PATH holds the label 3, and batches.meta.txt names 3 classes"
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"<html>404</html>")
    assert refusal(archive) == "PATH cannot be read: not a gzip file"
    whole = packed(archive, CIFAR10.folder, ten()).read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert refusal(archive).startswith("PATH cannot be read: ")


def test_a_file_of_a_size_that_was_never_published_is_not_read(tmp_path):
    """A hole of 300 MB in a folder, and a bomb of as much in an archive."""
    folder = unpacked(tmp_path / "folder", ten())
    with (folder / "data_batch_1.bin").open("wb") as file:
        file.truncate(300 * 10**6)
    message = "PATH/data_batch_1.bin has 300,000,000 bytes, more than any file of the published set"
    assert refusal(folder) == message
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as members, (folder / "data_batch_1.bin").open("rb") as file:
        member = tarfile.TarInfo(f"{CIFAR10.folder}/data_batch_1.bin")
        member.size = 300 * 10**6
        members.addfile(member, file)
    assert refusal(archive) == message


def test_links_in_an_archive_are_not_followed(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(record(PIXELS[0], 1))
    contents = ten()
    del contents["test_batch.bin"]
    archive = packed(tmp_path / "a.tar", CIFAR10.folder, contents)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as linked, tarfile.open(archive) as plain:
        for member in plain:
            linked.addfile(member, plain.extractfile(member))
        link = tarfile.TarInfo(f"{CIFAR10.folder}/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        linked.addfile(link)
    assert refusal(tmp_path / "b.tar.gz").startswith("PATH lacks test_batch.bin")
