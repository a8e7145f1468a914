"""One step: the loss by torch's own, averages and schedules by hand, memory that really runs out."""

import importlib
import io
import math
import os
import shutil
from contextlib import ExitStack, redirect_stdout

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from support.tiny_networks import CPU, MeanColour, colours, elsewhere, fresh, weights
from toolkit.errors import TrainingError
from toolkit.training.batches import ImageBatches
from toolkit.training.data.dataset import Subset
from toolkit.training.device import Device
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.networks import SimpleCNN, build_network
from toolkit.training.train_step import TrainStep, exponential_moving_average, lr_multiplier

PLAIN = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
SAID = "out of memory: each batch is split into {} and its gradients are added up\n"


def train_step(network, part=None, seed=0, device=CPU, steps=20, **changes):
    hparams = Hyperparameters(**{"image_size": 16, "augmentation": 0, "dropout": 0, "learning_rate": 0.05, **changes})
    part = part or colours(12)
    return TrainStep(network, ImageBatches(part, device, hparams.augmentation), hparams, steps, seed, device)


def step(train_step, number=0, images=12):
    """The summed loss and how many were right, of a batch of the first images."""
    train_step.network.train()
    loss, right = train_step.step(number, np.arange(images), 16)
    return loss.item(), int(right)


def logits_of(network, part):
    with torch.no_grad():
        return network(ImageBatches(part, CPU).eval_batch(np.arange(len(part))))


def restored(source, target):
    """A ``TrainStep`` restored from another's state in a file."""
    buffer = io.BytesIO()
    torch.save(source.state(), buffer)
    buffer.seek(0)
    target.restore(torch.load(buffer, weights_only=True))
    return target


# --- the loss -----------------------------------------------------------------------------------


def test_loss_and_hits_of_a_step_are_those_of_the_weights_before_it():
    part, network = colours(12), fresh(MeanColour, 2)
    logits, labels = logits_of(network, part), torch.from_numpy(part.labels)
    loss, right = step(train_step(network, part))
    assert loss == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item(), rel=1e-5)
    assert right == (logits.argmax(dim=1) == labels).sum() == 7


def test_balanced_weights_with_an_absent_class():
    many = colours(12)
    part = Subset(many.pixels, many.labels, np.flatnonzero(many.labels != 1))
    assert math.isfinite(step(train_step(fresh(), part, class_weights="balanced"), images=len(part))[0])


def test_label_smoothing_is_torchs_also_with_weights():
    many = colours(12)
    part = Subset(many.pixels, many.labels, np.array([0, 3, 6, 9, 1, 2, 4]))
    network = fresh()
    logits, labels = logits_of(network, part), torch.from_numpy(part.labels)
    balanced = torch.tensor([7 / (3 * 4), 7 / (3 * 2), 7 / (3 * 1)])
    for name, weight in (("none", None), ("balanced", balanced)):
        expected = F.cross_entropy(logits, labels, weight, reduction="sum", label_smoothing=0.2).item()
        loss, _ = step(train_step(fresh(), part, label_smoothing=0.2, class_weights=name), images=7)
        assert loss == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_mixed_images_are_learnt_with_mixed_targets(way):
    """Black is one class and white the other, so the mean grey of a mixture is the share of the second."""
    seen = []

    class Notes(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images):
            seen.append(images.mean(dim=(2, 3)))
            return self.head(seen[-1])

    labels = np.arange(12) % 2
    pixels = np.broadcast_to((255 * labels).astype(np.uint8)[:, None, None, None], (12, 16, 16, 3)).copy()
    network = fresh(Notes)
    before = [value.detach().clone() for value in (network.head.weight, network.head.bias)]
    loss, _ = step(train_step(network, Subset(pixels, labels, np.arange(12)), **{way: 1.0}))
    grey = (seen[0] * torch.tensor([0.229, 0.224, 0.225]) + torch.tensor([0.485, 0.456, 0.406])).mean(dim=1)  # (12,)
    assert ((grey > 0.02) & (grey < 0.98)).sum() > 6
    expected = F.cross_entropy(F.linear(seen[0], *before), torch.stack([1 - grey, grey], dim=1), reduction="sum")
    assert loss == pytest.approx(expected.item(), rel=1e-4)


