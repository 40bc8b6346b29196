"""``python -m flows.workspace.known STAGE [OUTPUT ...]``: bring into a fresh clone of a project
what a stage reads of other stages and, where the remote has its result already, that result.

Of the runs that the remote knows only those of this stage as it stands are looked at: DVC's own
``--run-cache`` copies all of them, one after the other."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boss_core.errors import InputError
from flows.errors import reported


def known_result(stage: Any) -> Any:
    """What a stage of DVC's made the last time that it ran as it stands, by dvc.lock or by the
    cache's list of runs, as a stage with these outputs; None where neither has it."""
    from dvc.stage.cache import _can_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    runs = stage.repo.stage_cache
    as_locked = not stage.changed_stage() and all(out.hash_info for out in stage.outs)
    if as_locked and stage.deps_cached():
        entry = to_single_stage_lockfile(stage)
    else:
        stage.save_deps()
        entry = runs._load(stage) if _can_hash(stage) else None
    return runs._create_stage(entry, wdir=stage.wdir) if entry else None


def bring(root: Path, name: str, outputs: Sequence[str]) -> None:
    """Outputs of other stages, which dvc.lock names, into the folder; the result of the stage, if
    it is known, into DVC's cache there. InputError where the remote has not what it needs."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        try:
            if outputs:
                repo.pull(targets=list(outputs))
        except (DvcException, OSError) as error:
            raise InputError(
                f"DVC's remote: {' '.join(str(error).split())}: {', '.join(outputs)} needed from it"
            ) from error
        with repo.lock:
            (stage,) = repo.stage.collect(name)
            _bring_runs(repo, stage)
            (stage,) = repo.stage.collect(name)
            result = known_result(stage)
            if result is None:
                return
            try:
                for objects in result.get_used_objs().values():
                    repo.cloud.pull(objects)
            except (DvcException, OSError) as error:  # not whole there: the stage runs again
                print(f"not restored: {' '.join(str(error).split())}", flush=True)


def _bring_runs(repo: Any, stage: Any) -> None:
    """The remote's list of runs of a stage as it stands, into that of the cache."""
    from dvc.fs import generic
    from dvc.stage.cache import RunCacheNotSupported, _can_hash, _get_stage_hash

    stage.save_deps()
    if not _can_hash(stage):
        return
    key = _get_stage_hash(stage)
    try:
        remote = repo.cloud.get_remote_odb(None, "fetch --run-cache", hash_name="md5-dos2unix")
    except RunCacheNotSupported:
        return
    there = remote.fs.join(remote.path, "runs", key[:2], key)
    if not remote.fs.exists(there):
        return
    here = repo.cache.legacy
    for run in remote.fs.find(there):
        to = here.fs.join(here.path, "runs", key[:2], key, remote.fs.name(run))
        here.fs.makedirs(here.fs.parent(to), exist_ok=True)
        generic.copy(remote.fs, run, here.fs, to)


if __name__ == "__main__":
    with reported():
        bring(Path(), sys.argv[1], sys.argv[2:])
