"""Checkpoints of alert evaluation, written in one transaction with the alerts, so that each is raised once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from toolkit.monitoring.alerting.evaluator import Transition
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.store.alerts import Alert, select_alerts
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import PredictionStore
from toolkit.monitoring.store.schema import alerts, checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """A position in the stream of a model version, and the state that further alerts depend on.

    Parameters
    ----------
    position
        Predictions and labels processed.
    sequence, label
        Numbers of the last prediction and the last label among them.
    epoch
        Grows when another version goes into service, which clears the alerts of this one.
    thresholds
        Those of the process that logs.
    state
        From ``AlertEvaluator.state``.
    """

    position: int = 0
    sequence: int = 0
    label: int = 0
    epoch: int = 0
    thresholds: Thresholds | None = None
    state: Mapping[str, Any] | None = None


def load(store: PredictionStore, model: ModelVersion) -> Checkpoint:
    """The checkpoint of a version; one at position 0 when nothing was evaluated yet."""
    rows = store.database.fetch_all(sa.select(checkpoints).where(checkpoints.c.model == store.versions.number(model)))
    if not rows:
        return Checkpoint()
    row = rows[0]
    saved = json.loads(row.thresholds)
    thresholds = Thresholds(**saved | {"ignore": tuple(saved["ignore"])})
    state = json.loads(row.state)
    if state.pop("epoch") != row.epoch:  # cleared since it was saved
        state["active"] = []
    return Checkpoint(row.position, row.sequence, row.label, row.epoch, thresholds, state)


def locate(store: PredictionStore, model: ModelVersion) -> tuple[int, int]:
    """Position and epoch of the checkpoint of a version, without reading the rest."""
    key = checkpoints.c.model == store.versions.number(model)
    rows = store.database.fetch_all(sa.select(checkpoints.c.position, checkpoints.c.epoch).where(key))
    return (int(rows[0].position), int(rows[0].epoch)) if rows else (0, 0)


def commit(
    store: PredictionStore, model: ModelVersion, checkpoint: Checkpoint, transitions: Sequence[Transition], now: float
) -> list[tuple[Transition, Alert]] | None:
    """Write the changes of alerts and the checkpoint in one transaction; return these changes, each with its alert.

    Changes that another process has written already, having evaluated the same predictions and labels, are left out.
    None is returned when the epoch of the checkpoint has passed.
    """
    number = store.versions.number(model)
    if number is None:
        return []
    sources = [
        store.sources_about(model, *transition.key, transition.sequence, transition.label)
        if transition.change.event in ("raised", "escalated")
        else []
        for transition in transitions
    ]
    with store.database.writing() as connection:
        found = connection.execute(
            sa.select(checkpoints.c.position, checkpoints.c.epoch).where(checkpoints.c.model == number)
        ).first()
        position, epoch = (found.position, found.epoch) if found else (0, 0)
        if epoch != checkpoint.epoch:
            return None
        written = [
            (transition, _apply(connection, number, transition, about, now))
            for transition, about in zip(transitions, sources, strict=True)
            if transition.position > position
        ]
        if found is None:
            connection.execute(checkpoints.insert().values(model=number, **_columns(checkpoint)))
        elif checkpoint.position > position:
            connection.execute(checkpoints.update().where(checkpoints.c.model == number).values(**_columns(checkpoint)))
    return [(transition, alert) for transition, alert in written if alert is not None]


def _columns(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "position": checkpoint.position,
        "sequence": checkpoint.sequence,
        "label": checkpoint.label,
        "epoch": checkpoint.epoch,
        "thresholds": json.dumps(asdict(checkpoint.thresholds or Thresholds())),
        "state": json.dumps({**(checkpoint.state or {}), "epoch": checkpoint.epoch}),
    }


def _apply(
    connection: sa.Connection, model: int, transition: Transition, sources: Sequence[str], now: float
) -> Alert | None:
    """Write one change; return the alert after it, or before it when it cleared."""
    metric, window = transition.key
    same = (
        alerts.c.model == model,
        alerts.c.metric == metric,
        alerts.c.window == window,
        alerts.c.cleared_at.is_(None),
    )
    (event, level, status), finding = transition.change, transition.finding
    before = _read(connection, *same)
    if event != "reminder":
        connection.execute(alerts.update().where(*same).values(cleared_at=transition.time))
    if event in ("raised", "escalated"):
        alert = Alert(
            time=transition.time, metric=metric, window=window, level=level, status=status, value=finding.value or 0.0,
            message=finding.alert_text(level), details=finding.text.details, notified_at=now, sources=tuple(sources),
        )  # fmt: skip
        connection.execute(alerts.insert().values(model=model, **alert.to_row()))
        return _read(connection, *same)
    return before


def _read(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> Alert | None:
    row = connection.execute(select_alerts(*which).limit(1)).first()
    return Alert.from_row(row) if row else None
