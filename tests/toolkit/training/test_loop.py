"""The training loop: it learns, keeps the best epoch, is reproducible, and resumes from any step."""

import copy
import math
import os
import signal
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from support.tiny_networks import CPU, MeanColour, colours, fresh, together, weights
from toolkit.errors import TrainingError
from toolkit.training.checkpointing.checkpoint import Checkpoint, open_checkpoint
from toolkit.training.data.dataset import Subset
from toolkit.training.device import Device, World
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.loop import (
    FitCallbacks,
    FitConfig,
    fit,
    image_size_at,
    predict_logits,
)
from toolkit.training.networks import SimpleCNN, build_network
from toolkit.training.train_step import lr_multiplier

HPARAMS = Hyperparameters(image_size=16, epochs=4, batch_size=8, augmentation=0, dropout=0, learning_rate=0.05)
MEASURED = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")  # and not timed


def train(network, *, seed=0, device=CPU, **changes):
    hparams = HPARAMS.model_copy(update=changes)
    return fit(network, colours(60), colours(30, seed=1), FitConfig(hparams, seed, device))


def measured(fitted):
    return [tuple(asdict(epoch)[name] for name in MEASURED) for epoch in fitted.history]


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_it_learns_separable_classes(optimizer):
    fitted = train(fresh(), optimizer=optimizer, epochs=12, learning_rate=0.1, augmentation=0.1)
    assert fitted.best_val_accuracy == 1.0
    assert fitted.history[-1].train_loss < 0.7 * fitted.history[0].train_loss
    unseen = colours(30, seed=2)
    assert (predict_logits(fitted.network, unseen, CPU).argmax(axis=1) == unseen.labels).all()


def digits(*indices):
    """Handwritten digits of 16 pixels, grey."""
    source = load_digits()
    pixels = (source.images * 255 / 16).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    return Subset(pixels[..., None].repeat(3, axis=3), source.target.astype(np.int64), np.arange(*indices))


def test_bfloat16_learns_as_well_as_float32():
    """Ten kinds of digits; 15 of 300 are two standard deviations of the difference between two accuracies of 0.95."""
    hparams = HPARAMS.model_copy(update={"epochs": 5, "batch_size": 32, "learning_rate": 3e-3, "patience": 10})
    training, validation, half = digits(400), digits(400, 700), Device("cpu", torch.bfloat16)
    exact, coarse = (
        fit(fresh(SimpleCNN, 0, 10), training, validation, FitConfig(hparams, 0, device)) for device in (CPU, half)
    )
    assert exact.best_val_accuracy > 0.9
    assert abs(coarse.best_val_accuracy - exact.best_val_accuracy) < 0.05
    assert [epoch.train_loss for epoch in coarse.history] == pytest.approx(
        [epoch.train_loss for epoch in exact.history], rel=0.2, abs=0.03
    )
    assert coarse.val_logits.dtype == np.float32
    assert all(value.dtype is not torch.bfloat16 for value in coarse.network.state_dict().values())
    logits, rounded = (predict_logits(exact.network, validation, device) for device in (CPU, half))
    assert np.abs(rounded - logits).max() < 0.05 * np.abs(logits).max()  # bfloat16 has 8 bits: 0.4 % a product
    assert (rounded.argmax(axis=1) == logits.argmax(axis=1)).mean() > 0.98


def test_epoch_metrics_are_those_of_the_network():
    """One batch an epoch, so that loss and accuracy of training are those of the weights before the step."""
    network, training, validation = fresh(), colours(60), colours(30, seed=1)
    before = predict_logits(network, training, CPU)
    hparams = HPARAMS.model_copy(update={"batch_size": 64, "epochs": 1})
    fitted = fit(network, training, validation, FitConfig(hparams, 0, CPU))
    (epoch,) = fitted.history
    assert epoch.train_loss == pytest.approx(cross_entropy(before, training.labels), rel=1e-5)
    assert epoch.train_accuracy == (before.argmax(axis=1) == training.labels).mean()
    after = predict_logits(network, validation, CPU)
    assert epoch.val_loss == pytest.approx(cross_entropy(after, validation.labels), rel=1e-5)
    assert epoch.val_accuracy == (after.argmax(axis=1) == validation.labels).mean()
    assert np.array_equal(fitted.val_logits, after)
    assert fitted.images_per_s == pytest.approx(60 / fitted.seconds)
    assert 0 < epoch.batch_time_ms <= epoch.batch_time_ms_p95 < epoch.epoch_duration_s * 1e3


