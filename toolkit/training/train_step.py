"""One optimizer step: loss, gradient accumulation, learning rate, average of the weights."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel

from toolkit.cli.terminal import echo
from toolkit.errors import TrainingError, first_line
from toolkit.training.batches import BatchSource
from toolkit.training.device import Device
from toolkit.training.gpu import is_out_of_memory, to_device
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.mixing import mix, soft_targets

WARM_UP_SHARE = 0.1  # of all steps
FINAL_LR_SHARE = 0.01  # of the largest learning rate, at the end of the cosine
FLOAT32_MAX_SIZE = 16  # px: here ResNet-18 convolves maps of one pixel, and oneDNN leaves parts of the bfloat16 weight
# gradient uninitialised (torch 2.14.1)
MAX_GRAD_NORM = 5.0  # norm above which a step is shortened; one bad batch cannot throw the weights away


class TrainStep:
    """A network and its optimizer, trained on one batch at a time.

    The randomness of a step depends on the seed and the step's number alone, so a training can be
    resumed at any step without a record of earlier draws.

    The network maps the inputs of ``batches`` to logits (B, K) and is changed in place. The learning rate
    warms up over a tenth of the ``steps`` of the whole training and then follows a cosine down to a hundredth.
    """

    def __init__(
        self, network: nn.Module, batches: BatchSource, hparams: Hyperparameters, steps: int, seed: int, device: Device
    ) -> None:
        self.network, self.grad_accum_steps = network, 1
        self._batches, self._hparams, self._steps, self._seed, self._device = batches, hparams, steps, seed, device
        network.to(device.name, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._trained = [weight for weight in network.parameters() if weight.requires_grad]
        self._optimizer = _optimizer(self._trained, hparams)
        self._average = exponential_moving_average(network, hparams.ema_decay) if hparams.ema_decay else None
        self._weight = _class_weights(batches, hparams, device)
        self._noise = device.generator()
        self._uncompiled = _distributed(network, device)
        self._forward = _compiled(self._uncompiled) if device.compiled else self._uncompiled

    @property
    def eval_network(self) -> nn.Module:
        """The network to validate and keep: the average of the weights if there is one."""
        return self.network if self._average is None else self._average.module

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self._hparams.learning_rate * lr_multiplier(step, self._steps)

    def step(self, number: int, positions: NDArray[np.int64], size: int) -> tuple[Tensor, Tensor]:
        """Train on a batch.

        When memory runs out, this and all later batches are halved and their gradients accumulated.
        A network that cannot be compiled runs uncompiled.

        Parameters
        ----------
        number
            The step, from 0.
        positions
            int64 (B,), the batch of all processes together.
        size
            Side of the images in pixels.

        Returns
        -------
        The summed loss and the number of right answers, of this process's share of the batch.
        """
        while True:
            try:
                return self._attempt(number, positions, size)
            except (RuntimeError, MemoryError) as error:
                if self._forward is not self._uncompiled and isinstance(error, torch._dynamo.exc.TorchDynamoException):
                    self._forward = _without_compile(self._uncompiled, error)
                    continue
                if not is_out_of_memory(error):
                    raise
            self._halve(len(positions))

    def state(self) -> dict[str, Any]:
        """Everything that ``restore`` needs to continue bit for bit; tensors are not copied."""
        state = {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}
        return state | ({"average": self._average.state_dict()} if self._average else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set what ``state`` returned."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average:
            self._average.load_state_dict(state["average"])

    def _attempt(self, number: int, positions: NDArray[np.int64], size: int) -> tuple[Tensor, Tensor]:
        world = self._device.world
        self._seed_step(number)
        self._optimizer.zero_grad(set_to_none=True)
        loss_sum = torch.zeros((), device=self._device.name)
        right = torch.zeros((), device=self._device.name, dtype=torch.int64)
        for piece in np.array_split(world.share(positions), self._pieces(len(positions))):
            loss, logits, labels = self._loss(piece, size)
            # The mean over the batch; DistributedDataParallel divides by the number of processes.
            (loss * (world.size / len(positions))).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
            right += (logits.detach().argmax(dim=1) == labels).sum()
        nn.utils.clip_grad_norm_(self._trained, MAX_GRAD_NORM)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        self._optimizer.step()
        if self._average:
            self._average.update_parameters(self.network)
        return loss_sum, right

    def _loss(self, positions: NDArray[np.int64], size: int) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss, logits (B, K) and labels (B,) of some images."""
        hparams = self._hparams
        inputs = self._batches.train(positions, size, self._noise)
        labels = to_device(self._batches.labels[positions], self._device.name)
        targets = soft_targets(labels, self._batches.classes, hparams.label_smoothing)  # (B, K)
        if hparams.mixup or hparams.cutmix:
            inputs, targets = mix(inputs, targets, mixup=hparams.mixup, cutmix=hparams.cutmix, generator=self._noise)
        exact = hparams.model_type == "resnet18" and size <= FLOAT32_MAX_SIZE
        with nullcontext() if exact else self._device.autocast():
            logits = self._forward(inputs)
        return F.cross_entropy(logits.float(), targets, self._weight, reduction="sum"), logits, labels

    def _seed_step(self, number: int) -> None:
        """Seed augmentation and mixing, and torch's own generator, from which dropout draws."""
        drawn = np.random.SeedSequence([self._seed, number, self._device.world.rank]).generate_state(2, np.uint64) >> 1
        self._noise.manual_seed(int(drawn[0]))
        self._device.seed(int(drawn[1]))

    def _pieces(self, images: int) -> int:
        """The number of pieces of a batch; each has the two images at least that batch statistics need."""
        return max(1, min(self.grad_accum_steps, images // 2))

    def _halve(self, images: int) -> None:
        """Split each batch into twice as many pieces."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._device.name == "cuda":
            torch.cuda.empty_cache()
        if self._device.world.size > 1 or images // 2 <= self.grad_accum_steps:
            raise TrainingError(
                f"a batch of {images} images does not fit into memory; lower --batch-size or --image-size"
            )
        self.grad_accum_steps *= 2
        echo(f"out of memory: each batch is split into {self._pieces(images)} and its gradients are added up")


def exponential_moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """The running average of a network's weights and batch statistics; its counters are copied.

    It begins with the weights after the first step. The decay grows from 2 / 11 to ``decay`` over the
    steps after it, so that the starting weights soon lose their influence.

    References
    ----------
    Polyak, Juditsky: Acceleration of Stochastic Approximation by Averaging, SIAM 1992.

    Examples
    --------
    >>> network = nn.Linear(1, 1)
    >>> average = exponential_moving_average(network, decay=0.9)
    >>> for value in (0.0, 1.0):  # the second step with decay 2 / 11
    ...     _ = nn.init.constant_(network.weight, value)
    ...     average.update_parameters(network)
    >>> round(average.module.weight.item(), 3)
    0.818
    """

    def update(averages: PARAM_LIST, values: PARAM_LIST, steps: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + int(steps)) / (10 + int(steps))))
        else:
            torch._foreach_copy_(averages, values)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True).requires_grad_(False)


def lr_multiplier(step: int, steps: int) -> float:
    """The share of the largest learning rate at a step: a linear warm-up, then a cosine down to a hundredth.

    Examples
    --------
    >>> [lr_multiplier(step, 20) for step in (0, 1, 2, 20)]
    [0.5, 1.0, 1.0, 0.01]
    """
    warm_up = max(1, int(steps * WARM_UP_SHARE))
    if step < warm_up:
        return (step + 1) / warm_up
    share = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * (1 + math.cos(math.pi * share)) / 2


def _optimizer(trained: list[nn.Parameter], hparams: Hyperparameters) -> torch.optim.Optimizer:
    if hparams.optimizer == "sgd":
        return torch.optim.SGD(
            trained, hparams.learning_rate, hparams.momentum, weight_decay=hparams.weight_decay, fused=True
        )
    return torch.optim.AdamW(trained, hparams.learning_rate, weight_decay=hparams.weight_decay, fused=True)


def _class_weights(batches: BatchSource, hparams: Hyperparameters, device: Device) -> Tensor | None:
    """Weights of the classes, float32 (K,): all classes weigh the same in total, and an image 1 on average."""
    if hparams.class_weights == "none":
        return None
    counts = np.bincount(batches.labels, minlength=batches.classes)
    weights = len(batches.labels) / (batches.classes * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32, device=device.name)


def _distributed(network: nn.Module, device: Device) -> Callable[[Tensor], Tensor]:
    """The network's forward pass, with its gradients averaged over the processes."""
    if device.world.size == 1:
        return network
    local = [torch.cuda.current_device()] if device.name == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=local)


def _compiled(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The forward pass, compiled at its first run and its gradients at theirs; either can still fail."""
    try:
        return torch.compile(forward)
    except (OSError, RuntimeError) as error:  # no folder for compiled code can be made, or this Python is too young
        return _without_compile(forward, error)


def _without_compile(forward: Callable[[Tensor], Tensor], error: Exception) -> Callable[[Tensor], Tensor]:
    echo(f"torch.compile failed ({first_line(error)}); training goes on without it")
    return forward
