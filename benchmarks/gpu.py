"""Training and serving on a GPU: whether it computes what the processor does, and how fast. Never run on CUDA yet.

    python benchmarks/gpu.py --quick           # meant for less than 8 minutes on an H200 and 16 cores, no internet
    python benchmarks/gpu.py                   # the same with more rounds and epochs
    python benchmarks/gpu.py --data data/      # CIFAR-10 from data/cifar-10-batches-bin/ instead of drawn digits
    python benchmarks/gpu.py --json            # ends with one JSON object of claims
    python benchmarks/gpu.py --device cpu      # a rehearsal: all of this code on the processor, with tiny sizes

The parts, in turn:

    parity      the same trainings, float32 without TF32, on the processor and on the GPU: their losses
    repeated    a training with --deterministic twice; a batch that does not fit into the GPU's memory
    race        ResNet-18 at 224 px, ours beside its own step on tensors that are in the GPU's memory, epoch by epoch
    accuracy    50,000 images of 32 px to 94 % on 10,000 others
    tracked     a training as train_cnn.py does it, what MLflow has of the GPU, and its program without one
    serving     the engine with batches, beside the same network in torch on images in memory

The drawn digits are scikit-learn's, coloured, moved and noisy; those tested on come from other writers. Each
speed is measured until the GPU is done. Without a GPU there is nothing to measure, and it says so.
"""

import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.claims import NEVER, Claim, Claims, argument_parser, conclude, machine  # noqa: E402
from model_registry import ModelRegistry  # noqa: E402
from toolkit.bundle.program import Bundle, Program  # noqa: E402
from toolkit.cli.settings import run_script  # noqa: E402
from toolkit.cli.terminal import echo, table  # noqa: E402
from toolkit.errors import SettingsError  # noqa: E402
from toolkit.serving.models.engines import Images, Probabilities, select_engine, synthetic_images  # noqa: E402
from toolkit.tracking.connection import connect  # noqa: E402
from toolkit.training import gpu  # noqa: E402
from toolkit.training.data.dataset import Subset  # noqa: E402
from toolkit.training.device import Device, configure_torch  # noqa: E402
from toolkit.training.hyperparameters import Hyperparameters  # noqa: E402
from toolkit.training.loop import EpochMetrics, FitCallbacks, FitConfig, FitResult, TrainState, fit  # noqa: E402
from toolkit.training.networks import build_network  # noqa: E402
from toolkit.training.train_step import MAX_GRAD_NORM  # noqa: E402
from train_cnn import TrainSettings, load_images, train  # noqa: E402

SEED = 0
TARGET = 0.94  # accuracy, the one that airbench is known for
PUBLISHED = (  # README of KellerJordan/cifar10-airbench: not measured here, networks made for CIFAR-10, one A100
    ("airbench94_compiled", "0.9401", "3.29"),
    ("airbench94", "0.9401", "3.83"),
    ("airbench95", "0.9501", "10.4"),
    ("airbench96", "0.9605", "46.3"),
)
# Of a loss. Weights changed by 3e-7 of their size, as rounding does, changed ResNet-18's on a CPU by 4e-5 in the first
# epoch of four steps and by 0.015 in the third: differences grow with each step.
STEP_TOLERANCE, EPOCHS_TOLERANCE = 1e-4, 0.05
MEMORY_GIB = 3.0  # that the training which runs out of memory may take
RUNS = 3  # of a batch before the engine is measured
GPU_METRICS = ("gpu_memory_mb", "gpu_utilisation_percent", "gpu_device_memory_mb")
WITHOUT_GPU = """
import sys
import numpy as np
from model_registry import ModelRegistry
loaded = ModelRegistry("sqlite:///mlflow.db").load(1)
np.save("without.npy", loaded.bundle.predict(np.load("images.npy")))
"""


class Scale(NamedTuple):
    """Amount of work to measure."""

    images: int  # of the race
    side: int  # px, of the race, of what is tracked and of what is served
    batch: int  # of the race, and the images that the memory does not hold
    rounds: int  # of the race; the first is not counted
    digits: int  # of 32 px, a sixth of them tested on
    epochs: int  # on those
    network: str
    batches: tuple[int, ...]  # served at once
    seconds: float  # of serving, for each of them


