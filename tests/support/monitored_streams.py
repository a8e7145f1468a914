"""Streams of predictions of three classes, and the baseline behind them."""

import numpy as np

from support import MAX_WAIT_S
from toolkit.bundle.baseline import Baseline

CLASSES = ("bird", "cat", "dog")


class Clock:
    """A clock that is one second later at each call."""

    def __init__(self, start=1.7e9):
        self.now = start

    def __call__(self):
        self.now += 1
        return self.now


def answers(n, rng, strength=3.0, prior=None):
    truth = rng.choice(3, n, p=prior)
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), truth] += strength
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), truth


def make_baseline(seed=0, n=2000):
    rng = np.random.default_rng(seed)
    probabilities, truth = answers(n, rng)
    return Baseline(CLASSES, probabilities, truth, statistics={"brightness": rng.normal(0.5, 0.1, n)})


def feed(monitor, n, rng, *, labelled=True, brightness=0.5, **more):
    """Log a stream, block by block as a service would, with its labels close behind."""
    probabilities, truth = answers(n, rng, **more)
    for first in range(0, n, 100):
        ids = [
            monitor.log_prediction(row, statistics={"brightness": rng.normal(brightness, 0.1)}, latency_ms=4.0)
            for row in probabilities[first : first + 100]
        ]
        assert monitor.flush(MAX_WAIT_S)
        if labelled:
            names = [CLASSES[k] for k in truth[first : first + 100]]
            monitor.record_feedback_many(dict(zip(ids, names, strict=True)), source="audit")
            assert monitor.flush(MAX_WAIT_S)
