"""Bundles: the program is the network with everything around it, and what is not whole is refused."""

import io
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
from torch.nn.functional import batch_norm, dropout

from support.colours import COLOURS, ColourNetwork, colour_baseline, colour_card, colour_pixels
from toolkit.bundle.archive_check import EXAMPLES, GRAPH, TENSORS
from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import BASELINE, CARD, PROGRAM, digest_of, verify_bundle
from toolkit.bundle.program import Program, load_bundle, save_bundle
from toolkit.errors import BundleError
from toolkit.tracking.connection import mlflow
from toolkit.training.networks import build_network

SIZE = 16
UNPICKLED = "no pickle is ever loaded"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Saved:
    """A bundle on disk that tests copy before they break it."""

    def __init__(self, folder, network, temperature):
        self.folder, self.network, self.temperature = folder, network, temperature
        program = Program(network, temperature)
        self.card, self.baseline = colour_card(), colour_baseline(program)
        self.digest = save_bundle(folder, program, self.card, self.baseline, run_id="0" * 32, model_id="m-1")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("bundle") / "model", ColourNetwork(), 1.7)


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved.folder, tmp_path / "copy"))


def images(count, seed=0):
    generator = np.random.default_rng(seed)
    return np.stack([colour_pixels(COLOURS[number % 3], SIZE, generator) for number in range(count)])


def refusal(folder, digest=None):
    """Why a bundle is refused, when the digest is not the reason."""
    with pytest.raises(BundleError) as caught:
        load_bundle(folder, digest or digest_of(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    return str(caught.value)


def change_card(folder, change):
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


def change_baseline(folder, **changes):
    """Replace arrays of a baseline, past all that ``Baseline`` itself would refuse."""
    with np.load(folder / BASELINE) as file:
        arrays = dict(file)
    np.savez_compressed(folder / BASELINE, **{**arrays, **changes})


def change_program(folder, changes, method=zipfile.ZIP_STORED):
    """Replace members of a program's archive, or add them."""
    with zipfile.ZipFile(folder / PROGRAM) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / PROGRAM, "w", method) as archive:
        for name, data in {**members, **changes}.items():
            archive.writestr(name, data)


def member(folder, name):
    with zipfile.ZipFile(folder / PROGRAM) as archive:
        return archive.read(name).decode()


def put_program(folder, module, *, free=True):
    """Make a module the program of a bundle, for any number of images or for 2."""
    example = (torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8),)
    shapes = ({0: torch.export.Dim.AUTO},) if free else None
    torch.export.save(torch.export.export(module.eval(), example, dynamic_shapes=shapes), folder / PROGRAM)