FULL = Scale(8192, 224, 256, 8, 60_000, 30, "resnet18", (1, 8, 32, 128), 10.0)
QUICK = Scale(4096, 224, 256, 4, 60_000, 15, "resnet18", (1, 8, 32, 128), 2.0)
REHEARSAL = Scale(16, 32, 8, 2, 120, 1, "simple_cnn", (1, 8), 0.05)


def main() -> None:
    """Measure and print."""
    parser = argument_parser(__doc__, quick="fewer rounds and epochs")
    parser.add_argument("--data", type=Path, help="folder with cifar-10-batches-bin/, instead of drawn digits")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal with tiny sizes")
    options = parser.parse_args()
    if options.data:
        options.data = options.data.resolve()
    device = _device(options)
    scale = REHEARSAL if options.device == "cpu" else QUICK if options.quick else FULL
    name = torch.cuda.get_device_name() if device.name == "cuda" else "no GPU: a rehearsal, whose numbers mean nothing"
    echo(f"{machine('torch', 'torchvision', 'nvidia-ml-py')}; {name}; ours in {device}")
    claims: Claims = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for part in (parity, repeated, race, accuracy, tracked):
            began = time.perf_counter()
            claims |= part(device, scale, options)
            echo(f"({part.__name__}: {time.perf_counter() - began:.0f} s)")
        os.chdir(ROOT)
    conclude(claims, options.json)


def _device(options: Namespace) -> Device:
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not gpu.is_usable():
        raise SettingsError("there is no GPU that torch can use, so nothing is measured; --device cpu is a rehearsal")
    configure_torch()
    return Device.choose()


# --- the same numbers ---------------------------------------------------------------------------


