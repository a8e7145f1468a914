"""A version on synthetic images, and its comparison with another one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.colours import colour_card
from toolkit.errors import BundleError
from toolkit.serving.models.engines import TorchEngine, synthetic_images
from toolkit.serving.models.smoke_test import SmokeTestResult, agreement, compare_outputs, smoke_test


def run_smoke_test(bundle, version="1"):
    return smoke_test(TorchEngine(bundle), bundle.card, version)


def test_images_of_a_batch_are_independent(make_bundle):
    bundle = make_bundle(strength=0.5)
    images = synthetic_images(bundle.card.image_size)
    rows = np.concatenate([bundle.predict(images[index : index + 1]) for index in range(len(images))])
    np.testing.assert_allclose(run_smoke_test(bundle).rows, rows, atol=1e-6)
    assert len(set(rows.argmax(axis=1).tolist())) > 1  # not constant


def test_outputs_must_be_finite_and_one_for_each_class(make_bundle):
    with pytest.raises(BundleError, match=r"^the engine returns NaN or infinity for a synthetic image$"):
        run_smoke_test(make_bundle(row=[0.5, np.inf, 0.5]))
    with pytest.raises(BundleError, match=r"^the engine returns \(4, 2\) for 4 images and 3 classes$"):
        run_smoke_test(make_bundle(row=[0.5, 0.5]))


def test_a_less_confident_version_predicts_the_same_classes(make_bundle):
    sure, unsure = run_smoke_test(make_bundle()), run_smoke_test(make_bundle(strength=0.2), "2")
    found = compare_outputs(unsure, sure)
    assert (found.version, found.against, found.constant) == ("2", "1", None)
    assert found.same_class == found.images == len(sure.rows)
    wanted = np.abs(sure.rows.max(axis=1) - unsure.rows.max(axis=1)).mean()
    assert found.mean_difference == pytest.approx(wanted, abs=5e-5)
    assert compare_outputs(sure, sure).mean_difference == 0


def test_a_constant_output_is_reported_unless_it_was_before(make_bundle):
    sure, constant = run_smoke_test(make_bundle()), run_smoke_test(make_bundle(row=[0.1, 0.2, 0.7]), "2")
    found = compare_outputs(constant, sure)
    assert found.constant == "red"
    assert str(found).endswith("on average; it predicts 'red' for each of them")
    assert compare_outputs(sure, constant).constant is None
    assert compare_outputs(constant, constant).constant is None


def test_versions_of_other_classes_or_sizes_are_not_compared(make_bundle):
    sure = run_smoke_test(make_bundle())
    assert compare_outputs(run_smoke_test(make_bundle(classes=("a", "b", "c"))), sure) is None
    assert compare_outputs(SmokeTestResult("2", colour_card(size=32), sure.rows), sure) is None


@given(st.permutations(range(4)), st.integers(0, 2**32 - 1))
def test_the_order_of_the_classes_makes_no_difference(order, seed):
    names, generator = ("ant", "bee", "cat", "dog"), np.random.default_rng(seed)
    rows, others = generator.dirichlet(np.ones(4), (2, 5)).astype(np.float32)
    same, difference = agreement(names, rows, names, others)
    assert same.tolist() == (rows.argmax(axis=1) == others.argmax(axis=1)).tolist()
    best = rows.argmax(axis=1)[:, None]
    wanted = np.abs(np.take_along_axis(rows, best, 1) - np.take_along_axis(others, best, 1))[:, 0]
    np.testing.assert_array_equal(difference, wanted)
    shuffled = agreement(names, rows, [names[index] for index in order], others[:, order])
    np.testing.assert_array_equal(shuffled[0], same)
    np.testing.assert_array_equal(shuffled[1], difference)


def test_a_class_of_one_model_has_probability_0_in_the_other():
    rows = np.array([[0.875, 0.125]], np.float32)
    same, difference = agreement(("cat", "dog"), rows, ("dog", "cow"), rows)
    assert (same.tolist(), difference.tolist()) == ([False], [0.875])
