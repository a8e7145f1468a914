"""Training with the project, a plain loop and Lightning, and the limit of the network itself, epoch by epoch in turn.

    pip install -r requirements-bench.txt           # once, in an environment of its own
    python benchmarks/training.py                   # about 20 minutes, on images that it draws itself
    python benchmarks/training.py --quick           # the same with fewer images and epochs
    python benchmarks/training.py --data photos/    # your own photographs, one sub-folder a class
    python benchmarks/training.py --json            # ends with one JSON object of claims

All sides train the same networks with the same random weights, at 128 px in batches of 32 by AdamW; ours pools before
the first ReLU, the others after it:

    plain            ImageFolder, torchvision's v2 transforms, a DataLoader of two workers, float32
    Lightning        its Trainer in bf16-mixed with the same loader, without logger, checkpoints and bars
    in memory        the project's precision, memory format and step on tensors made beforehand, and nothing else
    matrix products  the network's operations at the rate at which this machine multiplies large matrices
    ours             the project, from files to MLflow and checkpoints
    ours, unlogged   the same without MLflow and checkpoints

Each has a process of its own, which stands still while another one is measured. A round is one epoch
of each; the first is not counted. A ratio is that of the seconds of all rounds together, so what a
contestant does in some epochs only, such as saving a checkpoint, counts with its share, and what
else the machine does falls on all. All use the processor, with as many threads as it has
cores, also where there is a GPU. In the race to an accuracy ours begins with small images
(--progressive-resize 0.5), once with as many epochs as plain and once with as many as fit in plain's seconds.
"""

import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, Claims, argument_parser, conclude, machine  # noqa: E402
from benchmarks.images import draw, link, listed  # noqa: E402
from toolkit.bundle.program import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from toolkit.cli.settings import run_script  # noqa: E402
from toolkit.cli.terminal import echo, table  # noqa: E402
from toolkit.errors import DataError, SettingsError, TrainingError  # noqa: E402
from toolkit.system.metrics import SystemMetrics, usable_cores  # noqa: E402
from toolkit.tracking.connection import connect  # noqa: E402
from toolkit.tracking.run import Run  # noqa: E402
from toolkit.training.checkpointing.checkpoint import Checkpoint  # noqa: E402
from toolkit.training.checkpointing.manager import CheckpointManager  # noqa: E402
from toolkit.training.device import Device  # noqa: E402
from toolkit.training.loop import EpochMetrics, FitCallbacks, FitConfig, fit  # noqa: E402
from toolkit.training.networks import ReLUMaxPool, build_network  # noqa: E402
from toolkit.training.results.run_logging import epoch_metrics  # noqa: E402
from toolkit.training.train_step import MAX_GRAD_NORM  # noqa: E402
from train_cnn import (  # noqa: E402
    CHECKPOINT_SHARE,
    TrainingData,
    TrainSettings,
    build_seeded_network,
    hyperparameters_of,
    load_images,
    use_machine,
)

SIZE, BATCH, LEARNING_RATE, DROPOUT, SEED = 128, 32, 1e-3, 0.2, 0
WORKERS = 2  # of the peers' loader
GROWN_FROM = 0.5  # of the side: the images of ours grow in the race to an accuracy
LONGER = "ours, in plain's time"
NEVER = 1e6  # seconds to an accuracy that was not reached
MEMORY_SIZE, MEMORY_BATCH = 224, 8  # px and images: so that images weigh more than what a step happens to hold
SAMPLING = 0.02  # seconds between two readings of a process's memory
GRACE = 5.0  # seconds for a contestant to end by itself
MATRIX, MULTIPLICATIONS = 2048, 12  # side of the matrices; how many products one reading is the best of
CONTEXT = multiprocessing.get_context("forkserver")  # its children have imported this file already

# What ours is to reach of each rival's images/s.
RACES = {
    "resnet18": {"plain": 3.0, "Lightning": 1.2, "in memory": 1.15, "matrix products": 0.5, "ours, unlogged": 0.98},
    "simple_cnn": {"plain": 5.0, "in memory": 1.15, "matrix products": 0.5},
    "resnet18_backbone": {"plain": 30.0},
}
TIME_TO_ACCURACY, MORE_ACCURATE = 0.20, 0.04  # of the plain way's time; above its accuracy in its time

