"""Train one network: epochs, validation, early stopping, the best epoch, and how to go on after a stop."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.cli.terminal import progress as shown_progress
from toolkit.errors import TrainingError
from toolkit.training.batches import BatchSource, ImageBatches
from toolkit.training.data.dataset import Subset
from toolkit.training.device import Device
from toolkit.training.early_stopping import DeferredSignals, EarlyStopping
from toolkit.training.features import FeatureBatches, Features
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.networks import FrozenBackbone
from toolkit.training.train_step import TrainStep

EVALUATION_BATCH = 128
GROWTH_SHARE = 2 / 3  # of the epochs, in which progressive images grow to their full size
SIZE_STEP, SMALLEST_SIZE = 16, 32  # pixels; ResNet-18 halves an image five times


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch measured; ``epoch`` counts from 1."""

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
    """A trained network with the weights of its best epoch.

    Parameters
    ----------
    network
        In evaluation mode.
    history
        One ``EpochMetrics`` each, in order.
    best_epoch
        The epoch with the highest validation accuracy, of equals the one with the lowest loss; the
        last one when there was no validation part.
    val_logits
        float32 (N, K) of the validation part at the best epoch; (0, K) without one.
    stopped_early
        Whether patience ran out.
    """

    network: nn.Module
    history: list[EpochMetrics] = field(default_factory=list)
    best_epoch: int = 0
    best_val_accuracy: float = math.nan
    val_logits: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    stopped_early: bool = False
    seconds: float = 0.0
    images_per_s: float = 0.0
    images: int = 0  # passed through training, each as often as it was


@dataclass(frozen=True, eq=False)
class TrainState:
    """How far a training has come: all it takes to go on from there as if it had never stopped.

    Parameters
    ----------
    facts
        Plain values, fit for JSON.
    tensors
        Weights, averages, the optimizer's state, the best epoch's weights; not copies.
    """

    facts: dict[str, Any]
    tensors: dict[str, Any]

    def result(self, network: nn.Module) -> FitResult:
        """What was measured until then."""
        facts = self.facts
        return FitResult(
            network,
            [EpochMetrics(**epoch) for epoch in facts["history"]],
            facts["best_epoch"],
            facts["best_val_accuracy"],
            self.tensors["val_logits"].numpy(),
            facts["stopped_early"],
            facts["seconds"],
            images=facts.get("images", 0) * len(facts["history"]),
        )


@dataclass(frozen=True, eq=False)
class FitConfig:
    """What a training depends on besides its network and its images.

    Parameters
    ----------
    recipe
        The hyperparameters.
    seed
        Of the order of images, of augmentation and of dropout.
    device
        Where, how exactly, and with which other processes.
    features
        Of a frozen backbone, when they are known already.
    """

    recipe: Hyperparameters
    seed: int
    device: Device
    features: Features | None = None


def _ignore(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True, eq=False)
class FitCallbacks:
    """What ``fit`` calls as it goes.

    Parameters
    ----------
    on_epoch
        Called after each epoch with its figures, the network, and whether it is the best so far.
    on_batch
        Called after each batch, also those of validation, with the number of those done and of all.
    on_checkpoint, checkpoint_share
        Called with the progress after each epoch, but only as often as it takes no more than this
        share of the epochs' time, and always when training ends or is interrupted.
    bar
        The label under which it is shown how far training has come; None shows nothing.
    """

    on_epoch: Callable[[EpochMetrics, nn.Module, bool], None] = _ignore
    on_batch: Callable[[int, int], None] = _ignore
    on_checkpoint: Callable[[TrainState], None] = _ignore
    checkpoint_share: float = math.inf
    bar: str | None = None


