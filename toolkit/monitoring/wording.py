"""Figures and alerts as people read them in a terminal."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

SHOWN_CLASSES = 5


def figures(metrics: Mapping[str, Any]) -> list[str]:
    """The figures of a window as lines of text."""
    shares = sorted(metrics["class_shares"].items(), key=lambda item: -item[1])[:SHOWN_CLASSES]
    latency = metrics["latency_ms"]
    certain = max(0.0, metrics["degradation_lower_bound"] or 0.0)
    lines = {
        "predictions": f"{metrics['n']:,} from {_moment(metrics['since'])} to {_moment(metrics['until'])}",
        "labels": _labels(metrics),
        "accuracy": _with_interval(metrics, "accuracy"),
        "estimated accuracy": _estimate(metrics["estimate"]),
        "reference": f"{_share(metrics['reference_accuracy'])} on {metrics['reference_n']:,} held-out pictures",
        "degradation": f"{_share(metrics['degradation'])}, at least {certain:.1%} "
        f"certain: {metrics['level'] or 'unknown'} ({metrics['status'].replace('_', ' ')})",
        "precision": _with_interval(metrics, "precision_weighted"),
        "recall": _with_interval(metrics, "recall_weighted"),
        "F1": _with_interval(metrics, "f1_weighted"),
        "calibration error": _with_interval(metrics, "calibration_error"),
        "mean confidence": _share(metrics["mean_confidence"]),
        "classes": ", ".join(f"{name} {share:.1%}" for name, share in shares),
        "not finite": f"{metrics['non_finite']:,}",
        "latency": f"median {_milliseconds(latency['median'])}, 95 % below {_milliseconds(latency['p95'])}",
    }
    title = f"Model version {metrics['model_version']}, {metrics['window']} window"
    return [title, "", *(f"{name + ':':<22} {text}" for name, text in lines.items())]


def alerts(found: Sequence[Mapping[str, Any]]) -> str:
    """Alerts, each with what it says."""
    return "\n".join(map(_alert, found)) if found else "No alerts."


def _alert(alert: Mapping[str, Any]) -> str:
    more = [f"cleared {_moment(alert['cleared_at'])}"] if alert["cleared_at"] else []
    if alert["acknowledged_at"]:
        more.append(f"acknowledged{' by ' + alert['acknowledged_by'] if alert['acknowledged_by'] else ''}")
    where = ", ".join([f"{alert['metric']} of version {alert['model_version']}, {alert['window']} window", *more])
    grade = f"{alert['level'].upper()} ({alert['status']})"
    return f"{_moment(alert['time'])}  {grade}  {where}  [{alert['id']}]\n  {alert['message']}"


def _labels(metrics: Mapping[str, Any]) -> str:
    note = (metrics["label_sample"] or {}).get("note")
    return f"{metrics['n_labels']:,}{f'; {note}' if note else ''}"


def _estimate(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or estimate["accuracy"] is None:
        return "-"
    text = f"{_with_interval(estimate, 'accuracy')}, by no label"
    return f"{text}; {estimate['note']}" if estimate["note"] else text


def _with_interval(metrics: Mapping[str, Any], name: str) -> str:
    low, high = metrics[f"{name}_interval"] or (None, None)
    return f"{_share(metrics[name])} (95 % interval {_share(low)} to {_share(high)})" if low is not None else "-"


def _moment(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds is not None else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} ms"
