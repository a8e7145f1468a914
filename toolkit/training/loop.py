"""Train one network: the loop, early stopping and the best epoch."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from toolkit.bundle import IMAGENET_MEAN, IMAGENET_STD
from toolkit.errors import TrainingError
from toolkit.training.augment import augment
from toolkit.training.recipe import Recipe

WARM_UP_SHARE = 0.1  # of all steps
EVALUATION_BATCH = 128
LARGEST_GRADIENT = 5.0  # norm above which a step is shortened; one bad batch cannot throw the weights away


@dataclass(frozen=True)
class Device:
    """Where and how exactly the sums are done.

    Parameters
    ----------
    name
        ``cpu`` or ``cuda``.
    dtype
        bfloat16 where the hardware multiplies it natively, float32 otherwise.
    """

    name: str
    dtype: torch.dtype

    @classmethod
    def choose(cls, precision: str = "auto") -> "Device":
        """The GPU when there is one; bfloat16 when ``precision`` is ``auto`` and the hardware has it."""
        name = "cuda" if torch.cuda.is_available() else "cpu"
        native = torch.cuda.is_bf16_supported() if name == "cuda" else torch.cpu._is_amx_tile_supported()
        return cls(
            name, torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and native) else torch.float32
        )

    @property
    def memory_format(self) -> torch.memory_format:
        """channels_last pays together with bfloat16, and only then."""
        return torch.channels_last if self.dtype is torch.bfloat16 else torch.contiguous_format

    def autocast(self) -> torch.autocast:
        """A context in which matrix products and convolutions use the dtype."""
        return torch.autocast(self.name, self.dtype, enabled=self.dtype is not torch.float32)


@dataclass(frozen=True, eq=False)
class Part:
    """Some pictures of a data set, by index, without a copy.

    Parameters
    ----------
    pixels
        uint8 (M, size, size, 3), the whole data set.
    labels
        int64 (M,).
    indices
        int64 (N,), which of them belong to this part.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def own_labels(self) -> NDArray[np.int64]:
        """int64 (N,), the labels of this part."""
        return self.labels[self.indices]

    def batch(self, positions: NDArray[np.int64], device: Device) -> tuple[Tensor, Tensor]:
        """float32 (B, 3, H, W) in [0, 1], and int64 (B,), on the device."""
        chosen = self.indices[positions]
        pictures = torch.from_numpy(self.pixels[chosen]).to(device.name, non_blocking=True)
        labels = torch.from_numpy(self.labels[chosen]).to(device.name, non_blocking=True)
        return pictures.permute(0, 3, 1, 2).float().div_(255), labels


@dataclass(frozen=True)
class Epoch:
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
class Fitted:
    """A trained network with the weights of its best epoch.

    Parameters
    ----------
    network
        In evaluation mode.
    history
        One ``Epoch`` each, in order.
    best_epoch
        The epoch with the highest validation accuracy, of equals the one with the lowest loss; the
        last one when there was no validation part.
    val_logits
        float32 (N, K) of the validation part at the best epoch; (0, K) without one.
    stopped_early
        Whether patience ran out.
    """

    network: nn.Module
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_val_accuracy: float = math.nan
    val_logits: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    stopped_early: bool = False
    seconds: float = 0.0
    images_per_s: float = 0.0