def fit(
    network: nn.Module,
    train: Subset,
    validation: Subset | None,
    config: FitConfig,
    callbacks: FitCallbacks | None = None,
    progress: TrainState | None = None,
) -> FitResult:
    """Train a network and keep its best epoch.

    Training stops early after ``patience`` epochs in which neither the validation accuracy
    rose nor the validation loss fell by at least ``min_delta``. The learning rate follows a
    warm-up and a cosine over all ``epochs``; stopping early ends that schedule before its end.
    Ctrl-C and SIGTERM are obeyed after the step that is under way, and what was reached is kept.

    Parameters
    ----------
    network
        Takes float32 (N, 3, H, W), normalised; gives logits (N, K). It is changed in place. Of a
        ``FrozenBackbone`` only the head is run once the features of all images are known.
    train, validation
        What to learn from and what to judge by; without validation all epochs are run.
    config
        Hyperparameters, seed and device.
    callbacks
        What to call on the way.
    progress
        Where to go on from.

    Raises
    ------
    TrainingError
        The loss became infinite or not a number, or memory ran out.
    """
    callbacks = callbacks or FitCallbacks()
    recipe, device = config.recipe, config.device
    start = time.perf_counter()
    trained, batches, judged = _build_batches(network, train, validation, config)
    steps = _steps_an_epoch(len(train), recipe.batch_size, device)
    with DeferredSignals() as interruption, _own_randomness(device):
        learner = TrainStep(trained, batches, recipe, steps * recipe.epochs, config.seed, device)
        shown = _ProgressDisplay(callbacks, recipe.epochs, steps + _evaluation_batches(judged, device))
        with closing(_TrainingRun(learner, judged, config, len(train), shown)) as session:
            if progress is not None:
                session.restore(progress)
            trained_s, cost_s = 0.0, 0.0  # since the progress was last kept, and what that took
            while not session.finished:
                epoch, best = session.epoch(interruption, callbacks.on_checkpoint)
                callbacks.on_epoch(epoch, learner.eval_network, best)
                stopped = device.world.any(interruption.asked is not None)
                trained_s += epoch.epoch_duration_s
                due = trained_s * callbacks.checkpoint_share >= cost_s
                due = device.world.any(due)  # clocks differ, and all must agree
                if stopped or due or session.finished:
                    ended = time.perf_counter()
                    callbacks.on_checkpoint(session.progress())
                    trained_s, cost_s = 0.0, time.perf_counter() - ended
                if stopped:
                    interruption.leave()
    trained.load_state_dict(session.best)
    network.eval()
    result = session.result
    result.network = network
    result.seconds = session.earlier + time.perf_counter() - start
    result.images = len(train) * len(result.history)
    result.images_per_s = result.images / result.seconds
    return result


def predict_logits(network: nn.Module, part: Subset, device: Device, bar: str | None = None) -> NDArray[np.float32]:
    """float32 (N, K), the network's logits for a part, in evaluation mode; ``bar`` as ``fit`` takes it."""
    batches = ImageBatches(part, device)
    with shown_progress(bar, _evaluation_batches(batches, device), "batches") as shown:
        return _predict(network, batches, device, shown.update)


def image_size_at(epoch: int, recipe: Hyperparameters) -> int:
    """Side of the training images in an epoch, counted from 1: progressive ones grow over two thirds of the epochs.

    References
    ----------
    Touvron, Vedaldi, Douze, Jégou: Fixing the Train-Test Resolution Discrepancy, NeurIPS 2019.

    Examples
    --------
    >>> [image_size_at(epoch, Recipe(image_size=128, epochs=9, progressive_resize=0.5)) for epoch in (1, 4, 7, 9)]
    [64, 96, 128, 128]
    """
    growing = int(recipe.epochs * GROWTH_SHARE)
    if recipe.progressive_resize == 1 or epoch > growing:
        return recipe.image_size
    side = recipe.image_size * (recipe.progressive_resize + (1 - recipe.progressive_resize) * (epoch - 1) / growing)
    return min(recipe.image_size, max(SMALLEST_SIZE, round(side / SIZE_STEP) * SIZE_STEP))


class _ProgressDisplay:
    """How far a training has come, in batches of equal weight: on the terminal or in the log, and to who asked."""

    def __init__(self, callbacks: FitCallbacks, epochs: int, batches: int) -> None:
        self._epochs, self._each, self._on_batch = epochs, batches, callbacks.on_batch
        self._done, self._all = 0, epochs * batches
        self._bar = shown_progress(callbacks.bar, self._all, "batches")

    def go_on(self, epochs: int, steps: int) -> None:
        """So many epochs, and steps of the next one, were done by an interrupted run."""
        self._done = self._bar.initial = self._bar.n = epochs * self._each + steps

    def batch(self) -> None:
        """One more is done."""
        self._done += 1
        self._bar.update()
        self._on_batch(self._done, self._all)

    def epoch(self, epoch: EpochMetrics) -> None:
        """An epoch is done."""
        self._bar.set_postfix_str(f"epoch {epoch.epoch}/{self._epochs}, val accuracy {epoch.val_accuracy:.3f}", False)

    def close(self) -> None:
        """Show no more."""
        self._bar.close()


