"""What runs a program, and on how many cores."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from toolkit.errors import BundleError
from toolkit.serving.engine import prepare, torch_threads


def test_an_engine_gives_the_very_numbers_of_the_bundle_from_every_thread(make_bundle):
    bundle = make_bundle(strength=0.5)
    engine = prepare(bundle)
    pictures = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16, 3), np.uint8)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(engine.infer, pictures))
    assert answers[0].shape == (1, 3)
    for picture, answer in zip(pictures, answers, strict=True):
        np.testing.assert_array_equal(answer, bundle.predict(picture))
    assert "torch" in engine.name


def test_a_program_that_gives_no_numbers_is_refused_before_it_serves(make_bundle):
    with pytest.raises(BundleError, match="NaN or infinity"):
        prepare(make_bundle(row=[0.5, float("nan"), 0.5]))


def test_all_workers_together_use_the_cores_and_no_more():
    for cores in range(1, 20):
        for workers in range(1, 20):
            threads = torch_threads(workers, cores)
            assert threads >= 1
            assert threads == 1 or threads * workers <= cores < (threads + 1) * workers