def fit(
    network: nn.Module,
    train: Part,
    validation: Part | None,
    recipe: Recipe,
    *,
    seed: int,
    device: Device,
    mirrored: bool = True,
    on_epoch: Callable[[Epoch, nn.Module, bool], None] = lambda *_: None,
    bar: str | None = None,
) -> Fitted:
    """Train a network and keep its best epoch.

    Training stops early after ``recipe.patience`` epochs in which neither the validation accuracy
    rose nor the validation loss fell by at least ``recipe.min_delta``. The learning rate follows a
    warm-up and a cosine over ``recipe.epochs``; stopping early ends that schedule before its end.

    Parameters
    ----------
    network
        Takes float32 (N, 3, H, W), normalised; gives logits (N, K). It is changed in place.
    train, validation
        What to learn from and what to judge by; without validation all epochs are run.
    recipe
        The hyperparameters.
    seed
        Of the order of pictures, of augmentation and of dropout.
    device
        Where and in which precision.
    mirrored
        Whether pictures may be flipped from left to right.
    on_epoch
        Called after each epoch with its figures, the network, and whether it is the best so far.
    bar
        The label of a progress bar, or None for none.

    Raises
    ------
    TrainingError
        The loss became infinite or not a number.
    """
    began = time.perf_counter()
    trainer = _Trainer(network, train, recipe, seed, device, mirrored)
    result, stopping = Fitted(network), _EarlyStopping(recipe)
    best_state = copy.deepcopy(network.state_dict())
    progress = tqdm(total=recipe.epochs * trainer.steps, desc=bar, unit="batch", leave=False, disable=bar is None)
    with _seeded(seed, device), progress:
        for number in range(1, recipe.epochs + 1):
            epoch, logits = _one_epoch(number, trainer, validation, progress)
            result.history.append(epoch)
            best = validation is None or stopping.is_best(epoch)
            if best:
                result.best_epoch, result.best_val_accuracy, result.val_logits = number, epoch.val_accuracy, logits
                best_state = copy.deepcopy(network.state_dict())
            on_epoch(epoch, network, best)
            progress.set_postfix_str(f"epoch {number}/{recipe.epochs}, val accuracy {epoch.val_accuracy:.3f}")
            if validation is not None and stopping.exhausted(epoch):
                result.stopped_early = number < recipe.epochs
                break
    network.load_state_dict(best_state)
    network.eval()
    result.seconds = time.perf_counter() - began
    result.images_per_s = len(train) * len(result.history) / result.seconds
    return result


def predict_logits(network: nn.Module, part: Part, device: Device) -> NDArray[np.float32]:
    """float32 (N, K), the network's logits for a part, in evaluation mode."""
    network.eval()
    pieces = []
    with torch.inference_mode(), device.autocast():
        for start in range(0, len(part), EVALUATION_BATCH):
            positions = np.arange(start, min(start + EVALUATION_BATCH, len(part)))
            pictures, _ = part.batch(positions, device)
            pieces.append(network(_normalise(pictures, device)).float().cpu())
    answer: NDArray[np.float32] = torch.cat(pieces).numpy()
    return answer


def _one_epoch(
    number: int, trainer: "_Trainer", validation: Part | None, progress: "tqdm[Any]"
) -> tuple[Epoch, NDArray[np.float32]]:
    """Train and validate once; the figures and the validation logits (N, K)."""
    start, rate = time.perf_counter(), trainer.learning_rate
    loss, accuracy, times = trainer.epoch(progress)
    _require_finite(loss, number, trainer.recipe)
    val_loss, val_accuracy, logits = _validate(trainer.network, validation, trainer.device)
    if validation is not None:
        _require_finite(val_loss, number, trainer.recipe)
    epoch = Epoch(
        epoch=number,
        train_loss=loss,
        train_accuracy=accuracy,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        learning_rate=rate,
        batch_time_ms=float(np.mean(times)) * 1e3,
        batch_time_ms_p95=float(np.percentile(times, 95)) * 1e3,
        epoch_duration_s=time.perf_counter() - start,
        images_per_s=len(trainer.part) / sum(times),
    )
    return epoch, logits


def _require_finite(loss: float, epoch: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} in epoch {epoch}; try a --learning-rate smaller than {recipe.learning_rate:.3g}"
        )


