"""GPU code on machines without one: fake tensors know their device, and fake events the time."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from support.tiny_networks import CPU, MeanColour, colours
from toolkit.errors import TrainingError
from toolkit.training import batches, gpu
from toolkit.training.batches import ImageBatches
from toolkit.training.device import Device
from toolkit.training.gpu import StepTimes, is_out_of_memory, one_line_errors, to_device
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.loop import FitCallbacks, FitConfig, fit
from toolkit.training.train_step import TrainStep

ON_GPU = Device("cuda", torch.float32)
NO_MEMORY = "^the images or the network do not fit into memory; lower --batch-size or --image-size, or end other"


# --- a step, all of whose tensors must be on the GPU ---------------------------------------------


class FakeGenerator(torch.Generator):
    """A source of random numbers for fake tensors, which have none, on a GPU."""

    device = torch.device("cuda", 0)


@pytest.fixture
def pinned(monkeypatch):
    """The tensors that were copied to pinned memory; that, generators and free memory need a driver."""
    tensors = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: tensors.append(self) or self)
    monkeypatch.setattr(Device, "generator", lambda _: FakeGenerator())
    monkeypatch.setattr(Device, "seed", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10_000, 80_000))
    return tensors


def backward_without_a_driver(network):
    """The result of autograd alone: its threads need a driver."""

    def backward(loss):
        assert loss.device == torch.device("cuda", 0)
        for weight in network.parameters():
            weight.grad = torch.zeros_like(weight)

    return backward


@pytest.mark.parametrize(("count", "resident"), [(6, True), (12, False)])
def test_a_step_mixes_no_devices_and_copies_from_pinned_memory_only(count, resident, pinned, monkeypatch):
    """Six images of 16 px are less than half of the free memory, and twelve are more."""
    hparams = Hyperparameters(mixup=0.2, cutmix=1.0, label_smoothing=0.1, class_weights="balanced")
    network, part = MeanColour(), colours(count)
    monkeypatch.setattr(torch.Tensor, "backward", backward_without_a_driver(network))
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = ImageBatches(part, ON_GPU, strength=0.5)
        copied = sum(tensor.numel() for tensor in pinned)
        step = TrainStep(network, images, hparams, 5, 0, ON_GPU)
        loss, right = step.step(0, np.arange(count), 12)
    assert {loss.device, right.device, *(weight.device for weight in network.parameters())} == {FakeGenerator.device}
    assert copied == (part.pixels.size if resident else 0)
    assert [tensor.dtype for tensor in pinned[-2:]] == [torch.int64 if resident else torch.uint8, torch.int64]


def test_images_reach_the_gpu_in_chunks(pinned, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**30))
    part, chunks = colours(10), []
    monkeypatch.setattr(batches, "to_device", lambda values, name: chunks.append(values) or to_device(values, name))
    with FakeTensorMode(allow_non_fake_inputs=True):
        ImageBatches(part, ON_GPU)
    assert [len(tensor) for tensor in pinned] == [4, 4, 2]
    assert np.array_equal(np.concatenate(chunks), part.pixels)


def test_on_the_cpu_nothing_is_copied():
    values = np.arange(6)
    assert np.shares_memory(to_device(values, "cpu").numpy(), values)


# --- times --------------------------------------------------------------------------------------


class FakeEvent:
    """An event of a GPU that reaches the nth event after n * n milliseconds."""

    made = 0

    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self):
        FakeEvent.made += 1
        self.at = FakeEvent.made**2

    def synchronize(self):
        FakeEvent.done = self.at

    def elapsed_time(self, other):
        assert other.at <= FakeEvent.done, "before the GPU is there"
        return other.at - self.at


def test_a_gpus_own_events_measure_its_steps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    times = StepTimes(True, [0.5])
    for _ in range(2):
        with times.step():
            pass
    assert times.read() == [0.5, pytest.approx(0.003), pytest.approx(0.007)]
    with times.step():
        pass
    assert times.read() == [0.5, pytest.approx(0.003), pytest.approx(0.007), pytest.approx(0.011)]


def test_a_step_that_fails_has_no_time():
    times = StepTimes(False)
    with pytest.raises(TrainingError), times.step():
        raise TrainingError("it failed")
    assert times.read() == []
    with times.step():
        pass
    assert len(times.read()) == 1


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        torch.AcceleratorError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_a_lack_of_memory_is_known_by_any_of_its_names(error):
    assert is_out_of_memory(error)
    with pytest.raises(TrainingError, match=NO_MEMORY), one_line_errors():
        raise error


def test_a_gpu_that_fails_is_one_line():
    with (
        pytest.raises(TrainingError, match=r"^the GPU failed: CUDA error: an illegal memory access$"),
        one_line_errors(),
    ):
        raise torch.AcceleratorError("CUDA error: an illegal memory access\nCompile with TORCH_USE_CUDA_DSA")


def test_other_errors_stay_what_they_are():
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not is_out_of_memory(error)
    with pytest.raises(RuntimeError) as caught, one_line_errors():
        raise error
    assert caught.value is error


def test_memory_that_runs_out_in_validation_is_one_line():
    class GreedyInEvaluation(MeanColour):
        def forward(self, images):
            if not self.training:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().forward(images)

    config = FitConfig(Hyperparameters(epochs=1, image_size=16), 0, CPU)
    with pytest.raises(TrainingError, match=NO_MEMORY):
        fit(GreedyInEvaluation(), colours(6), colours(6, seed=1), config, FitCallbacks())


# --- a GPU that is there and does not compute ----------------------------------------------------


def test_a_gpu_that_does_not_compute_is_not_used(monkeypatch, capsys):
    def no_code(*_, **options):
        assert options == {"device": "cuda"}
        raise torch.AcceleratorError("CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", no_code)
    assert not gpu.is_usable()
    assert Device.choose().name == "cpu"
    line = "the GPU cannot be used (CUDA error: no kernel image is available); the CPU is\n"
    assert capsys.readouterr().out == 2 * line
