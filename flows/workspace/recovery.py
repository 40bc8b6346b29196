"""What a run leaves that failed or was killed: outputs that are gone, and files of DVC's own that
are cut short, which would stop every later run."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from boss_core.errors import InputError
from flows.workspace.dvc_lock import LOCK, CutShortError, locked_stages, read_lock
from flows.workspace.process import dvc

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


def restore(root: Path) -> None:
    """Bring back what a failed stage took away: DVC removes outputs before a stage runs; the
    recorded ones are in its cache."""
    try:
        stages = locked_stages(root)
    except InputError:  # nothing to go by; the run has failed, and the next one says so
        return
    for stage in stages.values():
        recorded = [out["path"] for out in stage.get("outs", [])]
        if not all((root / path).exists() for path in recorded):
            dvc(root, "checkout", "--quiet", "--force", *recorded, check=False)


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
