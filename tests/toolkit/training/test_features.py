"""Frozen features: each image's own, the plain view first, computed once for a whole training."""

import numpy as np
import pytest
import torch
from torch import nn

from support.tiny_networks import CPU, colours, fresh, together
from toolkit.training.batches import ImageBatches
from toolkit.training.data.dataset import Subset
from toolkit.training.device import Device
from toolkit.training.features import FeatureBatches, Features
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.loop import FitConfig, fit, predict_logits
from toolkit.training.networks import FrozenBackbone

HPARAMS = Hyperparameters(
    model_type="resnet18_backbone", image_size=16, augmentation=0.3, feature_views=3, epochs=3, batch_size=8
)


class Means(nn.Module):
    """A backbone that gives the mean of each channel, (N, 3), and counts the images it has seen."""

    def __init__(self):
        super().__init__()
        self.statistics = nn.BatchNorm2d(3)
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        self.statistics(images)
        return images.mean(dim=(2, 3))


def features_of(part, backbone=None, seed=0, **changes):
    hparams = HPARAMS.model_copy(update=changes)
    return Features.of(backbone or Means(), part, hparams, seed, CPU)


def means(part):
    """float32 (N, 3): what ``Means`` gives for the plain images of a part."""
    return ImageBatches(part, CPU).eval_batch(np.arange(len(part))).mean(dim=(2, 3)).numpy()


def some(*indices):
    """A few images of a dozen."""
    many = colours(12)
    return Subset(many.pixels, many.labels, np.array(indices))


# --- views --------------------------------------------------------------------------------------


def test_the_first_view_is_the_plain_image_and_the_others_are_not():
    part = some(7, 0, 11, 4, 5)
    views = features_of(part).views
    assert (views.shape, views.dtype) == ((3, 5, 3), torch.float32)
    assert views[0].numpy() == pytest.approx(means(part), abs=1e-5)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert ((views[one] - views[other]).abs().amax(dim=1) > 1e-3).all(), "each image differs in each view"


def test_more_images_than_go_through_at_once_stay_in_order():
    part = colours(300, size=4)
    assert features_of(part, feature_views=1).views[0].numpy() == pytest.approx(means(part), abs=1e-5)


def test_without_augmentation_one_view_is_all_there_is():
    backbone = Means()
    assert features_of(some(1, 2), backbone, augmentation=0.0).views.shape == (1, 2, 3)
    assert backbone.seen == 2


def test_the_seed_decides_on_the_augmented_views():
    part = some(7, 0, 11)
    first, again, other = (features_of(part, seed=seed).views for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1:], other[1:])


def test_trainings_of_like_strength_share_their_views(monkeypatch):
    part, backbone, known = some(7, 0, 11, 4, 5), Means(), {}

    def views(augmentation, seed=0):
        hparams = HPARAMS.model_copy(update={"augmentation": augmentation})
        return Features.of(backbone, part, hparams, seed, CPU, known).views

    first = views(0.3)
    assert backbone.seen == 3 * len(part)
    assert torch.equal(views(0.34), first)
    assert backbone.seen == 3 * len(part)
    other = views(0.36)  # the plain images are there
    assert torch.equal(other[0], first[0])
    assert not torch.equal(other[1], first[1])
    assert backbone.seen == 5 * len(part)
    views(0.3, seed=1)
    assert backbone.seen == 8 * len(part)
    assert torch.equal(features_of(part, augmentation=0.4).views, other)
    monkeypatch.setattr("toolkit.training.features.MAX_CACHED_BYTES", 4 * first[0].nbytes)
    views(0.5, seed=2)
    assert len(known) == 4
    assert [seed for seed, *_ in known] == [1, 2, 2, 2], "the oldest go first"


def test_the_backbone_stays_as_it_was():
    backbone = Means().train()
    before = backbone.statistics.running_mean.clone()
    assert not features_of(some(1, 2), backbone).views.requires_grad
    assert torch.equal(backbone.statistics.running_mean, before)


# --- batches ------------------------------------------------------------------------------------


def test_an_image_without_features_has_no_row():
    assert features_of(some(7, 0, 11)).rows.tolist() == [1, -1, -1, -1, -1, -1, -1, 0, -1, -1, -1, 2]


def test_batches_of_a_part_find_their_rows():
    """A fold's part has another order than the features, and positions count within the part."""
    part = some(11, 2, 7)
    batches = FeatureBatches(features_of(some(7, 0, 11, 2)), part)
    assert batches.labels.tolist() == part.labels.tolist()
    assert batches.classes == 3
    positions = np.array([2, 0, 1, 2])
    assert batches.eval_batch(positions).numpy() == pytest.approx(means(part)[positions], abs=1e-5)


def test_training_draws_one_of_an_images_own_views_each_time():
    """600 draws from three views: 200 +- 50 of each, 4.3 standard deviations."""
    part = some(7, 0, 11, 2)
    features = features_of(part)
    batches, positions = FeatureBatches(features, part), np.array([2, 0])
    noise = torch.Generator().manual_seed(0)
    drawn = torch.stack([batches.train(positions, 16, noise) for _ in range(600)])  # (600, 2, 3)
    for column, row in enumerate((2, 0)):
        matches = (drawn[:, column, None] == features.views[None, :, row]).all(dim=2)  # (600, V)
        assert (matches.sum(dim=1) == 1).all()
        assert ((matches.sum(dim=0) - 200).abs() < 50).all()
    assert not torch.equal(drawn[:, 0] == features.views[0, 2], drawn[:, 1] == features.views[0, 0])


# --- a whole training ---------------------------------------------------------------------------


def network():
    return FrozenBackbone(Means(), fresh(nn.Linear, 0, 3, 3))


def test_a_training_sends_each_image_through_the_backbone_once_a_view():
    frozen, training, validation = network(), some(*range(8)), some(*range(8, 12))
    fit(frozen, training, validation, FitConfig(HPARAMS, 0, CPU))
    assert frozen.backbone.seen == 3 * 12


def test_folds_share_what_was_computed_before():
    """And a fold that is given the features comes to the same as one that computes them."""
    parts = (some(*range(8)), some(*range(8, 12)))
    alone = fit(network(), *parts, FitConfig(HPARAMS, 0, CPU))
    features = features_of(some(*range(12)))
    for training, validation in (parts, parts[::-1]):
        frozen = network()
        fold = fit(frozen, training, validation, FitConfig(HPARAMS, 0, CPU, features))
        assert frozen.backbone.seen == 0
        assert len(fold.val_logits) == len(validation)
        if training is parts[0]:
            assert np.array_equal(fold.val_logits, alone.val_logits)
        assert np.allclose(predict_logits(frozen, validation, CPU), fold.val_logits, atol=1e-5)


# --- several processes --------------------------------------------------------------------------


def shared(world, counts):
    device = Device("cpu", torch.float32, world=world)
    parts = [some(*range(count)) for count in counts]
    return [Features.of(Means(), part, HPARAMS, 0, device).views.numpy() for part in parts]


def test_processes_share_the_images_and_all_have_all_features():
    """Also where there are fewer images than processes."""
    counts = (12, 5, 2, 1)
    answers = together(3, shared, counts)
    for index, count in enumerate(counts):
        views = answers[0][index]
        assert views.shape == (3, count, 3)
        assert views[0] == pytest.approx(means(some(*range(count))), abs=1e-5)
        assert (np.abs(views[1] - views[0]).max(axis=1) > 1e-3).all()
        assert all(np.array_equal(answer[index], views) for answer in answers)
