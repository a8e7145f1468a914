"""Metrics and alerts as text for a terminal."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from toolkit.monitoring.base import formatting
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.performance_estimation import EstimatedAccuracy
from toolkit.monitoring.store.alerts import Alert
from toolkit.monitoring.windows.metrics import WindowMetrics

SHOWN_CLASSES = 5


def metrics_text(metrics: WindowMetrics) -> list[str]:
    """The metrics of a window as lines of text."""
    shares = sorted(metrics.class_shares.items(), key=lambda item: -item[1])[:SHOWN_CLASSES]
    latency, note = metrics.latency_ms, metrics.labels_used.note if metrics.labels_used else ""
    lines = {
        "predictions": f"{metrics.n:,} from {_moment(metrics.since)} to {_moment(metrics.until)}",
        "labels": f"{metrics.n_labels:,}{f'; {note}' if note else ''}",
        "accuracy": _with_interval(metrics.accuracy, metrics.accuracy_interval),
        "estimated accuracy": _estimate(metrics.estimate),
        "reference": f"{_share(metrics.reference_accuracy)} on {metrics.reference_n:,} held-out images",
        "degradation": f"{_drop(metrics)}: {metrics.level or 'unknown'} ({metrics.status.replace('_', ' ')})",
        "precision": _with_interval(metrics.precision_weighted, metrics.precision_weighted_interval),
        "recall": _with_interval(metrics.recall_weighted, metrics.recall_weighted_interval),
        "F1": _with_interval(metrics.f1_weighted, metrics.f1_weighted_interval),
        "calibration error": _with_interval(metrics.calibration_error, metrics.calibration_error_interval),
        "mean confidence": _share(metrics.mean_confidence),
        "classes": ", ".join(f"{name} {share:.1%}" for name, share in shares),
        "not finite": f"{metrics.non_finite:,}",
        "latency": f"median {_milliseconds(latency.median)}, 95 % below {_milliseconds(latency.p95)}",
    }
    title = f"Model version {metrics.model_version}, {metrics.window} window"
    return [title, "", *(f"{name + ':':<22} {text}" for name, text in lines.items())]


class Headline(NamedTuple):
    """The worst level that is known, its status, and the reason as a sentence; prints as a line.

    >>> print(Headline("critical", "confirmed", "ACCURACY 84 -> 66 %"))
    CRITICAL (confirmed): ACCURACY 84 -> 66 %
    """

    level: str
    status: str
    reason: str

    def __str__(self) -> str:
        status = f" ({self.status})" if self.status else ""
        return f"{self.level.upper()}{status}: {self.reason}"


def headline(active: Sequence[Alert], metrics: WindowMetrics, drifted: bool | None) -> Headline:
    """The worst of the active alerts, the degradation of a window, and its drift tests; ``drifted`` is their result."""
    known = [Headline(alert.level, alert.status, alert.message) for alert in active]
    if (
        metrics.level is not None and metrics.level != "ok" and metrics.status == "confirmed"
    ):  # suspicions may be chance
        reason = f"in the {metrics.window} window accuracy is lower by {_drop(metrics)}"
        known.append(Headline(metrics.level, metrics.status, reason))
    if drifted:
        reason = f"the {metrics.window} window has drifted: see the tests below"
        known.append(Headline("warning", "estimate", reason))
    if not known:
        few = "; there are too few labels to know the accuracy" if metrics.level is None else ""
        return Headline("ok", "", f"no alert is active{few}")
    return max(known, key=lambda one: (Thresholds.severity(one.level), one.status == "confirmed"))


def alerts_text(found: Sequence[Alert]) -> str:
    """Alerts, each with its message and details."""
    return "\n".join(map(_alert, found)) if found else "No alerts."


def _alert(alert: Alert) -> str:
    more = [f"cleared {_moment(alert.cleared_at)}"] if alert.cleared_at else []
    if alert.acknowledged_at:
        more.append(f"acknowledged{' by ' + alert.acknowledged_by if alert.acknowledged_by else ''}")
    where = ", ".join([f"{alert.metric} of version {alert.model_version}, {alert.window} window", *more])
    grade = f"{alert.level.upper()} ({alert.status})"
    lines = [alert.message, *(f"  {line}" for line in alert.details.splitlines())]
    first = f"{_moment(alert.time)}  {grade}  {where}  [{alert.id}]"
    return "\n".join([first, *(f"  {line}" for line in lines)])


def _drop(metrics: WindowMetrics) -> str:
    """The drop by the labels; ``none`` instead of a negative one."""
    drop, certain = metrics.degradation, metrics.degradation_lower_bound or 0.0
    if drop is None:
        return "-"
    sure = f", at least {formatting.percent_floor(certain)} certain" if certain >= formatting.MIN_SHARE else ""
    return f"{_share(drop)}{sure}" if drop > 0 else "none"


def _estimate(estimate: EstimatedAccuracy | None) -> str:
    if estimate is None or estimate.accuracy is None:
        return "-"
    text = f"{_with_interval(estimate.accuracy, estimate.accuracy_interval)}, without labels"
    return f"{text}; {estimate.note}" if estimate.note else text


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    low, high = interval or (None, None)
    return f"{_share(value)} (95 % interval {_share(low)} to {_share(high)})" if low is not None else "-"


def _moment(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds is not None else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} ms"
