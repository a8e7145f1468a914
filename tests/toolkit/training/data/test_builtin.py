"""Data sets by name: found where torchvision keeps them, fetched from a real server, and never half there."""

import errno
import gzip
import hashlib
import os
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from support.image_folders import write_idx
from support.servers import free_port
from toolkit.errors import DataError
from toolkit.training.data.builtin import NAMES, catalogue, load_builtin, load_downloaded, open_idx
from toolkit.training.data.cifar import CIFAR10

REFUSED = f"<urlopen error [Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}>"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.uint8)


def fill(folder):
    """The four files of a set like MNIST, and their checksums."""
    write_idx(folder, "train", PIXELS[:30], [number % 10 for number in range(30)])
    write_idx(folder, "t10k", PIXELS[30:], range(10))
    return {path.name: checksum(path) for path in folder.iterdir()}


def checksum(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a server, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SilentHandler, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()
        thread.join()


def unused_address():
    """An address at which nothing answers."""
    return f"http://127.0.0.1:{free_port()}/"


# --- the table ----------------------------------------------------------------------------------


def test_what_is_known_by_name():
    assert NAMES == ("digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100")
    assert {name for name, published in catalogue().items() if published.allow_flip or published.cifar} == {
        "fashion-mnist",
        "cifar10",
        "cifar100",
    }
    assert catalogue()["mnist"].classes == tuple("0123456789")
    assert catalogue()["fashion-mnist"].classes[0] == "T-shirt/top"
    assert catalogue()["kmnist"].classes == ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    for published in catalogue().values():
        assert all(len(bytes.fromhex(md5)) == 16 for md5 in published.files.values())
        assert all(address.startswith("http") and address.endswith("/") for address in published.addresses)


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    with pytest.raises(DataError, match=r"^no data set is called 'cifar11'; there are: cifar10, cifar100, "):
        load_builtin("cifar11", Path("data"))


# --- a local copy -------------------------------------------------------------------------------


def test_torchvisions_copy_is_read_as_torchvision_reads_it(tmp_path):
    fill(tmp_path / "FashionMNIST" / "raw")
    for path in [*(tmp_path / "FashionMNIST" / "raw").iterdir()]:  # torchvision itself wants them unpacked
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    read = load_builtin("fashion-mnist", tmp_path)
    for part, chosen in (("test", read.parts == "test"), ("train", read.parts == "train")):
        reference = FashionMNIST(tmp_path, train=part == "train")
        assert np.array_equal(read.pixels[chosen], reference.data)
        assert np.array_equal(read.labels[chosen], reference.targets)
        assert list(read.classes) == reference.classes


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("kmnist", "KMNIST")])
def test_compressed_files_need_not_be_unpacked(tmp_path, name, folder):
    fill(tmp_path / folder / "raw")
    read = load_builtin(name, tmp_path)
    assert np.array_equal(read.pixels, [*PIXELS[30:], *PIXELS[:30]])
    assert (read.name, read.allow_flip) == (name, False)


def test_a_folder_of_idx_files_is_known_by_its_place(tmp_path):
    fill(tmp_path / "FashionMNIST" / "raw")
    fill(tmp_path / "signs" / "raw")
    known = open_idx(tmp_path / "FashionMNIST" / "raw", "raw")
    assert (known.name, known.classes[9], known.allow_flip) == ("fashion-mnist", "Ankle boot", True)
    other = open_idx(tmp_path / "signs" / "raw", "signs/raw")
    assert (other.name, other.classes[9], other.allow_flip) == ("signs/raw", "9", False)


def cifar_files(folder):
    folder.mkdir()
    for number, name in enumerate((*CIFAR10.test, *CIFAR10.train)):
        (folder / name).write_bytes(bytes([number % 2]) + bytes(3072))
    (folder / CIFAR10.names).write_text("cat\ndog\n")


def cifar_archive(path, scratch):
    """An archive like the published one, and its checksum."""
    cifar_files(scratch / CIFAR10.folder)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(scratch / CIFAR10.folder, CIFAR10.folder)
    return checksum(path)


def test_cifar_is_read_from_its_folder_or_from_the_archive_beside(tmp_path):
    scratch, root = tmp_path / "scratch", tmp_path / "root"
    scratch.mkdir()
    root.mkdir()
    md5 = cifar_archive(root / "cifar-10-binary.tar.gz", scratch)
    published = replace(catalogue()["cifar10"], files={"cifar-10-binary.tar.gz": md5}, addresses=(unused_address(),))
    packed = load_downloaded("cifar10", published, root)
    (scratch / CIFAR10.folder).rename(root / CIFAR10.folder)
    assert load_builtin("cifar10", root).labels.tolist() == packed.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert (packed.name, packed.classes) == ("cifar10", ("cat", "dog"))


