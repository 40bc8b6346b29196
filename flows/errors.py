"""A user's mistake is one line and exit code 2; only our own mistakes show a traceback."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from boss_core.errors import InputError, lacks_memory
from flows.extras import extra_of, install


@contextmanager
def reported() -> Iterator[None]:
    """Turn InputError, a full disk, a place that cannot be read or written, a lack of memory and a
    package of an extra that is not installed into a line on stderr and exit code 2."""
    try:
        yield
    except InputError as error:
        _exit(str(error))
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        _exit(f"{error.name} is not installed; {install(extra)}")
    except OSError as error:
        if error.errno in _PLACES and error.filename is not None:
            reason = os.strerror(error.errno).lower()
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                reason += "; a place that may be read and written needed"
            _exit(f"{os.fspath(error.filename)}: {reason}")
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not _full_disk(error):
            raise
        _exit(f"{error.filename or 'output'}: no space left on the disk; free some and run again")
    except Exception as error:
        if _full_disk(error):
            _exit("output: no space left on the disk; free some and run again")
        if not lacks_memory(error):
            raise
        message = " ".join(str(error).split())[:160]
        _exit(f"memory: {message or 'not enough'}; fewer samples, or a smaller batch, needed")


# What is wrong with a path that a user named.
_PLACES = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EIO,
}  # fmt: skip


def _full_disk(error: Exception) -> bool:
    """Libraries that write by themselves have errors of their own for it: safetensors, torch and
    numpy."""
    said = " ".join(map(str, error.args))  # an OSError with a file name shows no more than that
    return (
        "(os error 28)" in said
        or "PytorchStreamWriter failed writing" in said
        or (isinstance(error, OSError) and " requested and " in said and said.endswith(" written"))
    )


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(2)
