"""A SQLite database that need not be there when the server starts: a full disk keeps nobody from being served."""

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCKED_SEC = 10  # how long another process's transaction is waited for

logger = logging.getLogger(__name__)


class Database:
    """A file, opened at the start if it can be, and else when it is next asked for.

    prepare: makes the tables of a connection that was just opened, before anybody has it. Raises
    sqlite3.DatabaseError for a file that is no database; users of several threads lock it themselves.
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
    """Commit what is done within, or none of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
