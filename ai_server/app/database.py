"""A SQLite database that the server can start without, so that it still serves requests with a full disk."""

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCKED_SEC = 10  # how long to wait for another process's transaction

logger = logging.getLogger(__name__)


class Database:
    """A database file, opened at the start or, if that fails, at the next use.

    prepare: creates the tables on a new connection before anyone uses it. Raises sqlite3.DatabaseError if the file is
    not a database. Callers with several threads do their own locking.
    """

    def __init__(self, file: Path, prepare: Callable[[sqlite3.Connection], None]) -> None:
        self._file, self._prepare = file, prepare
        self._connection: sqlite3.Connection | None = None
        try:
            self.opened()
        except sqlite3.OperationalError as error:
            logger.error("a database cannot be opened yet", extra={"file": str(file), "error": str(error)})

    def opened(self) -> sqlite3.Connection:
        """Return the connection. Raises sqlite3.OperationalError while the file cannot be opened."""
        if self._connection is None:
            connection = sqlite3.connect(self._file, LOCKED_SEC, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit all statements of the block, or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
