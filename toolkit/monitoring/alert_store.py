"""Alerts as they stand in the store: of several processes that see the same thing, one says so."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from toolkit.monitoring.models import Model, ModelStore
from toolkit.monitoring.schema import alerts, checkpoints, models


class AlertStore(ModelStore):
    """A database that holds alerts on model versions; parameters as of ``Database``."""

    def raise_alert(self, model: Model, alert: Mapping[str, Any]) -> bool:
        """Write an alert unless one like it stands; one of another level in its place is cleared.

        Returns
        -------
        bool
            Whether it was written: of several processes that see the same thing one says so.
        """
        number = self.number(model)
        same = (
            alerts.c.model == number,
            alerts.c.metric == alert["metric"],
            alerts.c.window == alert["window"],
            alerts.c.cleared_at.is_(None),
        )
        alike = alerts.c.level == alert["level"], alerts.c.status == alert["status"]
        row = {**alert, "message": " ".join(alert["message"].splitlines())}
        with self.writing() as connection:
            if connection.execute(sa.select(alerts.c.id).where(*same, *alike)).first() is not None:
                return False
            connection.execute(alerts.update().where(*same).values(cleared_at=alert["time"]))
            connection.execute(alerts.insert().values(model=number, **row))
        return True

    def note_alert(self, number: int, **values: float | str | None) -> bool:
        """Write down what became of an alert while it stands.

        Parameters
        ----------
        values
            ``notified_at``, ``acknowledged_at``, ``acknowledged_by``: seconds since 1970 and a name.

        Returns
        -------
        bool
            Whether it stood.
        """
        with self.writing() as connection:
            standing = alerts.c.id == number, alerts.c.cleared_at.is_(None)
            return connection.execute(alerts.update().where(*standing).values(**values)).rowcount > 0

    def clear_alert(self, number: int, time: float) -> bool:
        """Note that an alert no longer stands; return whether it did until now."""
        return self.note_alert(number, cleared_at=time)

    def clear_others(self, model: Model, time: float) -> int:
        """Clear the alerts of all other versions, as when another one goes into service; return how many stood."""
        others = alerts.c.model != self.number(model), alerts.c.cleared_at.is_(None)
        touched = checkpoints.c.model.in_(sa.select(alerts.c.model).where(*others))
        with self.writing() as connection:
            connection.execute(checkpoints.update().where(touched).values(epoch=checkpoints.c.epoch + 1))
            return connection.execute(alerts.update().where(*others).values(cleared_at=time)).rowcount

    def remind_of(self, number: int, notified_at: float | None, time: float) -> bool:
        """Note that people are told again of an alert; return whether nobody else has done so meanwhile.

        Parameters
        ----------
        notified_at
            When they were told last, as far as the caller knows.
        time
            Now, in seconds since 1970.
        """
        due = alerts.c.id == number, alerts.c.cleared_at.is_(None), alerts.c.notified_at == notified_at
        with self.writing() as connection:
            return connection.execute(alerts.update().where(*due).values(notified_at=time)).rowcount > 0

    def alerts(
        self, model: Model | None = None, since: float | None = None, *, standing: bool = False
    ) -> list[dict[str, Any]]:
        """Alerts of one model version or of all, newest first.

        Parameters
        ----------
        since
            Only those raised at or after this time, in seconds since 1970.
        standing
            Only those that have not been cleared.
        """
        columns = [column for column in alerts.c if column is not alerts.c.model]
        query = sa.select(*columns, models.c.version.label("model_version")).join(models)
        if model is not None:
            query = query.where(alerts.c.model == self.number(model))
        if since is not None:
            query = query.where(alerts.c.time >= since)
        if standing:
            query = query.where(alerts.c.cleared_at.is_(None))
        return [dict(row._mapping) for row in self.all(query.order_by(alerts.c.id.desc()))]