def parity(device: Device, scale: Scale, _: Namespace) -> Claims:
    """The losses of the same trainings on both."""
    images = drawn_digits(min(256, scale.digits // 5), test=False)
    claims, rows = {}, []
    for network in ("simple_cnn", "resnet18"):
        for what, epochs, size, goal in (
            ("one step", 1, len(images), STEP_TOLERANCE),
            ("three epochs", 3, len(images) // 4, EPOCHS_TOLERANCE),
        ):
            hparams = _exact(network, epochs, size)
            ours, theirs = (
                [epoch.train_loss for epoch in _fit(images, None, hparams, Device(name, torch.float32)).history]
                for name in (device.name, "cpu")
            )
            difference = max(abs(one / other - 1) for one, other in zip(ours, theirs, strict=True))
            rows.append([f"{network}, {what}", f"{theirs[-1]:.6f}", f"{ours[-1]:.6f}", f"{difference:.1e}"])
            claims[f"{network}, {what}: loss against the processor's"] = Claim(
                difference, goal, "lower", "largest relative difference of an epoch's loss, float32, SGD, same seed"
            )
    echo(f"\nparity\n\n{table(['', 'processor', device.name, 'difference'], rows)}\n")
    return claims


def _exact(network: str, epochs: int, batch: int) -> Hyperparameters:
    """A training without random numbers of the device, which differ between the processor and a GPU."""
    return Hyperparameters.model_validate(
        {"model_type": network, "image_size": 32, "epochs": epochs, "batch_size": batch, "optimizer": "sgd",
         "learning_rate": 0.01, "dropout": 0.0, "augmentation": 0.0}
    )  # fmt: skip


def repeated(device: Device, scale: Scale, _: Namespace) -> Claims:
    """Deterministic trainings, and one that runs out of memory."""
    images = drawn_digits(min(scale.digits // 10, 2048), test=False)
    hparams = _resnet18(image_size=32, epochs=2, batch_size=64, augmentation=0.3)
    configure_torch(deterministic=True)
    first, second = (_fit(images, None, hparams, device).network.state_dict() for _ in range(2))
    configure_torch()
    difference = max(float((first[name] - second[name]).abs().max()) for name in first)
    claims = {
        "deterministic: difference of two trainings' weights": Claim(
            difference, 0.0, "lower", f"resnet18, {len(images)} images, 2 epochs, {device}"
        )
    }
    if device.name == "cuda":
        claims["out of memory: pieces of a batch that was split"] = Claim(
            _pieces(device, scale),
            2,
            "higher",
            f"{MEMORY_GIB:g} GiB allowed, {4 * scale.batch} images of {scale.side} px",
        )
    return claims


def _pieces(device: Device, scale: Scale) -> int:
    """Into how many pieces a batch is split when the GPU's memory does not hold it."""
    states: list[TrainState] = []
    images = noise(4 * scale.batch, scale.side)
    hparams = _resnet18(image_size=scale.side, epochs=1, batch_size=len(images))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + MEMORY_GIB * 2**30) / total)
    try:
        _fit(images, None, hparams, device, FitCallbacks(on_checkpoint=states.append))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return int(states[-1].values["grad_accum_steps"])


# --- speed of training --------------------------------------------------------------------------


def race(device: Device, scale: Scale, _: Namespace) -> Claims:
    """Images a second of our training and of its bare step, in turn."""
    images = noise(scale.images, scale.side)
    hparams = _resnet18(image_size=scale.side, epochs=scale.rounds, batch_size=scale.batch)
    epoch, seconds = _in_memory(device, scale), {"ours": [0.0][:0], "in memory": [0.0][:0]}

    def on_epoch(metrics: EpochMetrics, *_: object) -> None:
        seconds["ours"].append(metrics.epoch_duration_s)
        seconds["in memory"].append(epoch())

    _fit(images, None, hparams, device, FitCallbacks(on_epoch=on_epoch))
    rates = {name: scale.images * (scale.rounds - 1) / sum(taken[1:]) for name, taken in seconds.items()}
    rows = [[name, f"{rate:,.0f}", f"{rates['ours'] / rate:.2f}"] for name, rate in rates.items()]
    conditions = (
        f"{scale.images} images, {scale.side} px, batches of {scale.batch}, {scale.rounds - 1} rounds, {device}"
    )
    echo(f"\nresnet18, {conditions}\n\n{table(['', 'images/s', 'ours over it'], rows)}\n")
    return {"resnet18: ours over in memory": Claim(rates["ours"] / rates["in memory"], 0.9, "higher", conditions)}


def _in_memory(device: Device, scale: Scale) -> Callable[[], float]:
    """A function that runs one epoch of the bare step on tensors made beforehand, and returns its seconds."""
    network = build_network("resnet18", 10, 0.2, None).to(device.name, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    batches: list[tuple[Tensor, Tensor]] = []
    for _ in range(max(1, scale.images // scale.batch)):
        images = torch.randn(scale.batch, 3, scale.side, scale.side, device=device.name)
        labels = torch.randint(10, (scale.batch,), device=device.name)
        batches.append((images.contiguous(memory_format=torch.channels_last), labels))

    def epoch() -> float:
        _wait(device)
        start = time.perf_counter()
        for images, labels in batches:
            with device.autocast():
                loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
            optimizer.step()
        _wait(device)
        return time.perf_counter() - start

    network.train()
    return epoch


def accuracy(device: Device, scale: Scale, options: Namespace) -> Claims:
    """Seconds to an accuracy on images that no epoch was trained on; which epoch is the first is decided on them."""
    training, tested, what = _cifar(options.data) if options.data else _digits(scale)
    side = training.pixels.shape[1]
    hparams = Hyperparameters.model_validate(
        {"model_type": "resnet18", "image_size": side, "epochs": scale.epochs, "batch_size": 256, "augmentation": 0.2,
         "learning_rate": 2e-3, "weight_decay": 0.02, "label_smoothing": 0.1, "progressive_resize": 0.5,
         "patience": scale.epochs}
    )  # fmt: skip
    history = _fit(training, tested, hparams, device).history
    reached = next((epoch.epoch for epoch in history if epoch.val_accuracy >= TARGET), None)
    seconds = sum(epoch.epoch_duration_s for epoch in history[:reached]) if reached else NEVER
    best = max(epoch.val_accuracy for epoch in history)
    conditions = f"{what}, {len(training)} trained on, {len(tested)} tested on, resnet18 at {side} px, {device}"
    rows = [
        ["ours, here", f"{best:.4f} in {len(history)} epochs", f"{seconds:.1f} to {TARGET}" if reached else "never"],
        *[[f"{name}, published", on, f"{taken} on one A100"] for name, on, taken in PUBLISHED],
    ]
    echo(f"\n{conditions}\n\n{table(['', 'accuracy', 'seconds'], rows)}\n")
    return {
        "accuracy": Claim(best, TARGET, "higher", f"{conditions}, the best of {len(history)} epochs"),
        f"seconds to {TARGET}": Claim(seconds, 60, "lower", f"{conditions}, validation included"),
    }


def _digits(scale: Scale) -> tuple[Subset, Subset, str]:
    tests = scale.digits // 6
    training, tested = drawn_digits(scale.digits - tests, test=False), drawn_digits(tests, test=True)
    return _enlarged(training), _enlarged(tested), "drawn digits"


def _enlarged(images: Subset) -> Subset:
    """Twice the side: ResNet-18 halves an image five times."""
    return replace(images, pixels=images.pixels.repeat(2, axis=1).repeat(2, axis=2))


def _cifar(folder: Path) -> tuple[Subset, Subset, str]:
    settings = TrainSettings.model_validate({"data": "cifar10", "data_root": folder, "cache_limit": 0})
    images, parts = load_images(settings, 64)
    training = np.concatenate([parts.development, parts.validation])
    trained, tested = (Subset(images.pixels, images.labels, part) for part in (training, parts.held_out))
    return trained, tested, "CIFAR-10"


# --- MLflow and serving -------------------------------------------------------------------------


def tracked(device: Device, scale: Scale, options: Namespace) -> Claims:
    """A training by train_cnn.py, what MLflow has of it, its program without a GPU, and then the engine that serves."""
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
    settings = TrainSettings.model_validate(
        {"model_type": scale.network, "image_size": scale.side, "epochs": 2, "weights": "none", "cache_limit": 0}
    )
    run = train(settings).run
    found = connect().get_run(run.id).data.metrics
    rows = [[name, f"{found[name]:,.1f}" if name in found else "not there"] for name in GPU_METRICS]
    echo(f"\nMLflow's metrics of the run\n\n{table(['', 'last'], rows)}\n")
    registry = ModelRegistry()
    bundle = registry.load(registry.register_best_model("training", "best_val_accuracy")).bundle
    claims = {
        "MLflow's metrics of the GPU, above 0": Claim(
            sum(found.get(name, 0) > 0 for name in GPU_METRICS), len(GPU_METRICS), "higher",
            f"of {', '.join(GPU_METRICS)}; {scale.network}, 2 epochs of digits at {scale.side} px",
        ),
        "the program without a GPU: difference of probabilities": Claim(
            _without_gpu(bundle), 1e-5, "lower", f"trained on {device.name}, loaded by a process that sees no GPU"
        ),
    }  # fmt: skip
    return claims | serving(device, scale, options, bundle)


def _without_gpu(bundle: Bundle) -> float:
    """Largest difference of probabilities between this process and one that sees no GPU."""
    images = synthetic_images(bundle.card.image_size)
    np.save("images.npy", images)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", WITHOUT_GPU], env=environment, check=True)
    return float(np.abs(np.load("without.npy") - bundle.predict(images)).max())


def serving(device: Device, scale: Scale, _: Namespace, bundle: Bundle) -> Claims:
    """Images a second and latency of the engine, and of the same network in torch on images that are in memory."""
    engine = select_engine(bundle, "torch" if device.name == "cuda" else "auto")
    plain = _plain(device, scale)
    on_gpu = engine.report["device"] == "cuda"
    claims = {
        "serving on the GPU: 1 if its engine agrees with the program": Claim(
            float(on_gpu), 1.0, "higher", str(engine.report["failed_engines"] or "no engine failed")
        )
    }
    rows, rates = [], {}
    for batch in scale.batches:
        images = np.resize(synthetic_images(scale.side), (batch, scale.side, scale.side, 3))
        resident = torch.from_numpy(images).to(device.name)
        ours, theirs = (
            _latencies(call, scale.seconds)
            for call in (lambda images=images: engine.infer(images), lambda resident=resident: plain(resident))
        )
        rates[batch] = batch / ours.mean()
        share = float(theirs.mean() / ours.mean())
        median, slowest = np.percentile(ours * 1e3, [50, 99])
        rows.append([str(batch), f"{rates[batch]:,.0f}", f"{median:.2f}", f"{slowest:.2f}", f"{share:.2f}"])
        claims[f"serving, batch {batch}: over torch in memory"] = Claim(
            share, 0.8, "higher", f"images/s, {engine.name}, {scale.network}, {scale.side} px, images from the host"
        )
    head = ["batch", "images/s", "ms, median", "ms, p99", "over torch in memory"]
    echo(f"\n{engine.name}, {scale.network}, {scale.side} px\n\n{table(head, rows)}\n")
    first, last = scale.batches[0], scale.batches[-1]
    claims[f"serving: images/s at batch {last} over batch {first}"] = Claim(
        rates[last] / rates[first], 4.0, "higher", f"{engine.name}, {scale.network}, {scale.side} px"
    )
    return claims


def _plain(device: Device, scale: Scale) -> Callable[[Tensor], Tensor]:
    """The same network with its own preprocessing, from uint8 images to probabilities that the host has."""
    program = Program(build_network(scale.network, 10, 0.0, None)).eval()
    program.to(device.name, memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = torch.float16 if device.name == "cuda" else torch.float32

    def infer(images: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(device.name, dtype, enabled=device.name == "cuda"):
            answer: Tensor = program(images).float().cpu()
        return answer

    return infer


def _latencies(call: Callable[[], Probabilities | Tensor], seconds: float) -> NDArray[np.float64]:
    """Seconds of each of many calls, which end when the host has the result."""
    for _ in range(RUNS):
        call()
    taken, end = [0.0][:0], time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return np.array(taken)


# --- images -------------------------------------------------------------------------------------


def drawn_digits(count: int, *, test: bool) -> Subset:
    """scikit-learn's digits at 32 px in two random colours, moved, with noise; the last sixth are for tests."""
    from sklearn.datasets import load_digits  # a second of import

    digits, generator = load_digits(), np.random.default_rng([SEED, test])
    first_test = len(digits.target) * 5 // 6
    members = np.arange(first_test, len(digits.target)) if test else np.arange(first_test)
    chosen = generator.choice(members, count)
    small = torch.from_numpy(digits.images[chosen].astype(np.float32) / 16)[:, None]  # (N, 1, 8, 8)
    masks = F.interpolate(small, (24, 24), mode="bicubic").clamp(0, 1)[:, 0].numpy()  # (N, 24, 24) in [0, 1]
    pixels = np.empty((count, 32, 32, 3), np.uint8)
    for index, mask in enumerate(masks):
        top, left = generator.integers(0, 9, 2)
        ground, colour = _two_colours(generator)
        image = np.broadcast_to(ground, (32, 32, 3)).copy()
        image[top : top + 24, left : left + 24] += (colour - ground) * mask[..., None]
        image += generator.normal(0, 12, (32, 32, 3))
        pixels[index] = image.clip(0, 255)
    return Subset(pixels, digits.target[chosen].astype(np.int64), np.arange(count), allow_flip=False)


def _two_colours(generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two colours that differ by at least a third of the range in brightness, (3,) in 0..255."""
    while True:
        first, second = generator.uniform(0, 255, (2, 3))
        if abs(first.mean() - second.mean()) >= 85:
            return first, second


def noise(count: int, side: int) -> Subset:
    """Images whose content does not matter."""
    generator = np.random.default_rng(SEED)
    pixels: Images = generator.integers(0, 256, (count, side, side, 3), np.uint8)
    return Subset(pixels, np.arange(count) % 10, np.arange(count))


def _fit(
    training: Subset,
    validation: Subset | None,
    hparams: Hyperparameters,
    device: Device,
    callbacks: FitCallbacks | None = None,
) -> FitResult:
    """Train from the same random weights each time."""
    torch.manual_seed(SEED)
    network = build_network(hparams.model_type, training.classes, hparams.dropout, None)
    return fit(network, training, validation, FitConfig(hparams, SEED, device), callbacks)


def _resnet18(**changes: float) -> Hyperparameters:
    return Hyperparameters.model_validate({"model_type": "resnet18", **changes})


def _wait(device: Device) -> None:
    """Wait until the GPU has done all that it was given."""
    if device.name == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    run_script(main)
