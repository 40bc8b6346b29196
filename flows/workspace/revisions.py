"""What a DVC experiment, a commit or this folder has recorded: parameters and metrics, read where
git and DVC's cache have them, without a checkout."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from boss_core.errors import InputError
from flows import paths
from flows.strict_yaml import read_mapping
from flows.workspace.dvc_lock import LOCK, locked_stages, read_lock
from flows.workspace.integrity import altered, cache_folder, in_cache
from flows.workspace.process import git
from flows.workspace.scm import require_commit

WORKSPACE = "workspace"  # this folder, as DVC calls it


@dataclass(frozen=True)
class Revision:
    """params: those that its records were made with. records: by the names of their files, as ``4``
    and ``teacher``; see `flows.records.record`."""

    name: str
    params: Mapping[str, Any]
    records: Mapping[str, Mapping[str, Any]]


def read_revision(root: Path, name: str) -> Revision:
    """What an experiment, a commit or `WORKSPACE` has recorded.

    InputError where there is none of that name, and where DVC's cache has lost its metrics."""
    content: Callable[[Path], bytes]
    if name == WORKSPACE:
        found = [p.relative_to(root) for p in sorted((root / _folder()).glob("*.json"))]
        content = partial(_in_place, root)
        params: Any = read_mapping(root / "params.yaml")
        _put_back(params, locked_stages(root))
    else:
        require_commit(root)
        commit = _resolve(root, name)
        outs = _outputs(root, name, commit)
        found = [path for path in outs if path.parent == _folder() and path.suffix == ".json"]
        content = partial(_in_cache, cache_folder(root), name, outs)
        params = yaml.safe_load(_content(root, name, commit, "params.yaml"))
    params = params if isinstance(params, dict) else {}
    # Other budgets are of runs before, whose stages dvc.lock keeps: made with other parameters.
    wanted = {"teacher", *map(str, params.get("budgets") or ())}
    names = [path.stem for path in found if path.stem in wanted]
    return Revision(name, params, {stem: _record(name, stem, content) for stem in names})


def _put_back(params: dict[str, Any], stages: Mapping[str, Any]) -> None:
    """Change parameters to what the stages in dvc.lock ran with: the metrics are of these, whatever
    was written into the file since."""
    # Stages of budgets that are gone come last there, and may have run with others.
    for stage in reversed(list(stages.values())):
        for name, value in stage.get("params", {}).get("params.yaml", {}).items():
            *blocks, last = name.split(".")
            block: Any = params
            for part in blocks:
                block = block.setdefault(part, {})
            block[last] = value


def experiments(root: Path) -> dict[str, str]:
    """The references of all experiments by their names; where several commits have one of a name,
    that of the last commit, else the newest."""
    form = "--format=%(refname)"
    listed = git(root, "for-each-ref", form, "--sort=committerdate", "refs/exps/*/*/*")
    head = git(root, "rev-parse", "HEAD").stdout.strip()
    # Those of the last commit come last, and so win.
    refs = sorted(listed.stdout.split(), key=lambda ref: "".join(ref.split("/")[2:4]) == head)
    return {ref.rpartition("/")[2]: ref for ref in refs}


def _resolve(root: Path, name: str) -> str:
    """The commit that git has for an experiment, or for a revision of its own."""
    known = experiments(root)
    asked = f"{known.get(name, name)}^{{commit}}"
    found = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", asked, check=False)
    if found.returncode:
        there = f"as {', '.join(sorted(known)[:5])}" if known else "and there is no experiment yet"
        raise InputError(f"{name}: no experiment and no commit; one of them needed, {there}")
    return found.stdout.split()[-1]


def _record(name: str, stem: str, content: Callable[[Path], bytes]) -> dict[str, Any]:
    """As `flows.records.record.read_record`, from wherever a revision has its files."""
    metrics = _parsed(name, paths.metrics(stem), content)
    if "extractor" in metrics:  # of an earlier version
        return metrics
    return _parsed(name, paths.made_of(stem), content) | metrics


def _parsed(name: str, path: Path, content: Callable[[Path], bytes]) -> dict[str, Any]:
    try:
        found = json.loads(content(path))
    except ValueError as error:
        raise InputError(f"{name}: {path}: not JSON ({error}); `dvc repro` mends it") from error
    if not isinstance(found, dict):
        raise InputError(f"{name}: {path}: no JSON object; `dvc repro` mends it")
    return found


def _in_place(root: Path, path: Path) -> bytes:
    try:
        return (root / path).read_bytes()
    except FileNotFoundError as error:
        lacks = "no such file; `dvc repro` makes it"
        raise InputError(f"{WORKSPACE}: {path}: {lacks}") from error


def _outputs(root: Path, name: str, commit: str) -> dict[Path, str]:
    """The hash of every output that the dvc.lock of a commit names."""
    lock = read_lock(_content(root, name, commit, str(LOCK)).encode(), LOCK)
    stages = lock.get("stages", {}).values()
    return {Path(out["path"]): out["md5"] for stage in stages for out in stage.get("outs", [])}


def _in_cache(cache: Path, name: str, outs: Mapping[Path, str], path: Path) -> bytes:
    """An output's content, or that of a file in one that is a folder, from DVC's cache."""
    if path in outs:
        return _cached(cache, name, path, outs[path])
    if path.parent in outs:
        for file in json.loads(_cached(cache, name, path.parent, outs[path.parent])):
            if file["relpath"] == path.name:
                return _cached(cache, name, path, file["md5"])
    raise InputError(
        f"{name}: recorded by another version of this project, without {path}; a run of this one"
        " needed"
    )


def _cached(cache: Path, name: str, path: Path, md5: str) -> bytes:
    kept = in_cache(cache, md5)
    if not kept.is_file() or altered(kept, md5.removesuffix(".dir")):
        raise InputError(
            f"{name}: {path} is not in DVC's cache any more; a run with the same --set, or"
            " `dvc pull` from where it was pushed, needed"
        )
    return kept.read_bytes()


def _content(root: Path, name: str, commit: str, path: str) -> str:
    prefix = git(root, "rev-parse", "--show-prefix").stdout.strip()
    shown = git(root, "show", f"{commit}:{prefix}{path}", check=False)
    if shown.returncode:
        raise InputError(f"{name}: has no {path}; an experiment, or a commit with one, needed")
    return shown.stdout


def _folder() -> Path:
    return paths.metrics("").parent
