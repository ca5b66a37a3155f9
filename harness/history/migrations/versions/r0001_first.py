"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make runs, labels, series, cases, documents, samples, baselines and policies."""
    op.create_table(
        "harness_runs",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("created", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("harness", sa.Text, nullable=False),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("hostname", sa.Text, nullable=False),
        sa.Column("commit", sa.Text, nullable=False),
        sa.Column("branch", sa.Text, nullable=False),
        sa.Column("wall_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_harness_runs"),
    )
    op.create_index("ix_harness_runs_created", "harness_runs", ["created"])
    op.create_table(
        "harness_labels",
        _run_id("harness_labels"),
        sa.Column("label", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run", "label", name="pk_harness_labels"),
    )
    op.create_index("ix_harness_labels_label", "harness_labels", ["label"])
    op.create_table(
        "harness_series",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_harness_series"),
    )
    op.create_table(
        "harness_cases",
        _run_id("harness_cases"),
        sa.Column("number", sa.Integer, nullable=False),
        _series_id("harness_cases"),
        sa.Column("created", sa.Text, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("version", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("latency_ns", sa.Double),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run", "number", name="pk_harness_cases"),
    )
    op.create_index("ix_harness_cases_created", "harness_cases", ["created"])
    op.create_index("ix_harness_cases_series_created", "harness_cases", ["series", "created"])
    op.create_index("ix_harness_cases_backend_version_created", "harness_cases", ["backend", "version", "created"])
    op.create_table(
        "harness_documents",
        _run_id("harness_documents"),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("run", name="pk_harness_documents"),
    )
    op.create_table(
        "harness_samples",
        _run_id("harness_samples"),
        sa.Column("workload", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("run", "workload", name="pk_harness_samples"),
    )
    op.create_table(
        "harness_baselines",
        _series_id("harness_baselines"),
        _run_id("harness_baselines"),
        sa.Column("set_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("series", name="pk_harness_baselines"),
    )
    op.create_index("ix_harness_baselines_run", "harness_baselines", ["run"])
    op.create_table(
        "harness_policies",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_harness_policies"),
    )


def _run_id(table: str) -> sa.Column[str]:
    key = sa.ForeignKey("harness_runs.id", name=f"fk_{table}_run", ondelete="CASCADE")
    return sa.Column("run", sa.Text, key, nullable=False)


def _series_id(table: str) -> sa.Column[str]:
    return sa.Column("series", sa.Text, sa.ForeignKey("harness_series.id", name=f"fk_{table}_series"), nullable=False)
