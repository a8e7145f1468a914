"""The training loop: it learns, stops by its rule, keeps the best epoch, and does the same again."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from support import COLOURS, colour_pixels
from toolkit.errors import TrainingError
from toolkit.training.loop import Device, Epoch, Fitted, Part, _EarlyStopping, _schedule, fit, predict_logits
from toolkit.training.networks import SimpleCNN
from toolkit.training.recipe import Recipe

CPU = Device("cpu", torch.float32)
RECIPE = Recipe(image_size=16, epochs=4, batch_size=8, augmentation=0, dropout=0, learning_rate=0.05)


def colours(count: int, seed: int = 0) -> Part:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % len(COLOURS)
    pixels = np.stack([colour_pixels(COLOURS[label], 16, generator) for label in labels])
    return Part(pixels, labels.astype(np.int64), np.arange(count))


class MeanColour(nn.Module):
    """A linear layer on the mean colour, which also notes the sizes of the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.batches: list[int] = []

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches.append(len(pictures))
        return self.head(pictures.mean(dim=(2, 3)))


def fresh(network: type[nn.Module] = MeanColour, seed: int = 0, *arguments: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network(*arguments)


def train(network: nn.Module, *, seed: int = 0, device: Device = CPU, **changes: object) -> Fitted:
    recipe = RECIPE.model_copy(update=changes)
    return fit(network, colours(60), colours(30, seed=1), recipe, seed=seed, device=device)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_it_learns_what_can_be_told_apart(optimizer: str) -> None:
    fitted = train(fresh(), optimizer=optimizer, epochs=12, learning_rate=0.1, augmentation=0.1)
    assert fitted.best_val_accuracy == 1.0
    assert fitted.history[-1].train_loss < 0.7 * fitted.history[0].train_loss
    unseen = colours(30, seed=2)
    assert (predict_logits(fitted.network, unseen, CPU).argmax(axis=1) == unseen.own_labels).all()


def test_the_real_network_learns_in_bfloat16_too() -> None:
    fitted = train(fresh(SimpleCNN, 0, 3), device=Device("cpu", torch.bfloat16), learning_rate=3e-3, epochs=6)
    assert fitted.best_val_accuracy > 0.9
    assert fitted.val_logits.dtype == np.float32
    assert all(value.dtype is not torch.bfloat16 for value in fitted.network.state_dict().values())


def test_the_precision_can_be_chosen() -> None:
    assert Device.choose("float32").dtype is torch.float32
    assert Device.choose("bfloat16").dtype is torch.bfloat16
    assert Device.choose("bfloat16").memory_format is torch.channels_last
    assert Device.choose("float32").memory_format is torch.contiguous_format
    product = torch.ones(2, 2)
    with Device("cpu", torch.bfloat16).autocast():
        assert (product @ product).dtype is torch.bfloat16
    with CPU.autocast():
        assert (product @ product).dtype is torch.float32


def test_the_figures_of_an_epoch_are_those_of_the_network() -> None:
    """One batch an epoch, so that loss and accuracy of training are those of the weights before the step."""
    network, training, validation = fresh(), colours(60), colours(30, seed=1)
    before = predict_logits(network, training, CPU)
    fitted = fit(network, training, validation, RECIPE.model_copy(update={"batch_size": 64, "epochs": 1}), seed=0,
                 device=CPU)  # fmt: skip
    (epoch,) = fitted.history
    assert epoch.train_loss == pytest.approx(cross_entropy(before, training.own_labels), rel=1e-5)
    assert epoch.train_accuracy == (before.argmax(axis=1) == training.own_labels).mean()
    after = predict_logits(network, validation, CPU)
    assert epoch.val_loss == pytest.approx(cross_entropy(after, validation.own_labels), rel=1e-5)
    assert epoch.val_accuracy == (after.argmax(axis=1) == validation.own_labels).mean()
    assert np.array_equal(fitted.val_logits, after)
    assert fitted.images_per_s == pytest.approx(60 / fitted.seconds)
    assert 0 < epoch.batch_time_ms <= epoch.batch_time_ms_p95 < epoch.epoch_duration_s * 1e3


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]).mean())