# How images are divided.
FEWEST = 120  # images in all
MIN_PER_CLASS = 6
VALIDATED, TESTED = (2, 9, 16), (5,)  # of every 20 images of a class; the others are trained on


class Scale(NamedTuple):
    """Amount of work to measure."""

    images: int
    rounds: int  # the first is not counted
    epochs: int  # of the trainings that are compared by their accuracy


FULL, QUICK = Scale(images=1200, rounds=6, epochs=10), Scale(images=400, rounds=3, epochs=6)


class ImageSplit(NamedTuple):
    """A folder with train/, val/ and test/, each with one sub-folder a class."""

    folder: Path
    classes: int
    training: int  # images in train/
    images: int  # in all


class TrainingTask(NamedTuple):
    """Training task of a contestant."""

    network: str
    split: ImageSplit
    epochs: int
    validated: bool = False  # after each epoch, within its time
    size: int = SIZE  # px
    batch: int = BATCH


class EpochResult(NamedTuple):
    """One epoch: how long it took, and the share of the validation images that were right after it."""

    seconds: float
    accuracy: float


def main() -> None:
    """Measure and print."""
    parser = argument_parser(__doc__, quick="fewer images and epochs")
    parser.add_argument("--data", type=Path, help="folder of photographs, instead of drawn ones")
    parser.add_argument("--images", type=int, help="how many of them to use")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    count = scale.images if options.images is None else options.images
    if count < FEWEST:
        raise SettingsError(f"--images must be at least {FEWEST}, got {count}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    dtype = str(Device.choose().dtype).removeprefix("torch.")
    echo(f"{machine('torch', 'torchvision', 'lightning')}; ours in {dtype}")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        files = listed(options.data) if options.data else draw(scratch / "drawn", count)
        split = lay_out(files[:: math.ceil(len(files) / count)], scratch / "split")
        claims = measure(split, scale)
    conclude(claims, options.json)


def measure(split: ImageSplit, scale: Scale) -> Claims:
    """All races, each with its table; what comes out of them."""
    of = f"{split.training} training images of {split.classes} classes, {usable_cores()} cores"
    claims = {}
    rates = (f"{matrix_rate(dtype) / 1e9:,.0f} in {dtype}" for dtype in (torch.float32, torch.bfloat16))
    echo(f"matrix products, 10^9 operations a second: {', '.join(rates)}".replace("torch.", ""))
    for network, goals in RACES.items():
        results = race([*goals, "ours"], TrainingTask(network, split, scale.rounds))
        echo(f"\n{network}, {SIZE} px, {scale.rounds - 1} rounds\n\n{_rates(results, split)}")
        for rival, goal in goals.items():
            claims[f"{network}: ours over {rival}"] = Claim(
                ratio(results, rival), goal, "higher", f"images/s, {of}, {SIZE} px, {scale.rounds - 1} rounds"
            )
    task = TrainingTask("resnet18", split, scale.epochs, validated=True)
    results = race(["plain", "ours"], task)
    seconds = {name: sum(result.seconds for result in epochs) for name, epochs in results.items()}
    epochs = math.floor(scale.epochs * seconds["plain"] / seconds["ours"])
    results |= {LONGER: race(["ours"], task._replace(epochs=epochs))["ours"]}
    echo(f"\nresnet18, {SIZE} px, time to the plain way's accuracy after {scale.epochs} epochs\n\n{_learning(results)}")
    about = f"resnet18, {of}, {SIZE} px, {scale.epochs} epochs, decoding and validation included"
    claims["time to the plain way's accuracy: ours over plain"] = Claim(
        time_to_accuracy(results, "ours") / time_to_accuracy(results, "plain"), TIME_TO_ACCURACY, "lower", about
    )
    claims["accuracy in the plain way's time: ours minus plain's"] = Claim(
        results[LONGER][-1].accuracy - results["plain"][-1].accuracy, MORE_ACCURATE, "higher",
        f"{about}, {epochs} of ours",
    )  # fmt: skip
    growth, weight = memory_growth(split)
    echo(f"\ntwice the images: {growth / 2**20:+,.0f} MiB of memory, {weight / 2**20:,.0f} MiB of pixels\n")
    claims["memory for more images over their bytes"] = Claim(
        growth / weight, 1.0, "lower", f"anonymous memory of one epoch of simple_cnn, {of}, {MEMORY_SIZE} px"
    )
    return claims


def race(names: Sequence[str], task: TrainingTask) -> dict[str, list[EpochResult]]:
    """Epochs in turn: the first contestant's first, the second's first, ..., the first's second, ..."""
    results: dict[str, list[EpochResult]] = defaultdict(list)
    with ExitStack() as stack:
        contestants = [stack.enter_context(closing(Contestant(name, task))) for name in names]
        for _, contestant in product(range(task.epochs), contestants):
            results[contestant.name].append(contestant.epoch())
    return results


def ratio(results: dict[str, list[EpochResult]], rival: str) -> float:
    """Ours over the rival in images/s, over all rounds but the first."""
    theirs, ours = (sum(result.seconds for result in results[name][1:]) for name in (rival, "ours"))
    return theirs / ours


def time_to_accuracy(results: dict[str, list[EpochResult]], name: str) -> float:
    """Seconds from the start until a contestant first has the accuracy that the plain way ends with."""
    seconds = 0.0
    for result in results[name]:
        seconds += result.seconds
        if result.accuracy >= results["plain"][-1].accuracy:
            return seconds
    return NEVER


def memory_growth(split: ImageSplit) -> tuple[int, int]:
    """Growth of the peak memory with twice the images, and the size of these, both in bytes."""
    small, large = (
        TrainingTask("simple_cnn", chosen, 1, size=MEMORY_SIZE, batch=MEMORY_BATCH)
        for chosen in (split, doubled(split))
    )
    return peak_memory(large) - peak_memory(small), split.images * MEMORY_SIZE**2 * 3


def peak_memory(task: TrainingTask) -> int:
    """Most bytes that our training holds, without the pages of files, which the system can take back."""
    with closing(Contestant("ours", task)) as contestant:
        return contestant.peak_memory()


def _rates(results: dict[str, list[EpochResult]], split: ImageSplit) -> str:
    rows = []
    for name, all_results in results.items():
        seconds = np.array([result.seconds for result in all_results[1:]])
        mean, slowest, fastest = split.training / np.array([seconds.mean(), seconds.max(), seconds.min()])
        times = "" if name == "ours" else f"{ratio(results, name):.2f}"
        rows.append([name, f"{mean:,.1f}", f"{slowest:,.1f}", f"{fastest:,.1f}", times])
    return table(["", "images/s", "slowest", "fastest", "ours over it"], rows)


def _learning(results: dict[str, list[EpochResult]]) -> str:
    rows = [
        [name, f"{time_to_accuracy(results, name):,.1f}", f"{sum(result.seconds for result in all_results):,.1f}",
         " ".join(f"{result.accuracy:.2f}" for result in all_results)]
        for name, all_results in results.items()
    ]  # fmt: skip
    return table(["", "seconds to it", "seconds in all", "accuracy after each epoch"], rows)


class Contestant:
    """One way of training in a process of its own, which stands still between its epochs."""

    def __init__(self, name: str, task: TrainingTask) -> None:
        self.name = name
        self._connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_take_part, args=(name, task, theirs))
        self._process.start()
        theirs.close()

    def epoch(self) -> EpochResult:
        """Let it train for one epoch."""
        self._connection.send(None)
        return self._result()

    def peak_memory(self) -> int:
        """Let it train for one epoch; the most anonymous memory in bytes that it was seen to hold."""
        self._connection.send(None)
        peak = 0
        while not self._connection.poll(SAMPLING):
            peak = max(peak, _anonymous_memory(self._process.pid))
        self._result()
        return peak

    def close(self) -> None:
        """End it: where it stands, or by force when it has not come to the end of its epoch in time."""
        self._connection.close()
        self._process.join(GRACE)
        self._process.kill()
        self._process.join()

    def _result(self) -> EpochResult:
        try:
            result: EpochResult = self._connection.recv()
        except EOFError:
            raise TrainingError(f"{self.name} ended too early; the reason is above") from None
        return result


