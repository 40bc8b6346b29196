"""Whether files still are what their stages made.

DVC records a hash of each, and afterwards goes by size, time and mode: a bit that flips on a disk
would be restored and read without a word."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Any

import yaml

from boss_core.errors import InputError
from flows.progress import progress
from flows.workspace.dvc_lock import LOCK, CutShortError, locked_stage, locked_stages

PIPELINE = Path("dvc.yaml")
# Where the copies of a project are that runs with changed parameters have.
COPIES = Path(".dvc/tmp/boss-copies")


@dataclass(frozen=True)
class Recorded:
    """One file of an output: the stage that made it, where it lies, its MD5 (DVC's own hash), and
    where DVC's cache has it."""

    stage: str
    path: Path
    md5: str
    cached: Path


def check_inputs() -> None:
    """InputError unless the outputs of other stages that this stage reads are what these made.

    Of a stage that DVC runs, which names it in ``DVC_STAGE``; what is run by hand reads what is
    there. It takes what hashing takes: a second for half a gigabyte or more."""
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if not stage or not LOCK.is_file():
        return
    read = _dependencies(stage)
    try:
        files = list(recorded(Path()))
    except CutShortError:  # nothing to go by; DVC says so
        return
    for found in files:
        if not any(found.path.is_relative_to(dep) for dep in read):
            continue
        if altered(found.path, found.md5):
            raise InputError(
                f"{found.path}: not what its stage made: altered since, here or in DVC's cache;"
                " `boss verify --remove` takes away what is, and the next run makes it anew"
            )
        if not found.cached.exists() and _given_up(Path(), found):
            raise InputError(not_stored(Path(), {found.stage: [found.path]}))


def absent(root: Path, stage: str | None = None) -> list[Recorded]:
    """The outputs in place, of one stage or of all, that DVC's cache has not: as after a disk was
    full, or the cache was cleared."""
    return [
        entry
        for entry in recorded(root, stage)
        if not entry.cached.exists()
        if (root / entry.path).exists()
    ]


def unstored(
    root: Path,
    stage: str | None = None,
    *,
    before: Collection[Recorded] | None = (),
    since: float = 0.0,
) -> dict[str, list[Path]]:
    """The outputs that DVC could not write into its cache, by the stages that made them, or of one
    stage: it says so, goes on, and ends as if all were well.

    before: those that were `absent` before the run; None for all, of a run that failed. Of these
    only what DVC began to store counts, and that since the time ``since``, the run's start."""
    found: dict[str, list[Path]] = {}
    for entry in absent(root, stage):
        if (before is None or entry in before) and not _given_up(root, entry, since):
            continue
        found.setdefault(entry.stage, []).append(entry.path)
    return found


def not_stored(root: Path, left: Mapping[str, list[Path]]) -> str:
    """What to say of the outputs that DVC could not store: see `unstored`."""
    cache = cache_folder(root).resolve()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    what = ", ".join(str(path) for paths in left.values() for path in paths)
    free = _readable(disk_usage(there).free)
    keep = f", `dvc commit --force {' '.join(left)}` keeps what was made, then run again"
    if _is_copy(root):  # is removed, and typed elsewhere it would record what others made
        keep = " and run again"
    return (
        f"{cache}: DVC could not store {what} in its cache ({free} free on its disk); free some"
        f"{keep}"
    )


def _is_copy(root: Path) -> bool:
    """Whether a folder is the copy that a run with changed parameters has."""
    return root.resolve().parent.parts[-len(COPIES.parts) :] == COPIES.parts


def _given_up(root: Path, entry: Recorded, since: float = 0.0) -> bool:
    """Whether DVC began to store an output and did not come to its end: what it had written lies
    beside where it belongs. Without that it was not asked to, as by ``dvc repro --no-commit``.

    What was written before the output, or before ``since``, is of another run, which was killed."""
    path, cache = root / entry.path, cache_folder(root)
    newest = since
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            made = max(since, file.stat().st_mtime)
            newest = max(newest, made)
            with open(file, "rb") as content:
                cached = in_cache(cache, hashlib.file_digest(content, _md5).hexdigest())
            if not cached.exists() and _begun(cached.parent, made):
                return True
    return _begun(entry.cached.parent, newest)


def _begun(folder: Path, since: float) -> bool:
    for left in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # DVC is at work
            if left.stat().st_mtime >= since:
                return True
    return False


def _readable(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def verify(root: Path, *, remove: bool) -> int:
    """Read every output and its copy in DVC's cache, and print those that are not what their stage
    made; their number. remove: take these away, so that the next run makes them anew."""
    if not (root / LOCK).is_file():
        raise InputError(
            f"{LOCK}: not there, so that no outputs are known; the folder of a project that has"
            " run needed"
        )
    outputs = list(recorded(root))
    files = [
        (found, path)
        for found in outputs
        for path in dict.fromkeys((root / found.path, found.cached))
    ]
    unseen = _not_looked_at(root, outputs)
    bad = set()
    with progress("verify", len(files), "files") as advance:
        for found, path in files:
            if path not in bad and altered(path, found.md5):
                bad.add(path)
                where = "" if path == found.cached else ", in this folder"
                of = f" (the cache's copy of {found.path})" if path == found.cached else ""
                print(f"{path}{of}: altered{where}")
            advance(1)
    if remove:
        for path in bad:
            path.unlink()
    for line in unseen:
        print(line)
    count = len({path for _, path in files if path.exists() or path in bad})
    gone = {found.path for found in outputs if not (root / found.path).exists()}
    if tops := sorted(str(path) for path in gone if not gone & {*path.parents}):
        print(f"not in this folder: {', '.join(tops)}; `dvc checkout` or the next run brings them")
    lacks = f", {len(unseen)} outputs that could not be looked at" if unseen else ""
    print(f"{count:,} files, {len(bad)} altered{' and removed' if remove and bad else ''}{lacks}")
    if bad and not remove:
        print("`boss verify --remove` takes them away; the next run makes them anew")
    return len(bad)


def _not_looked_at(root: Path, outputs: Collection[Recorded]) -> list[str]:
    """A line for each output of which nothing, or not the files of its folder, can be known."""
    found = []
    for entry in outputs:
        folder, there = root / entry.path, entry.cached.exists()
        if entry.cached.suffix == ".dir" and (not there or altered(entry.cached, entry.md5)):
            inside = sum(file.is_file() for file in folder.rglob("*"))
            how = "altered" if there else "not there"
            found.append(
                f"{entry.path}: its list of files in DVC's cache is {how}; {inside:,} files in this"
                " folder could not be looked at"
            )
        elif not there and not folder.exists():
            found.append(f"{entry.path}: neither in this folder nor in DVC's cache")
    return found


def recorded(root: Path, only: str | None = None) -> Iterator[Recorded]:
    """Every file of every output that dvc.lock names, or of those of one stage."""
    cache = cache_folder(root)
    found = locked_stages(root) if only is None else {only: locked_stage(root, only)}
    for stage, entry in found.items():
        for out in entry.get("outs", []):
            path, md5 = Path(out["path"]), out["md5"]
            if not md5.endswith(".dir"):
                yield Recorded(stage, path, md5, in_cache(cache, md5))
                continue
            listing = in_cache(cache, md5)
            # Its own name is of its content: altered, it names nothing to go by.
            if not altered(listing, md5.removesuffix(".dir")) and listing.exists():
                for file in json.loads(listing.read_bytes()):
                    inside = path / file["relpath"]
                    yield Recorded(stage, inside, file["md5"], in_cache(cache, file["md5"]))
            yield Recorded(stage, path, md5.removesuffix(".dir"), listing)


def altered(path: Path, md5: str) -> bool:
    """Whether a file is there and has another content; a folder has none of its own."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, _md5).hexdigest() != md5
    except (FileNotFoundError, IsADirectoryError):
        return False


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)  # chance is what it has to tell from


def cache_folder(root: Path) -> Path:
    """DVC's cache, as all of DVC's settings have it, those of the user and of the machine too; of a
    copy of a project that of the project. InputError where they cannot be read."""
    from dvc.config import Config
    from dvc.exceptions import DvcException

    try:
        config = Config(str(root / ".dvc"))
    except DvcException as error:
        raise InputError(f"DVC's settings: {' '.join(str(error).split())}") from error
    cache = config["cache"]
    if remote := cache.get("local"):  # an older way to name it, before the other for DVC
        return Path(config["remote"].get(remote, {}).get("url", root / ".dvc" / "cache"))
    return Path(cache.get("dir", root / ".dvc" / "cache"))


def in_cache(cache: Path, md5: str) -> Path:
    """Where DVC's cache has what has this hash."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def _dependencies(stage: str) -> list[str]:
    """The paths that dvc.yaml names as what a stage reads, but for those of parameters."""
    name, _, item = stage.partition("@")
    declared: Mapping[str, Any] = yaml.safe_load(PIPELINE.read_text())["stages"][name]
    found = [str(dep).replace("${item.budget}", item) for dep in declared.get("deps", [])]
    return [dep for dep in found if "${" not in dep]
