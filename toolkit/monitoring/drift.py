"""Whether a window differs from the baseline, by how much, and how sure that is."""

import html
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from toolkit.baseline import Baseline
from toolkit.monitoring import statistics
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.windows import Window, reference_right

HALF_PRECISION_STEP = 2.0**-11  # between neighbouring float16 just below 1, the coarsest a confidence is stored
SHOWN_CLASSES = 3  # classes named in a result: those whose share changed most


@dataclass(frozen=True)
class DriftResult:
    """What one test says about one window.

    Parameters
    ----------
    metric
        ``confidence_distribution``, ``prediction_distribution``, ``mean_confidence``, ``accuracy``, or
        the name of an input statistic.
    family
        ``model`` for what the model answers, ``input`` for what the pictures look like.
    corrected_p_value
        After Holm's correction over the tests of the family.
    effect
        How large the change is: KS D, total variation, standard deviations, relative drop.
    n, n_reference
        Cases in the window and in the baseline.
    drifted
        Whether the change is both certain and large enough to matter; None when nobody can tell.
    detail
        The change in words.
    """

    metric: str
    family: str
    window: str
    n: int
    n_reference: int
    minimum_effect: float
    statistic: float | None = None
    p_value: float | None = None
    corrected_p_value: float | None = None
    effect: float | None = None
    drifted: bool | None = None
    detail: str = ""

    @property
    def status(self) -> str:
        """``drift``, ``no_drift`` or ``insufficient_data``."""
        return "insufficient_data" if self.drifted is None else "drift" if self.drifted else "no_drift"


