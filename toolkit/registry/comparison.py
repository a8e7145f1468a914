"""Model versions side by side, measured in the same way, as a table with a row for each."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import Card
from toolkit.registry.bundles import LoadedModel
from toolkit.registry.evaluation_data import predict_all, read_labelled
from toolkit.registry.latency import measure_latencies
from toolkit.registry.mcnemar import PairedCounts, on_shared, pair_by_hash
from toolkit.registry.metrics import accuracy_of, scores_of
from toolkit.registry.versions import Version


@dataclass(frozen=True)
class Candidate:
    """A version with its measurements.

    Parameters
    ----------
    version, card
        The registered version, and the card of its bundle.
    baseline
        Its results on the images of the comparison.
    size
        Size of its bundle in bytes.
    latency_ms
        Milliseconds for one image, measured in turn with the others; None: not measured.
    held_out
        Its results on all images that it held out, where the comparison is on some of them.
    """

    version: Version
    card: Card
    baseline: Baseline
    size: int
    latency_ms: float | None = None
    held_out: Baseline | None = None


@dataclass(frozen=True, eq=False)
class Column:
    """The data of one version in a plot.

    Parameters
    ----------
    name
        Name such as ``v3``.
    baseline
        Its results.
    paired
        Agreement with the first version on shared images; None for the first.
    """

    name: str
    baseline: Baseline
    paired: PairedCounts | None


def measured(models: Sequence[LoadedModel], data: Path | None) -> list[Candidate]:
    """Measure versions in the same way.

    Parameters
    ----------
    models
        The loaded versions.
    data
        A folder of labelled images to run all of them on. None: they are compared on the images that all of
        them held out or, where there are none, each on its own held-out images.

    Returns
    -------
    One candidate a version, in the order of the versions.
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
            None if data or own is baseline else own,
        )
        for model, baseline, latency, own in zip(models, baselines, measure_latencies(bundles), held_out, strict=True)
    ]


def on_the_same(candidates: Sequence[Candidate]) -> bool:
    """Whether all versions were measured on the same images."""
    return all(
        pair_by_hash(candidates[0].baseline, each.baseline).whole.images
        == each.baseline.size
        == candidates[0].baseline.size
        for each in candidates
    )


def comparison_frame(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """A table with one row a version; paired metrics are against the first, which has none.

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
    """The data of each version for a plot; pairs are with the first."""
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
    """The names with different values.

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