class Trap:
    """Makes a folder as soon as it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


# --- what a bundle does -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_loaded_program_answers_as_the_network_itself(saved, count):
    """Scaling, normalisation, temperature and softmax are computed here once more."""
    batch = images(count)
    scaled = (batch.transpose(0, 3, 1, 2) / 255 - MEAN.reshape(1, 3, 1, 1)) / STD.reshape(1, 3, 1, 1)
    with torch.inference_mode():
        logits = saved.network(torch.tensor(scaled, dtype=torch.float32)).double().numpy() / 1.7
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answer = load_bundle(saved.folder, saved.digest).predict(batch)
    assert (answer.shape, answer.dtype) == ((count, 3), np.float32)
    assert answer == pytest.approx(expected, abs=1e-5)
    assert answer.argmax(axis=1).tolist() == [number % 3 for number in range(count)]


def test_a_bundle_brings_its_card_and_its_baseline(saved):
    bundle = load_bundle(saved.folder, saved.digest)
    assert bundle.card == saved.card
    assert bundle.digest == saved.digest
    assert bundle.baseline.accuracy == saved.baseline.accuracy == 1.0
    assert np.array_equal(bundle.baseline.probabilities, saved.baseline.probabilities)
    assert bundle.baseline.hashes.tolist() == saved.baseline.hashes.tolist()


def test_images_that_may_not_be_written_to_are_taken_too(saved):
    bundle, batch = load_bundle(saved.folder, saved.digest), images(4)
    frozen, strided = batch.copy(), np.ascontiguousarray(batch[:, :, ::-1])[:, :, ::-1]
    frozen.setflags(write=False)
    assert np.array_equal(bundle.predict(frozen), bundle.predict(batch))
    assert np.array_equal(bundle.predict(strided), bundle.predict(batch))


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])  # resnet18_backbone exports the operations of resnet18
def test_a_real_network_is_saved_in_evaluation_mode_and_float32(tmp_path, name):
    """From training mode, bfloat16 and channels last: dropout rests, and the running statistics are used."""
    torch.manual_seed(0)
    network = build_network(name, 3, 0.9, None)
    network(torch.rand(8, 3, SIZE, SIZE))  # the running statistics are no longer those of a new one
    network = network.to(torch.bfloat16).to(memory_format=torch.channels_last).train()
    program = Program(network)
    baseline = Baseline(COLOURS, np.full((1, 3), 1 / 3), np.array([0]))
    digest = save_bundle(tmp_path / "model", program, colour_card(name, size=SIZE), baseline, model_id="m-1")
    bundle = load_bundle(tmp_path / "model", digest)
    batch = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
    answer = bundle.predict(batch)
    assert np.array_equal(answer, bundle.predict(batch))
    with torch.inference_mode():
        assert answer == pytest.approx(program.float().eval()(torch.from_numpy(batch)).numpy(), abs=1e-5)
    assert bundle.predict(batch[:1])[0] == pytest.approx(answer[0], abs=1e-5)


class Shapes(torch.nn.Module):
    """A constant, and sizes that are worked out from the size of the batch, as attention does."""

    def forward(self, batch):
        halves = batch.float().reshape(batch.shape[0] * 2, -1, 3).mean(dim=1)  # (2 N, 3)
        return torch.softmax(halves.reshape(-1, 2, 3).mean(dim=1) / torch.tensor([8.0, 8.0, 8.0]), dim=1)


def test_a_program_may_hold_constants_and_work_out_sizes(copy):
    put_program(copy, Shapes())
    assert "tensor_0" in member(copy, TENSORS[1])
    assert "_operator.mul" in member(copy, GRAPH)
    batch = images(4)
    logits = batch.mean(axis=(1, 2)) / 8
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert load_bundle(copy, digest_of(copy)).predict(batch) == pytest.approx(expected, abs=1e-5)


def test_mlflows_own_loader_answers_too(saved):
    """MLflow alone gives the same probabilities, and the signature describes the input."""
    model = mlflow.pyfunc.load_model(str(saved.folder))
    (taken,), (given,) = model.metadata.signature.inputs.inputs, model.metadata.signature.outputs.inputs
    assert (taken.type, taken.shape) == (np.dtype("uint8"), (-1, SIZE, SIZE, 3))
    assert (given.type, given.shape) == (np.dtype("float32"), (-1, 3))
    batch = images(5)
    assert np.asarray(model.predict(batch)) == pytest.approx(load_bundle(saved.folder, saved.digest).predict(batch))


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


# --- files that are missing, altered, or no files -------------------------------------------------


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
    """What is behind a link to a folder would not be in the digest, and could be replaced after the check."""
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


# --- pickles and code -----------------------------------------------------------------------------


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


# --- what the archive of a program may hold -------------------------------------------------------


def test_what_is_no_archive_is_refused(copy):
    whole = (copy / PROGRAM).read_bytes()
    for broken in (b"", b"noise", whole[: len(whole) // 2], pickle.dumps(Trap())):
        (copy / PROGRAM).write_bytes(broken)
        assert refusal(copy) == "the program cannot be read: File is not a zip file"


@pytest.mark.parametrize(
    "name",
    [
        "model/data/weights/model.pt",  # what older versions of torch unpickled
        "model/data/constants/custom_obj_0",
        "model/data/constants/opaque_obj_0",
        "model/data/aotinductor/model/model.so",
        "model/models/other.json",
        "model/extra/data.pkl",
        "model/../evil.json",
        "../evil.json",
        "MODEL/models/model.json",
        "evil\n.pkl",
    ],
)
def test_a_member_that_no_tensor_needs_is_refused(copy, name):
    change_program(copy, {name: b"{}"})
    assert refusal(copy) == f"the program holds {name!r}, which torch.export would not write so"


def test_packed_members_and_names_that_are_there_twice_are_refused(copy):
    change_program(copy, {}, zipfile.ZIP_DEFLATED)
    assert refusal(copy).endswith(", which torch.export would not write so")
    change_program(copy, {})
    with zipfile.ZipFile(copy / PROGRAM, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(GRAPH, b"{}")
    assert refusal(copy) == "the program holds two members of one name"


def test_a_member_that_is_missing_or_makes_no_sense_is_refused(copy):
    for name in (GRAPH, EXAMPLES, *TENSORS):
        whole = member(copy, name) if name != EXAMPLES else ""
        change_program(copy, {name: b"["})
        assert refusal(copy).startswith("the program cannot be read: ")
        change_program(copy, {name: whole.encode()})
    change_program(copy, {GRAPH: b"[" * 100_000})
    assert refusal(copy).startswith("the program cannot be read: ")


@pytest.mark.parametrize("name", [GRAPH, *TENSORS])
def test_a_text_that_is_too_long_is_not_read(copy, name):
    change_program(copy, {name: b" " * (16 * 2**20 + 1)})
    assert refusal(copy) == f"the program's {name} has 16,777,217 bytes, and at most 16,777,216 are read"


def test_pickled_weights_are_refused(copy, tmp_path):
    """torch.export.load unpickles a weight that the archive calls pickled."""
    config = json.loads(member(copy, TENSORS[0]))
    next(iter(config["config"].values()))["use_pickle"] = True
    change_program(copy, {TENSORS[0]: json.dumps(config).encode(), "model/data/weights/weight_0": pickle.dumps(Trap())})
    assert refusal(copy) == f"the program has pickled weights, and {UNPICKLED}"
    assert not (tmp_path / "sprung").exists()


def test_an_example_input_that_is_more_than_a_tensor_is_refused(copy, tmp_path):
    """torch.export.load unpickles whatever it is."""
    buffer = io.BytesIO()
    torch.save(((Trap(),), {}), buffer)
    change_program(copy, {EXAMPLES: buffer.getvalue()})
    assert refusal(copy) == "the program's example input is a pickle of more than a tensor: 'posix mkdir'"
    assert not (tmp_path / "sprung").exists()


def test_the_example_input_is_not_loaded_at_all(saved, monkeypatch):
    """Also when the user lets MLflow unpickle what it likes."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    unpickled = []
    monkeypatch.setattr(torch, "load", lambda *given, **named: unpickled.append(given))
    load_bundle(saved.folder, saved.digest)
    assert unpickled == []


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        # torch hands an expression to sympy, which evaluates it as Python: this one alone makes the folder.
        (r'"expr_str": "', r'"expr_str": "__import__(\"os\").mkdir(\"sprung\") or '),
        (r'"torch.ops.aten.softmax.int"', r'"torch.os.mkdir"'),
        (r'"torch.ops.aten.softmax.int"', r'"torch.ops.aten.from_file.default"'),
        (r'"torch.ops.aten.softmax.int"', r'"torch.ops.aten.save.default"'),
        (r'"torch.ops.aten.softmax.int"', r'"_operator.attrgetter"'),
        (r'"name": "permute"', r'"name": "permute = print(1)\n    permute"'),
        (r'"range_constraints": {', r'"range_constraints": {"print(1)": {"min_val": 2, "max_val": null}, '),
        (r'"context": \"[]\"', r'"context": \"[\\\"print(1)\\\"]\"'),
    ],
)
def test_a_graph_that_brings_code_is_refused(copy, tmp_path, found, instead):
    graph = member(copy, GRAPH)
    found, instead = (text.replace(r'"context": \"', r"\"context\": \"") for text in (found, instead))
    assert found in graph
    change_program(copy, {GRAPH: graph.replace(found, instead, 1).encode()})
    message = refusal(copy)
    assert message.startswith("the program's graph holds ")
    assert message.endswith(", and code that travels with it is not run")
    assert not (tmp_path / "sprung").exists()