@contextmanager
def _seeded(seed: int, device: Device) -> Iterator[None]:
    """Dropout draws from torch's own generator, which gets its state back."""
    with torch.random.fork_rng([torch.cuda.current_device()] if device.name == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Trainer:
    """Everything that changes while a network learns."""

    def __init__(
        self, network: nn.Module, part: Part, recipe: Recipe, seed: int, device: Device, mirrored: bool
    ) -> None:
        self.network, self.part, self.recipe, self.device, self.mirrored = network, part, recipe, device, mirrored
        network.to(device.name, memory_format=device.memory_format)  # type: ignore[call-overload]
        # Equal batches, and never one of a single picture, which batch normalisation refuses.
        self.steps = max(1, min(math.ceil(len(part) / recipe.batch_size), len(part) // 2))
        self._trained = [weight for weight in network.parameters() if weight.requires_grad]
        self._optimizer = _optimizer(self._trained, recipe)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, _schedule(self.steps * recipe.epochs))
        self._order = np.random.default_rng(seed)
        self._noise = torch.Generator(device.name).manual_seed(seed)

    @property
    def learning_rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def epoch(self, progress: "tqdm[Any]") -> tuple[float, float, list[float]]:
        """One pass: mean loss, accuracy, seconds of each batch. Nothing is read back from the device before its end."""
        self.network.train()
        loss_sum = torch.zeros((), device=self.device.name)
        right = torch.zeros((), device=self.device.name, dtype=torch.int64)
        times = []
        for positions in np.array_split(self._order.permutation(len(self.part)), self.steps):
            start = time.perf_counter()
            loss, hits = self._step(positions)
            loss_sum += loss * len(positions)
            right += hits
            times.append(time.perf_counter() - start)
            progress.update()
        return loss_sum.item() / len(self.part), right.item() / len(self.part), times

    def _step(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Learn from one batch; its mean loss and how many were right."""
        pictures, labels = self.part.batch(positions, self.device)
        pictures = augment(pictures, self.recipe.augmentation, mirrored=self.mirrored, generator=self._noise)
        with self.device.autocast():
            logits = self.network(_normalise(pictures, self.device))
            loss = F.cross_entropy(logits, labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._trained, LARGEST_GRADIENT)
        self._optimizer.step()
        self._schedule.step()
        return loss.detach().float(), (logits.detach().argmax(dim=1) == labels).sum()


def _validate(network: nn.Module, validation: Part | None, device: Device) -> tuple[float, float, NDArray[np.float32]]:
    if validation is None:
        return math.nan, math.nan, np.zeros((0, 0), np.float32)
    logits = predict_logits(network, validation, device)
    labels = validation.own_labels
    loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    return loss, float((logits.argmax(axis=1) == labels).mean()), logits


def _normalise(pictures: Tensor, device: Device) -> Tensor:  # (N, 3, H, W) in [0, 1]
    mean = torch.tensor(IMAGENET_MEAN, device=pictures.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pictures.device).view(1, 3, 1, 1)
    return ((pictures - mean) / std).contiguous(memory_format=device.memory_format)


def _optimizer(trained: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            trained, recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=True
        )
    return torch.optim.AdamW(trained, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


def _schedule(steps: int) -> Callable[[int], float]:
    """Linear warm-up, then a cosine down to a hundredth."""
    warm_up = max(1, int(steps * WARM_UP_SHARE))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        share = min(1.0, (step - warm_up) / max(1, steps - warm_up))
        return 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2

    return factor


class _EarlyStopping:
    """Remembers the best epoch and counts those without improvement."""

    def __init__(self, recipe: Recipe) -> None:
        self._patience, self._min_delta = recipe.patience, recipe.min_delta
        self._best = (-math.inf, -math.inf)  # accuracy, then minus loss
        self._accuracy, self._loss, self._waited = -math.inf, math.inf, 0

    def is_best(self, epoch: Epoch) -> bool:
        """Whether no earlier epoch was as good."""
        score = (epoch.val_accuracy, -epoch.val_loss)
        if score <= self._best:
            return False
        self._best = score
        return True

    def exhausted(self, epoch: Epoch) -> bool:
        """Count this epoch, and tell whether patience has run out."""
        rose = self._accuracy < epoch.val_accuracy >= self._accuracy + self._min_delta
        fell = self._loss > epoch.val_loss <= self._loss - self._min_delta
        self._waited = 0 if rose or fell else self._waited + 1
        if rose:
            self._accuracy = epoch.val_accuracy
        if fell:
            self._loss = epoch.val_loss
        return self._waited >= self._patience
