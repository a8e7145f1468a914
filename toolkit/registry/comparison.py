"""Model versions side by side: measured in the same way, and a table with a row for each."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from toolkit.baseline import Baseline
from toolkit.bundle import Card
from toolkit.registry.latency import latencies
from toolkit.registry.opening import LoadedModel
from toolkit.registry.paired import Tally, pair
from toolkit.registry.pictures import answers_of, read_labelled
from toolkit.registry.scores import accuracy_of, weighted_scores
from toolkit.registry.versions import Version


@dataclass(frozen=True)
class Candidate:
    """A version with what it is compared by.

    Parameters
    ----------
    version, card
        As registered, and out of its bundle.
    baseline
        What it did on the pictures that it held out, or on others that it was run on.
    size
        Of its bundle in bytes.
    latency_ms
        Milliseconds for one picture, measured beside the others; None where it was not.
    """

    version: Version
    card: Card
    baseline: Baseline
    size: int
    latency_ms: float | None = None


@dataclass(frozen=True, eq=False)
class Column:
    """What there is to draw of one version.

    Parameters
    ----------
    name
        Such as ``v3``.
    baseline
        What it did on its pictures.
    paired
        The first version and this one on the pictures that both did; None for the first.
    latency_ms
        For one picture; None where it was not measured.
    size_mb
        Of its bundle.
    """

    name: str
    baseline: Baseline
    paired: Tally | None
    latency_ms: float | None
    size_mb: float


def measured(models: Sequence[LoadedModel], data: Path | None) -> list[Candidate]:
    """Versions with what they are compared by, all measured in the same way.

    Parameters
    ----------
    models
        Which.
    data
        A folder of labelled pictures that all of them are run on; None leaves what each did on the
        pictures that it held out.
    """
    bundles = [model.bundle for model in models]
    baselines = answers_of(bundles, read_labelled(data)) if data else [bundle.baseline for bundle in bundles]
    return [
        Candidate(model.version, model.bundle.card, baseline, model.size, latency)
        for model, baseline, latency in zip(models, baselines, latencies(bundles), strict=True)
    ]


def side_by_side(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """One row a version; the paired figures are against the first, which has none of its own.

    Columns that begin with ``setting.`` and ``data.`` are those in which the versions differ.
    """
    rows = [_row(candidate, candidates[0]) for candidate in candidates]
    for prefix, values in (
        ("setting.", [candidate.card.settings for candidate in candidates]),
        ("data.", [candidate.card.data for candidate in candidates]),
    ):
        for name in differing(values):
            for row, value in zip(rows, values, strict=True):
                row[prefix + name] = value.get(name)
    return pd.DataFrame(rows).set_index("version")


def columns(candidates: Sequence[Candidate]) -> list[Column]:
    """What there is to draw of each; the paired figures are against the first."""
    first = candidates[0]
    return [
        Column(
            name=f"v{candidate.version.version}",
            baseline=candidate.baseline,
            paired=None if candidate is first else pair(first.baseline, candidate.baseline).whole,
            latency_ms=candidate.latency_ms,
            size_mb=candidate.size / 1e6,
        )
        for candidate in candidates
    ]


def differing(values: Iterable[dict[str, Any]]) -> list[str]:
    """The names whose values are not the same in all.

    >>> differing([{"seed": 1, "epochs": 5}, {"seed": 2, "epochs": 5}, {"seed": 1}])
    ['epochs', 'seed']
    """
    every = list(values)
    names = sorted({name for each in every for name in each})
    return [name for name in names if any(each.get(name) != every[0].get(name) for each in every)]


def _row(candidate: Candidate, first: Candidate) -> dict[str, Any]:
    version, card, baseline = candidate.version, candidate.card, candidate.baseline
    row: dict[str, Any] = {
        "version": version.version,
        "stage": version.stage,
        "network": card.network,
        "image_size": card.image_size,
        "pictures": baseline.size,
    }
    for name, score in {"accuracy": accuracy_of(baseline), **weighted_scores(baseline)}.items():
        row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    row |= {"calibration_error": baseline.calibration_error} | _against(candidate, first)
    row["mean_cv_accuracy"] = version.metrics.get("mean_cv_accuracy", math.nan)
    latency = math.nan if candidate.latency_ms is None else candidate.latency_ms
    return row | {"latency_ms": latency, "size_mb": candidate.size / 1e6, "created": version.created}


def _against(candidate: Candidate, first: Candidate) -> dict[str, Any]:
    whole = pair(first.baseline, candidate.baseline).whole
    itself = candidate is first
    difference, low, high = (math.nan,) * 3 if itself else whole.difference
    return {
        "shared_pictures": whole.pictures,
        "shared_accuracy": whole.accuracies[1],
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "gained": None if itself else whole.gained,
        "lost": None if itself else whole.lost,
        "p_value": math.nan if itself else whole.p_value,
    }
