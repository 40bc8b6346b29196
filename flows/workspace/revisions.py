"""What a DVC experiment, a commit or this folder has recorded: parameters and metrics, read where
git and DVC's cache have them, without a checkout."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
    """params: those that its records were made with. records: of its metrics, by the names of their
    files, as ``4`` and ``teacher``."""

    name: str
    params: Mapping[str, Any]
    records: Mapping[str, Mapping[str, Any]]


def read_revision(root: Path, name: str) -> Revision:
    """What an experiment, a commit or `WORKSPACE` has recorded.

    InputError where there is none of that name, and where DVC's cache has lost its metrics."""
    if name == WORKSPACE:
        found = {p.stem: p.read_bytes() for p in sorted((root / _folder()).glob("*.json"))}
        params: Any = read_mapping(root / "params.yaml")
        _put_back(params, locked_stages(root))
    else:
        require_commit(root)
        commit = _resolve(root, name)
        found = _metrics(root, name, commit)
        params = yaml.safe_load(_content(root, name, commit, "params.yaml"))
    params = params if isinstance(params, dict) else {}
    # Other budgets are of runs before, whose stages dvc.lock keeps: made with other parameters.
    wanted = {"teacher", *map(str, params.get("budgets") or ())}
    try:
        records = {stem: json.loads(text) for stem, text in found.items() if stem in wanted}
    except ValueError as error:
        mend = "`dvc repro` mends it"
        raise InputError(f"{name}: {_folder()}: not JSON ({error}); {mend}") from error
    return Revision(name, params, records)


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


def _metrics(root: Path, name: str, commit: str) -> dict[str, bytes]:
    lock = read_lock(_content(root, name, commit, str(LOCK)).encode(), LOCK)
    cache, found = cache_folder(root), {}
    for stage in lock.get("stages", {}).values():
        for out in stage.get("outs", []):
            path = Path(out["path"])
            if path.parent != _folder() or path.suffix != ".json":
                continue
            kept = in_cache(cache, out["md5"])
            if not kept.is_file() or altered(kept, out["md5"]):
                raise InputError(
                    f"{name}: {path} is not in DVC's cache any more; a run with the same --set, or"
                    " `dvc pull` from where it was pushed, needed"
                )
            found[path.stem] = kept.read_bytes()
    return found


def _content(root: Path, name: str, commit: str, path: str) -> str:
    prefix = git(root, "rev-parse", "--show-prefix").stdout.strip()
    shown = git(root, "show", f"{commit}:{prefix}{path}", check=False)
    if shown.returncode:
        raise InputError(f"{name}: has no {path}; an experiment, or a commit with one, needed")
    return shown.stdout


def _folder() -> Path:
    return paths.metrics("").parent
