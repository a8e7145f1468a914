"""Active and cleared alerts in the store: of several processes that find the same, one writes it."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from toolkit.monitoring.database import Database
from toolkit.monitoring.models import Model, ModelVersions
from toolkit.monitoring.schema import alerts, checkpoints, models


class Alerts:
    """The table of alerts on model versions."""

    def __init__(self, database: Database, versions: ModelVersions) -> None:
        self._database = database
        self._versions = versions

    def insert(self, model: Model, alert: Mapping[str, Any]) -> bool:
        """Write an alert unless one like it is active; one of another level in its place is cleared.

        Returns
        -------
        bool
            Whether it was written: of several processes that find the same, one writes it.
        """
        number = self._versions.number(model)
        same = (
            alerts.c.model == number,
            alerts.c.metric == alert["metric"],
            alerts.c.window == alert["window"],
            alerts.c.cleared_at.is_(None),
        )
        alike = alerts.c.level == alert["level"], alerts.c.status == alert["status"]
        row = {**alert, "message": " ".join(alert["message"].splitlines())}
        with self._database.writing() as connection:
            if connection.execute(sa.select(alerts.c.id).where(*same, *alike)).first() is not None:
                return False
            connection.execute(alerts.update().where(*same).values(cleared_at=alert["time"]))
            connection.execute(alerts.insert().values(model=number, **row))
        return True

    def update(self, alert_id: int, **values: float | str | None) -> bool:
        """Change an alert while it is active; return whether it was.

        Parameters
        ----------
        values
            ``notified_at``, ``acknowledged_at``, ``acknowledged_by``, ``cleared_at``: seconds since 1970 and a name.
        """
        active = alerts.c.id == alert_id, alerts.c.cleared_at.is_(None)
        with self._database.writing() as connection:
            return connection.execute(alerts.update().where(*active).values(**values)).rowcount > 0

    def clear_others(self, model: Model, time: float) -> int:
        """Clear the alerts of all other versions, as when another one goes into service; return how many."""
        others = alerts.c.model != self._versions.number(model), alerts.c.cleared_at.is_(None)
        touched = checkpoints.c.model.in_(sa.select(alerts.c.model).where(*others))
        with self._database.writing() as connection:
            connection.execute(checkpoints.update().where(touched).values(epoch=checkpoints.c.epoch + 1))
            return connection.execute(alerts.update().where(*others).values(cleared_at=time)).rowcount

    def claim_reminder(self, alert_id: int, notified_at: float | None, time: float) -> bool:
        """Note that a reminder of an alert is sent; return whether no other process has claimed it meanwhile.

        Parameters
        ----------
        notified_at
            When the last notification was sent, as far as the caller knows.
        time
            Now, in seconds since 1970.
        """
        due = alerts.c.id == alert_id, alerts.c.cleared_at.is_(None), alerts.c.notified_at == notified_at
        with self._database.writing() as connection:
            return connection.execute(alerts.update().where(*due).values(notified_at=time)).rowcount > 0

    def find(
        self, model: Model | None = None, since: float | None = None, *, active: bool = False
    ) -> list[dict[str, Any]]:
        """Alerts of one model version or of all, newest first.

        Parameters
        ----------
        since
            Only those raised at or after this time, in seconds since 1970.
        active
            Only those that have not been cleared.
        """
        columns = [column for column in alerts.c if column is not alerts.c.model]
        query = sa.select(*columns, models.c.version.label("model_version")).join(models)
        if model is not None:
            query = query.where(alerts.c.model == self._versions.number(model))
        if since is not None:
            query = query.where(alerts.c.time >= since)
        if active:
            query = query.where(alerts.c.cleared_at.is_(None))
        return [dict(row._mapping) for row in self._database.fetch_all(query.order_by(alerts.c.id.desc()))]