def test_pictures_reach_the_network_normalised_as_imagenets() -> None:
    """A white picture: (1 - mean) / std of each channel, by hand."""
    seen: list[torch.Tensor] = []

    class Eye(nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            seen.append(pictures)
            return pictures.mean(dim=(2, 3))

    white = Part(np.full((3, 8, 8, 3), 255, np.uint8), np.zeros(3, np.int64), np.array([2, 0]))
    logits = predict_logits(Eye(), white, CPU)
    assert seen[0].shape == (2, 3, 8, 8)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert logits == pytest.approx(np.array([expected, expected]), rel=1e-5)


def test_logits_come_in_the_order_of_the_part_however_many_there_are() -> None:
    network, many = fresh(), colours(300)
    chosen = Part(many.pixels, many.labels, np.array([5, 299, 0, 130]))
    everything = predict_logits(network, many, CPU)
    assert everything.shape == (300, 3)
    assert np.allclose(predict_logits(network, chosen, CPU), everything[[5, 299, 0, 130]], atol=1e-6)


# --- the same again -----------------------------------------------------------------------------


def test_a_seeded_training_is_identical_and_another_seed_is_not() -> None:
    """Whatever torch's own generator, which dropout draws from, was used for before, and it goes on as if untouched."""
    changes = {"augmentation": 0.3, "epochs": 2, "learning_rate": 1e-3}
    torch.manual_seed(1)
    first = train(fresh(SimpleCNN, 0, 3, 0.5), **changes)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    second = train(fresh(SimpleCNN, 0, 3, 0.5), **changes)
    assert torch.equal(weights(first.network), weights(second.network))
    assert np.array_equal(first.val_logits, second.val_logits)
    assert [epoch.train_loss for epoch in first.history] == [epoch.train_loss for epoch in second.history]
    other = train(fresh(SimpleCNN, 0, 3, 0.5), seed=1, **changes)
    assert not torch.equal(weights(first.network), weights(other.network))


# --- stopping -----------------------------------------------------------------------------------


def epochs(*figures: tuple[float, float]) -> list[Epoch]:
    blank = Epoch(0, 1.0, 0.0, 0.0, 0.0, 1e-3, 1.0, 1.0, 1.0, 1.0)
    return [
        replace(blank, epoch=number, val_accuracy=accuracy, val_loss=loss)
        for number, (accuracy, loss) in enumerate(figures, 1)
    ]


def test_it_stops_by_the_stated_rule() -> None:
    """Patience 2 and an improvement of at least a tenth, worked out by hand."""
    stopping = _EarlyStopping(Recipe(patience=2, min_delta=0.1))
    story = [
        ((0.50, 1.00), True, False),  # the first is always an improvement
        ((0.55, 0.95), True, False),  # best, but too small an improvement: waited 1
        ((0.62, 1.20), True, False),  # 0.12 above the 0.50 that counted: waited 0
        ((0.60, 0.85), False, False),  # the loss fell by 0.15 below 1.00: waited 0
        ((0.70, 0.80), True, False),  # 0.08 and 0.05: waited 1
        ((0.70, 0.78), True, True),  # as accurate with a lower loss is better, but again too little: waited 2
    ]
    for epoch, (_, best, stop) in zip(epochs(*[figures for figures, _, _ in story]), story, strict=True):
        assert (stopping.is_best(epoch), stopping.exhausted(epoch)) == (best, stop), epoch


@pytest.mark.parametrize("min_delta", [0.0, 1e-3])
def test_a_plateau_is_no_improvement_however_small_one_may_be(min_delta: float) -> None:
    stopping = _EarlyStopping(Recipe(patience=3, min_delta=min_delta))
    assert [stopping.exhausted(epoch) for epoch in epochs(*[(0.9, 0.3)] * 4)] == [False, False, False, True]


def test_patience_ends_a_training_and_the_best_epoch_comes_back() -> None:
    """After the first epoch the weights are turned upside down, and a tiny step size cannot mend that."""
    noted: list[tuple[int, bool]] = []
    best: list[torch.Tensor] = []
    network = fresh()
    with torch.no_grad():
        network.head.weight.copy_(8 * torch.eye(3).flip(0))  # RGB -> blue, green, red: right from the start
        network.head.bias.zero_()

    def on_epoch(epoch: Epoch, trained: nn.Module, is_best: bool) -> None:
        noted.append((epoch.epoch, is_best))
        if epoch.epoch == 1:
            best.append(weights(trained).clone())
            with torch.no_grad():
                trained.head.weight.neg_()

    recipe = RECIPE.model_copy(update={"epochs": 50, "learning_rate": 1e-6, "patience": 3, "optimizer": "sgd"})
    validation = colours(30, seed=1)
    fitted = fit(network, colours(60), validation, recipe, seed=0, device=CPU, on_epoch=on_epoch)
    assert fitted.stopped_early
    assert noted == [(1, True), (2, False), (3, False), (4, False)]
    assert [epoch.epoch for epoch in fitted.history] == [1, 2, 3, 4]
    assert (fitted.best_epoch, fitted.best_val_accuracy) == (1, 1.0)
    assert fitted.history[-1].val_accuracy < 0.5
    assert torch.equal(weights(fitted.network), best[0])
    assert np.array_equal(fitted.val_logits, predict_logits(fitted.network, validation, CPU))
    assert not fitted.network.training


def test_without_validation_all_epochs_are_run_and_the_last_one_counts() -> None:
    network, last = fresh(), []
    recipe = RECIPE.model_copy(update={"patience": 1, "min_delta": 1.0, "epochs": 5})

    def on_epoch(_: Epoch, trained: nn.Module, best: bool) -> None:
        last.append((best, copy.deepcopy(trained.state_dict())))

    fitted = fit(network, colours(60), None, recipe, seed=0, device=CPU, on_epoch=on_epoch)
    assert (len(fitted.history), fitted.best_epoch, fitted.stopped_early) == (5, 5, False)
    assert math.isnan(fitted.best_val_accuracy)
    assert all(math.isnan(epoch.val_loss) and math.isnan(epoch.val_accuracy) for epoch in fitted.history)
    assert fitted.val_logits.shape == (0, 0)
    assert all(best for best, _ in last)
    assert torch.equal(fitted.network.head.weight, last[-1][1]["head.weight"])
    assert not torch.equal(last[0][1]["head.weight"], last[-1][1]["head.weight"])


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_training_with_advice() -> None:
    network = fresh()
    with torch.no_grad():
        network.head.bias.fill_(math.nan)
    message = r"^the loss became nan in epoch 1; try a --learning-rate smaller than 0\.05$"
    with pytest.raises(TrainingError, match=message):
        train(network)


def test_weights_that_break_in_the_last_step_are_not_kept() -> None:
    """The training loss is measured before the step that breaks them; only validation sees it."""

    class Breaks(MeanColour):
        def train(self, mode: bool = True) -> nn.Module:
            if not mode:
                self.head.bias.data.fill_(math.inf)
            return super().train(mode)

    with pytest.raises(TrainingError, match=r"^the loss became nan in epoch 1; try a --learning-rate"):
        train(fresh(Breaks), epochs=1)


def test_one_bad_batch_cannot_throw_the_weights_away() -> None:
    """The gradient is cut to a norm of 5, so that plain SGD moves by at most 5 steps' length."""
    network = fresh()
    with torch.no_grad():
        network.head.weight.mul_(1e6)
    before = weights(network)
    changes = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 64, "epochs": 1}
    moved = weights(train(network, learning_rate=1.0, **changes).network).double() - before.double()
    assert 0 < moved.norm() <= 5.5  # float32 rounds at this size


