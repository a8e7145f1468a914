"""Programs: the network with scaling, normalisation and softmax; programs that give other outputs are refused."""

import json
import logging

import numpy as np
import pytest
import torch
from torch.nn.functional import batch_norm, dropout

from support.bundles import IMAGE_SIZE, change_program, images, read_member, refusal, replace_program
from support.colours import COLOURS, colour_card
from toolkit.bundle.archive_check import GRAPH, TENSORS
from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import digest_of
from toolkit.bundle.program import Program, load_bundle, save_bundle
from toolkit.tracking.connection import mlflow
from toolkit.training.networks import build_network

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


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
    network(torch.rand(8, 3, IMAGE_SIZE, IMAGE_SIZE))  # the running statistics are no longer those of a new one
    network = network.to(torch.bfloat16).to(memory_format=torch.channels_last).train()
    program = Program(network)
    baseline = Baseline(COLOURS, np.full((1, 3), 1 / 3), np.array([0]))
    digest = save_bundle(tmp_path / "model", program, colour_card(name, size=IMAGE_SIZE), baseline, model_id="m-1")
    bundle = load_bundle(tmp_path / "model", digest)
    batch = np.random.default_rng(0).integers(0, 256, (5, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)
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
    replace_program(copy, Shapes())
    assert "tensor_0" in read_member(copy, TENSORS[1])
    assert "_operator.mul" in read_member(copy, GRAPH)
    batch = images(4)
    logits = batch.mean(axis=(1, 2)) / 8
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert load_bundle(copy, digest_of(copy)).predict(batch) == pytest.approx(expected, abs=1e-5)


def test_mlflows_own_loader_answers_too(saved):
    """MLflow alone gives the same probabilities, and the signature describes the input."""
    model = mlflow.pyfunc.load_model(str(saved.folder))
    (taken,), (given,) = model.metadata.signature.inputs.inputs, model.metadata.signature.outputs.inputs
    assert (taken.type, taken.shape) == (np.dtype("uint8"), (-1, IMAGE_SIZE, IMAGE_SIZE, 3))
    assert (given.type, given.shape) == (np.dtype("float32"), (-1, 3))
    batch = images(5)
    assert np.asarray(model.predict(batch)) == pytest.approx(load_bundle(saved.folder, saved.digest).predict(batch))


def test_mlflow_compares_requirements_again_after_a_bundle_was_saved(saved, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
    mlflow.utils.environment.warn_dependency_requirement_mismatches(["torch==0.1"])
    assert "required: torch==0.1" in caplog.text


def test_the_example_input_is_not_loaded_at_all(saved, monkeypatch):
    """Also when the user lets MLflow unpickle what it likes."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    unpickled = []
    monkeypatch.setattr(torch, "load", lambda *given, **named: unpickled.append(given))
    load_bundle(saved.folder, saved.digest)
    assert unpickled == []


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
    replace_program(copy, Odd(twist))
    assert refusal(copy).startswith(message)


def test_a_program_for_one_size_of_batch_is_refused(copy):
    replace_program(copy, Odd(lambda answer, batch: answer))
    load_bundle(copy, digest_of(copy))
    replace_program(copy, Odd(lambda answer, batch: answer), free=False)
    assert refusal(copy).startswith("the program cannot be run on 3 images and on 1: ")
    graph = json.loads(read_member(copy, GRAPH))
    change_program(copy, {GRAPH: json.dumps({**graph, "guards_code": ["print(1)"]}).encode()})  # torch would run it
    assert refusal(copy) == "the program does not take any number of images, since it asks for ['print(1)']"


def test_a_program_that_torch_cannot_put_together_is_refused(copy):
    change_program(copy, {GRAPH: read_member(copy, GRAPH).replace("aten.softmax.int", "aten.sofmax.int").encode()})
    assert refusal(copy).startswith("the program cannot be loaded: ")
