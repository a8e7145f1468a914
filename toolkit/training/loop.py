"""Train one network: epochs, validation, early stopping, the best epoch, and the state to resume from."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.cli.terminal import progress
from toolkit.errors import TrainingError
from toolkit.system.interrupts import DeferredSignals
from toolkit.training.batches import BatchSource, ImageBatches
from toolkit.training.data.dataset import Subset
from toolkit.training.device import Device
from toolkit.training.early_stopping import EarlyStopping
from toolkit.training.features import FeatureBatches, Features
from toolkit.training.gpu import StepTimes, one_line_errors
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.networks import FrozenBackbone
from toolkit.training.train_step import TrainStep

EVAL_BATCH_SIZE = 128
GROWTH_SHARE = 2 / 3  # of the epochs, in which images grow to their full size
SIZE_STEP, MIN_SIZE = 16, 32  # pixels; ResNet-18 halves an image five times


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one epoch; ``epoch`` counts from 1, validation is nan where there was none."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    batch_time_ms: float
    batch_time_ms_p95: float
    epoch_duration_s: float
    images_per_s: float


@dataclass(eq=False)
class FitResult:
    """A trained network with the weights of its best epoch; without validation that is the last one."""

    network: nn.Module  # in evaluation mode
    history: list[EpochMetrics] = field(default_factory=list)
    best_epoch: int = 0  # the one with the highest validation accuracy, among equals with the lowest loss
    best_val_accuracy: float = math.nan
    val_logits: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (N, K), of it
    stopped_early: bool = False  # because ``patience`` ran out
    seconds: float = 0.0  # also of the part before an interruption
    images_per_s: float = 0.0  # training images, validation included in the time
    images: int = 0  # training images seen, one as often as it was


@dataclass(frozen=True, eq=False)
class TrainState:
    """Everything it takes to resume a training as if it had never stopped."""

    values: dict[str, Any]  # that JSON can hold
    tensors: dict[str, Any]  # weights, averages, the optimizer's state, the best epoch's weights; not copies

    def result(self, network: nn.Module) -> FitResult:
        """The result so far, with ``network`` as its network."""
        values = self.values
        return FitResult(
            network,
            [EpochMetrics(**epoch) for epoch in values["history"]],
            values["best_epoch"],
            values["best_val_accuracy"],
            self.tensors["val_logits"].numpy(),
            values["stopped_early"],
            values["seconds"],
            images=values["images"] * len(values["history"]),
        )


@dataclass(frozen=True, eq=False)
class FitConfig:
    """Everything that a training depends on besides its network and its images."""

    hparams: Hyperparameters
    seed: int  # of the order of images, of augmentation and of dropout
    device: Device
    features: Features | None = None  # of a frozen backbone, if they are computed already


class TrainingPaused(Exception):
    """Raised by ``FitCallbacks.on_epoch`` to end a training that can be resumed: its state is saved first."""


def ignore(*_: object) -> None:
    """Do nothing: the default of a callback."""


@dataclass(frozen=True, eq=False)
class FitCallbacks:
    """Functions that ``fit`` calls."""

    on_epoch: Callable[[EpochMetrics, nn.Module, bool], None] = ignore  # the network, and whether it is the best yet
    on_batch: Callable[[int, int], None] = ignore  # after each of training or validation: those done, and all
    on_checkpoint: Callable[[TrainState], None] = ignore  # after each epoch, and when training ends or is interrupted
    checkpoint_share: float = math.inf  # of the epochs' time: the most that saving may take, or epochs are left out
    bar: str | None = None  # label of the progress bar; None shows none


@one_line_errors()
def fit(
    network: nn.Module,
    train: Subset,
    validation: Subset | None,
    config: FitConfig,
    callbacks: FitCallbacks | None = None,
    state: TrainState | None = None,
) -> FitResult:
    """Train a network and keep its best epoch.

    Training stops early after ``patience`` epochs in which neither the validation accuracy
    rose nor the validation loss fell by at least ``min_delta``. The learning rate follows a
    warm-up and a cosine over all ``epochs``; early stopping cuts that schedule short.
    Ctrl-C and SIGTERM take effect after the current step, once the state has been saved.

    Parameters
    ----------
    network
        Maps float32 (N, 3, H, W), normalised, to logits (N, K). It is changed in place. Of a
        ``FrozenBackbone`` only the head runs once the features of all images are computed.
    train, validation
        Images to train on and to validate on; without validation all epochs are run.
    state
        The state to resume from; None starts from scratch.

    Returns
    -------
    FitResult
        The same, bit for bit on a CPU, for the same network, images and config, resumed or not.

    Raises
    ------
    TrainingError
        The loss became infinite or not a number, or memory ran out.
    """
    callbacks = callbacks or FitCallbacks()
    hparams, device = config.hparams, config.device
    start = time.perf_counter()
    trained, batches, val_batches = _build_batches(network, train, validation, config)
    steps = _steps_per_epoch(len(train), hparams.batch_size, device)
    cuda = [torch.cuda.current_device()] if device.name == "cuda" else []
    with DeferredSignals() as signals, torch.random.fork_rng(cuda):  # dropout draws from torch's own generator
        train_step = TrainStep(trained, batches, hparams, steps * hparams.epochs, config.seed, device)
        display = _ProgressDisplay(callbacks, hparams.epochs, steps + _eval_batch_count(val_batches, device))
        with closing(display):
            run = _TrainingRun(train_step, val_batches, config, len(train), display)
            if state is not None:
                run.restore(state)
            trained_s, cost_s = 0.0, 0.0  # since the last checkpoint, and what that took
            while not run.finished:
                epoch, best = run.epoch(signals, callbacks.on_checkpoint)
                try:
                    callbacks.on_epoch(epoch, train_step.eval_network, best)
                except TrainingPaused:
                    callbacks.on_checkpoint(run.state())
                    raise
                stopped = device.world.any(signals.received is not None)
                trained_s += epoch.epoch_duration_s
                due = device.world.any(
                    trained_s * callbacks.checkpoint_share >= cost_s
                )  # clocks differ: all must agree
                if stopped or due or run.finished:
                    ended = time.perf_counter()
                    callbacks.on_checkpoint(run.state())
                    trained_s, cost_s = 0.0, time.perf_counter() - ended
                if stopped:
                    signals.act()
    trained.load_state_dict(run.best)
    network.eval()
    result = run.result
    result.network = network
    result.seconds = run.earlier_seconds + time.perf_counter() - start
    result.images = len(train) * len(result.history)
    result.images_per_s = result.images / result.seconds
    return result


@one_line_errors()
def predict_logits(network: nn.Module, subset: Subset, device: Device, bar: str | None = None) -> NDArray[np.float32]:
    """The network's logits for the images of a subset, float32 (N, K), in evaluation mode; ``bar`` as in ``fit``."""
    batches = ImageBatches(subset, device)
    with progress(bar, _eval_batch_count(batches, device), "batches") as shown:
        return _predict(network, batches, device, shown.update)


