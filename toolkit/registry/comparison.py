"""Model versions side by side: measured in the same way, and a table with a row for each."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import Card
from toolkit.registry.evaluation_data import predict_all, read_labelled
from toolkit.registry.latency import measure_latencies
from toolkit.registry.mcnemar import PairedCounts, on_shared, pair_by_hash
from toolkit.registry.metrics import accuracy_of, scores_of
from toolkit.registry.opening import LoadedModel
from toolkit.registry.versions import Version


@dataclass(frozen=True)
class Candidate:
    """A version with what it is compared by.

    Parameters
    ----------
    version, card
        As registered, and out of its bundle.
    baseline
        What it did on the images that it is compared on.
    size
        Of its bundle in bytes.
    latency_ms
        Milliseconds for one image, measured beside the others; None where it was not.
    held_out
        What it did on all images that it held out, where it is compared on some of them.
    """

    version: Version
    card: Card
    baseline: Baseline
    size: int
    latency_ms: float | None = None
    held_out: Baseline | None = None


@dataclass(frozen=True, eq=False)
class Column:
    """What there is to draw of one version.

    Parameters
    ----------
    name
        Such as ``v3``.
    baseline
        What it did on its images.
    paired
        The first version and this one on the images that both did; None for the first.
    """

    name: str
    baseline: Baseline
    paired: PairedCounts | None


def measured(models: Sequence[LoadedModel], data: Path | None) -> list[Candidate]:
    """Versions with what they are compared by, all measured in the same way.

    Parameters
    ----------
    models
        Which.
    data
        A folder of labelled images that all of them are run on. When None, they are compared on the
        images that all of them held out; where there is none, each on those that it held out itself.
    """
    bundles = [model.bundle for model in models]
    held_out = [bundle.baseline for bundle in bundles]
    baselines = on_shared(predict_all(bundles, read_labelled(data)) if data else held_out)
    return [
        Candidate(
            model.version,
            model.bundle.card,
            baseline,
            model.size,
            latency,
            None if data or whole is baseline else whole,
        )
        for model, baseline, latency, whole in zip(models, baselines, measure_latencies(bundles), held_out, strict=True)
    ]


def on_the_same(candidates: Sequence[Candidate]) -> bool:
    """Whether all figures of the versions are about the same images."""
    return all(
        pair_by_hash(candidates[0].baseline, each.baseline).whole.images
        == each.baseline.size
        == candidates[0].baseline.size
        for each in candidates
    )


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
    if any(candidate.held_out and candidate.held_out.size > candidate.baseline.size for candidate in candidates):
        for row, candidate in zip(rows, candidates, strict=True):
            whole = candidate.held_out or candidate.baseline
            row |= {"held_out_images": whole.size, "held_out_accuracy": whole.accuracy}
    return pd.DataFrame(rows).set_index("version")


def columns(candidates: Sequence[Candidate]) -> list[Column]:
    """What there is to draw of each; the paired figures are against the first."""
    first = candidates[0]
    return [
        Column(
            name=f"v{candidate.version.version}",
            baseline=candidate.baseline,
            paired=None if candidate is first else pair_by_hash(first.baseline, candidate.baseline).whole,
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
        "images": baseline.size,
    }
    for name, score in {"accuracy": accuracy_of(baseline), **scores_of(baseline)}.items():
        row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    row |= {"calibration_error": baseline.calibration_error} | _against(candidate, first)
    row["mean_cv_accuracy"] = version.metrics.get("mean_cv_accuracy", math.nan)
    latency = math.nan if candidate.latency_ms is None else candidate.latency_ms
    return row | {"latency_ms": latency, "size_mb": candidate.size / 1e6, "created": version.created}


def _against(candidate: Candidate, first: Candidate) -> dict[str, Any]:
    whole = pair_by_hash(first.baseline, candidate.baseline).whole
    itself = candidate is first
    difference, low, high = (math.nan,) * 3 if itself else whole.difference
    return {
        "shared_images": whole.images,
        "shared_accuracy": whole.accuracies[1],
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "gained": None if itself else whole.gained,
        "lost": None if itself else whole.lost,
        "p_value": math.nan if itself else whole.p_value,
    }
