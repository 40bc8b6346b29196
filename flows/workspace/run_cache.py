"""The default DVC remote: what it knows of a folder's stages, brought from there, and what a stage
made, sent there. Data that has a name by its hash travels; `dvc repro --pull` brings it to others.

DVC's own commands do the same for a whole run cache at a time: every entry of every run, at each
call. Here one stage's travel, after its outputs, so that no entry stands for what is not there.

``python -m flows.workspace.run_cache pull TARGET ... | pull-one STAGE | push STAGE`` is what works
in a folder: DVC takes the names of stages for those of the folder that its process is in."""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flows.workspace.graph import read_stages
from flows.workspace.process import StageError, dvc_environment, git


def pull_inputs(root: Path) -> None:
    """The data that git has a ``.dvc`` file of, from the remote; any exception of DVC's and of the
    way there where it does not come."""
    from dvc.repo import Repo

    tracked = git(root, "ls-files", "*.dvc").stdout.splitlines()
    with Repo(str(root), _wait_for_lock=True) as repo:
        if tracked:
            repo.pull([str(root / path) for path in tracked])


def pull_stages(root: Path, targets: Sequence[str]) -> list[str]:
    """Put the outputs in place that the remote, or the cache of this machine, has of the targets
    and the stages that they need: which stages these are. StageError where the remote cannot be
    read."""
    known: list[str] = json.loads(_in_folder(root, "pull", *targets))
    return known


def pull_stage(root: Path, name: str) -> None:
    """The same of one stage whose dependencies are in place, by the run cache as it is here since
    `pull_stages`. Where nothing is known of it nothing happens."""
    _in_folder(root, "pull-one", name)


def push_stage(root: Path, name: str) -> None:
    """Send the outputs of a stage to the remote, and then its entry in the run cache. StageError
    where they do not arrive."""
    _in_folder(root, "push", name)


def _in_folder(root: Path, *arguments: str) -> str:
    """The last line that this module prints as a command in a folder."""
    command = [sys.executable, "-m", "flows.workspace.run_cache", *arguments]
    done = subprocess.run(
        command, cwd=root, env=dvc_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise StageError(said[-1])
    return (done.stdout.strip().splitlines() or [""])[-1]


def _pull(targets: Sequence[str]) -> list[str]:
    from dvc.repo import Repo
    from dvc.stage.cache import RunCacheNotFoundError

    known: set[str] = set()
    stages = read_stages(Path(), targets)  # each after those it needs
    with Repo(_wait_for_lock=True) as repo, repo.lock:
        repo.stage_cache.pull(None)
        for stage in stages:
            if not stage.needs <= known:
                continue
            (found,) = repo.stage.collect(stage.name)
            if found.cmd:  # else data that git has a .dvc file of: `pull_inputs`
                try:
                    repo.stage_cache.restore(found, pull=True)
                except RunCacheNotFoundError:
                    continue
            known.add(stage.name)
    return sorted(known)


def _pull_one(name: str) -> None:
    from dvc.repo import Repo
    from dvc.stage.cache import RunCacheNotFoundError

    with Repo(_wait_for_lock=True) as repo, repo.lock, suppress(RunCacheNotFoundError):
        (stage,) = repo.stage.collect(name)
        repo.stage_cache.restore(stage, pull=True)


def _push(name: str) -> None:
    from dvc.repo import Repo
    from dvc.stage.cache import _get_cache_hash, _get_stage_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    with Repo(_wait_for_lock=True) as repo:
        with repo.lock:
            (stage,) = repo.stage.collect(name)
            key, value = _get_stage_hash(stage), _get_cache_hash(to_single_stage_lockfile(stage))
            used = stage.get_used_objs()
        for objects in used.values():
            if lost := repo.cloud.push(objects).failed:
                raise OSError(f"{len(lost)} of {len(objects)} files did not arrive")
        parts = key[:2], key, value
        own = Path(repo.stage_cache.cache_dir, *parts)
        odb = repo.cloud.get_remote_odb(None, "push --run-cache", hash_name="md5-dos2unix")
        target = odb.fs.join(odb.path, "runs", *parts)
        if own.exists() and not odb.fs.exists(target):
            odb.fs.makedirs(odb.fs.parent(target), exist_ok=True)
            odb.fs.put_file(str(own), target)


def main(what: str, names: Sequence[str]) -> None:
    try:
        if what == "pull":
            print(json.dumps(_pull(names)))
        elif what == "pull-one":
            _pull_one(names[0])
        else:
            _push(names[0])
    except Exception as error:  # of whichever protocol the remote speaks
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