def image_size_at(epoch: int, hparams: Hyperparameters) -> int:
    """The side of training images in an epoch, counted from 1; with ``progressive_resize`` they grow.

    References
    ----------
    Touvron, Vedaldi, Douze, Jégou: Fixing the Train-Test Resolution Discrepancy, NeurIPS 2019.

    Examples
    --------
    >>> hparams = Hyperparameters(image_size=128, epochs=9, progressive_resize=0.5)
    >>> [image_size_at(epoch, hparams) for epoch in (1, 4, 7, 9)]
    [64, 96, 128, 128]
    """
    growing = int(hparams.epochs * GROWTH_SHARE)
    if hparams.progressive_resize == 1 or epoch > growing:
        return hparams.image_size
    side = hparams.image_size * (hparams.progressive_resize + (1 - hparams.progressive_resize) * (epoch - 1) / growing)
    return min(hparams.image_size, max(MIN_SIZE, round(side / SIZE_STEP) * SIZE_STEP))


class _ProgressDisplay:
    """The progress of a training in batches of equal weight: a bar or lines in a log, and ``on_batch``."""

    def __init__(self, callbacks: FitCallbacks, epochs: int, batches: int) -> None:
        self._epochs, self._each, self._on_batch = epochs, batches, callbacks.on_batch
        self._done, self._all = 0, epochs * batches
        self._bar = progress(callbacks.bar, self._all, "batches")
        self.close = self._bar.close

    def resume(self, epochs: int, steps: int) -> None:
        """Count the epochs, and the steps of the next one, that an interrupted run has done."""
        self._done = self._bar.initial = self._bar.n = epochs * self._each + steps

    def batch(self) -> None:
        """Count one more batch."""
        self._done += 1
        self._bar.update()
        self._on_batch(self._done, self._all)

    def epoch(self, epoch: EpochMetrics) -> None:
        """Show the metrics of an epoch."""
        self._bar.set_postfix_str(f"epoch {epoch.epoch}/{self._epochs}, val accuracy {epoch.val_accuracy:.3f}", False)