class _TrainingRun:
    """One training under way: what it has measured, and the best epoch's weights."""

    def __init__(
        self,
        learner: TrainStep,
        validation: BatchSource | None,
        config: FitConfig,
        images: int,
        shown: _ProgressDisplay,
    ) -> None:
        recipe, device = config.recipe, config.device
        self.learner, self.result = learner, FitResult(learner.network)
        self.best: dict[str, Tensor] = {}
        self.earlier = 0.0  # seconds of training before it was taken up again
        self._validation, self._recipe, self._seed, self._device = validation, recipe, config.seed, device
        self._images, self._stopping = images, EarlyStopping(recipe)
        self._steps = _steps_an_epoch(images, recipe.batch_size, device)
        self._step, self._times, self._sums = 0, [0.0][:0], torch.zeros(2, dtype=torch.float64, device=device.name)
        self._start = time.perf_counter()
        self._shown = shown

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.result.stopped_early or len(self.result.history) == self._recipe.epochs

    def epoch(self, interruption: DeferredSignals, keep: Callable[[TrainState], None]) -> tuple[EpochMetrics, bool]:
        """Train and validate once; its figures, and whether no epoch before was as good."""
        start, number = time.perf_counter() - sum(self._times), len(self.result.history) + 1
        self._learn(number, interruption, keep)
        loss, accuracy = (self._device.world.sum(self._sums) / self._images).tolist()
        _require_finite(loss, number, self._recipe)
        self._device.world.broadcast_buffers(self.learner.eval_network)
        val_loss, val_accuracy, logits = self._validate(number)
        epoch = EpochMetrics(
            epoch=number,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=self.learner.learning_rate((number - 1) * self._steps),
            batch_time_ms=float(np.mean(self._times)) * 1e3,
            batch_time_ms_p95=float(np.percentile(self._times, 95)) * 1e3,
            epoch_duration_s=time.perf_counter() - start,
            images_per_s=self._images / sum(self._times),
        )
        self._step, self._times, self._sums = 0, [], torch.zeros_like(self._sums)
        return epoch, self._judge(epoch, logits)

    def close(self) -> None:
        """Show no more how far it has come."""
        self._shown.close()

    def progress(self) -> TrainState:
        """Where it is now."""
        result = self.result
        facts = {
            "history": [asdict(epoch) for epoch in result.history],
            "step": self._step,
            "batch_times": self._times,
            "images": self._images,
            "best_epoch": result.best_epoch,
            "best_val_accuracy": result.best_val_accuracy,
            "stopped_early": result.stopped_early,
            "stopping": self._stopping.state(),
            "accumulated": self.learner.grad_accum_steps,
            "seconds": self.earlier + time.perf_counter() - self._start,
        }
        sums = self._sums[None]  # a row for each process, all of which are at the same step; zeros between epochs
        if self._step:
            sums = self._device.world.gather_rows(sums, self._device.world.size)
        tensors = {**self.learner.state(), "sums": sums, "val_logits": torch.from_numpy(result.val_logits)}
        if self.best and (self._step or result.best_epoch < len(result.history)):  # else the weights are the best
            tensors["best"] = self.best
        return TrainState(facts, tensors)

    def restore(self, progress: TrainState) -> None:
        """Be where ``progress`` was taken."""
        facts, tensors = progress.facts, progress.tensors
        self.result = progress.result(self.learner.network)
        self._step, self._times, self.earlier = facts["step"], list(facts["batch_times"]), facts["seconds"]
        world = self._device.world
        self._sums = tensors["sums"][world.rank :: world.size].sum(dim=0).to(self._sums.device)
        self._stopping.restore(facts["stopping"])
        self.learner.grad_accum_steps = facts["accumulated"]
        self.learner.restore(tensors)
        self.best = tensors.get("best") or (
            copy.deepcopy(self.learner.eval_network.state_dict()) if facts["history"] else {}
        )
        self._shown.go_on(len(facts["history"]), self._step)

    def _learn(self, number: int, interruption: DeferredSignals, keep: Callable[[TrainState], None]) -> None:
        """The steps of one epoch that are left; nothing is read back from the device on the way."""
        self.learner.network.train()
        order = np.random.default_rng([self._seed, number]).permutation(self._images)
        batches, size = np.array_split(order, self._steps), image_size_at(number, self._recipe)
        while self._step < self._steps:
            start = time.perf_counter()
            loss, right = self.learner.step((number - 1) * self._steps + self._step, batches[self._step], size)
            self._sums += torch.stack([loss.double(), right.double()])
            self._times.append(time.perf_counter() - start)
            self._step += 1
            self._shown.batch()
            if self._step < self._steps and self._device.world.any(interruption.asked is not None):
                keep(self.progress())
                interruption.leave()

    def _validate(self, number: int) -> tuple[float, float, NDArray[np.float32]]:
        if self._validation is None:
            return math.nan, math.nan, np.zeros((0, 0), np.float32)
        logits, labels = (
            _predict(self.learner.eval_network, self._validation, self._device, self._shown.batch),
            self._validation.labels,
        )
        loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
        _require_finite(loss, number, self._recipe)
        return loss, float((logits.argmax(axis=1) == labels).mean()), logits

    def _judge(self, epoch: EpochMetrics, logits: NDArray[np.float32]) -> bool:
        """Write the epoch into the result; whether it is the best so far."""
        result = self.result
        result.history.append(epoch)
        best = self._validation is None or self._stopping.is_best(epoch)
        if best:
            result.best_epoch, result.best_val_accuracy, result.val_logits = epoch.epoch, epoch.val_accuracy, logits
            self.best = copy.deepcopy(self.learner.eval_network.state_dict())
        if self._validation is not None and self._stopping.should_stop(epoch):
            result.stopped_early = epoch.epoch < self._recipe.epochs
        self._shown.epoch(epoch)
        return best


