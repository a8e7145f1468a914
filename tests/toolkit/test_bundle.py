"""Bundles: the program is the network with everything around it, and what is not whole is refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from support import COLOURS, ColourNetwork, colour_baseline, colour_card, colour_pixels
from toolkit.baseline import Baseline
from toolkit.bundle import BASELINE, CARD, PROGRAM, Card, Program, digest_of, load_bundle, save_bundle, verify_bundle
from toolkit.errors import BundleError
from toolkit.tracking import mlflow

SIZE = 16
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Saved:
    """A bundle on disk that tests copy before they break it."""

    def __init__(self, folder: Path, network: torch.nn.Module, temperature: float) -> None:
        self.folder, self.network, self.temperature = folder, network, temperature
        program = Program(network, temperature)
        self.card, self.baseline = colour_card(), colour_baseline(program)
        self.digest = save_bundle(folder, program, self.card, self.baseline, run_id="0" * 32, model_id="m-1")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("bundle") / "model", ColourNetwork(), 1.7)


@pytest.fixture
def copy(saved: Saved, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved.folder, tmp_path / "copy"))


def pictures(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([colour_pixels(COLOURS[number % 3], SIZE, generator) for number in range(count)])


def refusal(folder: Path, digest: str | None = None) -> str:
    """Why a bundle is refused, when the digest is not the reason."""
    with pytest.raises(BundleError) as caught:
        load_bundle(folder, digest or digest_of(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what a bundle does -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_loaded_program_answers_as_the_network_itself(saved: Saved, count: int) -> None:
    """Scaling, normalisation, temperature and softmax are worked out anew here."""
    batch = pictures(count)
    scaled = (batch.transpose(0, 3, 1, 2) / 255 - MEAN.reshape(1, 3, 1, 1)) / STD.reshape(1, 3, 1, 1)
    with torch.inference_mode():
        logits = saved.network(torch.tensor(scaled, dtype=torch.float32)).double().numpy() / 1.7
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answer = load_bundle(saved.folder, saved.digest).predict(batch)
    assert (answer.shape, answer.dtype) == ((count, 3), np.float32)
    assert answer == pytest.approx(expected, abs=1e-5)
    assert answer.argmax(axis=1).tolist() == [number % 3 for number in range(count)]


def test_a_bundle_brings_its_card_and_its_baseline(saved: Saved) -> None:
    bundle = load_bundle(saved.folder, saved.digest)
    assert bundle.card == saved.card
    assert bundle.digest == saved.digest
    assert bundle.baseline.accuracy == saved.baseline.accuracy == 1.0
    assert np.array_equal(bundle.baseline.probabilities, saved.baseline.probabilities)
    assert bundle.baseline.hashes.tolist() == saved.baseline.hashes.tolist()


def test_pictures_that_may_not_be_written_to_are_taken_too(saved: Saved) -> None:
    bundle, batch = load_bundle(saved.folder, saved.digest), pictures(4)
    frozen, strided = batch.copy(), np.ascontiguousarray(batch[:, :, ::-1])[:, :, ::-1]
    frozen.setflags(write=False)
    assert np.array_equal(bundle.predict(frozen), bundle.predict(batch))
    assert np.array_equal(bundle.predict(strided), bundle.predict(batch))


def test_a_real_network_is_saved_in_evaluation_mode_and_float32(tmp_path: Path) -> None:
    """From training mode, bfloat16 and channels last: dropout rests, and the running statistics are used."""
    torch.manual_seed(0)
    network = resnet18(num_classes=3)
    network.fc = torch.nn.Sequential(torch.nn.Dropout(0.9), network.fc)
    network(torch.rand(8, 3, 32, 32))  # the running statistics are no longer those of a new network
    network = network.to(torch.bfloat16).to(memory_format=torch.channels_last).train()
    program = Program(network)
    card = colour_card("resnet18", size=32)
    baseline = Baseline(COLOURS, np.full((1, 3), 1 / 3), np.array([0]))
    bundle = load_bundle(tmp_path / "model", save_bundle(tmp_path / "model", program, card, baseline, model_id="m-1"))
    batch = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    answer = bundle.predict(batch)
    assert np.array_equal(answer, bundle.predict(batch))
    with torch.inference_mode():
        assert answer == pytest.approx(program.float().eval()(torch.from_numpy(batch)).numpy(), abs=1e-5)
    assert bundle.predict(batch[:1])[0] == pytest.approx(answer[0], abs=1e-5)


def test_mlflows_own_loader_answers_too(saved: Saved) -> None:
    """Whoever knows MLflow alone gets the same probabilities, and the signature says what to send."""
    model = mlflow.pyfunc.load_model(str(saved.folder))
    (taken,), (given,) = model.metadata.signature.inputs.inputs, model.metadata.signature.outputs.inputs
    assert (taken.type, taken.shape) == (np.dtype("uint8"), (-1, SIZE, SIZE, 3))
    assert (given.type, given.shape) == (np.dtype("float32"), (-1, 3))
    batch = pictures(5)
    assert np.asarray(model.predict(batch)) == pytest.approx(load_bundle(saved.folder, saved.digest).predict(batch))


def test_no_pickle_and_no_code_is_in_a_bundle(saved: Saved) -> None:
    names = {path.relative_to(saved.folder).as_posix() for path in saved.folder.rglob("*") if path.is_file()}
    assert {PROGRAM, CARD, BASELINE, "MLmodel", "requirements.txt"} <= names
    assert not [name for name in names if Path(name).suffix in {".py", ".pkl", ".pickle", ".pth", ".pt", ".joblib"}]
    for name in names:
        data = (saved.folder / name).read_bytes()
        assert not data.startswith(b"\x80"), f"{name} is a pickle"
    assert json.loads((saved.folder / CARD).read_text())["classes"] == list(COLOURS)


def test_the_digest_is_of_names_and_contents(copy: Path, saved: Saved) -> None:
    assert len(saved.digest) == 64
    assert digest_of(copy) == saved.digest  # not of times or of the place
    (copy / "registered_model_meta").write_text("MLflow writes this at every download")
    assert digest_of(copy) == saved.digest
    (copy / CARD).rename(copy / "extra_files" / "other.json")
    assert digest_of(copy) != saved.digest


# --- every way to be refused --------------------------------------------------------------------


def test_a_flipped_byte_in_any_file_is_seen(copy: Path, saved: Saved) -> None:
    verify_bundle(copy, saved.digest)
    paths = [path for path in sorted(copy.rglob("*")) if path.is_file()]
    assert len(paths) >= 7
    for path in paths:
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            message = rf"^the bundle was altered: its digest is [0-9a-f]{{12}}\.\.\., recorded was {saved.digest[:12]}"
            with pytest.raises(BundleError, match=message):
                verify_bundle(copy, saved.digest)
        path.write_bytes(whole)
    verify_bundle(copy, saved.digest)


@pytest.mark.parametrize("name", [PROGRAM, CARD, BASELINE, "MLmodel"])
def test_a_missing_file_is_named(copy: Path, saved: Saved, name: str) -> None:
    (copy / name).unlink()
    assert refusal(copy, saved.digest) == f"the bundle has no {name}"


def test_a_file_more_or_less_is_seen(copy: Path, saved: Saved) -> None:
    (copy / "requirements.txt").unlink()
    assert refusal(copy, saved.digest).startswith("the bundle was altered: ")
    shutil.copy(saved.folder / "requirements.txt", copy)
    (copy / "more.txt").write_text("")
    assert refusal(copy, saved.digest).startswith("the bundle was altered: ")


def test_without_a_digest_nothing_tells_whether_it_is_whole(saved: Saved) -> None:
    for digest in (None, ""):
        with pytest.raises(BundleError, match=r"^no digest was recorded for the bundle"):
            load_bundle(saved.folder, digest)


@pytest.mark.parametrize("name", ["model.pkl", "data/model.pth", "extra_files/deep/x.joblib", "pickle_module_info.txt"])
def test_a_pickle_is_refused_also_with_the_right_digest(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(pickle.dumps({}))
    assert refusal(copy) == f"the bundle holds {Path(name).name}, and no pickle is ever loaded"


def test_a_code_folder_is_refused_also_with_the_right_digest(copy: Path) -> None:
    (copy / "code").mkdir()
    (copy / "code" / "evil.py").write_text("")
    assert refusal(copy) == "the bundle brings a code folder, and no code that travels with a model is run"


@pytest.mark.parametrize(
    ("line", "instead"),
    [("code: null", "code: lib"), ("code: null", "code: /tmp"), ("model_data: data", "model_data: elsewhere")],
)
def test_code_under_another_name_is_refused_as_well(copy: Path, line: str, instead: str) -> None:
    """MLflow would put the folder named there before all others that Python imports from."""
    (copy / "lib").mkdir()
    (copy / "lib" / "colorsys.py").write_text("")
    text = (copy / "MLmodel").read_text()
    assert text.count(line) == 1
    (copy / "MLmodel").write_text(text.replace(line, instead))
    assert refusal(copy) == f"the bundle's MLmodel asks for code, or for another program than {PROGRAM}"


@pytest.mark.parametrize("text", ["", "flavors: {python_function: {}}", "a: [", "- 1\n- 2\n"])
def test_an_mlmodel_that_makes_no_sense_is_refused(copy: Path, text: str) -> None:
    (copy / "MLmodel").write_text(text)
    assert refusal(copy).startswith("the bundle's MLmodel cannot be read: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(temperature=0), "the card is wrong at temperature: Input should be greater than 0"),
        (lambda card: card.update(classes=["one"]), "the card is wrong at classes: Tuple should have at least 2 items"),
        (lambda card: card.pop("network"), "the card is wrong at network: Field required"),
        (lambda card: card.update(mood="good"), "the card is wrong at mood: Extra inputs are not permitted"),
        (lambda card: card["metrics"].update(f1={"value": 1, "pictures": -1}), "the card is wrong at metrics.f1.pictu"),
        (lambda card: card.update(classes=["blue", "red", "green"]), "card and baseline name different classes"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(copy: Path, change: Callable[[dict], object], message: str) -> None:
    card = json.loads((copy / CARD).read_text())
    change(card)
    (copy / CARD).write_text(json.dumps(card))
    assert refusal(copy).startswith(message)


def test_a_card_or_a_baseline_that_cannot_be_read_is_refused(copy: Path, saved: Saved) -> None:
    (copy / CARD).write_bytes(b"\xff\xfe")
    assert refusal(copy).startswith("the card is wrong: Invalid JSON")
    shutil.copy(saved.folder / CARD, copy / CARD)
    (copy / BASELINE).write_bytes(b"PK\x03\x04 and no more")
    assert refusal(copy).startswith("the baseline cannot be read: ")


def test_a_program_that_cannot_be_loaded_is_refused(copy: Path, saved: Saved) -> None:
    whole = (copy / PROGRAM).read_bytes()
    for broken in (b"", b"noise", whole[: len(whole) // 2]):
        (copy / PROGRAM).write_bytes(broken)
        assert refusal(copy).startswith("the program cannot be loaded: ")


class Raw(torch.nn.Module):
    """Answers with something else than probabilities."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 3)
        self.factor = factor

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(batch.float().mean(dim=(1, 2))), dim=1) * self.factor


@pytest.mark.parametrize("factor", [2.0, float("nan")])
def test_a_program_that_gives_no_probabilities_is_refused(tmp_path: Path, saved: Saved, factor: float) -> None:
    digest = save_bundle(tmp_path / "model", Raw(factor), saved.card, saved.baseline, model_id="m-1")
    assert refusal(tmp_path / "model", digest) == "the program does not answer with probabilities"


def test_a_program_of_other_classes_is_refused(tmp_path: Path, saved: Saved) -> None:
    four = replace(saved.baseline, classes=(*COLOURS, "grey"), probabilities=np.full((300, 4), 0.25))
    card: Card = saved.card.model_copy(update={"classes": four.classes})
    digest = save_bundle(tmp_path / "model", Program(ColourNetwork()), card, four, model_id="m-1")
    assert refusal(tmp_path / "model", digest) == "the program answers (3, 3) for 3 pictures and 4 classes"


def test_a_program_for_another_size_is_refused(copy: Path, saved: Saved) -> None:
    card = saved.card.model_copy(update={"image_size": 24})
    (copy / CARD).write_text(card.model_dump_json())
    assert refusal(copy).startswith("the program cannot be loaded: ")
