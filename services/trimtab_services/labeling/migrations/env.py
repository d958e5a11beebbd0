"""How Alembic runs the migrations: on the connection, and in the transaction, that the service gives."""

from __future__ import annotations

from alembic import context

from trimtab_services.labeling.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