def cross_entropy(logits, labels):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]).mean())


def test_the_learning_rate_follows_the_schedule_over_all_epochs():
    """60 images in 8 batches over 4 epochs are 32 steps, of which 3 warm up."""
    rates = [epoch.learning_rate for epoch in train(fresh(), patience=10).history]
    assert rates == pytest.approx([0.05 * lr_multiplier(step, 32) for step in (0, 8, 16, 24)])
    assert rates[0] == pytest.approx(0.05 / 3)


def test_predict_logits_keeps_the_order_of_the_subset():
    network, many = fresh(), colours(300)
    chosen = Subset(many.pixels, many.labels, np.array([5, 299, 0, 130]))
    everything = predict_logits(network, many, CPU)
    assert everything.shape == (300, 3)
    assert np.allclose(predict_logits(network, chosen, CPU), everything[[5, 299, 0, 130]], atol=1e-6)


# --- the same again -----------------------------------------------------------------------------


def test_a_seeded_training_is_identical_and_another_seed_is_not():
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
    assert measured(first) == measured(second)
    other = train(fresh(SimpleCNN, 0, 3, 0.5), seed=1, **changes)
    assert not torch.equal(weights(first.network), weights(other.network))


# --- the best epoch -----------------------------------------------------------------------------


def right_network():
    """Right from the start."""
    network = fresh()
    with torch.no_grad():
        network.head.weight.copy_(8 * torch.eye(3).flip(0))  # RGB -> blue, green, red
        network.head.bias.zero_()
    return network


def spoil(epoch, trained, _):
    """Turn the weights upside down after the first epoch; a tiny step size cannot mend that."""
    if epoch.epoch == 1:
        with torch.no_grad():
            trained.head.weight.neg_()


SPOILT = HPARAMS.model_copy(update={"epochs": 50, "learning_rate": 1e-6, "patience": 3, "optimizer": "sgd"})


def test_early_stopping_restores_the_best_epoch():
    noted = []
    best = []

    def on_epoch(epoch, trained, is_best):
        noted.append((epoch.epoch, is_best))
        best.append(weights(trained))
        spoil(epoch, trained, is_best)

    validation = colours(30, seed=1)
    fitted = fit(right_network(), colours(60), validation, FitConfig(SPOILT, 0, CPU), FitCallbacks(on_epoch))
    assert fitted.stopped_early
    assert noted == [(1, True), (2, False), (3, False), (4, False)]
    assert [epoch.epoch for epoch in fitted.history] == [1, 2, 3, 4]
    assert (fitted.best_epoch, fitted.best_val_accuracy) == (1, 1.0)
    assert fitted.history[-1].val_accuracy < 0.5
    assert torch.equal(weights(fitted.network), best[0])
    assert np.array_equal(fitted.val_logits, predict_logits(fitted.network, validation, CPU))
    assert not fitted.network.training


def test_without_validation_the_last_epoch_counts():
    network, last = fresh(), []
    hparams = HPARAMS.model_copy(update={"patience": 1, "min_delta": 1.0, "epochs": 5})

    def on_epoch(_, trained, best):
        last.append((best, copy.deepcopy(trained.state_dict())))

    fitted = fit(network, colours(60), None, FitConfig(hparams, 0, CPU), FitCallbacks(on_epoch))
    assert (len(fitted.history), fitted.best_epoch, fitted.stopped_early) == (5, 5, False)
    assert math.isnan(fitted.best_val_accuracy)
    assert all(math.isnan(epoch.val_loss) and math.isnan(epoch.val_accuracy) for epoch in fitted.history)
    assert fitted.val_logits.shape == (0, 0)
    assert all(best for best, _ in last)
    assert torch.equal(fitted.network.head.weight, last[-1][1]["head.weight"])
    assert not torch.equal(last[0][1]["head.weight"], last[-1][1]["head.weight"])


def test_with_ema_the_average_is_validated_and_kept():
    """Its decay of at most 0.5 leaves it behind the network by about a step."""
    network, seen = fresh(), []
    validation = colours(30, seed=1)
    hparams = HPARAMS.model_copy(update={"ema_decay": 0.5, "epochs": 2})

    def on_epoch(_, judged, best):
        seen.append((weights(network), weights(judged), predict_logits(judged, validation, CPU)))

    fitted = fit(network, colours(60), validation, FitConfig(hparams, 0, CPU), FitCallbacks(on_epoch))
    raw, averaged, logits = seen[-1]
    assert fitted.best_epoch == 2
    assert torch.equal(weights(fitted.network), averaged)
    assert np.array_equal(fitted.val_logits, logits)
    assert not torch.equal(raw, averaged)


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_nan_loss_ends_training_with_advice():
    network = fresh()
    with torch.no_grad():
        network.head.bias.fill_(math.nan)
    message = r"^the loss became nan in epoch 1; try a --learning-rate smaller than 0\.05$"
    with pytest.raises(TrainingError, match=message):
        train(network)