# --- cards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda card: card.update(format=2, mood=1),
            "the card has format 2, made by a newer version; this one reads 1",
        ),
        (
            lambda card: card.update(format="ä" * 999),
            "the card has format 'äääääääääääääääääää, made by a newer version",
        ),
        (lambda card: card.update(temperature=0), "the card is wrong at temperature: Input should be greater than 0"),
        (lambda card: card.update(temperature=float("inf")), "the card is wrong at temperature: Input should be a fin"),
        (lambda card: card.update(temperature=float("nan")), "the card is wrong at temperature: Input should be"),
        (lambda card: card.update(classes=["one"]), "the card is wrong at classes: Tuple should have at least 2 items"),
        (lambda card: card.update(classes=["a", "b", "a"]), "the card is wrong at classes: 'a' is there 2 times"),
        (
            lambda card: card.update(image_size=10**9),
            "the card is wrong at image_size: Input should be less than or eq",
        ),
        (lambda card: card.update(image_size=16.5), "the card is wrong at image_size: Input should be a valid integer"),
        (lambda card: card.pop("network"), "the card is wrong at network: Field required"),
        (lambda card: card.update(mood="good"), "the card is wrong at mood: Extra inputs are not permitted"),
        (lambda card: card["metrics"].update(f1={"value": 1, "images": -1}), "the card is wrong at metrics.f1.images"),
        (lambda card: card["metrics"].update(f1={"value": 1.01, "images": 1}), "the card is wrong at metrics.f1.val"),
        (
            lambda card: card["metrics"].update(f1={"value": float("nan"), "images": 1}),
            "the card is wrong at metrics.f1.value: Input should be",
        ),
        (lambda card: card.update(classes=["blue", "red", "green"]), "card and baseline name different classes"),
        (
            lambda card: card.update(classes=[*COLOURS, "grey"]),
            "the card is of 16 x 16 pixels and 4 classes, the MLmodel is not",
        ),
        (lambda card: card.update(image_size=24), "the card is of 24 x 24 pixels and 3 classes, the MLmodel is not"),
        (
            lambda card: card["metrics"]["accuracy"].update(value=0.99),
            "the card's accuracy is 0.99, the baseline's 1",
        ),
    ],
)
def test_a_card_that_does_not_fit_is_refused(copy, change, message):
    change_card(copy, change)
    assert refusal(copy).startswith(message)


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


