"""Runs the steps on the connection, and in the transaction, that `harness.history.database` opened."""

from __future__ import annotations

from alembic import context

from harness.history.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,  # also in SQLite, where Alembic would not think so: all steps are one transaction
)
context.run_migrations()