# --- what is drawn ------------------------------------------------------------------------------


def drawn(seed, number, *, before=()):
    """Weights and loss after one step from the same start, whatever was drawn before."""
    network = fresh(SimpleCNN, 0, 3, 0.5)
    one = train_step(network, seed=seed, augmentation=0.3, mixup=0.5, **PLAIN)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    for other in before:
        step(one, other)
        torch.rand(5)
    network.load_state_dict(start)
    loss, _ = step(one, number)
    return weights(network), loss


def test_randomness_depends_on_seed_and_step_alone():
    first = drawn(0, 7)
    again = drawn(0, 7, before=(0, 1, 7, 3))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert len({loss for _, loss in (first, drawn(0, 8), drawn(1, 7))}) == 3


# --- steps --------------------------------------------------------------------------------------


def test_the_schedule_by_hand():
    """20 steps: two to warm up, then a cosine from 1 to a hundredth over 18."""
    assert [lr_multiplier(number, 20) for number in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert lr_multiplier(11, 20) == pytest.approx((1 + 0.01) / 2)
    assert lr_multiplier(8, 20) == pytest.approx(0.01 + 0.99 * 0.75)  # a third of the way: (1 + cos 60°) / 2
    assert lr_multiplier(20, 20) == lr_multiplier(25, 20) == pytest.approx(0.01)
    assert lr_multiplier(0, 1) == 1.0


def test_the_learning_rate_of_a_step():
    """Plain SGD moves against the gradient of the mean loss by the learning rate of that step."""
    part = colours(12)
    for number in (0, 1, 11):
        network, reference = fresh(), fresh()
        loss = F.cross_entropy(
            reference(ImageBatches(part, CPU).eval_batch(part.indices)), torch.from_numpy(part.labels)
        )
        loss.backward()
        one = train_step(network, part, **PLAIN)
        step(one, number)
        rate = 0.05 * lr_multiplier(number, 20)
        assert one.learning_rate(number) == rate
        for moved, start in zip(network.parameters(), reference.parameters(), strict=True):
            assert torch.allclose(moved, start - rate * start.grad, atol=1e-6)


def test_gradients_are_clipped():
    """The gradient is cut to a norm of 5, which is how far plain SGD moves at a learning rate of 1."""

    class Loud(MeanColour):
        def forward(self, images):
            return super().forward(1000 * images)

    network = fresh(Loud)
    before = weights(network)
    step(train_step(network, learning_rate=1.0, steps=1, **PLAIN))
    assert (weights(network) - before).norm().item() == pytest.approx(5, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_pulls_the_weights_towards_zero(optimizer):
    norms = []
    for decay in (0.0, 1.0):
        network = fresh()
        one = train_step(network, optimizer=optimizer, weight_decay=decay, steps=30)
        for number in range(30):
            step(one, number)
        norms.append(weights(network).norm())
    assert norms[1] < 0.8 * norms[0]


def test_momentum_keeps_a_share_of_the_last_step():
    """SGD without and with momentum part after the second step and not before."""
    networks = [fresh(), fresh()]
    train_steps = [
        train_step(network, optimizer="sgd", weight_decay=0.0, momentum=share)
        for network, share in zip(networks, (0.0, 0.9), strict=True)
    ]
    start = weights(networks[0])
    for one in train_steps:
        step(one, 0)
    assert torch.equal(weights(networks[0]), weights(networks[1]))
    for one in train_steps:
        step(one, 1)
    assert (weights(networks[1]) - start).norm() > (weights(networks[0]) - start).norm()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_state_from_a_file_goes_on_bit_for_bit(optimizer):
    changes = {"optimizer": optimizer, "ema_decay": 0.9, "augmentation": 0.3, "mixup": 0.5}
    whole = train_step(fresh(SimpleCNN, 0, 3, 0.3), **changes)
    for number in range(3):
        step(whole, number)
    resumed = restored(whole, train_step(fresh(SimpleCNN, 1, 3, 0.3), **changes))
    assert [step(whole, number) for number in (3, 4)] == [step(resumed, number) for number in (3, 4)]
    assert torch.equal(weights(whole.network), weights(resumed.network))
    assert torch.equal(weights(whole.eval_network), weights(resumed.eval_network))


# --- the average of the weights -----------------------------------------------------------------


def test_the_average_by_hand_over_three_steps():
    """It begins with the weights after the first step; then decay 2 / 11, then 0.2 at most instead of 3 / 12."""
    network = fresh()
    one = train_step(network, ema_decay=0.2)
    expected = weights(network)
    for number, decay in enumerate((0, 2 / 11, 0.2)):
        step(one, number)
        expected = decay * expected + (1 - decay) * weights(network)
        assert torch.allclose(weights(one.eval_network), expected, atol=1e-6)
    assert one.eval_network is not network
    assert not torch.equal(weights(one.eval_network), weights(network))


def test_statistics_are_averaged_and_counters_copied():
    network = nn.BatchNorm2d(2)
    average = exponential_moving_average(network, 0.5)
    average.update_parameters(network)
    network(torch.rand(4, 2, 3, 3))
    network(torch.rand(4, 2, 3, 3))
    average.update_parameters(network)
    assert torch.allclose(average.module.running_mean, 9 / 11 * network.running_mean)
    assert average.module.num_batches_tracked == 2
    assert not any(weight.requires_grad for weight in average.module.parameters())


def test_without_ema_the_network_itself_is_evaluated():
    network = fresh()
    assert train_step(network).eval_network is network


# --- memory -------------------------------------------------------------------------------------


def of_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def of_python():
    raise MemoryError


def of_the_cpu():
    torch.empty(2**50)  # more than addresses there are: torch's allocator refuses in its own words


class Greedy(MeanColour):
    """Runs out of memory with more than ``limit`` images."""

    def __init__(self, limit, exhaust=of_cuda):
        super().__init__()
        self.limit, self.exhaust = limit, exhaust

    def forward(self, images):
        if len(images) > self.limit:
            self.exhaust()
        return super().forward(images)


@pytest.mark.parametrize("exhaust", [of_cuda, of_python, of_the_cpu])
def test_a_batch_is_halved_until_it_fits(exhaust, capsys):
    changes = {"label_smoothing": 0.1, "class_weights": "balanced", **PLAIN}
    whole, split = fresh(MeanColour, 2), fresh(Greedy, 2, 3, exhaust)
    expected = step(train_step(whole, **changes))
    one = train_step(split, **changes)
    loss, right = step(one)
    assert split.batches == [3, 3, 3, 3]
    assert loss == pytest.approx(expected[0], rel=1e-6)
    assert right == expected[1]
    assert torch.allclose(weights(split), weights(whole), atol=1e-6)
    assert capsys.readouterr().out == SAID.format(2) + SAID.format(4)
    step(one, 1)
    assert split.batches == [3] * 8, "from then on, without trying again"
    assert capsys.readouterr().out == ""


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(3, 30))
def test_no_piece_has_a_single_image_and_each_is_counted_once(images, limit):
    """If three images fit, any batch can be cut into pieces of two or three."""
    whole, split = fresh(MeanColour, 2), fresh(Greedy, 2, limit)
    part = colours(30)
    expected = step(train_step(whole, part, **PLAIN), images=images)
    loss, right = step(train_step(split, part, **PLAIN), images=images)
    assert sum(split.batches) == images
    assert min(split.batches) >= 2
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert right == expected[1]
    assert torch.allclose(weights(split), weights(whole), atol=1e-6)


@pytest.mark.parametrize("images", [2, 3, 12])
def test_when_two_images_do_not_fit_it_says_what_to_lower(images):
    message = rf"^a batch of {images} images does not fit into memory; lower --batch-size or --image-size$"
    with pytest.raises(TrainingError, match=message):
        step(train_step(fresh(Greedy, 0, 1)), images=images)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def exhaust():
        raise RuntimeError("the backward pass of a network is wrong")

    with pytest.raises(RuntimeError, match=r"^the backward pass of a network is wrong$"):
        step(train_step(fresh(Greedy, 0, 3, exhaust)))


# --- compiled networks --------------------------------------------------------------------------

COMPILED = Device("cpu", torch.float32, compiled=True)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A function that sets what inductor calls to compile C++; nothing that was compiled before is found again."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    from torch._inductor import config  # makes that folder when it is imported

    quick = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}  # else it tries for 10 s what is fastest
    torch.compiler.reset()
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(config.patch({**quick, "cpp.cxx": (None, path)}))


