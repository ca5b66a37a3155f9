"""The tables. A change here needs a migration beside it: a test holds the two together.

harness_runs       one row a run
harness_labels     names of a run
harness_series     what makes cases comparable, one row a series
harness_cases      one row a case of a run: its figures
harness_documents  run.json without samples, compressed
harness_samples    the launches of one workload, compressed; what a policy may remove
harness_baselines  the run that a series is held against
harness_policies   what is kept for how long
"""

from __future__ import annotations

import sqlalchemy as sa

REVISION = "0001"
"""The newest migration."""
VERSION_TABLE = "harness_schema"

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)


def _run_id(*, primary: bool = False) -> sa.Column[str]:
    return sa.Column(
        "run",
        sa.Text,
        sa.ForeignKey("harness_runs.id", ondelete="CASCADE"),
        primary_key=primary,
        nullable=False,
    )


runs = sa.Table(
    "harness_runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("created", sa.Text, nullable=False),  # ISO 8601, UTC: sorts as it is, and reads the same everywhere
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("harness", sa.Text, nullable=False),
    sa.Column("command", sa.Text, nullable=False),
    sa.Column("hostname", sa.Text, nullable=False),
    sa.Column("commit", sa.Text, nullable=False),
    sa.Column("branch", sa.Text, nullable=False),
    sa.Column("wall_s", sa.Double, nullable=False),
    sa.Index(None, "created"),
)

labels = sa.Table(
    "harness_labels",
    metadata,
    _run_id(primary=True),
    sa.Column("label", sa.Text, primary_key=True),
    sa.Index(None, "label"),
)

series = sa.Table(
    "harness_series",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
)

cases = sa.Table(
    "harness_cases",
    metadata,
    _run_id(primary=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("series", sa.Text, sa.ForeignKey("harness_series.id"), nullable=False),
    sa.Column("created", sa.Text, nullable=False),  # of the run: what the newest cases are found by, without a join
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("version", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("latency_ns", sa.Double),
    sa.Column("detail", sa.Text, nullable=False),  # JSON of `harness.history.points.Point`
    sa.Index(None, "created"),
    sa.Index(None, "series", "created"),
    sa.Index(None, "backend", "version", "created"),
)

documents = sa.Table(
    "harness_documents",
    metadata,
    _run_id(primary=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

samples = sa.Table(
    "harness_samples",
    metadata,
    _run_id(primary=True),
    sa.Column("workload", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

baselines = sa.Table(
    "harness_baselines",
    metadata,
    sa.Column("series", sa.Text, sa.ForeignKey("harness_series.id"), primary_key=True),
    _run_id(),
    sa.Column("set_at", sa.Text, nullable=False),
    sa.Index(None, "run"),
)

policies = sa.Table(
    "harness_policies",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