def test_weights_that_break_in_the_last_step_are_not_kept():
    """The training loss is measured before the step that breaks them; only validation sees it."""

    class Breaks(MeanColour):
        def train(self, mode=True):
            if not mode:
                self.head.bias.data.fill_(math.inf)
            return super().train(mode)

    with pytest.raises(TrainingError, match=r"^the loss became nan in epoch 1; try a --learning-rate"):
        train(fresh(Breaks), epochs=1)


# --- batches ------------------------------------------------------------------------------------

SEVENTY = colours(70)


@settings(max_examples=40)
@given(st.integers(2, 70), st.integers(2, 20))
def test_no_batch_holds_a_single_image_and_none_is_left_out(count, batch_size):
    network, some = fresh(), Subset(SEVENTY.pixels, SEVENTY.labels, np.arange(count))
    fit(network, some, None, FitConfig(HPARAMS.model_copy(update={"batch_size": batch_size, "epochs": 1}), 0, CPU))
    assert sum(network.batches) == count
    assert min(network.batches) >= 2
    assert max(network.batches) <= max(batch_size, 3)
    assert max(network.batches) - min(network.batches) <= 1


def test_each_image_is_seen_once_an_epoch_in_an_order_of_its_own():
    seen = [[]]

    class Notes(MeanColour):
        def forward(self, images):
            if self.training:
                seen[-1] += (images[:, 0, 0, 0] * 0.229 + 0.485).mul(255).round().int().tolist()
            return super().forward(images)

    pixels = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 8, 8, 3)).copy()
    part = Subset(pixels, np.arange(20) % 3, np.arange(20))
    hparams = HPARAMS.model_copy(update={"epochs": 3, "image_size": 8})
    fit(fresh(Notes), part, None, FitConfig(hparams, 0, CPU), FitCallbacks(lambda *_: seen.append([])))
    assert [sorted(epoch) for epoch in seen] == [list(range(20))] * 3 + [[]]
    assert len({tuple(epoch) for epoch in seen}) == 4


# --- images that grow -------------------------------------------------------------------------


