"""Model versions side by side, measured in the same way, as a table with a row for each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import Card
from toolkit.registry.bundles import LoadedModel
from toolkit.registry.evaluation_data import predict_all, read_labelled
from toolkit.registry.latency import measure_latencies
from toolkit.registry.mcnemar import on_shared, pair_by_hash
from toolkit.registry.metrics import accuracy_of, scores_of
from toolkit.registry.versions import Version

AGAINST_FIRST = ("difference", "difference_low", "difference_high", "gained", "lost", "p_value")


@dataclass(frozen=True)
class Candidate:
    """A version with its measurements."""

    version: Version
    card: Card
    baseline: Baseline  # its results on the images of the comparison
    size: int  # bytes of its bundle
    latency_ms: float | None = None  # for one image, measured in turn with the others; None: not measured
    held_out: Baseline | None = None  # its results on all images that it held out, where the comparison is on some


def measured(models: Sequence[LoadedModel], data: Path | None) -> list[Candidate]:
    """Measure versions on a folder of labelled images, or on the images that all of them held out.

    Where they held out none in common, each is measured on its own held-out images.
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


def comparison_frame(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """A table with one row a version; paired metrics are against the first, which has none.

    Columns that begin with ``setting.`` and ``data.`` are those in which the versions differ.
    """
    rows = [_row(candidate, candidates[0]) for candidate in candidates]
    for prefix, part in (("setting.", "settings"), ("data.", "data")):
        values = [getattr(candidate.card, part) for candidate in candidates]
        for name in differing(values):
            for row, value in zip(rows, values, strict=True):
                row[prefix + name] = value.get(name)
    held_out = [candidate.held_out or candidate.baseline for candidate in candidates]
    if any(whole.size > candidate.baseline.size for whole, candidate in zip(held_out, candidates, strict=True)):
        for row, whole in zip(rows, held_out, strict=True):
            row |= {"held_out_images": whole.size, "held_out_accuracy": whole.accuracy}
    return pd.DataFrame(rows).set_index("version")


def differing(values: Sequence[dict[str, Any]]) -> list[str]:
    """The names with different values.

    >>> differing([{"seed": 1, "epochs": 5}, {"seed": 2, "epochs": 5}, {"seed": 1}])
    ['epochs', 'seed']
    """
    names = sorted({name for each in values for name in each})
    return [name for name in names if any(each.get(name) != values[0].get(name) for each in values)]


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
    paired = pair_by_hash(first.baseline, baseline).whole
    against: tuple[float | None, ...] = (*paired.difference, paired.gained, paired.lost, paired.p_value)
    if candidate is first:
        against = (math.nan, math.nan, math.nan, None, None, math.nan)
    return row | {
        "calibration_error": baseline.calibration_error,
        "shared_images": paired.images,
        "shared_accuracy": paired.accuracies[1],
        **dict(zip(AGAINST_FIRST, against, strict=True)),
        "mean_cv_accuracy": version.metrics.get("mean_cv_accuracy", math.nan),
        "latency_ms": math.nan if candidate.latency_ms is None else candidate.latency_ms,
        "size_mb": candidate.size / 1e6,
        "created": version.created,
    }
