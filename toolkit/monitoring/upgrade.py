"""Bring the tables of an earlier version up to this one, within one transaction."""

import json
from collections.abc import Mapping

import numpy as np
import sqlalchemy as sa

from toolkit.monitoring import schema


def upgrade(connection: sa.Connection) -> None:
    """Make version 2 out of version 1 in SQLite, the only kind of database that version 1 was meant for.

    Version 1 held input statistics as JSON in each row, labels by the id of their prediction, and no blocks.
    """
    names = _statistics(connection)
    _add_columns(connection)
    for number, known in names.items():
        connection.exec_driver_sql("UPDATE models SET statistics = ? WHERE number = ?", (json.dumps(known), number))
    for index in ("predictions_of_a_model", "labels_of_a_prediction"):
        connection.exec_driver_sql(f"DROP INDEX {index}")
    for table in ("predictions", "labels"):
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO old_{table}")
    schema.create(connection)
    _copy(connection, names)
    for table in ("labels", "predictions"):
        connection.exec_driver_sql(f"DROP TABLE old_{table}")


def _statistics(connection: sa.Connection) -> dict[int, list[str]]:
    """The names of the statistics of each model, in the order in which they came."""
    found = connection.exec_driver_sql(
        "SELECT predictions.model, entry.key FROM predictions, json_each(predictions.statistics) AS entry "
        "GROUP BY 1, 2 ORDER BY min(predictions.sequence), min(entry.id)"
    )
    names: dict[int, list[str]] = {}
    for model, name in found:
        names.setdefault(model, []).append(name)
    return names


def _add_columns(connection: sa.Connection) -> None:
    for table in (schema.models, schema.alerts):
        there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                text = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {text}")


def _copy(connection: sa.Connection, names: Mapping[int, list[str]]) -> None:
    def packed(model: int, text: str | None) -> bytes | None:
        if not text:
            return None
        values = json.loads(text)
        return np.array([values.get(name, np.nan) for name in names[model]], "<f4").tobytes()

    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101  # it is open: this is within a transaction
    driver.create_function("packed", 2, packed)
    connection.exec_driver_sql(
        "INSERT INTO predictions (sequence, id, time, model, predicted, confidence, probabilities, statistic_values, "
        "latency_ms) SELECT sequence, id, time, model, predicted, confidence, probabilities, "
        "packed(model, statistics), latency_ms FROM old_predictions ORDER BY sequence"
    )
    connection.exec_driver_sql(
        "INSERT INTO labels (number, prediction, model, time, label, source) "
        "SELECT told.number, made.sequence, made.model, told.time, told.label, told.source "
        "FROM old_labels AS told JOIN predictions AS made ON made.id = told.prediction ORDER BY told.number"
    )