def _build_batches(
    network: nn.Module, train: Subset, validation: Subset | None, config: FitConfig
) -> tuple[nn.Module, BatchSource, BatchSource | None]:
    """What is trained, what it learns from and what it is judged by: of a frozen backbone, the head and features."""
    recipe, device = config.recipe, config.device
    if not isinstance(network, FrozenBackbone):
        batches = ImageBatches(train, device, recipe.augmentation)
        return network, batches, ImageBatches(validation, device) if validation else None
    features = config.features or Features.of(network.backbone, train.union(validation), recipe, config.seed, device)
    return network.head, FeatureBatches(features, train), FeatureBatches(features, validation) if validation else None


def _steps_an_epoch(images: int, batch_size: int, device: Device) -> int:
    """Equal batches, and none that leaves a process a single image, which batch normalisation refuses."""
    return max(1, min(math.ceil(images / batch_size), images // (2 * device.world.size)))


def _evaluation_batches(batches: BatchSource | None, device: Device) -> int:
    """How many batches of evaluation a process has."""
    return 0 if batches is None else max(1, math.ceil(len(batches.labels) / device.world.size / EVALUATION_BATCH))


def _predict(
    network: nn.Module, batches: BatchSource, device: Device, on_batch: Callable[[], object]
) -> NDArray[np.float32]:
    """float32 (N, K), in evaluation mode; several processes share the images."""
    network.to(device.name, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    positions = device.world.share(np.arange(len(batches.labels)))
    starts = range(0, max(1, len(positions)), EVALUATION_BATCH)  # a process without a share runs an empty batch
    pieces = []
    with torch.inference_mode(), device.autocast():
        for start in starts:
            pieces.append(network(batches.eval_batch(positions[start : start + EVALUATION_BATCH])).float())
            on_batch()
    answer: NDArray[np.float32] = device.world.gather_rows(torch.cat(pieces), len(batches.labels)).cpu().numpy()
    return answer


def _require_finite(loss: float, epoch: int, recipe: Hyperparameters) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} in epoch {epoch}; try a --learning-rate smaller than {recipe.learning_rate:.3g}"
        )


def _own_randomness(device: Device) -> AbstractContextManager[None]:
    """Dropout draws from torch's own generator, which gets its state back."""
    return torch.random.fork_rng([torch.cuda.current_device()] if device.name == "cuda" else [])
