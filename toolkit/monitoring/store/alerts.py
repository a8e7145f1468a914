"""Active and cleared alerts in the store. Of several processes that find the same, one writes it."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import sqlalchemy as sa

from toolkit.monitoring.store.database import Database
from toolkit.monitoring.store.model_versions import ModelVersion, ModelVersions
from toolkit.monitoring.store.schema import alerts, checkpoints, models


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An alert as it is in the store.

    Parameters
    ----------
    id
        Its number in the store; 0 before it is there.
    time
        When it was raised.
    metric, window
        What it is about: ``accuracy`` or another metric, in the ``short`` or ``medium`` window, or in ``none``.
    level
        ``warning``, ``critical`` or ``immediate``.
    status
        ``confirmed``, ``suspected`` or ``estimate``.
    value
        Size of the change.
    message, details
        What happened, in one line, and the numbers behind it, one a line.
    cleared_at
        None while it is active.
    notified_at
        When the last notification of it was sent.
    acknowledged_at, acknowledged_by
        When it was acknowledged, and the name that was given; None before that.
    sources
        Names of a few images that it is about, if they were logged with names.

    Times are in seconds since 1970.
    """

    id: int = 0
    time: float
    metric: str
    window: str
    level: str
    status: str
    value: float
    message: str
    details: str = ""
    cleared_at: float | None = None
    notified_at: float | None = None
    acknowledged_at: float | None = None
    acknowledged_by: str | None = None
    sources: tuple[str, ...] = ()
    model_version: str = ""

    @classmethod
    def from_row(cls, row: sa.Row[Any]) -> Self:
        """The alert that a row of ``select_alerts`` holds."""
        return cls(**{**row._mapping, "sources": tuple(row.sources)})

    def to_row(self) -> dict[str, Any]:
        """The columns of an alert, without its id and its model."""
        row = self.to_dict()
        del row["id"], row["model_version"]
        return row | {"message": " ".join(self.message.splitlines())}

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self) | {"sources": list(self.sources)}


def select_alerts(*which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """A query for alerts, newest first, for ``Alert.from_row``."""
    columns = [column for column in alerts.c if column is not alerts.c.model]
    query = sa.select(*columns, models.c.version.label("model_version")).join(models)
    return query.where(*which).order_by(alerts.c.id.desc())


class Alerts:
    """The table of alerts on model versions."""

    def __init__(self, database: Database, versions: ModelVersions) -> None:
        self._database = database
        self._versions = versions

    def insert(self, model: ModelVersion, alert: Alert) -> bool:
        """Insert an alert unless the same one is active, and clear one of another level; return whether it was."""
        number = self._versions.number(model)
        same = (
            alerts.c.model == number,
            alerts.c.metric == alert.metric,
            alerts.c.window == alert.window,
            alerts.c.cleared_at.is_(None),
        )
        alike = alerts.c.level == alert.level, alerts.c.status == alert.status
        with self._database.writing() as connection:
            if connection.execute(sa.select(alerts.c.id).where(*same, *alike)).first() is not None:
                return False
            connection.execute(alerts.update().where(*same).values(cleared_at=alert.time))
            connection.execute(alerts.insert().values(model=number, **alert.to_row()))
        return True

    def update(self, alert_id: int, **values: float | str | None) -> bool:
        """Change fields of an alert, such as ``cleared_at``, while it is active; return whether it was."""
        active = alerts.c.id == alert_id, alerts.c.cleared_at.is_(None)
        with self._database.writing() as connection:
            return connection.execute(alerts.update().where(*active).values(**values)).rowcount > 0

    def clear_others(self, model: ModelVersion, time: float) -> int:
        """Clear the alerts of all other versions, as when this one goes into service; return how many."""
        others = alerts.c.model != self._versions.number(model), alerts.c.cleared_at.is_(None)
        touched = checkpoints.c.model.in_(sa.select(alerts.c.model).where(*others))
        with self._database.writing() as connection:
            connection.execute(checkpoints.update().where(touched).values(epoch=checkpoints.c.epoch + 1))
            return connection.execute(alerts.update().where(*others).values(cleared_at=time)).rowcount

    def claim_reminder(self, alert_id: int, notified_at: float | None, time: float) -> bool:
        """Record that a reminder of an active alert is sent now; return whether no other process has claimed it.

        Parameters
        ----------
        notified_at
            When the last notification was sent, as far as the caller knows.
        """
        due = alerts.c.id == alert_id, alerts.c.cleared_at.is_(None), alerts.c.notified_at == notified_at
        with self._database.writing() as connection:
            return connection.execute(alerts.update().where(*due).values(notified_at=time)).rowcount > 0

    def find(
        self, model: ModelVersion | None = None, since: float | None = None, *, active: bool = False
    ) -> list[Alert]:
        """Alerts of one version or of all, newest first: raised at or after a time, or not yet cleared."""
        query = select_alerts()
        if model is not None:
            query = query.where(alerts.c.model == self._versions.number(model))
        if since is not None:
            query = query.where(alerts.c.time >= since)
        if active:
            query = query.where(alerts.c.cleared_at.is_(None))
        return [Alert.from_row(row) for row in self._database.fetch_all(query)]