class Turns:
    """A contestant's view of the race: it calls ``over`` after each epoch, and gets back when its turn has come."""

    def __init__(self, connection: "Connection[EpochResult, None]") -> None:
        self._connection = connection
        self._wait()

    def over(self, accuracy: float = math.nan, seconds: float | None = None) -> None:
        """Report an epoch of ``seconds``, or of the time since the turn began, and wait for the next turn."""
        self._connection.send(EpochResult(time.perf_counter() - self._began if seconds is None else seconds, accuracy))
        self._wait()

    def _wait(self) -> None:
        try:
            self._connection.recv()
        except EOFError:  # the race is off
            raise SystemExit from None
        self._began = time.perf_counter()


def _take_part(name: str, task: TrainingTask, connection: "Connection[EpochResult, None]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that ends all others
    multiprocessing.set_start_method(None, force=True)  # loaders start their workers as in any script
    torch.set_num_threads(usable_cores())
    with tempfile.TemporaryDirectory(dir=task.split.folder.parent) as folder:
        os.chdir(folder)
        CONTESTANTS[name](task, Turns(connection))


def _anonymous_memory(pid: int | None) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # not Linux: all that is resident
        return int(psutil.Process(pid).memory_info().rss)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def ours(task: TrainingTask, turns: Turns, *, logged: bool = True) -> None:
    """The project, as train_cnn.py uses it."""
    settings = TrainSettings.model_validate(
        {"data": str(task.split.folder), "model_type": task.network, "image_size": task.size, "epochs": task.epochs,
         "batch_size": task.batch, "learning_rate": LEARNING_RATE, "dropout": DROPOUT, "weights": "none", "seed": SEED,
         "patience": task.epochs, "cache_dir": Path("cache"),
         "progressive_resize": GROWN_FROM if task.validated else 1.0}
    )  # fmt: skip
    config = FitConfig(hyperparameters_of(settings), SEED, use_machine(settings))
    data = TrainingData(*load_images(settings, task.size), None, "random")
    run = Run(connect("sqlite:///mlflow.db"), settings.experiment_name, role="final", name="benchmark")
    checkpoints = CheckpointManager(Checkpoint(settings.checkpoint_dir, run.id, settings.model_dump(mode="json")), run)
    machine = SystemMetrics()

    def on_epoch(epoch: EpochMetrics, *_: object) -> None:
        if logged:
            run.metrics({**epoch_metrics(epoch), **machine.read()}, epoch.epoch)
        turns.over(epoch.val_accuracy)  # what is written after an epoch counts with the next

    callbacks = FitCallbacks(on_epoch=on_epoch, checkpoint_share=CHECKPOINT_SHARE)
    if logged:
        callbacks = replace(callbacks, on_checkpoint=checkpoints.save_callback("final"))
    training, validation = data.subset(data.split.development), data.subset(data.split.validation)
    fit(build_seeded_network(data, config), training, validation if task.validated else None, config, callbacks)


def plain(task: TrainingTask, turns: Turns) -> None:
    """The loop that tutorials teach."""
    network, (training, validation) = _network(task), _loaders(task)
    optimizer = torch.optim.AdamW(_trained(network), LEARNING_RATE)
    for _ in range(task.epochs):
        network.train()
        for images, labels in training:
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        turns.over(_accuracy(network, validation) if task.validated else math.nan)


def lightning(task: TrainingTask, turns: Turns) -> None:
    """Lightning's Trainer, which may leave out all that it would log, draw and save."""
    from lightning.pytorch import LightningModule, Trainer  # of the peers only; six seconds

    class PlainModule(LightningModule):  # type: ignore[misc]
        """The same step as the plain way's."""

        def __init__(self) -> None:
            super().__init__()
            self.network = _network(task)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.network(images), labels)

        def on_train_epoch_end(self) -> None:
            turns.over()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(_trained(self.network), LEARNING_RATE)

    warnings.filterwarnings("ignore", module="lightning")  # advice on the number of workers
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    Trainer(
        accelerator="cpu", precision="bf16-mixed", max_epochs=task.epochs, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(PlainModule(), _loaders(task)[0])  # fmt: skip


def in_memory(task: TrainingTask, turns: Turns) -> None:
    """The project's step on an epoch of batches made beforehand; what the images show costs nothing."""
    device = Device.choose()
    network = _network(task).to(memory_format=torch.channels_last)
    trained = _trained(network)
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, fused=True)
    batches = []
    for start in range(0, task.split.training, task.batch):
        count = min(task.batch, task.split.training - start)
        images = torch.randn(count, 3, task.size, task.size).contiguous(memory_format=torch.channels_last)
        batches.append((images, torch.randint(task.split.classes, (count,))))
    network.train()
    while True:
        for images, labels in batches:
            with device.autocast():
                loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
            optimizer.step()
        turns.over()


