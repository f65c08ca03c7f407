"""How alembic reaches the survey's database: `resources.database.Database.migrate` hands its engine over."""

from alembic import context
from sqlalchemy import text

from resources.tables import metadata

engine = context.config.attributes["engine"]
with engine.connect().execution_options(panoramic_write=True) as connection:
    if connection.dialect.name == "sqlite":
        # with the pragma on, a batch migration of a parent table fails or deletes its children; inside a transaction
        # the pragma does nothing, and SQLAlchemy begins one at each statement: so it goes to the driver itself
        driver = connection.connection.driver_connection
        driver.execute("PRAGMA foreign_keys=OFF")
        if driver.execute("PRAGMA foreign_keys").fetchone() != (0,):
            raise RuntimeError("foreign keys can't be switched off for the migration: a transaction is open")
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True)
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(2514)"))
        context.run_migrations()
        if connection.dialect.name == "sqlite":
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if broken:
                raise RuntimeError(f"the migration broke foreign keys: {broken}")
    connection.commit()
    if connection.dialect.name == "sqlite":
        connection.invalidate()  # the next connection has the pragma on again
