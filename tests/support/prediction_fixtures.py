"""Predictions with all that can be odd about them: ties, saturation, NaN, gaps, late labels; and alerts."""

import numpy as np

from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.store.alerts import Alert


def answers(n, rng, k=3):
    """float16 (n, k), a tenth of them saturated, and the truth, right four times out of five."""
    probabilities = rng.dirichlet(np.full(k, 0.4), n)
    sure = np.flatnonzero(rng.random(n) < 0.1)
    probabilities[sure] = 0
    probabilities[sure, rng.integers(0, k, len(sure))] = 1
    truth = np.where(rng.random(n) < 0.8, probabilities.argmax(axis=1), rng.integers(0, k, n))
    return probabilities.astype(np.float16), truth


def alert_of(metric="accuracy", **values):
    """An alert in which the values that do not matter to a test are filled in."""
    usual = {"time": 0.0, "window": "short", "level": "critical", "status": "confirmed", "value": 0.1, "message": "m"}
    return Alert(metric=metric, **(usual | values))


def names(k):
    return tuple(f"class {index}" for index in range(k))


def baseline_of(n, rng, k=3):
    probabilities, truth = answers(n, rng, k)
    statistics = {
        "brightness": rng.normal(0.5, 0.1, n).astype(np.float32),
        "width": rng.choice([224, 256], n).astype(np.float32),
    }
    return Baseline(names(k), probabilities, truth, statistics=statistics)


def window_of(n, rng, k=3, broken=0.05, labelled=0.5):
    """Some predictions are not finite, some have no label, some no latency, some no brightness."""
    probabilities, truth = answers(n, rng, k)
    finite = rng.random(n) >= broken
    probabilities[~finite, 0] = np.nan
    gaps = {"brightness": rng.normal(0.4, 0.1, n), "width": rng.choice([200, 224, 256], n)}
    return Predictions(
        names(k),
        1.7e9 + np.sort(rng.random(n)),
        np.where(finite, probabilities.argmax(axis=1), -1),
        np.where(finite, probabilities.max(axis=1), np.nan).astype(np.float32),
        np.where(rng.random(n) < labelled, truth, -1),
        np.where(rng.random(n) < 0.9, rng.lognormal(1, 1, n), np.nan).astype(np.float32),
        {name: np.where(rng.random(n) < 0.9, values, np.nan).astype(np.float32) for name, values in gaps.items()},
        probabilities,
        np.arange(n),
    )