# --- batches and steps --------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(2, 70), st.integers(2, 20))
def test_no_batch_holds_a_single_picture_and_none_is_left_out(count: int, batch_size: int) -> None:
    network = fresh()
    fit(network, colours(count), None, RECIPE.model_copy(update={"batch_size": batch_size, "epochs": 1}), seed=0,
        device=CPU)  # fmt: skip
    assert sum(network.batches) == count
    assert min(network.batches) >= 2
    assert max(network.batches) <= max(batch_size, 3)
    assert max(network.batches) - min(network.batches) <= 1


def test_each_picture_is_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    seen: list[list[int]] = [[]]

    class Notes(MeanColour):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen[-1] += (pictures[:, 0, 0, 0] * 0.229 + 0.485).mul(255).round().int().tolist()
            return super().forward(pictures)

    pixels = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 8, 8, 3)).copy()
    part = Part(pixels, np.arange(20) % 3, np.arange(20))
    fit(fresh(Notes), part, None, RECIPE.model_copy(update={"epochs": 3}), seed=0, device=CPU,
        on_epoch=lambda *_: seen.append([]))  # fmt: skip
    assert [sorted(epoch) for epoch in seen] == [list(range(20))] * 3 + [[]]
    assert len({tuple(epoch) for epoch in seen}) == 4


def test_the_schedule_by_hand() -> None:
    """20 steps: two to warm up, then a cosine from 1 to a hundredth over 18."""
    factor = _schedule(20)
    assert [factor(step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert factor(11) == pytest.approx((1 + 0.01) / 2)
    assert factor(8) == pytest.approx(0.01 + 0.99 * 0.75)  # a third of the way: (1 + cos 60°) / 2
    assert factor(20) == factor(25) == pytest.approx(0.01)
    assert _schedule(1)(0) == 1.0


def test_the_learning_rate_follows_the_schedule_step_by_step() -> None:
    """60 pictures in 8 batches over 4 epochs are 32 steps, of which 3 warm up."""
    factor = _schedule(32)
    rates = [epoch.learning_rate for epoch in train(fresh(), patience=10).history]
    assert rates == pytest.approx([0.05 * factor(step) for step in (0, 8, 16, 24)])
    assert rates[0] == pytest.approx(0.05 / 3)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_pulls_the_weights_towards_zero(optimizer: str) -> None:
    changes = {"optimizer": optimizer, "epochs": 6, "patience": 10}
    free, pulled = (weights(train(fresh(), weight_decay=decay, **changes).network).norm() for decay in (0.0, 1.0))
    assert pulled < 0.8 * free


def test_momentum_keeps_a_share_of_the_last_step() -> None:
    """Plain SGD without and with momentum part after the second step and not before."""
    changes = {"optimizer": "sgd", "weight_decay": 0.0, "batch_size": 64, "patience": 10}
    one = [weights(train(fresh(), momentum=share, epochs=1, **changes).network) for share in (0.0, 0.9)]
    assert torch.equal(one[0], one[1])
    four = [weights(train(fresh(), momentum=share, epochs=4, **changes).network) for share in (0.0, 0.9)]
    assert (four[1] - one[0]).norm() > (four[0] - one[0]).norm()
