"""What runs a program, and on how many cores."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from toolkit.errors import BundleError
from toolkit.serving.engine import prepare, torch_threads, usable_cores


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


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000\n", 2), ("50000 100000\n", 1), ("1000 100000\n", 1), ("100000 100000", 1)]
)
def test_a_containers_quota_counts_when_it_is_less_than_the_cores(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == cores


@pytest.mark.parametrize("quota", ["max 100000\n", "", "3", "900000 100000\n", "many 100000", None])
def test_without_a_smaller_quota_the_affinity_counts(tmp_path, monkeypatch, quota):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(5)), raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == 5


def test_all_workers_together_use_the_cores_and_no_more():
    for cores in range(1, 20):
        for workers in range(1, 20):
            threads = torch_threads(workers, cores)
            assert threads >= 1
            assert threads == 1 or threads * workers <= cores < (threads + 1) * workers
