"""What a damaged, locked or unreachable archive, or a full disk, is called: one line that names it."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator

from llmnas.errors import RunError, UserError

_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_UNWRITTEN = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_REFUSED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
_DAMAGE = "not a readable archive of evaluations"


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """Turn what a damaged, locked or unreachable file, or a full disk, raises into one line that names it."""
    try:
        yield
    except OSError as error:
        raise _unreachable(path, error, full=error.errno in {errno.ENOSPC, errno.EDQUOT}) from None
    except sqlite3.ProgrammingError as error:  # the archive was closed
        raise RunError(f"{path}: {error}") from None
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # none where a check of ours failed
        if code in _LOCKED:
            line = f"{path}: locked by another process ({error}); try again when that has ended"
            raise RunError(line) from None
        if code in _UNWRITTEN | _REFUSED:
            raise _unreachable(path, error, full=code in _UNWRITTEN) from None
        raise UserError(f"{path}: {_DAMAGE} ({error}); move it away to start anew") from None
    except ValueError as error:
        raise UserError(f"{path}: {_DAMAGE} ({error}); move it away to start anew") from None


def _unreachable(path: str, error: Exception, full: bool) -> Exception:
    if full:
        return RunError(f"{path}: cannot be written ({error}); is the disk full?")
    return UserError(f"{path}: cannot be opened ({error}); choose a path that can be read and written")