def matrix_products(task: TrainingTask, turns: Turns) -> None:
    """Duration of an epoch's operations at the rate of large matrix products in the project's precision."""
    network = _network(task)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 3, task.size, task.size)).sum().backward()
    operations = counter.get_total_flops() / 2 * task.split.training
    while True:
        turns.over(seconds=operations / matrix_rate(Device.choose().dtype))


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second, additions and multiplications, of the fastest of several large matrix products."""
    left, right = torch.randn(2, MATRIX, MATRIX, dtype=dtype)
    times = []
    for _ in range(MULTIPLICATIONS):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return 2 * MATRIX**3 / min(times)


CONTESTANTS: dict[str, Callable[[TrainingTask, Turns], None]] = {
    "plain": plain,
    "Lightning": lightning,
    "in memory": in_memory,
    "matrix products": matrix_products,
    "ours": ours,
    "ours, unlogged": partial(ours, logged=False),
}


def _network(task: TrainingTask) -> nn.Module:
    """The network of the rivals, with ReLU before the pooling, as torchvision and tutorials have it."""
    torch.manual_seed(SEED)
    network = build_network(task.network, task.split.classes, DROPOUT, None)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, ReLUMaxPool):
                setattr(module, name, nn.Sequential(nn.ReLU(inplace=True), child.pool))
    return network


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in network.parameters() if weight.requires_grad]


def _loaders(task: TrainingTask) -> "tuple[DataLoader[Any], DataLoader[Any]]":
    """Training and validation images, as plain scripts load them; their workers end with each epoch."""
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    changes = [v2.RandomResizedCrop(task.size), v2.RandomHorizontalFlip(), v2.ColorJitter(0.1, 0.1, 0.1), *tensor]
    square = [v2.Resize(task.size), v2.CenterCrop(task.size), *tensor]
    training = ImageFolder(task.split.folder / "train", v2.Compose(changes))
    validation = ImageFolder(task.split.folder / "val", v2.Compose(square))
    return (
        DataLoader(training, task.batch, shuffle=True, num_workers=WORKERS),
        DataLoader(validation, task.batch, num_workers=WORKERS),
    )


def _accuracy(network: nn.Module, loader: "DataLoader[Any]") -> float:
    network.eval()
    with torch.inference_mode():
        right = torch.cat([network(images).argmax(dim=1) == labels for images, labels in loader])
    return float(right.float().mean())


def lay_out(files: Sequence[Path], folder: Path) -> ImageSplit:
    """Divide images into train/, val/ and test/ by links, so that all sides train and validate on the same."""
    classes, parts = Counter[str](), defaultdict[str, list[Path]](list)
    for file in files:
        number = classes[file.parent.name] % 20
        classes[file.parent.name] += 1
        parts["val" if number in VALIDATED else "test" if number in TESTED else "train"].append(file)
    name, fewest = min(classes.items(), key=itemgetter(1))
    if fewest < MIN_PER_CLASS:
        raise DataError(f"class {name!r} has {fewest} images; at least {MIN_PER_CLASS} are needed")
    for part, members in parts.items():
        link(members, folder / part)
    return ImageSplit(folder, len(classes), len(parts["train"]), len(files))


def doubled(split: ImageSplit) -> ImageSplit:
    """The same images twice, the second time with a byte after their end, which no decoder reads."""
    folder = split.folder.with_name("doubled")
    for path in split.folder.rglob("*.*"):
        copy = folder / path.relative_to(split.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path.resolve())
        copy.with_stem(f"{path.stem}-again").write_bytes(path.read_bytes() + b"\0")
    return split._replace(folder=folder, training=2 * split.training, images=2 * split.images)


if __name__ == "__main__":
    run_script(main)
