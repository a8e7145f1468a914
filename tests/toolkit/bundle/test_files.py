"""Files of a bundle: digest, links, pickles, code, card and baseline."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from support.bundles import UNPICKLED, Trap, change_baseline, change_card, refusal
from support.colours import COLOURS
from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import BASELINE, CARD, PROGRAM, digest_of, verify_bundle
from toolkit.bundle.program import load_bundle
from toolkit.errors import BundleError


def test_no_pickle_and_no_code_is_in_a_bundle(saved):
    names = {path.relative_to(saved.folder).as_posix() for path in saved.folder.rglob("*") if path.is_file()}
    assert {PROGRAM, CARD, BASELINE, "MLmodel", "requirements.txt"} <= names
    assert not [name for name in names if Path(name).suffix in {".py", ".pkl", ".pickle", ".pth", ".pt", ".joblib"}]
    for name in names:
        data = (saved.folder / name).read_bytes()
        assert not data.startswith(b"\x80"), f"{name} is a pickle"
    assert json.loads((saved.folder / CARD).read_text())["classes"] == list(COLOURS)


def test_the_digest_is_of_names_and_contents(copy, saved):
    assert len(saved.digest) == 64
    assert digest_of(copy) == saved.digest  # not of times or of the place
    (copy / "registered_model_meta").write_text("MLflow writes this at every download")
    assert digest_of(copy) == saved.digest
    (copy / CARD).rename(copy / "extra_files" / "other.json")
    assert digest_of(copy) != saved.digest


def test_a_flipped_byte_in_any_file_is_seen(copy, saved):
    load_bundle(copy, saved.digest)
    generator = np.random.default_rng(0)
    paths = [path for path in sorted(copy.rglob("*")) if path.is_file()]
    assert len(paths) >= 9
    altered = rf"^the bundle was altered: its digest is [0-9a-f]{{12}}\.\.\., recorded was {saved.digest[:12]}"
    for path in paths:
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1, *generator.integers(0, len(whole), 5)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << generator.integers(8)
            path.write_bytes(damaged)
            with pytest.raises(BundleError, match=altered):
                load_bundle(copy, saved.digest)
        path.write_bytes(whole)
    load_bundle(copy, saved.digest)


@pytest.mark.parametrize("name", [PROGRAM, CARD, BASELINE, "MLmodel"])
def test_a_missing_file_is_named(copy, saved, name):
    (copy / name).unlink()
    assert refusal(copy, saved.digest) == f"the bundle has no {name}"
    (copy / name).mkdir()
    assert refusal(copy, saved.digest) == f"the bundle has no {name}"


def test_a_folder_that_is_not_there_has_no_program(tmp_path):
    assert refusal(tmp_path / "nowhere", "0" * 64) == f"the bundle has no {PROGRAM}"


def test_a_file_more_or_less_is_seen(copy, saved):
    (copy / "requirements.txt").unlink()
    assert refusal(copy, saved.digest).startswith("the bundle was altered: ")
    shutil.copy(saved.folder / "requirements.txt", copy)
    (copy / "more.txt").write_text("")
    assert refusal(copy, saved.digest).startswith("the bundle was altered: ")


def test_without_a_digest_nothing_tells_whether_it_is_whole(saved):
    for digest in (None, ""):
        with pytest.raises(BundleError, match=r"^no digest was recorded for the bundle"):
            load_bundle(saved.folder, digest)


@pytest.mark.parametrize("name", [PROGRAM, CARD, "data", "extra_files"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_link_is_refused_wherever_it_leads(copy, saved, name, inside):
    """Files behind a link to a folder would not be in the digest, and could be replaced after the check."""
    elsewhere = (copy if inside else copy.parent) / "elsewhere"
    (copy / name).rename(elsewhere)
    (copy / name).symlink_to(os.path.relpath(elsewhere, (copy / name).parent))
    assert refusal(copy) == f"the bundle holds {Path(name).name!r}, which is no file of its own"


def test_a_link_to_nowhere_and_a_pipe_are_refused(copy):
    (copy / "notes.txt").symlink_to("../../nowhere")
    assert refusal(copy, "0") == "the bundle holds 'notes.txt', which is no file of its own"
    (copy / "notes.txt").unlink()
    os.mkfifo(copy / "pipe")
    assert refusal(copy, "0") == "the bundle holds 'pipe', which is no file of its own"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without permission")
def test_files_that_may_not_be_read_are_no_traceback(saved):
    os.seteuid(65534)
    try:
        assert refusal(saved.folder, saved.digest).startswith("the bundle cannot be read: ")
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "name", ["model.pkl", "data/model.pth", "extra_files/deep/X.JOBLIB", "pickle_module_info.txt", "odd\n.pt"]
)
def test_a_pickle_is_known_by_its_name(copy, name):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"harmless")
    assert refusal(copy) == f"the bundle holds {Path(name).name!r}, and {UNPICKLED}"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_known_by_its_content(copy, protocol):
    (copy / "requirements.txt").write_bytes(pickle.dumps(Trap(), protocol))
    assert refusal(copy) == f"the bundle holds 'requirements.txt', and {UNPICKLED}"


def test_what_torch_saved_is_a_pickle_under_any_name(copy):
    torch.save({"weight": torch.zeros(2)}, copy / "notes.txt")
    assert refusal(copy) == f"the bundle holds 'notes.txt', and {UNPICKLED}"


def test_a_code_folder_is_refused_also_with_the_right_digest(copy):
    (copy / "code").mkdir()
    (copy / "code" / "evil.py").write_text("")
    assert refusal(copy) == "the bundle brings a code folder, and no code that travels with a model is run"


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("    code: null", "    code: lib"),
        ("    code: null", "    code: /tmp"),
        ("    data: data", "    data: data\n    code: lib"),
        ("    data: data", "    data: ../elsewhere"),
        ("model_data: data", "model_data: ../elsewhere"),
        ("loader_module: mlflow.pytorch", "loader_module: antigravity"),
    ],
)
def test_code_under_another_name_is_refused_as_well(copy, line, instead):
    """MLflow would put the folder named there before all others that Python imports from."""
    (copy / "lib").mkdir()
    (copy / "lib" / "colorsys.py").write_text("")
    text = (copy / "MLmodel").read_text()
    assert text.count(line) == 1
    (copy / "MLmodel").write_text(text.replace(line, instead))
    assert refusal(copy) == f"the bundle's MLmodel names code, or another program than {PROGRAM}"


@pytest.mark.parametrize("text", ["", "flavors: {python_function: {}}", "a: [", "- 1\n- 2\n"])
def test_an_mlmodel_that_makes_no_sense_is_refused(copy, text):
    (copy / "MLmodel").write_text(text)
    assert refusal(copy).startswith("the bundle's MLmodel cannot be read: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2, "mood": 1}, "the card has format 2, made by a newer version; this one reads 1"),
        ({"format": "ä" * 999}, "the card has format 'äääääääääääääääääää, made by a newer version"),
        ({"temperature": 0}, "the card is wrong at temperature: Input should be greater than 0"),
        ({"temperature": float("inf")}, "the card is wrong at temperature: Input should be a finite number"),
        ({"temperature": float("nan")}, "the card is wrong at temperature: Input should be"),
        ({"classes": ["one"]}, "the card is wrong at classes: Tuple should have at least 2 items"),
        ({"classes": ["a", "b", "a"]}, "the card is wrong at classes: 'a' is there 2 times"),
        ({"image_size": 10**9}, "the card is wrong at image_size: Input should be less than or equal"),
        ({"image_size": 16.5}, "the card is wrong at image_size: Input should be a valid integer"),
        ({"mood": "good"}, "the card is wrong at mood: Extra inputs are not permitted"),
        ({"metrics": {"f1": {"value": 1, "images": -1}}}, "the card is wrong at metrics.f1.images"),
        ({"metrics": {"f1": {"value": 1.01, "images": 1}}}, "the card is wrong at metrics.f1.value"),
        ({"metrics": {"f1": {"value": float("nan"), "images": 1}}}, "the card is wrong at metrics.f1.value"),
        ({"classes": ["blue", "red", "green"]}, "card and baseline name different classes"),
        ({"classes": [*COLOURS, "grey"]}, "the card is of 16 x 16 pixels and 4 classes, the MLmodel is not"),
        ({"image_size": 24}, "the card is of 24 x 24 pixels and 3 classes, the MLmodel is not"),
        ({"metrics": {"accuracy": {"value": 0.99, "images": 300}}}, "the card's accuracy is 0.99, the baseline's 1"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(copy, changes, message):
    change_card(copy, lambda card: card.update(changes))
    assert refusal(copy).startswith(message)


def test_a_card_without_one_of_its_fields_is_refused(copy):
    change_card(copy, lambda card: card.pop("network"))
    assert refusal(copy).startswith("the card is wrong at network: Field required")


def test_the_accuracy_of_another_sample_may_be_another(copy):
    change_card(copy, lambda card: card["metrics"]["accuracy"].update(value=0.99, images=40_000))
    verify_bundle(copy, digest_of(copy))


def test_the_accuracy_may_differ_by_the_ties_that_float16_makes(copy):
    """Near 0.5 float16 steps by 0.0005 upwards: of 0.49999 and 0.50001 it makes the same, and the first class wins."""
    rows = np.tile([0.49999, 0.50001, 0.0], (4, 1))
    rows[3] = [0.2, 0.7, 0.1]
    assert rows.argmax(axis=1).tolist() == [1, 1, 1, 1]
    labels = np.array([1, 0, 2, 1])
    baseline = Baseline(COLOURS, rows, labels)
    assert baseline.predicted.tolist() == [0, 0, 0, 1]
    (copy / BASELINE).write_bytes(baseline.to_bytes())
    for right, whole in {0: False, 1: True, 2: True, 3: True, 4: False}.items():  # the ties of images 0 and 1 count
        change_card(copy, lambda card, right=right: card["metrics"].update(accuracy={"value": right / 4, "images": 4}))
        if whole:
            verify_bundle(copy, digest_of(copy))
        else:
            assert refusal(copy) == f"the card's accuracy is {right / 4:.4g}, the baseline's 0.5"


def test_a_card_that_is_no_card_is_refused(copy):
    for text in (b"\xff\xfe", b"", b"[" * 100_000):
        (copy / CARD).write_bytes(text)
        assert refusal(copy).startswith("the card is wrong: Invalid JSON")


@pytest.mark.parametrize(("name", "most"), [(CARD, "4,194,304"), ("MLmodel", "65,536")])
def test_no_more_than_makes_sense_is_read_of_a_text(copy, name, most):
    with (copy / name).open("ab") as file:
        file.truncate(5 * 2**20)
    assert refusal(copy) == f"the bundle's {Path(name).name} has 5,242,880 bytes, and at most {most} are read"


def rows(count):
    return {"probabilities": np.eye(3)[[0] * count], "labels": np.zeros(count, int), "hashes": np.zeros(0, "U1")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": np.full((300, 3), np.nan)}, "a baseline must hold finite probabilities"),
        ({"probabilities": np.full((300, 3), 0.4)}, "the baseline does not hold probabilities"),
        ({"probabilities": np.tile([1.5, -0.5, 0], (300, 1))}, "the baseline does not hold probabilities"),
        ({"hashes": np.full(300, "a")}, "the baseline holds an image twice"),
        ({"statistic_brightness": np.full(300, np.nan)}, "the baseline's brightness is not finite for every image"),
        ({"statistic_width": np.r_[np.inf, np.ones(299)]}, "the baseline's width is not finite for every image"),
        (rows(0), "a baseline must hold 1 to 10,000 images, this one holds 0"),
        (rows(10_001), "a baseline must hold 1 to 10,000 images, this one holds 10,001"),
        ({"labels": np.full(300, 3)}, "the labels of a baseline must lie in 0..2"),
        ({"labels": np.array([Trap()], dtype=object)}, "the baseline cannot be read: "),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused(copy, changes, message):
    change_baseline(copy, **changes)
    assert refusal(copy).startswith(message)


def test_a_baseline_that_cannot_be_read_is_refused(copy):
    (copy / BASELINE).write_bytes(b"PK\x03\x04 and no more")
    assert refusal(copy).startswith("the baseline cannot be read: ")


def test_a_baseline_with_two_arrays_of_one_name_is_refused(copy):
    with zipfile.ZipFile(copy / BASELINE, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("hashes.npy", b"")
    assert refusal(copy) == "the baseline holds two arrays of one name"


def test_a_baseline_that_unpacks_into_too_much_is_not_unpacked(copy):
    change_baseline(copy, statistic_width=np.zeros(16 * 2**20, np.float32))
    assert (copy / BASELINE).stat().st_size < 2**17
    assert " bytes, and 3 classes need at most 10,300,060" in refusal(copy)
    data = bytearray((copy / BASELINE).read_bytes())
    entry = data.rindex(b"statistic_width.npy") - 46  # in the zip file's directory
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + 24 : entry + 28] = struct.pack("<I", 1000)  # it lies: this array is unpacked into 1000 bytes
    (copy / BASELINE).write_bytes(data)
    assert refusal(copy).startswith("the baseline cannot be read: ")
