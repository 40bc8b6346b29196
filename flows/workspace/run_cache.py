"""The default DVC remote: what it knows of a folder's stages, brought from there, and what a stage
made, sent there. Data that has a name by its hash travels; `dvc repro --pull` brings it to others.

DVC's own commands do the same for a whole run cache at a time: every entry of every run, at each
call. Here one stage's travel, after its outputs, so that no entry stands for what is not there."""

from collections.abc import Sequence
from pathlib import Path

from boss_core.errors import InputError
from flows.workspace.graph import Stage
from flows.workspace.process import git

Entry = tuple[str, str]  # of the run cache: the hash of what a stage is called with, and of its end


def check_remote(root: Path) -> None:
    """InputError where the folder has no default remote."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        if not repo.config["core"].get("remote"):
            raise InputError(
                f"{root / '.dvc' / 'config'}: no default remote, which data travels by; `dvc remote"
                " add --default NAME URL`, committed, needed"
            )


def pull_inputs(root: Path) -> None:
    """The data that git has a ``.dvc`` file of, from the remote; any exception of DVC's and of the
    way there where it does not come."""
    from dvc.repo import Repo

    tracked = git(root, "ls-files", "*.dvc").stdout.splitlines()
    with Repo(str(root), _wait_for_lock=True) as repo:
        if tracked:
            repo.pull([str(root / path) for path in tracked])


def pull_stages(root: Path, stages: Sequence[Stage]) -> tuple[set[str], set[Entry]]:
    """Put the outputs of stages in place that the remote, or the cache of this machine, has: which
    stages these are, and all that the run cache of the remote has.

    stages: in an order in which each comes after those it needs; one that needs what is not known
        is not known either.
    Any exception of the way there where the remote cannot be asked."""
    from dvc.repo import Repo
    from dvc.stage.cache import RunCacheNotFoundError

    known: set[str] = set()
    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        there = {*repo.stage_cache.pull(None)}
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
    return known, there


def push_stage(root: Path, name: str, there: set[Entry], *, ran: bool) -> None:
    """Send the outputs of a stage to the remote, and then its entry in the run cache. One that was
    restored, and not ``ran``, is passed over where the remote has it.

    there: what the run cache of the remote has; added to.
    Any exception of the way there where they do not arrive."""
    from dvc.repo import Repo
    from dvc.stage.cache import _get_cache_hash, _get_stage_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    with Repo(str(root), _wait_for_lock=True) as repo:
        with repo.lock:
            (stage,) = repo.stage.collect(name)
            entry = _get_stage_hash(stage), _get_cache_hash(to_single_stage_lockfile(stage))
            used = stage.get_used_objs()
        if not ran and entry in there:
            return
        for objects in used.values():
            if lost := repo.cloud.push(objects).failed:
                raise OSError(f"{len(lost)} of {len(objects)} files did not arrive")
        key, value = entry
        parts = key[:2], key, value
        own = Path(repo.stage_cache.cache_dir, *parts)
        if own.exists():
            odb = repo.cloud.get_remote_odb(None, "push --run-cache", hash_name="md5-dos2unix")
            target = odb.fs.join(odb.path, "runs", *parts)
            odb.fs.makedirs(odb.fs.parent(target), exist_ok=True)
            odb.fs.put_file(str(own), target)
        there.add(entry)