@dataclass(frozen=True)
class DriftReport:
    """The verdicts on the windows of one model version; print it, or read its ``results``.

    Parameters
    ----------
    model_version
        None when nothing was ever logged.
    alpha
        Chance of a false "drift" among all tests of a family.
    """

    model_version: str | None
    alpha: float
    results: tuple[DriftResult, ...]

    @property
    def drifted(self) -> bool | None:
        """Whether what the model answers has changed; None while there is too little data."""
        return _any(result.drifted for result in self.results if result.family == "model")

    @property
    def input_drifted(self) -> bool | None:
        """Whether the pictures have changed; None while there is too little data."""
        return _any(result.drifted for result in self.results if result.family == "input")

    def to_dict(self) -> dict[str, Any]:
        """The report, ready for JSON."""
        return {
            "model_version": self.model_version,
            "drifted": self.drifted,
            "input_drifted": self.input_drifted,
            "alpha": self.alpha,
            "results": [asdict(result) | {"status": result.status} for result in self.results],
        }

    def __str__(self) -> str:
        """The report as a table."""
        rows = [_HEADER, *map(_cells, self.results)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        lines = ["  ".join(map(_pad, row, widths, _LEFT)).rstrip() for row in rows]
        return "\n".join([self._headline(), "", *lines])

    def _repr_html_(self) -> str:
        """The report as a notebook shows it."""
        colours = {"drift": "#c0392b", "no_drift": "#1e8449", "insufficient_data": "#7f8c8d"}
        head = "".join(f"<th style='text-align:left'>{html.escape(name)}</th>" for name in _HEADER)
        body = "".join(
            f"<tr style='color:{colours[result.status]}'>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in _cells(result))
            + "</tr>"
            for result in self.results
        )
        return f"<p>{html.escape(self._headline())}</p><table><tr>{head}</tr>{body}</table>"

    def _headline(self) -> str:
        if self.model_version is None:
            return "No predictions have been logged yet."
        told = [result for result in self.results if result.drifted is not None]
        found = [result for result in told if result.drifted]
        without = len(self.results) - len(told)
        waiting = f"; {without} wait for more data" if without else ""
        return f"Model version {self.model_version}: {len(found)} of {len(told)} tests found drift{waiting}."


def compare(
    window: Window, reference: Baseline | None, limits: Limits, name: str, alpha: float | None = None
) -> list[DriftResult]:
    """Run all tests on one window.

    Parameters
    ----------
    reference
        The yardstick; without it every answer is ``insufficient_data``.
    name
        Of the window, to be told in the results.
    alpha
        ``limits.alpha`` when None.

    Returns
    -------
    list[DriftResult]
        The four tests of the model's answers, then one for each input statistic in the baseline.

    Examples
    --------
    >>> import numpy as np
    >>> sure = Baseline(("cat", "dog"), np.tile([0.9, 0.1], (200, 1)), np.zeros(200, int))
    >>> window = Window(("cat", "dog"), np.arange(200.0), np.zeros(200, int),
    ...                 np.full(200, np.float16(0.6)), np.full(200, -1))
    >>> for result in compare(window, sure, Limits(), "short"):
    ...     print(result.metric, result.status)
    confidence_distribution drift
    prediction_distribution no_drift
    mean_confidence drift
    accuracy insufficient_data
    """
    tests: list[tuple[str, float, Callable[[Window, Baseline, DriftResult, Limits], DriftResult]]] = [
        ("confidence_distribution", limits.ks, _confidences),
        ("prediction_distribution", limits.total_variation, _classes),
        ("mean_confidence", limits.mean_shift, _mean_confidence),
        ("accuracy", limits.warning, _accuracy),
    ]
    n = window.n - window.non_finite
    size = reference.size if reference is not None else 0
    model = []
    for metric, minimum, test in tests:
        cases = window.n_labels if metric == "accuracy" else n
        blank = DriftResult(metric, "model", name, cases, size, minimum)
        needed = limits.minimum_labels if metric == "accuracy" else limits.minimum_predictions
        enough = reference is not None and cases >= needed and size >= needed
        model.append(test(window, reference, blank, limits) if enough and reference is not None else blank)
    inputs = [_input(window, reference, statistic, limits, name) for statistic in _statistics(reference)]
    return judge(model, alpha or limits.alpha) + judge(inputs, alpha or limits.alpha)


def judge(results: Iterable[DriftResult], alpha: float) -> list[DriftResult]:
    """Correct the p-values of one family for each other, and say which changes are drift."""
    results = list(results)
    tested = [result for result in results if result.p_value is not None]
    corrected = dict(zip(map(id, tested), statistics.holm([result.p_value or 0.0 for result in tested]), strict=True))
    return [
        replace(
            result,
            corrected_p_value=corrected[id(result)],
            drifted=corrected[id(result)] < alpha and (result.effect or 0.0) >= result.minimum_effect,
        )
        if id(result) in corrected
        else result
        for result in results
    ]


def _confidences(window: Window, reference: Baseline, blank: DriftResult, _limits: Limits) -> DriftResult:
    values = window.confidence[window.finite]
    outcome = statistics.kolmogorov_smirnov(values, reference.confidence)
    return replace(
        blank,
        statistic=outcome.statistic,
        p_value=outcome.p_value,
        effect=outcome.statistic,
        detail=f"median {_number(np.median(reference.confidence))} -> {_number(np.median(values))}",
    )


def _classes(window: Window, reference: Baseline, blank: DriftResult, _limits: Limits) -> DriftResult:
    usual = np.bincount(reference.predicted, minlength=len(reference.classes))
    outcome = statistics.chi_square(window.counts, usual)
    before, now = usual / usual.sum(), window.counts / window.counts.sum()
    changed = np.argsort(-np.abs(now - before), kind="stable")[:SHOWN_CLASSES]
    detail = ", ".join(f"{reference.classes[k]!r} {before[k]:.1%} -> {now[k]:.1%}" for k in changed)
    return replace(
        blank,
        statistic=outcome.statistic,
        p_value=outcome.p_value,
        effect=statistics.total_variation(window.counts, usual),
        detail=detail,
    )


def _mean_confidence(window: Window, reference: Baseline, blank: DriftResult, _limits: Limits) -> DriftResult:
    values = window.confidence[window.finite]
    outcome, shift = statistics.mean_shift(values, reference.confidence, HALF_PRECISION_STEP)
    return replace(
        blank,
        statistic=outcome.statistic,
        p_value=outcome.p_value,
        effect=abs(shift),
        detail=f"mean {_number(reference.confidence.mean())} -> {_number(values.mean())}",
    )


def _accuracy(window: Window, reference: Baseline, blank: DriftResult, limits: Limits) -> DriftResult:
    usual = reference_right(reference)
    outcome = statistics.proportion_drop(window.right, window.n_labels, usual, reference.size)
    accuracy = window.right / window.n_labels
    certain = statistics.drop_lower_bound(window.right, window.n_labels, usual, reference.size, limits.confidence)
    return replace(
        blank,
        statistic=outcome.statistic,
        p_value=outcome.p_value,
        effect=1 - accuracy / reference.accuracy if usual else 0.0,
        detail=f"{reference.accuracy:.1%} -> {accuracy:.1%}, drop of at least {max(0.0, certain):.1%} certain",
    )


def _statistics(reference: Baseline | None) -> list[str]:
    return list(reference.statistics) if reference is not None else []


def _input(window: Window, reference: Baseline | None, statistic: str, limits: Limits, name: str) -> DriftResult:
    given = window.statistics.get(statistic, np.zeros(0, np.float32))
    given = given[np.isfinite(given)]
    usual = np.asarray(reference.statistics[statistic] if reference is not None else [], np.float32)
    usual = usual[np.isfinite(usual)]
    blank = DriftResult(statistic, "input", name, len(given), len(usual), limits.ks)
    if min(len(given), len(usual)) < limits.minimum_predictions:
        return blank
    outcome = statistics.kolmogorov_smirnov(given, usual)
    return replace(
        blank,
        statistic=outcome.statistic,
        p_value=outcome.p_value,
        effect=outcome.statistic,
        detail=f"median {_number(np.median(usual))} -> {_number(np.median(given))}",
    )


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    """True when one is true, None when none could be given."""
    given = [verdict for verdict in verdicts if verdict is not None]
    return any(given) if given else None


_HEADER = ("window", "metric", "verdict", "effect", "least", "p (corrected)", "n", "what changed")
_LEFT = (True, True, True, False, False, False, False, True)


def _cells(result: DriftResult) -> tuple[str, ...]:
    return (
        result.window,
        result.metric if result.family == "model" else f"input: {result.metric}",
        result.status.replace("_", " "),
        "-" if result.effect is None else f"{result.effect:.3f}",
        f"{result.minimum_effect:g}",
        "-" if result.corrected_p_value is None else p_text(result.corrected_p_value),
        f"{result.n:,}",
        result.detail,
    )


def p_text(p_value: float) -> str:
    """A p-value as people like to read it.

    >>> p_text(0.0312), p_text(3e-40), p_text(0)
    ('0.031', '3e-40', '< 1e-300')
    """
    return "< 1e-300" if p_value < 1e-300 else f"{p_value:.2g}"


def _number(value: Any) -> str:
    return f"{float(value):.3g}" if math.isfinite(value) else "-"


def _pad(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)
