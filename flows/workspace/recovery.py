"""Files of DVC's own that a kill can leave cut short, and that would stop every later run."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from boss_core.errors import InputError
from flows.workspace.dvc_lock import LOCK, CutShortError, read_lock

RWLOCK = Path(".dvc/tmp/rwlock")
PATIENCE = 1.0  # seconds; DVC writes either in a moment, and not at once


def set_aside_cut_short(root: Path) -> None:
    """Take ``dvc.lock`` and DVC's list of who reads and writes what out of the way, where they are
    cut short, and say so. The first is kept under another name; what DVC's cache has, DVC
    restores. The list is of processes that are running, and removed.

    InputError where git has left a conflict in ``dvc.lock``: its two sides are somebody's work."""
    lock, processes = root / LOCK, root / RWLOCK
    if _stays_cut_short(lock, lambda content: read_lock(content, lock)):
        aside = lock.with_name(f"{LOCK}.cut-short")
        lock.replace(aside)
        print(
            f"{lock}: cut short, as a kill leaves it; moved to {aside.name}, and what is in DVC's"
            " cache is restored",
            file=sys.stderr,
        )
    if _stays_cut_short(processes, json.loads):
        processes.unlink(missing_ok=True)
        print(f"{processes}: cut short, as a kill leaves it; removed", file=sys.stderr)


def _stays_cut_short(path: Path, read: Callable[[bytes], object]) -> bool:
    if not _cut_short(path, read):
        return False
    time.sleep(PATIENCE)  # it may be being written right now
    return _cut_short(path, read)


def _cut_short(path: Path, read: Callable[[bytes], object]) -> bool:
    try:
        read(path.read_bytes())
    except OSError:  # not there, or not to be read: DVC says which
        return False
    except CutShortError:
        return True
    except InputError:  # which is a ValueError, too
        raise
    except ValueError:
        return True
    return False