def test_gradients_do_not_contain_uninitialised_memory():
    """ResNet-18 at its smallest: there, bfloat16 weight gradients are not all written."""
    found = []
    for junk in (float("nan"), 1e9, 0.0, float("nan")):
        network = fresh(build_network, 0, "resnet18", 3, 0.0, None).to(memory_format=torch.channels_last)
        one = train_step(
            network, colours(30), device=Device("cpu", torch.bfloat16), model_type="resnet18", batch_size=30
        )
        for _ in range(3):
            dirty = [torch.full((2**power,), junk, dtype=torch.bfloat16) for power in range(6, 22)]
            del dirty
        step(one, images=30)
        found.append(weights(network))
    assert all(values.isfinite().all() and torch.equal(values, found[0]) for values in found)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_compiled_network_learns_the_same(compiler, tmp_path, capsys):
    compiler("g++")
    plain, compiled = fresh(), fresh()
    expected = [step(train_step(plain, **PLAIN), number) for number in range(3)]
    one = train_step(compiled, device=COMPILED, **PLAIN)
    assert [step(one, number) for number in range(3)] == [
        (pytest.approx(loss, rel=1e-5), right) for loss, right in expected
    ]
    assert torch.allclose(weights(compiled), weights(plain), atol=1e-5)
    assert len(list(tmp_path.rglob("*.so"))) == 2, "one for the forward pass and one for the gradients"
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("works_for", [0, 1])
def test_an_uncompilable_network_trains_uncompiled(works_for, compiler, tmp_path, capsys):
    """A compiler that breaks at once, or after the forward pass, so that the gradients are what cannot be compiled."""
    script = tmp_path / "breaks"
    script.write_text(
        f"""#!/bin/sh
        [ "$1" = --version ] && exec g++ "$@"
        echo >> {tmp_path}/calls
        [ $(wc -l < {tmp_path}/calls) -gt {works_for} ] && exit 1
        exec g++ "$@"
        """
    )
    script.chmod(0o755)
    compiler(str(script))
    plain, uncompiled = fresh(), fresh()
    expected = [step(train_step(plain, **PLAIN), number) for number in range(2)]
    one = train_step(uncompiled, device=COMPILED, **PLAIN)
    assert [step(one, number) for number in range(2)] == [
        (pytest.approx(loss, rel=1e-5), right) for loss, right in expected
    ]
    said = "torch.compile failed (CppCompileError: C++ compile error); training goes on without it\n"
    assert capsys.readouterr().out == said


def test_it_trains_without_a_compiler(compiler, capsys):
    compiler("/bin/false")
    network = fresh()
    step(train_step(network, device=COMPILED))
    assert network.batches == [12]
    said = capsys.readouterr().out
    assert said.startswith("torch.compile failed (InvalidCxxCompiler: No working C++ compiler found")
    assert said.endswith("); training goes on without it\n")
    assert said.count("\n") == 1


def learn_without_a_folder(folder):

    importlib.import_module("torch._dynamo")  # which makes its own folder when it is imported
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    network = fresh()
    with redirect_stdout(io.StringIO()) as said:
        step(train_step(network, device=COMPILED))
    return network.batches, said.getvalue()


def test_it_trains_without_a_folder_for_compiled_code(tmp_path):
    (tmp_path / "file").write_text("no folder can be made below")
    batches, said = elsewhere(learn_without_a_folder, tmp_path / "file" / "folder")
    assert batches == [12]
    reason = f"[Errno 20] Not a directory: '{tmp_path}/file/folder'"
    assert said == f"torch.compile failed ({reason}); training goes on without it\n"
