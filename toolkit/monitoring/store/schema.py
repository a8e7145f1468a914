"""The tables of the store of predictions, the same in SQLite and in PostgreSQL."""

import secrets

import sqlalchemy as sa

VERSION = 1  # of these tables

_Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # only a plain INTEGER counts up by itself there

tables = sa.MetaData()

models = sa.Table(
    "models",
    tables,
    sa.Column("number", _Number, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("classes", sa.Text, nullable=False),  # JSON list of names, in output order
    sa.Column("baseline", sa.LargeBinary),  # an .npz file
    sa.Column("baseline_digest", sa.Text, nullable=False),  # empty without a baseline
    sa.Column("served_at", sa.Float),  # seconds since 1970; the largest is the version being served
    sa.Column("statistics", sa.Text, nullable=False, server_default="[]"),  # JSON list of names, only ever longer
    # A registry that was recreated counts from 1 again: two models may have the same name.
    sa.UniqueConstraint("version", "classes", "baseline_digest"),
)
predictions = sa.Table(
    "predictions",
    tables,
    sa.Column("sequence", _Number, primary_key=True),
    sa.Column("id", sa.BigInteger, nullable=False, unique=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("model", sa.ForeignKey(models.c.number), nullable=False),
    sa.Column("predicted", sa.Integer),  # index of the class; NULL where the probabilities are not finite
    sa.Column("confidence", sa.Float),
    sa.Column("probabilities", sa.LargeBinary, nullable=False),  # K float16, little-endian
    sa.Column("statistic_values", sa.LargeBinary),  # float32, little-endian, for the first of ``models.statistics``
    sa.Column("latency_ms", sa.Float),
    sa.Column("source", sa.Text),  # name of the image; NULL where it was not given
    sa.Index("predictions_of_a_model", "model", "sequence"),
    sqlite_autoincrement=True,  # a number is never given twice, also when the newest row was deleted
)
labels = sa.Table(
    "labels",
    tables,
    sa.Column("number", _Number, primary_key=True),  # the highest number of a prediction is its label
    sa.Column("prediction", sa.ForeignKey(predictions.c.sequence), nullable=False),
    sa.Column("model", sa.ForeignKey(models.c.number), nullable=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("label", sa.Integer, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("after", sa.BigInteger, nullable=False),  # the last prediction in the store, of any version, at that time
    sa.Index("labels_of_a_prediction", "prediction", "number"),
    sa.Index("labels_of_a_model", "model", "number"),
    sqlite_autoincrement=True,
)
drawn = sa.Table(  # predictions drawn at random to be labelled
    "drawn",
    tables,
    sa.Column("prediction", sa.BigInteger, primary_key=True, autoincrement=False),  # its sequence number
    sa.Column("time", sa.Float, nullable=False),  # when it was drawn
)
rollups = sa.Table(
    "rollups",
    tables,
    sa.Column("model", sa.ForeignKey(models.c.number), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),  # of its first 1,000 predictions, from 0
    sa.Column("n", sa.Integer, nullable=False),  # 1,000, or ten times as many for each time it was merged
    sa.Column("first", sa.BigInteger, nullable=False),  # sequence numbers, both included
    sa.Column("last", sa.BigInteger, nullable=False),
    sa.Column("since", sa.Float, nullable=False),  # the earliest and the latest time in it
    sa.Column("until", sa.Float, nullable=False),
    sa.Column("last_label", sa.BigInteger, nullable=False),  # the last label that could be counted in it
    sa.Column("stale", sa.Boolean, nullable=False),  # whether a label came after that
    sa.Column("has_rows", sa.Boolean, nullable=False),  # whether its predictions are still there
    sa.Column("counts", sa.LargeBinary, nullable=False),
    sa.Index("rollups_of_a_model", "model", "last"),
)
alerts = sa.Table(
    "alerts",
    tables,
    sa.Column("id", _Number, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("model", sa.ForeignKey(models.c.number), nullable=False),
    sa.Column("metric", sa.Text, nullable=False),
    sa.Column("window", sa.Text, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("message", sa.Text, nullable=False),  # one line
    sa.Column("details", sa.Text, nullable=False, server_default=""),  # further lines
    sa.Column("cleared_at", sa.Float),  # NULL while the alert is active
    sa.Column("notified_at", sa.Float),
    sa.Column("acknowledged_at", sa.Float),
    sa.Column("acknowledged_by", sa.Text),
    sa.Column("sources", sa.JSON, nullable=False, server_default="[]"),  # of some images that it is about
)
checkpoints = sa.Table(  # how far the alerts of each version follow from its predictions and labels
    "checkpoints",
    tables,
    sa.Column("model", sa.ForeignKey(models.c.number), primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),  # predictions and labels taken into account
    sa.Column("sequence", sa.BigInteger, nullable=False),  # the last prediction among them
    sa.Column("label", sa.BigInteger, nullable=False),  # the last label among them
    sa.Column("epoch", sa.Integer, nullable=False),  # grows when another version's service clears the alerts
    sa.Column("thresholds", sa.Text, nullable=False),  # JSON
    sa.Column("state", sa.Text, nullable=False),  # JSON, of detectors and alerts
)
schema_version = sa.Table(
    "schema_version",
    tables,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),  # differs from that of another store at the same address
)


def create(connection: sa.Connection) -> None:
    """Create the missing tables, and record their version."""
    tables.create_all(connection)
    if connection.execute(sa.select(schema_version.c.version)).first() is None:
        connection.execute(schema_version.insert().values(version=VERSION, name=secrets.token_hex(8)))


def version(connection: sa.Connection) -> int:
    """The version of the existing tables; 0 when there are none."""
    if not sa.inspect(connection).has_table(schema_version.name):
        return 0
    return int(connection.execute(sa.select(schema_version.c.version)).scalar() or 0)
