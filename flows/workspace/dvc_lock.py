"""dvc.lock, DVC's record of what each stage read and made: what reads and changes it here."""

import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from boss_core.errors import InputError
from boss_core.io.files import write_bytes

LOCK = Path("dvc.lock")
# As git leaves it in a file that it could not merge.
_CONFLICT = re.compile(r"^<{7}( |$)", re.MULTILINE)
_TRIES, _BETWEEN = 10, 0.1  # and seconds


# Of a stage, in the form that DVC writes; its own lines are further to the right.
_STAGE = re.compile(r"^  (?=[^ \n])", re.MULTILINE)


class CutShortError(InputError):
    """A dvc.lock that is not whole."""


def locked_stages(root: Path) -> dict[str, Any]:
    """The stages of dvc.lock, as DVC reads them; none where it is not there.

    A stage that ends beside this reader writes it in one go, but in place: what is cut short is
    looked at again. CutShortError where it stays so; InputError where git left a conflict in it."""
    path = root / LOCK
    for tries in range(_TRIES, 0, -1):
        try:
            stages: dict[str, Any] = read_lock(path.read_bytes(), path).get("stages", {})
            return stages
        except FileNotFoundError:
            return {}
        except CutShortError:
            if tries == 1:
                raise
            time.sleep(_BETWEEN)
    raise AssertionError


def locked_stage(root: Path, stage: str) -> dict[str, Any]:
    """One stage of dvc.lock, empty where there is none; errors as `locked_stages`.

    Of hundreds its own lines alone are read: all of them take a second. The last ones may be cut
    short, so these are read with the whole."""
    from dvc.exceptions import DvcException
    from dvc.utils.serialize import parse_yaml

    path = root / LOCK
    try:
        blocks = _STAGE.split(path.read_text("utf-8", errors="replace"))[1:-1]
    except FileNotFoundError:
        return {}
    for block in blocks:
        if block.startswith(f"{stage}:\n"):
            with suppress(DvcException):  # such as a conflict of git's in it
                found: dict[str, Any] = parse_yaml(f"  {block}", path)[stage]
                return found
    whole: dict[str, Any] = locked_stages(root).get(stage, {})
    return whole


def read_lock(content: bytes, path: Path) -> Mapping[str, Any]:
    """The whole of a dvc.lock that DVC would take, and whose outputs all have their hash.

    path: its file, for errors. CutShortError and InputError as `locked_stages`."""
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import parse_yaml
    from voluptuous import Invalid

    cut_short = CutShortError(
        f"{path}: cut short or altered, so that no outputs are known; `boss repro` mends it"
    )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise cut_short from error
    if found := _CONFLICT.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise InputError(
            f"{path}: a conflict of git's in line {line}; it resolved, as by"
            f" `git checkout --ours {path}`, needed"
        )
    try:
        lock: Mapping[str, Any] = COMPILED_LOCKFILE_SCHEMA(parse_yaml(text, path))
    except (DvcException, Invalid, ValueError, RecursionError) as error:
        raise cut_short from error
    for entry in lock.get("stages", {}).values():
        if not all(isinstance(out.get("md5"), str) for out in entry.get("outs", [])):
            raise cut_short
    return lock


def forget(root: Path, stages: Collection[str]) -> None:
    """Take stages out of dvc.lock: their results are of other parameters."""
    from dvc.utils.serialize import dumps_yaml  # the same YAML that it reads

    path = root / LOCK
    if not path.exists():
        return
    content = read_lock(path.read_bytes(), path)
    found = content.get("stages", {})
    kept = {name: entry for name, entry in found.items() if name not in stages}
    write_bytes(path, dumps_yaml({**content, "stages": kept}).encode())


def write_lock(root: Path, stages: Mapping[str, Any]) -> None:
    """A dvc.lock of these stages, as `locked_stages` has them, and no others."""
    from dvc.utils.serialize import dumps_yaml

    content = {"schema": "2.0", "stages": dict(stages)}
    write_bytes(root / LOCK, dumps_yaml(content).encode())


def put(root: Path, stage: str, entry: Mapping[str, Any]) -> None:
    """Record in dvc.lock what a stage read and made elsewhere, beside stages that run here."""
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        stages = locked_stages(root)
        if stages.get(stage) != entry:
            write_lock(root, {**stages, stage: entry})


def arrange(root: Path, order: Sequence[str]) -> None:
    """Put the stages of dvc.lock into this order, those that it does not name after them. DVC adds
    each as it ends, and of stages side by side either may end first: git would show that."""
    from dvc.repo import Repo
    from dvc.utils.serialize import dumps_yaml

    path = root / LOCK
    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        if not path.exists():
            return
        content = read_lock(path.read_bytes(), path)
        found = content.get("stages", {})
        names = [name for name in order if name in found]
        names += [name for name in found if name not in set(names)]
        if names != list(found):
            arranged = {name: found[name] for name in names}
            write_bytes(path, dumps_yaml({**content, "stages": arranged}).encode())
