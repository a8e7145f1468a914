"""Drift tests: whether a window differs from the reference, by how much, and how certainly."""

import html
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from toolkit.errors import SettingsError
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats import hypothesis_tests
from toolkit.monitoring.windows.label_bias import label_bias
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import WindowSummary
from toolkit.statistics.intervals import holm

HALF_PRECISION_STEP = 2.0**-11  # between float16 numbers just below 1, the resolution of a confidence
# Weights of the tests in Holm's correction, 1 for others: the softmax shows most kinds of shift and has half of alpha.
WEIGHTS = {"softmax_distribution": 4.0}
SHOWN_CLASSES = 3  # classes with the largest change of share, named in a result


@dataclass(frozen=True)
class DriftResult:
    """Result of one test of one window.

    Parameters
    ----------
    metric
        ``confidence_distribution``, ``prediction_distribution``, ``mean_confidence``,
        ``softmax_distribution``, ``accuracy``, or the name of an input statistic.
    family
        ``model`` for predictions, ``input`` for statistics of the images.
    window
        ``short``, ``medium`` or ``long``.
    n, n_reference
        Cases in the window and in the baseline.
    minimum_effect
        The effect below which a change is not drift.
    statistic, p_value
        Of the test; None while there is too little data.
    corrected_p_value
        After Holm's correction over the tests of the family.
    effect
        How large the change is: KS D, total variation, standard deviations, relative drop.
    drifted
        Whether the change is significant and at least the minimum effect; None while there is too little data.
    detail
        The change in words.
    psi
        Population stability index, another measure of the effect: 0.1 is some change, 0.25 a large one.
    n_effective
        Number of independent cases that the ``n`` of the window are equivalent to, fewer when similar images come in
        bursts; the p-value is computed with it.
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
    psi: float | None = None
    n_effective: float | None = None

    @property
    def status(self) -> str:
        """``drift``, ``no_drift`` or ``insufficient_data``."""
        return "insufficient_data" if self.drifted is None else "drift" if self.drifted else "no_drift"

    def to_dict(self) -> dict[str, Any]:
        """All fields and the ``status``, ready for JSON."""
        return asdict(self) | {"status": self.status}


@dataclass(frozen=True)
class DriftReport:
    """Results of the tests of one model version; prints as a table.

    Parameters
    ----------
    model_version
        None when no prediction was ever logged.
    alpha
        Chance of a false "drift" among all tests of a family.
    results
        Of all tests in all windows.
    """

    model_version: str | None
    alpha: float
    results: tuple[DriftResult, ...]

    @property
    def drifted(self) -> bool | None:
        """Whether the predictions have drifted; None while there is too little data."""
        return _any_or_none(result.drifted for result in self.results if result.family == "model")

    @property
    def input_drifted(self) -> bool | None:
        """Whether the images have drifted; None while there is too little data."""
        return _any_or_none(result.drifted for result in self.results if result.family == "input")

    def to_dict(self) -> dict[str, Any]:
        """The report, ready for JSON."""
        return {
            "model_version": self.model_version,
            "drifted": self.drifted,
            "input_drifted": self.input_drifted,
            "alpha": self.alpha,
            "results": [result.to_dict() for result in self.results],
        }

    def __str__(self) -> str:
        """The report as a table."""
        rows = [_HEADER, *map(_cells, self.results)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        lines = [
            "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, _ALIGNED, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([self._headline(), "", *lines])

    def _repr_html_(self) -> str:
        """The report as an HTML table, for notebooks."""
        colours = {"drift": "#c0392b", "no_drift": "#1e8449", "insufficient_data": "#7f8c8d"}

        def row(cells: Iterable[str], tag: str, style: str = "") -> str:
            inner = "".join(f"<{tag} style='text-align:left'>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr{style}>{inner}</tr>"

        body = [row(_cells(result), "td", f" style='color:{colours[result.status]}'") for result in self.results]
        return f"<p>{html.escape(self._headline())}</p><table>{''.join([row(_HEADER, 'th'), *body])}</table>"

    def _headline(self) -> str:
        if self.model_version is None:
            return "No predictions have been logged yet."
        answers = [result.drifted for result in self.results if result.drifted is not None]
        missing = len(self.results) - len(answers)
        waiting = f"; {missing} wait for more data" if missing else ""
        return f"Model version {self.model_version}: {sum(answers)} of {len(answers)} tests found drift{waiting}."


def run_tests(
    window: WindowSummary, bins: ReferenceBins, thresholds: Thresholds, name: str, alpha: float | None = None
) -> list[DriftResult]:
    """Run all tests on one window: of the predictions, then of each input statistic of the baseline.

    Parameters
    ----------
    window
        Counts of the window, made with ``bins``.
    bins
        With the reference, without which every result is ``insufficient_data``.
    thresholds
        Minimum effects and sample sizes.
    name
        Name of the window in the results.
    alpha
        Chance of a false "drift" in a family; ``thresholds.alpha`` when None.

    Examples
    --------
    >>> from toolkit.bundle.baseline import Baseline
    >>> from toolkit.monitoring.base.predictions import Predictions
    >>> sure = Baseline(("cat", "dog"), np.tile([0.9, 0.1], (200, 1)), np.zeros(200, int))
    >>> unsure = np.tile(np.array([0.6, 0.4], np.float16), (200, 1))
    >>> window = Predictions(("cat", "dog"), np.arange(200.0), np.zeros(200, int), unsure[:, 0].astype(np.float32),
    ...                 np.full(200, -1), probabilities=unsure)
    >>> bins = ReferenceBins(sure.classes, sure)
    >>> for result in run_tests(bins.count(window), bins, Thresholds(), "short"):
    ...     print(result.metric, result.status, result.detail)
    confidence_distribution drift median 0.9 -> 0.6
    prediction_distribution no_drift 'cat' 100.0% -> 100.0%, 'dog' 0.0% -> 0.0%
    mean_confidence drift mean 0.9 -> 0.6
    softmax_distribution drift most of all 'cat': above 0.899 in 100.0% -> 0.0%
    accuracy insufficient_data

    References
    ----------
    Rabanser, S., Guennemann, S. and Lipton, Z. C. (2019). Failing loudly: an empirical study of methods
    for detecting dataset shift. Advances in Neural Information Processing Systems 32.
    """
    if window.fingerprint != bins.fingerprint:
        raise SettingsError("the window was counted in other bins than those of the reference")
    comparison = _Comparison(window, bins, thresholds, name)
    families = comparison.test_predictions(), comparison.test_inputs()
    return [result for family in families for result in correct_and_decide(family, alpha or thresholds.alpha)]


def correct_and_decide(results: Iterable[DriftResult], alpha: float) -> list[DriftResult]:
    """Correct the p-values of one family by Holm's method, and decide which changes are drift."""
    results = list(results)
    tested = [result for result in results if result.p_value is not None]
    weights = [WEIGHTS.get(result.metric, 1.0) for result in tested]
    p_values = iter(holm([result.p_value or 0.0 for result in tested], weights))
    return [
        replace(
            result,
            corrected_p_value=(p_value := next(p_values)),
            drifted=p_value < alpha and (result.effect or 0.0) >= result.minimum_effect,
        )
        if result.p_value is not None
        else result
        for result in results
    ]


