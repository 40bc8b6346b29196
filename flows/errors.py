"""A user's mistake is one line and exit code 2; only our own mistakes show a traceback."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from boss_core.errors import InputError


@contextmanager
def reported() -> Iterator[None]:
    """Turn InputError, a full disk and one that may not be written to into a line on stderr and
    exit code 2."""
    try:
        yield
    except InputError as error:
        _exit(str(error))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            reason = str(error.strerror).lower()
            _exit(f"{error.filename}: {reason}; a place that may be read and written needed")
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _exit(f"{error.filename or 'output'}: no space left on the disk; free some and run again")


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(2)
