"""Files of DVC's own that a kill can leave cut short, and that would stop every later run."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

LOCK, RWLOCK = Path("dvc.lock"), Path(".dvc/tmp/rwlock")
PATIENCE = 1.0  # seconds; DVC writes either in a moment, and not at once


def remove_cut_short(root: Path) -> None:
    """Remove ``dvc.lock`` and DVC's list of who reads and writes what, where they are cut short,
    and say so. Neither loses anything: what DVC's cache has, it restores, and the list is of
    processes that are running."""
    readers: dict[Path, Callable[[str], object]] = {LOCK: _stages, RWLOCK: json.loads}
    for path, read in readers.items():
        if not _cut_short(root / path, read):
            continue
        time.sleep(PATIENCE)  # it may be being written right now
        if _cut_short(root / path, read):
            (root / path).unlink(missing_ok=True)
            print(
                f"{root / path}: cut short, as a kill leaves it; removed, and what is in DVC's"
                " cache is restored",
                file=sys.stderr,
            )


def _cut_short(path: Path, read: Callable[[str], object]) -> bool:
    try:
        read(path.read_text())
    except OSError:  # not there, or not to be read: DVC says which
        return False
    except (ValueError, yaml.YAMLError):
        return True
    return False


def _stages(text: str) -> object:
    found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not isinstance(found, dict) or "schema" not in found:
        raise ValueError("no schema")
    return found
