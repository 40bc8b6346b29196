"""The DVC remote through which stages on other machines get what they read and hand over what they
made: which it is, what of a project goes there, and what comes back."""

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from boss_core.errors import InputError
from flows.workspace.process import StageError, dvc

# Options of DVC's remotes that are secret: a revision of the project would take them along.
_SECRET = {
    "password", "access_key_id", "secret_access_key", "session_token", "account_key", "sas_token",
    "connection_string", "client_secret", "key", "token", "sse_customer_key", "passphrase",
    "gdrive_service_account_user_email", "oss_key_id", "oss_key_secret", "custom_auth_header",
}  # fmt: skip


@dataclass(frozen=True)
class Reads:
    """What a stage reads and makes of the outputs of stages, as paths from the project's folder.

    outputs: of other stages, which it depends on, with the stages that make them."""

    stage: str
    outputs: Mapping[str, str]


def check_remote(root: Path) -> str:
    """The name of the DVC remote that every machine has with a revision of the project; InputError
    where there is none, or none that they could use."""
    from dvc.config import Config
    from dvc.config_schema import RelPath
    from dvc.exceptions import DvcException

    try:
        config = Config(str(root / ".dvc"))
        shared = config.load_one("repo")
    except DvcException as error:
        raise InputError(f"DVC's settings: {' '.join(str(error).split())}") from error
    name = config["core"].get("remote")
    needed = "; `dvc remote add --default NAME URL`, of storage that every worker reaches, needed"
    if name is None:
        raise InputError(f".dvc/config: no default remote{needed}")
    found = shared.get("remote", {}).get(name, {})
    if shared.get("core", {}).get("remote") != name or "url" not in found:
        raise InputError(
            f".dvc/config: remote {name!r} is in the settings of this machine only, which do not"
            f" leave it{needed}"
        )
    if isinstance(found["url"], RelPath):
        path = os.path.relpath(found["url"], root / ".dvc")
        raise InputError(f".dvc/config: remote {name!r}: {path}: a path from here{needed}")
    url = urlsplit(found["url"])
    secret = sorted(_SECRET & found.keys()) + (["url: a password"] if url.password else [])
    if secret:
        raise InputError(
            f".dvc/config: remote {name!r}: {secret[0]}: would go to every worker with the project;"
            " in each worker's environment, and here by `dvc remote modify --local`, needed"
        )
    return str(name)


def read_outputs(root: Path) -> dict[str, Reads]:
    """What each stage of the project reads of the outputs of others, by its address."""
    from dvc.repo import Repo

    from flows.workspace.graph import address

    found = {}
    with Repo(str(root)) as repo:
        graph = repo.index.graph
        for stage in graph:
            deps = [Path(dep.fs_path) for dep in stage.deps]
            outputs = {
                str(Path(out.fs_path).relative_to(root.resolve())): address(need.addressing, root)
                for need in graph.successors(stage)
                for out in need.outs
                if any(_overlap(Path(out.fs_path), dep) for dep in deps)
            }
            name = address(stage.addressing, root)
            found[name] = Reads(name, outputs)
    return found


def push(root: Path, stages: Iterable[str]) -> None:
    """Put what the stages made into the default remote. StageError where that fails."""
    if names := sorted(set(stages)):
        _say("push", dvc(root, "push", "--quiet", *names, check=False))


def pull(root: Path, paths: Sequence[str]) -> None:
    """Bring outputs that dvc.lock names from the default remote into the folder, in place of what
    is there. StageError where that fails."""
    if paths:
        _say("pull", dvc(root, "pull", "--quiet", "--force", *paths, check=False))


def restorable(root: Path, stage: str) -> bool:
    """Whether DVC's cache has the result of a stage whose dependencies are all in place, so that
    DVC would restore it: as it was last, or as of parameters that were changed back."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from flows.workspace.known import known_result

    try:
        with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
            # By its file, as DVC takes a bare name for one of the folder that this process is in.
            (found,) = repo.stage.collect(f"{root / 'dvc.yaml'}:{stage}")
            result = known_result(found)
            return result is not None and result.outs_cached()
    except DvcException:  # which DVC says again as the stage runs
        return False


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _say(what: str, done: "subprocess.CompletedProcess[str]") -> None:
    if done.returncode:
        said = done.stderr or done.stdout
        lines = [line for line in said.splitlines() if line.startswith("ERROR")] or [said]
        why = " ".join(lines[-1].removeprefix("ERROR: ").split())
        raise StageError(f"dvc {what}: {why or f'exit code {done.returncode}'}")