# --- baselines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": np.full((300, 3), np.nan)}, "a baseline must hold finite probabilities"),
        ({"probabilities": np.full((300, 3), 0.4)}, "the baseline does not hold probabilities"),
        ({"probabilities": np.tile([1.5, -0.5, 0], (300, 1))}, "the baseline does not hold probabilities"),
        ({"hashes": np.full(300, "a")}, "the baseline holds an image twice"),
        ({"statistic_brightness": np.full(300, np.nan)}, "the baseline's brightness is not finite for every image"),
        ({"statistic_width": np.r_[np.inf, np.ones(299)]}, "the baseline's width is not finite for every image"),
        (
            {"probabilities": np.zeros((0, 3)), "labels": np.zeros(0, int), "hashes": np.zeros(0, "U1")},
            "a baseline must hold 1 to 10,000 images, this one holds 0",
        ),
        (
            {
                "probabilities": np.tile([1, 0, 0], (10_001, 1)),
                "labels": np.zeros(10_001, int),
                "hashes": np.zeros(0, "U1"),
            },
            "a baseline must hold 1 to 10,000 images, this one holds 10,001",
        ),
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


# --- what a program does --------------------------------------------------------------------------


class Odd(torch.nn.Module):
    """Right but for one thing."""

    def __init__(self, twist):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(3, 3)
        self.twist = twist

    def forward(self, batch):  # (N, H, W, 3)
        return self.twist(torch.softmax(self.head(batch.float().mean(dim=(1, 2)) / 255), dim=1), batch)


@pytest.mark.parametrize(
    ("twist", "message"),
    [
        (lambda answer, batch: answer * 2, "the program's output is not probabilities"),
        (lambda answer, batch: answer * torch.nan, "the program's output is not probabilities"),
        (
            lambda answer, batch: answer * 0 + torch.tensor([1.5, -0.5, 0.0]),
            "the program's output is not probabilities",
        ),
        (lambda answer, batch: answer.half(), "the program's output must be float32, got float16"),
        (lambda answer, batch: answer[:, :2], "the program gives shape (3, 2) for 3 images of 3 classes"),
        (lambda answer, batch: answer.sum(dim=0), "the program gives shape (3,) for 3 images of 3 classes"),
        (
            lambda answer, batch: torch.softmax(dropout(batch.float(), 0.5, training=True).mean(dim=(1, 2)), dim=1),
            "the program gives another output for the same images: dropout may be active in it",
        ),
        (
            lambda answer, batch: torch.softmax(batch_norm(answer, None, None, training=True), dim=1),
            "the program's output for an image depends on the others in the batch",
        ),
        (
            lambda answer, batch: answer + torch.zeros(2, 3),  # the batch that it was exported with
            """the program does not take any number of images, since it asks for ["L['batch'].size()[0] == 2"]""",
        ),
        (lambda answer, batch: (answer, answer), "the program cannot be run on 3 images and on 1: "),
        (lambda answer, batch: batch.sub_(1).sum() * 0 + answer, "the program changes its input images"),
    ],
)
def test_a_program_that_does_not_answer_as_it_must_is_refused(copy, twist, message):
    put_program(copy, Odd(twist))
    assert refusal(copy).startswith(message)


def test_a_program_for_one_size_of_batch_is_refused(copy):
    put_program(copy, Odd(lambda answer, batch: answer))
    load_bundle(copy, digest_of(copy))
    put_program(copy, Odd(lambda answer, batch: answer), free=False)
    assert refusal(copy).startswith("the program cannot be run on 3 images and on 1: ")
    graph = json.loads(member(copy, GRAPH))
    change_program(copy, {GRAPH: json.dumps({**graph, "guards_code": ["print(1)"]}).encode()})  # torch would run it
    assert refusal(copy) == "the program does not take any number of images, since it asks for ['print(1)']"


def test_a_program_that_torch_cannot_put_together_is_refused(copy):
    change_program(copy, {GRAPH: member(copy, GRAPH).replace("aten.softmax.int", "aten.sofmax.int").encode()})
    assert refusal(copy).startswith("the program cannot be loaded: ")