class _TrainingRun:
    """A training under way: its metrics, and the best epoch's weights."""

    def __init__(
        self,
        train_step: TrainStep,
        validation: BatchSource | None,
        config: FitConfig,
        images: int,
        display: _ProgressDisplay,
    ) -> None:
        hparams, device = config.hparams, config.device
        self.train_step, self.result = train_step, FitResult(train_step.network)
        self.best: dict[str, Tensor] = {}
        self.earlier_seconds = 0.0  # of training before it was resumed
        self._validation, self._hparams, self._seed, self._device = validation, hparams, config.seed, device
        self._images, self._early_stopping = images, EarlyStopping(hparams)
        self._steps = _steps_per_epoch(images, hparams.batch_size, device)
        self._step, self._sums = 0, torch.zeros(2, dtype=torch.float64, device=device.name)
        self._times = StepTimes(device.name == "cuda")
        self._start = time.perf_counter()
        self._display = display

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.result.stopped_early or len(self.result.history) == self._hparams.epochs

    def epoch(self, signals: DeferredSignals, save: Callable[[TrainState], None]) -> tuple[EpochMetrics, bool]:
        """Train and validate for one epoch; its metrics, and whether no earlier epoch was as good."""
        start, number = time.perf_counter() - sum(self._times.read()), len(self.result.history) + 1
        self._train(number, signals, save)
        loss, accuracy = (self._device.world.sum(self._sums) / self._images).tolist()
        times = self._times.read()
        _require_finite(loss, number, self._hparams)
        self._device.world.broadcast_buffers(self.train_step.eval_network)
        val_loss, val_accuracy, logits = self._validate(number)
        epoch = EpochMetrics(
            epoch=number,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=self.train_step.learning_rate((number - 1) * self._steps),
            batch_time_ms=float(np.mean(times)) * 1e3,
            batch_time_ms_p95=float(np.percentile(times, 95)) * 1e3,
            epoch_duration_s=time.perf_counter() - start,
            images_per_s=self._images / sum(times),
        )
        self._step, self._times, self._sums = 0, StepTimes(self._device.name == "cuda"), torch.zeros_like(self._sums)
        return epoch, self._add(epoch, logits)

    def state(self) -> TrainState:
        """Everything that ``restore`` needs."""
        result = self.result
        values = {
            "history": [asdict(epoch) for epoch in result.history],
            "step": self._step,
            "batch_times": self._times.read(),
            "images": self._images,
            "best_epoch": result.best_epoch,
            "best_val_accuracy": result.best_val_accuracy,
            "stopped_early": result.stopped_early,
            "early_stopping": self._early_stopping.state(),
            "grad_accum_steps": self.train_step.grad_accum_steps,
            "seconds": self.earlier_seconds + time.perf_counter() - self._start,
        }
        sums = self._sums[None]  # a row for each process, all of which are at the same step; zeros between epochs
        if self._step:
            sums = self._device.world.gather_rows(sums, self._device.world.size)
        tensors = {**self.train_step.state(), "sums": sums, "val_logits": torch.from_numpy(result.val_logits)}
        if self.best and (self._step or result.best_epoch < len(result.history)):  # else the weights are the best
            tensors["best"] = self.best
        return TrainState(values, tensors)

    def restore(self, state: TrainState) -> None:
        """Set what ``state`` returned."""
        values, tensors = state.values, state.tensors
        self.result = state.result(self.train_step.network)
        self._step, self.earlier_seconds = values["step"], values["seconds"]
        self._times = StepTimes(self._device.name == "cuda", values["batch_times"])
        world = self._device.world
        self._sums = tensors["sums"][world.rank :: world.size].sum(dim=0).to(self._sums.device)
        self._early_stopping.restore(values["early_stopping"])
        self.train_step.grad_accum_steps = values["grad_accum_steps"]
        self.train_step.restore(tensors)
        self.best = tensors.get("best") or (
            copy.deepcopy(self.train_step.eval_network.state_dict()) if values["history"] else {}
        )
        self._display.resume(len(values["history"]), self._step)

    def _train(self, number: int, signals: DeferredSignals, save: Callable[[TrainState], None]) -> None:
        """Do the remaining steps of an epoch; nothing is read back from the device on the way."""
        self.train_step.network.train()
        order = np.random.default_rng([self._seed, number]).permutation(self._images)
        batches, size = np.array_split(order, self._steps), image_size_at(number, self._hparams)
        while self._step < self._steps:
            with self._times.step():
                loss, right = self.train_step.step((number - 1) * self._steps + self._step, batches[self._step], size)
                self._sums += torch.stack([loss.double(), right.double()])
            self._step += 1
            self._display.batch()
            if self._step < self._steps and self._device.world.any(signals.received is not None):
                save(self.state())
                signals.act()

    def _validate(self, number: int) -> tuple[float, float, NDArray[np.float32]]:
        if self._validation is None:
            return math.nan, math.nan, np.zeros((0, 0), np.float32)
        labels = self._validation.labels
        logits = _predict(self.train_step.eval_network, self._validation, self._device, self._display.batch)
        loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
        _require_finite(loss, number, self._hparams)
        return loss, float((logits.argmax(axis=1) == labels).mean()), logits

    def _add(self, epoch: EpochMetrics, logits: NDArray[np.float32]) -> bool:
        """Add an epoch to the result; whether it is the best so far."""
        result, score = self.result, (epoch.val_accuracy, epoch.val_loss)
        result.history.append(epoch)
        best = self._validation is None or self._early_stopping.is_best(*score)
        if best:
            result.best_epoch, result.best_val_accuracy, result.val_logits = epoch.epoch, epoch.val_accuracy, logits
            self.best = copy.deepcopy(self.train_step.eval_network.state_dict())
        if self._validation is not None and self._early_stopping.should_stop(*score):
            result.stopped_early = epoch.epoch < self._hparams.epochs
        self._display.epoch(epoch)
        return best