@given(st.integers(16, 1024), st.integers(1, 60), st.floats(0.25, 1))
def test_images_never_shrink_and_end_at_full_size(side, epochs, progressive):
    hparams = Hyperparameters(image_size=side, epochs=epochs, progressive_resize=progressive)
    sizes = [image_size_at(epoch, hparams) for epoch in range(1, epochs + 1)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == side
    assert all(size == side or size % 16 == 0 for size in sizes)
    assert all(size == side or size >= 32 for size in sizes)
    assert sizes.count(side) >= epochs / 3
    if epochs > 1 and side >= 64:
        assert abs(sizes[0] - max(32, progressive * side)) <= 8


def test_training_images_grow_and_validation_images_do_not():
    """Half of 64 pixels, then 32 x (1 + 1 / 2) = 48, then all."""
    seen = []

    class Notes(MeanColour):
        def forward(self, images):
            seen.append((self.training, images.shape[-1]))
            return super().forward(images)

    hparams = HPARAMS.model_copy(update={"image_size": 64, "epochs": 3, "progressive_resize": 0.5, "batch_size": 12})
    fit(fresh(Notes), colours(12, size=64), colours(6, size=64), FitConfig(hparams, 0, CPU))
    assert seen == [(True, 32), (False, 64), (True, 48), (False, 64), (True, 64), (False, 64)]


# --- resuming -----------------------------------------------------------------------------------

EVERYTHING = {"ema_decay": 0.9, "mixup": 0.2, "cutmix": 1.0, "class_weights": "balanced", "label_smoothing": 0.1,
              "progressive_resize": 0.5, "augmentation": 0.3, "learning_rate": 1e-3, "image_size": 48}  # fmt: skip
KINDS = {
    "tiny": (fresh, {"optimizer": "sgd"}),
    "simple_cnn": (lambda: fresh(SimpleCNN, 0, 3, 0.3), EVERYTHING),
    "resnet18_backbone": (
        lambda: fresh(build_network, 0, "resnet18_backbone", 3, 0.3, None),
        {"model_type": "resnet18_backbone", "augmentation": 0.3, "feature_views": 2, "image_size": 32},
    ),
}


class Training:
    """A small training of some kind, which can run as a whole, be stopped, and be resumed."""

    def __init__(self, kind, folder, device=CPU):
        self.network, changes = KINDS[kind]
        self.hparams = HPARAMS.model_copy(update={"patience": 10, **changes})
        size = self.hparams.image_size
        many = colours(40, size=size)
        uneven = np.flatnonzero((many.labels != 1) | (many.indices < 10))  # 14, 3 and 13 of the colours: 4 batches
        self.parts = Subset(many.pixels, many.labels, uneven), colours(15, seed=1, size=size)
        self.folder, self.device = folder, device

    def run(self, network=None, state=None, **how):
        return fit(
            network or self.network(),
            *self.parts,
            FitConfig(self.hparams, 3, self.device),
            FitCallbacks(**how),
            state,
        )

    def save(self, state):
        """Save the state to a file named after its epoch and step."""
        name = f"{len(state.values['history'])}-{state.values['step']}"
        Checkpoint(self.folder, name, {}, {"final": state}).save()

    def saved(self, name):
        return open_checkpoint(name, self.folder).phases["final"]

    def stopped(self, step, *signals):
        """A network that sends this process signals in the middle of a step, counted from 1."""
        network, seen = self.network(), []

        def count(module, _):
            if module.training:
                seen.append(module)
                for number in signals if len(seen) == step else ():
                    os.kill(os.getpid(), number)

        network.head.register_forward_pre_hook(count)
        return network


def assert_same(one, other):
    """To the last bit."""
    assert measured(one) == measured(other)
    assert torch.equal(weights(one.network), weights(other.network))
    assert np.array_equal(one.val_logits, other.val_logits)
    assert (one.best_epoch, one.best_val_accuracy, one.stopped_early) == (
        other.best_epoch, other.best_val_accuracy, other.stopped_early,
    )  # fmt: skip


def test_on_batch_counts_all_batches_also_when_resumed(tmp_path):
    training = Training("tiny", tmp_path)
    counts = []
    training.run(on_checkpoint=training.save, on_batch=lambda *numbers: counts.append(numbers))
    each = 4 + 1  # batches of training and of validation
    assert counts == [(number, 4 * each) for number in range(1, 4 * each + 1)]
    counts.clear()
    training.run(state=training.saved("2-0"), on_batch=lambda *numbers: counts.append(numbers))
    assert counts == [(number, 4 * each) for number in range(2 * each + 1, 4 * each + 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_from_any_epoch_gives_the_same_result(kind, tmp_path):
    training = Training(kind, tmp_path)
    whole = training.run(on_checkpoint=training.save)
    assert len(whole.history) == 4
    for epoch in (1, 2, 3):
        assert_same(training.run(state=training.saved(f"{epoch}-0")), whole)
    again = training.run(training.stopped(1, signal.SIGINT), state=training.saved("4-0"))  # which makes no step
    assert_same(again, whole)
    assert again.seconds >= whole.history[-1].epoch_duration_s


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_finishes_the_step_and_can_be_resumed(kind, tmp_path):
    """Four steps an epoch; the last step of one is followed by its validation."""
    training = Training(kind, tmp_path)
    whole = training.run()
    for step in (1, 6, 8, 16):
        with pytest.raises(KeyboardInterrupt):
            training.run(training.stopped(step, signal.SIGINT), on_checkpoint=training.save)
        last = open_checkpoint("last", tmp_path)
        assert last.run_id == "{}-{}".format(*divmod(step, 4))
        assert_same(training.run(state=last.phases["final"]), whole)


def test_checkpoint_share_limits_checkpoints(tmp_path):
    training, kept = Training("tiny", tmp_path), []

    def keep(state):
        kept.append(len(state.values["history"]))

    training.run(on_checkpoint=keep)
    assert kept == [1, 2, 3, 4]
    kept.clear()
    training.run(on_checkpoint=keep, checkpoint_share=0.0)
    assert kept == [1, 4]  # what the first time costs is not known before
    with pytest.raises(KeyboardInterrupt):
        training.run(training.stopped(8, signal.SIGINT), on_checkpoint=keep, checkpoint_share=0.0)
    assert kept == [1, 4, 1, 2]


def test_a_training_can_be_stopped_again_and_again(tmp_path):
    training = Training("simple_cnn", tmp_path)
    whole = training.run()
    state = None
    for saved in ("0-3", "1-2", "2-1", "3-0"):  # after three steps more each time
        with pytest.raises(KeyboardInterrupt):
            training.run(training.stopped(3, signal.SIGINT), on_checkpoint=training.save, state=state)
        state = training.saved(saved)
    assert_same(training.run(state=state), whole)


def test_a_second_ctrl_c_interrupts_the_step(tmp_path):
    training = Training("tiny", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        training.run(training.stopped(6, signal.SIGINT, signal.SIGINT), on_checkpoint=training.save)
    assert {path.name for path in tmp_path.glob("*.resume.pt")} == {"1-0.resume.pt"}


def test_early_stopping_resumes_its_count(tmp_path):
    """And so do the best epoch's weights, which are no longer the network's."""
    parts, kept = (colours(60), colours(30, seed=1)), []

    def keep(state):
        Checkpoint(tmp_path, str(len(kept)), {}, {"final": state}).save()
        kept.append(open_checkpoint(str(len(kept)), tmp_path).phases["final"])

    whole = fit(right_network(), *parts, FitConfig(SPOILT, 0, CPU), FitCallbacks(spoil, on_checkpoint=keep))
    assert len(kept) == 4
    for state in kept[1:]:
        assert_same(fit(fresh(), *parts, FitConfig(SPOILT, 0, CPU), state=state), whole)


def test_batches_that_were_split_stay_split(capsys, tmp_path):
    class Greedy(MeanColour):
        def forward(self, images):
            if self.training and len(images) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(images)

    training = Training("tiny", tmp_path)
    whole = training.run(fresh(Greedy), on_checkpoint=training.save)
    assert capsys.readouterr().out.count("out of memory") == 1
    assert_same(training.run(fresh(Greedy), state=training.saved("2-0")), whole)
    assert capsys.readouterr().out == ""


# --- several processes --------------------------------------------------------------------------


def result_of(fitted):
    """The result of a training, to send to another process."""
    return measured(fitted), weights(fitted.network).numpy(), fitted.val_logits


def assert_same_result(one, other):
    assert one[0] == other[0]
    assert np.array_equal(one[1], other[1])
    assert np.array_equal(one[2], other[2])


def train_together(world, folder):
    device = Device("cpu", torch.float32, world=world)
    return [result_of(Training(kind, folder, device).run()) for kind in ("tiny", "resnet18_backbone")]


def test_two_processes_train_like_one(tmp_path):
    """Of a network without batch statistics and randomness; float32 sums differ in the last digits."""
    alone = result_of(Training("tiny", tmp_path).run())
    answers = together(2, train_together, tmp_path)
    for one, other in zip(*answers, strict=True):
        assert_same_result(one, other)
    history, values, logits = answers[0][0]
    assert np.array(history) == pytest.approx(np.array(alone[0]), rel=1e-4)
    assert values == pytest.approx(alone[1], abs=1e-4)
    assert logits == pytest.approx(alone[2], abs=1e-3)


def predicted(world):
    device = Device("cpu", torch.float32, world=world)
    return [predict_logits(fresh(SimpleCNN, 0, 3), colours(count), device) for count in (1, 2, 5)]


def test_two_processes_predict_like_one():
    """Also where one of them has no image."""
    alone = predicted(World())
    for answer in together(2, predicted):
        for logits, expected in zip(answer, alone, strict=True):
            assert logits == pytest.approx(expected, abs=1e-5)


def stopped_together(world, folder):
    """A whole training, the exit of one in which the second process got SIGTERM, and that one resumed.

    The first process saves the state for all, and not after each epoch.
    """
    training = Training("simple_cnn", folder, Device("cpu", torch.float32, world=world))
    whole = result_of(training.run())
    network = training.stopped(6, signal.SIGTERM) if world.rank == 1 else training.network()
    how = {"on_checkpoint": training.save, "checkpoint_share": 0.0} if world.rank == 0 else {}
    try:
        training.run(network, **how)
    except (KeyboardInterrupt, SystemExit) as ended:
        left = ended.args
    dist.barrier()
    return whole, left, result_of(training.run(state=training.saved("1-2")))


def test_two_processes_stop_together_and_resume(tmp_path):
    answers = together(2, stopped_together, tmp_path)
    assert [left for _, left, _ in answers] == [(), (143,)]
    for whole, _, resumed in answers:
        assert_same_result(whole, answers[0][0])
        assert_same_result(resumed, whole)
