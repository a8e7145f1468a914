"""Versions as text: tables on a terminal, and the description on MLflow's page."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import Card
from toolkit.cli import terminal
from toolkit.registry.versions import Version

if TYPE_CHECKING:  # half a second of import that only comparisons need
    import pandas as pd

MAX_CLASSES = 10  # named in a description
# Columns of a comparison with an interval in _low and _high.
INTERVALS = ("accuracy", "precision_weighted", "recall_weighted", "f1_weighted", "difference")


def version_description(card: Card, baseline: Baseline, choice: str, run: str) -> str:
    """The description of a version on MLflow's page, in Markdown: ``choice`` says why the run was chosen."""
    classes = ", ".join(card.classes[:MAX_CLASSES]) + (", ..." if len(card.classes) > MAX_CLASSES else "")
    measured = [f"{name} {item.value:.4g} ({item.images} images)" for name, item in sorted(card.metrics.items())]
    settings = ", ".join(f"{name} {number_text(value)}" for name, value in sorted(card.settings.items()))
    lines = {
        "network": f"{card.network} at {card.image_size} px",
        "settings": settings or "none recorded",
        "classes": f"{len(card.classes)} ({classes})",
        "data": f"{card.data.get('name', 'unknown')}, fingerprint {card.data.get('fingerprint', 'unknown')}",
        "held out": f"{baseline.size} images, accuracy {baseline.accuracy:.4g}",
        "measured": "; ".join(measured) or "nothing",
        "chosen by": choice,
        "run": run,
        "code": card.code_version,
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


def version_table(versions: Iterable[Version]) -> str:
    """One line a version."""
    headings = ["version", "stage", "accuracy", "chosen by", "created", "run"]
    rows = []
    for version in versions:
        chosen = version.tags.get("selected_by", "")
        rows.append(
            [
                f"v{version.version}",
                version.stage,
                number_text(version.metrics.get("accuracy")),
                f"{chosen} {number_text(version.metrics.get(chosen))}".strip(),
                f"{version.created:%Y-%m-%d %H:%M}",
                version.run_id,
            ]
        )
    return terminal.table(headings, rows)


def version_text(version: Version) -> str:
    """Everything about one version."""
    rows = [
        ["version", f"v{version.version} of {version.name}"],
        ["stage", version.stage],
        ["aliases", ", ".join(version.aliases) or "none"],
        ["created", f"{version.created:%Y-%m-%d %H:%M:%S} UTC"],
        ["run", version.run_id],
        ["model", version.model_id],
        ["digest", version.digest or "none"],
        *([name, number_text(value)] for name, value in sorted(version.metrics.items())),
    ]
    gates = [f"gate, {entry.time:%Y-%m-%d %H:%M:%S}: {entry.gate}" for entry in version.transitions if entry.gate]
    return "\n\n".join(filter(None, [terminal.table(rows[0], rows[1:]), version.description, *gates]))


def comparison_table(table: "pd.DataFrame") -> str:
    """The table of ``comparison_frame`` with versions as columns, since it has more metrics than a line holds."""
    table = table.astype(object).where(table.notna(), None)
    special = {
        "created": [f"{created:%Y-%m-%d %H:%M}" for created in table["created"]],
        "size_mb": [f"{size:.2f}" for size in table["size_mb"]],
        **{name: [_with_bounds(row, name) for _, row in table.iterrows()] for name in INTERVALS},
    }
    bounds = [f"{name}_{side}" for name in INTERVALS for side in ("low", "high")]
    measured = [name for name in table.columns.drop(bounds) if not table[name].isna().all()]
    rows = [[name, *special.get(name, [number_text(value) for value in table[name]])] for name in measured]
    return terminal.table(["", *(f"v{version}" for version in table.index)], rows)


def _with_bounds(row: "pd.Series", name: str) -> str:
    value, low, high = (number_text(row[column]) for column in (name, f"{name}_low", f"{name}_high"))
    return f"{value} [{low}, {high}]" if value else ""


def number_text(value: Any) -> str:
    """A value in a table; empty for a missing one.

    >>> number_text(0.98765), number_text(300), number_text(None), number_text(float("nan"))
    ('0.9877', '300', '', '')
    """
    if value is None or value != value:  # NaN
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