def _build_batches(
    network: nn.Module, train: Subset, validation: Subset | None, config: FitConfig
) -> tuple[nn.Module, BatchSource, BatchSource | None]:
    """The module to train, and its batches of training and validation; of a frozen backbone the head and features."""
    hparams, device = config.hparams, config.device
    if not isinstance(network, FrozenBackbone):
        batches = ImageBatches(train, device, hparams.augmentation)
        return network, batches, ImageBatches(validation, device) if validation else None
    features = config.features or Features.of(network.backbone, train.union(validation), hparams, config.seed, device)
    return network.head, FeatureBatches(features, train), FeatureBatches(features, validation) if validation else None


def _steps_per_epoch(images: int, batch_size: int, device: Device) -> int:
    """The number of equal batches; none leaves a process a single image, which batch normalisation refuses."""
    return max(1, min(math.ceil(images / batch_size), images // (2 * device.world.size)))


def _eval_batch_count(batches: BatchSource | None, device: Device) -> int:
    """The number of evaluation batches of one process."""
    return 0 if batches is None else max(1, math.ceil(len(batches.labels) / device.world.size / EVAL_BATCH_SIZE))


def _predict(
    network: nn.Module, batches: BatchSource, device: Device, on_batch: Callable[[], object]
) -> NDArray[np.float32]:
    """Logits in evaluation mode, float32 (N, K); several processes share the images."""
    network.to(device.name, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    positions = device.world.share(np.arange(len(batches.labels)))
    starts = range(0, max(1, len(positions)), EVAL_BATCH_SIZE)  # a process without a share runs an empty batch
    pieces = []
    with torch.inference_mode(), device.autocast():
        for start in starts:
            pieces.append(network(batches.eval_batch(positions[start : start + EVAL_BATCH_SIZE])).float())
            on_batch()
    logits: NDArray[np.float32] = device.world.gather_rows(torch.cat(pieces), len(batches.labels)).cpu().numpy()
    return logits


def _require_finite(loss: float, epoch: int, hparams: Hyperparameters) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} in epoch {epoch}; try a --learning-rate smaller than {hparams.learning_rate:.3g}"
        )
