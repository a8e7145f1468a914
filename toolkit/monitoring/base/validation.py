"""Checks of logged values before they are queued, so that writing them cannot fail later."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.errors import SettingsError, suggest

SUM_TOLERANCE = 0.02  # bfloat16 has 8 bits: probabilities of a hundred classes add up to 1 within 1 %
FEW_CLASSES = 40  # up to which Python's own min and sum are faster than numpy's


def parse_probabilities(
    probabilities: ArrayLike | Mapping[str, float], classes: tuple[str, ...]
) -> NDArray[np.float16]:
    """Probabilities of one prediction as they are stored: (K,) float16 in class order; NaN and infinity are allowed."""
    if isinstance(probabilities, Mapping):
        probabilities = _in_order(probabilities, classes)
    values = _floats(probabilities)
    if values.shape != (len(classes),):
        raise SettingsError(f"{len(classes)} probabilities are needed, one for each class, got shape {values.shape}")
    if len(values) <= FEW_CLASSES:
        row = values.tolist()
        least, total = min(row), sum(row)
    else:
        least, total = np.minimum.reduce(values), np.add.reduce(values)
    if not (least >= 0 and abs(total - 1) <= SUM_TOLERANCE):  # NaN and infinity do not pass either
        _raise_if_not_probabilities(values)
    return values.astype(np.float16)


def parse_many_probabilities(
    probabilities: ArrayLike | Sequence[Mapping[str, float]], classes: tuple[str, ...]
) -> NDArray[np.float16]:
    """Probabilities of many predictions, each as ``parse_probabilities`` takes it: (N, K) float16."""
    values = _floats(_rows(probabilities, classes))
    if values.ndim != 2 or values.shape[1] != len(classes):
        raise SettingsError(
            f"{len(classes)} probabilities are needed for each prediction, one for each class, got shape {values.shape}"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        least, total = values.min(axis=1, initial=1), values.sum(axis=1, dtype=np.float64)
        wrong = ~((least >= 0) & (np.abs(total - 1) <= SUM_TOLERANCE))
        for place in np.flatnonzero(wrong & np.isfinite(values).all(axis=1))[:1].tolist():
            _raise_if_not_probabilities(values[place], f"probabilities[{place}]")
        return np.ascontiguousarray(values, np.float16)


def first_row(probabilities: ArrayLike | Sequence[Mapping[str, float]]) -> ArrayLike | Mapping[str, float] | None:
    """The probabilities of the first of many predictions; None without any."""
    rows: Any = probabilities if isinstance(probabilities, Sequence) else np.asarray(probabilities)
    if not isinstance(rows, Sequence) and rows.ndim == 0:
        raise SettingsError("probabilities of many predictions are needed: (N, K), or a list of mappings")
    return rows[0] if len(rows) else None


def parse_number(value: Any, name: str) -> float | None:
    """A number as a float; None as None."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(f"{name} must be a number, got {value!r}") from None


def parse_numbers(values: Any, n: int, name: str) -> list[float | None]:
    """One number for each of ``n`` predictions, from one for each or a single one for all."""
    if values is None or np.ndim(values) == 0:
        return [parse_number(values, name)] * n
    found = [parse_number(value, f"{name}[{place}]") for place, value in enumerate(values)]
    if len(found) != n:
        raise SettingsError(f"{n:,} values of {name} are needed, one for each prediction, got {len(found):,}")
    return found


def parse_statistics(values: Mapping[str, Any] | None, name: str = "statistics") -> dict[str, float]:
    """Input statistics of one image; those that are None are left out."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise SettingsError(f"{name} must be a mapping of names to numbers, got {type(values).__name__}")
    try:
        return {str(key): float(value) for key, value in values.items() if value is not None}
    except (TypeError, ValueError, OverflowError):
        for key, value in values.items():
            parse_number(value, f"{name}[{key!r}]")
        raise


def parse_many_statistics(values: Any, n: int) -> list[dict[str, float]]:
    """Input statistics of ``n`` images: a column of numbers for each name, or a mapping for each image."""
    if values is None:
        return [{} for _ in range(n)]
    if not isinstance(values, Mapping):
        found = [parse_statistics(one, f"statistics[{place}]") for place, one in enumerate(values)]
        if len(found) != n:
            raise SettingsError(f"statistics of {n:,} images are needed, got {len(found):,}")
        return found
    columns = {str(key): _column(column, n, key) for key, column in values.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{}] * n


def _column(column: ArrayLike, n: int, key: str) -> list[float]:
    try:
        values = np.asarray(column, np.float64)
    except (TypeError, ValueError):
        raise SettingsError(f"statistics[{key!r}] must be numbers") from None
    if values.shape != (n,):
        raise SettingsError(f"statistics[{key!r}] must be {n:,} numbers, one for each image, got shape {values.shape}")
    return [float(value) for value in values.tolist()]


def _rows(probabilities: Any, classes: tuple[str, ...]) -> Any:
    if isinstance(probabilities, np.ndarray) or not isinstance(first_row(probabilities), Mapping):
        return probabilities
    rows = []
    for place, one in enumerate(probabilities):
        if not isinstance(one, Mapping):
            raise SettingsError(f"probabilities[{place}] must be a mapping as the first one is")
        rows.append(_in_order(one, classes, f"probabilities[{place}]"))
    return rows


def _in_order(probabilities: Mapping[str, float], classes: tuple[str, ...], name: str = "probabilities") -> list[float]:
    if probabilities.keys() != set(classes):
        raise SettingsError(f"{name} of {suggest(probabilities)} given; the classes are {suggest(classes)}")
    return [probabilities[one] for one in classes]


def _floats(probabilities: Any) -> NDArray[Any]:
    try:
        values = np.asarray(probabilities)
        return values if values.dtype.kind == "f" else values.astype(np.float64)
    except (TypeError, ValueError):
        raise SettingsError("probabilities must be numbers") from None


def _raise_if_not_probabilities(values: NDArray[Any], name: str = "probabilities") -> None:
    """Raise an error that says why finite numbers are not probabilities."""
    if not np.isfinite(values).all():
        return
    if values.min() < 0 or values.max() > 1 + SUM_TOLERANCE:
        worst = values.min() if values.min() < 0 else values.max()
        raise SettingsError(f"{name} must lie between 0 and 1, got {worst:.4g}: are these logits?")
    raise SettingsError(f"{name} must add up to 1, got {values.sum():.4g}")