class _Comparison:
    """A window and the reference, with values that several tests need; a missing reference is empty.

    ``ks`` (Q,) is the KS statistic of each quantity, ``n`` and ``n_reference`` (Q,) are the numbers of its values,
    ``independent`` is the share of independent cases in the window. Each test fills in the result that it is given.
    """

    def __init__(self, now: WindowSummary, bins: ReferenceBins, thresholds: Thresholds, window: str) -> None:
        self.now, self.bins, self.thresholds, self.window = now, bins, thresholds, window
        self.reference = bins.reference or bins.empty()
        self.n, self.n_reference = (counts.n - counts.cells[bins.missing] for counts in (now, self.reference))
        sizes = np.diff(bins.starts)
        differences = now.cells / np.repeat(np.maximum(self.n, 1), sizes)
        differences -= self.reference.cells / np.repeat(np.maximum(self.n_reference, 1), sizes)
        differences[bins.missing] = 0
        differences[np.repeat((self.n == 0) | (self.n_reference == 0), sizes)] = 0
        self.ks = hypothesis_tests.ks_statistics(differences, bins.starts[:-1])
        self.independent = now.effective_n / now.n_finite if now.n_finite else 1.0

    def test_predictions(self) -> list[DriftResult]:
        """Results of the tests for which there are enough predictions or labels."""
        limits, size = self.thresholds, self.reference.n
        tests: dict[str, tuple[float, Callable[[DriftResult], DriftResult]]] = {
            "confidence_distribution": (limits.ks, lambda blank: self._ks(blank, 0)),
            "prediction_distribution": (limits.total_variation, self._classes),
            "mean_confidence": (limits.mean_shift, self._mean_confidence),
            "softmax_distribution": (limits.ks, self._softmax),
            "accuracy": (limits.warning, self._accuracy),
        }
        results = []
        for metric, (minimum, test) in tests.items():
            cases, needed = self.now.n_finite, limits.minimum_predictions
            if metric == "accuracy":
                cases, needed = self.now.n_labels, limits.minimum_labels
            blank = DriftResult(metric, "model", self.window, cases, size, minimum)
            results.append(test(blank) if min(cases, size) >= needed else blank)
        return results

    def test_inputs(self) -> list[DriftResult]:
        """Results of the tests of the input statistics of which there are enough values."""
        results = []
        for quantity, name in enumerate(self.bins.statistics, start=1 + len(self.bins.classes)):
            n, size = int(self.n[quantity]), int(self.n_reference[quantity])
            blank = DriftResult(name, "input", self.window, n, size, self.thresholds.ks)
            enough = min(n, size) >= self.thresholds.minimum_predictions
            results.append(self._ks(blank, quantity) if enough else blank)
        return results

    def _ks(self, blank: DriftResult, quantity: int) -> DriftResult:
        statistic, n = float(self.ks[quantity]), self.independent * float(self.n[quantity])
        before, now = (self.bins.quantile(counts, quantity, 0.5) for counts in (self.reference, self.now))
        groups, reference = self.bins.deciles[quantity]
        cells = np.bincount(groups, self.now.cells[self.bins.bin_slice(quantity)])
        return replace(
            blank,
            statistic=statistic,
            p_value=hypothesis_tests.ks_p_value(statistic, max(1.0, n), float(self.n_reference[quantity])),
            effect=statistic,
            detail=f"median {_number(before)} -> {_number(now)}",
            psi=hypothesis_tests.population_stability_index(cells, reference),
            n_effective=n,
        )

    def _softmax(self, blank: DriftResult) -> DriftResult:
        """The KS test of the class with the largest difference, Bonferroni over the classes."""
        k = len(self.bins.classes)
        if self.n[1] < self.thresholds.minimum_predictions:  # only classes and confidences were logged
            return blank
        worst = 1 + int(self.ks[1 : k + 1].argmax())
        result = self._ks(blank, worst)
        cells = self.bins.bin_slice(worst)
        upto = [np.cumsum(counts.cells[cells]) / counts.cells[cells].sum() for counts in (self.reference, self.now)]
        place = int(np.abs(upto[1] - upto[0]).argmax())  # where the two distributions differ most
        before, after = (1 - each[place] for each in upto)
        edge = f"above {_number(self.bins.values(worst)[place])} in {before:.1%} -> {after:.1%}"
        detail = f"most of all {self.bins.classes[worst - 1]!r}: {edge}"
        return replace(result, p_value=min(1.0, k * (result.p_value or 0.0)), detail=detail)

    def _classes(self, blank: DriftResult) -> DriftResult:
        now, reference, names = self.now.classes, self.reference.classes, self.bins.classes
        outcome = hypothesis_tests.chi_square(now * self.independent, reference)
        before, after = reference / reference.sum(), now / now.sum()
        changed = np.argsort(-np.abs(after - before), kind="stable")[:SHOWN_CLASSES]
        return replace(
            blank,
            statistic=outcome.statistic,
            p_value=outcome.p_value,
            effect=hypothesis_tests.total_variation(now, reference),
            detail=", ".join(f"{names[k]!r} {before[k]:.1%} -> {after[k]:.1%}" for k in changed),
            psi=hypothesis_tests.population_stability_index(now, reference),
            n_effective=self.now.effective_n,
        )

    def _mean_confidence(self, blank: DriftResult) -> DriftResult:
        now, reference = self.now.confidence._replace(n=self.now.effective_n), self.reference.confidence
        outcome, shift = hypothesis_tests.mean_shift(now, reference, HALF_PRECISION_STEP)
        return replace(
            blank,
            statistic=outcome.statistic,
            p_value=outcome.p_value,
            effect=abs(shift),
            detail=f"mean {_number(reference.mean)} -> {_number(now.mean)}",
            n_effective=now.n,
        )

    def _accuracy(self, blank: DriftResult) -> DriftResult:
        reference, sample = self.reference, label_bias(self.now, self.reference, self.thresholds)
        if sample is None or sample.effective_n < self.thresholds.minimum_labels:
            return blank
        counted = sample.best_case * sample.best_case_n, sample.best_case_n, reference.n_correct, reference.n
        outcome = hypothesis_tests.accuracy_drop_test(*counted)
        before, after = reference.n_correct / reference.n, sample.accuracy
        certain = hypothesis_tests.degradation_lower_bound(*counted, self.thresholds.confidence)
        sure = f", drop of at least {certain:.1%} certain" if certain >= 0.001 else ""
        note = f"; {sample.note}" if not sample.fair else ""
        return replace(
            blank,
            n=sample.n,
            statistic=outcome.statistic,
            p_value=outcome.p_value,
            effect=1 - after / before if reference.n_correct else 0.0,
            detail=f"{before:.1%} -> {after:.1%}{sure}{note}",
            n_effective=sample.effective_n,
        )


def _any_or_none(answers: Iterable[bool | None]) -> bool | None:
    """Whether any is True; None when all are None."""
    given = [answer for answer in answers if answer is not None]
    return any(given) if given else None


_HEADER = ("window", "metric", "result", "effect", "minimum", "p (corrected)", "n", "what changed")
_ALIGNED = "<<<>>>><"


def _cells(result: DriftResult) -> tuple[str, ...]:
    return (
        result.window,
        result.metric if result.family == "model" else f"input: {result.metric}",
        result.status.replace("_", " "),
        "-" if result.effect is None else f"{result.effect:.3f}",
        f"{result.minimum_effect:g}",
        "-" if result.corrected_p_value is None else format_p_value(result.corrected_p_value),
        f"{result.n:,}",
        result.detail,
    )


def format_p_value(p_value: float) -> str:
    """A p-value with two digits.

    >>> format_p_value(0.0312), format_p_value(3e-40), format_p_value(0)
    ('0.031', '3e-40', '< 1e-300')
    """
    return "< 1e-300" if p_value < 1e-300 else f"{p_value:.2g}"


def _number(value: Any) -> str:
    return f"{float(value):.3g}" if math.isfinite(value) else "-"