def test_an_archive_that_is_not_the_published_one_is_not_opened(tmp_path):
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"half of it")
    with pytest.raises(DataError) as caught:
        load_builtin("cifar100", tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/cifar-100-binary.tar.gz is not the published file, or only a part of it;"
        " remove it to fetch it again"
    )


# --- fetched ------------------------------------------------------------------------------------


def small(name, files, *addresses):
    return replace(catalogue()[name], files=files, addresses=addresses)


def test_what_is_missing_is_fetched_once(tmp_path, server, capsys):
    address, folder = server
    files = fill(folder / "kmnist")
    published = small("kmnist", files, unused_address(), f"{address}kmnist/")  # the first mirror is down
    first = load_downloaded("kmnist", published, tmp_path / "data")
    assert np.array_equal(first.pixels, [*PIXELS[30:], *PIXELS[:30]])
    raw = tmp_path / "data" / "KMNIST" / "raw"
    assert {path.name: checksum(path) for path in raw.iterdir()} == files
    assert capsys.readouterr().out.count(f"downloading {address}kmnist/") == 4
    (raw / "train-images-idx3-ubyte").write_bytes(gzip.decompress((raw / "train-images-idx3-ubyte.gz").read_bytes()))
    (raw / "train-images-idx3-ubyte.gz").unlink()
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    again = load_downloaded("kmnist", published, tmp_path / "data")
    assert np.array_equal(again.pixels, first.pixels)
    assert capsys.readouterr().out.splitlines()[-1] == f"downloading {address}kmnist/t10k-labels-idx1-ubyte.gz"


def test_an_archive_is_fetched_and_kept_as_it_is(tmp_path, server):
    address, folder = server
    md5 = cifar_archive(folder / "cifar-10-binary.tar.gz", folder)
    published = small("cifar10", {"cifar-10-binary.tar.gz": md5}, address)
    assert len(load_downloaded("cifar10", published, tmp_path / "data").pixels) == 6
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-binary.tar.gz"]


def test_a_failed_download_says_where_to_put_the_files(tmp_path):
    address, fallback = unused_address(), unused_address()
    with pytest.raises(DataError) as caught:
        load_downloaded("mnist", small("mnist", {"a.gz": "0" * 32, "b.gz": "1" * 32}, address, fallback), tmp_path)
    assert str(caught.value) == (
        f"mnist cannot be downloaded ({REFUSED}); fetch a.gz, b.gz from {address}"
        f" on a machine with internet access and put them into {tmp_path}/MNIST/raw"
    )
    assert [*(tmp_path / "MNIST" / "raw").iterdir()] == []


def test_a_download_with_a_wrong_checksum_is_discarded(tmp_path, server):
    address, folder = server
    files = fill(folder / "right")
    (folder / "wrong").mkdir()
    for name in files:
        (folder / "wrong" / name).write_bytes((folder / "right" / name).read_bytes()[:-1])
    wrong = small("mnist", files, f"{address}wrong/")
    with pytest.raises(DataError, match=r"^mnist cannot be downloaded \(http.*gz does not give the published file\)"):
        load_downloaded("mnist", wrong, tmp_path / "data")
    with pytest.raises(DataError, match=r"^mnist cannot be downloaded \(HTTP Error 404: File not found\)"):
        load_downloaded("mnist", small("mnist", files, f"{address}nowhere/"), tmp_path / "data")
    assert [*(tmp_path / "data" / "MNIST" / "raw").iterdir()] == []
    right = small("mnist", files, f"{address}wrong/", f"{address}right/")
    assert len(load_downloaded("mnist", right, tmp_path / "data").pixels) == 40


@pytest.mark.parametrize("there", ["cifar-10-batches-py", "cifar-10-python.tar.gz"])
def test_pickled_copies_are_never_opened(tmp_path, there):
    """They would delete a file if they were loaded."""
    witness = tmp_path / "witness"
    witness.write_text("alive")
    evil = f"cos\nunlink\n(V{witness}\ntR.".encode()
    if there.endswith(".gz"):
        (tmp_path / there).write_bytes(gzip.compress(evil))
    else:
        (tmp_path / there).mkdir()
        for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
            (tmp_path / there / name).write_bytes(evil)
    address = unused_address()
    with pytest.raises(DataError) as caught:
        load_downloaded("cifar10", replace(catalogue()["cifar10"], addresses=(address,)), tmp_path)
    assert str(caught.value) == (
        f"cifar10 cannot be downloaded ({REFUSED});"
        f" fetch cifar-10-binary.tar.gz from {address} on a machine with internet access and put them into"
        f" {tmp_path}; {tmp_path / there} is not read: it holds pickles, which can run any program"
    )
    assert witness.exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path, server):
    (tmp_path / "data").write_text("a file, where a folder should be")
    with pytest.raises(DataError, match=r"^mnist cannot be downloaded \(\[Errno \d+\] Not a directory: "):
        load_downloaded("mnist", small("mnist", {"a.gz": "0" * 32}, server[0]), tmp_path / "data")
