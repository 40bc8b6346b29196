"""Registering the deployments of prefect.yaml: for this folder, or for whichever host a worker of a
pool is on, which then clones the repository."""

import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from boss_core.errors import InputError
from flows.orchestration.clone import CLONE
from flows.orchestration.launch import PREFECT_ENVIRONMENT
from flows.orchestration.server import DEFAULT_URL, answers, prefect_url
from flows.workspace.process import dvc_environment

if TYPE_CHECKING:
    from prefect.client.schemas.objects import WorkPool

DEFAULT_POOL = "local"  # made when it is not there; any other may be a typing error
DEPLOYMENTS = Path("prefect.yaml")
# Prefect's least, in seconds. A run is lost with its host, of which nobody tells the server: it
# would stay Running, and a deployment of one run at a time would never run again.
HEARTBEAT = 30
LOST = "boss: a run whose host is lost has crashed"


def deploy(
    pool: str, image: str | None = None, repository: str | None = None, branch: str | None = None
) -> None:
    """``prefect deploy --all``; InputError where server or pool are missing, or do not fit.

    pool: a work pool of the server. image: that its containers are of, of a pool of containers.
    repository: what a run clones, with nothing secret in it; None for runs in this folder.
    branch: of the repository; None for its default one.
    """
    _check_options(image, repository, branch)
    url = prefect_url()
    if url is None or not answers(url):
        raise InputError(
            f"PREFECT_API_URL: {url or 'not set'}; the address of a running server needed, as"
            f" {DEFAULT_URL} after `boss server`"
        )
    _check_pool(_find_pool(pool, image, url), image, repository)
    environment = {"BOSS_FOLDER": str(Path.cwd()), "BOSS_POOL": pool}
    if repository is None:
        _register(DEPLOYMENTS, environment)
        return
    with tempfile.TemporaryDirectory() as folder:
        anywhere = Path(folder) / DEPLOYMENTS
        written = of_clones(read_deployments(), image, repository, branch)
        anywhere.write_text(yaml.safe_dump(written, sort_keys=False))
        _register(anywhere, environment)
    _end_runs_of_lost_hosts()


def read_deployments() -> dict[str, Any]:
    """What prefect.yaml has; InputError where it is none of deployments."""
    try:
        found = yaml.safe_load(DEPLOYMENTS.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{DEPLOYMENTS}: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not isinstance(found.get("deployments"), list):
        raise InputError(f"{DEPLOYMENTS}: no list of deployments; one needed")
    return found


def of_clones(
    deployments: dict[str, Any], image: str | None, repository: str, branch: str | None
) -> dict[str, Any]:
    """The same deployments with runs in clones. Nothing in them is of this machine."""
    clone = {"repository": repository} | ({"branch": branch} if branch else {})
    variables: dict[str, Any] = {"image": image} if image else {}
    environment = {CLONE: "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT)}

    def elsewhere(deployment: dict[str, Any]) -> dict[str, Any]:
        pool = deployment.get("work_pool") or {}
        own = pool.get("job_variables") or {}
        both = {**own, **variables, "env": {**(own.get("env") or {}), **environment}}
        return {**deployment, "work_pool": {**pool, "job_variables": both}}

    return {
        **deployments,
        "pull": [{"prefect.deployments.steps.git_clone": clone}],
        "deployments": [elsewhere(each) for each in deployments["deployments"]],
    }


def _check_options(image: str | None, repository: str | None, branch: str | None) -> None:
    for option, value in (("--image", image), ("--branch", branch)):
        if value and not repository:
            raise InputError(f"{option}: {value} without --repository; what a run clones needed")
    if repository is None:
        return
    try:
        parts = urlsplit(repository)
        of_web = parts.scheme in ("http", "https")
        secret = parts.password or parts.query or (parts.username if of_web else None)
    except ValueError as error:
        raise InputError(f"--repository: no address of a repository ({error})") from error
    if secret:
        raise InputError(
            "--repository: has a password or token in it, which everybody could read on Prefect's"
            " page; the address alone needed, and an ssh key or a credential helper of git's where"
            " the worker runs"
        )
    if repository.startswith("-") or not repository.strip():
        raise InputError(f"--repository: {repository!r}; the address of a git repository needed")


def _find_pool(name: str, image: str | None, url: str) -> "WorkPool":
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            return client.read_work_pool(name)
        except ObjectNotFound:
            pass
        kinds = ("docker", "kubernetes") if image else ("process",)
        create = f"prefect work-pool create {name} --type "
        if name != DEFAULT_POOL or image or _prefect("work-pool", "create", name, "--type", *kinds):
            ways = " or ".join(f"`{create}{kind}`" for kind in kinds)
            raise InputError(f"--pool: {name!r} is no work pool of {url}; make it with {ways}")
        return client.read_work_pool(name)


def _check_pool(pool: "WorkPool", image: str | None, repository: str | None) -> None:
    of_containers = "image" in pool.base_job_template.get("variables", {}).get("properties", {})
    if of_containers and not (image and repository):
        lacks = "--image" if repository else "--repository"
        raise InputError(
            f"--pool: {pool.name!r} is of type {pool.type}, whose containers have no folder of this"
            f" machine and nothing installed; {lacks} needed"
        )
    if image and not of_containers:
        raise InputError(
            f"--image: {image}, but the pool {pool.name!r} is of type {pool.type}; one of"
            " containers needed, as of `prefect work-pool create NAME --type docker`"
        )


def _prefect(*arguments: str, environment: dict[str, str] | None = None) -> int:
    """A command of Prefect's; its exit code."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    own = dvc_environment() | PREFECT_ENVIRONMENT | (environment or {})
    return subprocess.run(command, env=own).returncode


def _register(file: Path, environment: dict[str, str]) -> None:
    if _prefect("deploy", "--all", "--prefect-file", str(file), environment=environment):
        raise InputError(f"{DEPLOYMENTS}: the deployments could not be registered; see above")


def _end_runs_of_lost_hosts() -> None:
    """Have the server take a run for crashed that sends no more heartbeats: one automation for all
    deployments, made where it is not there."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    heartbeat = "prefect.flow-run.heartbeat"
    ends = {f"prefect.flow-run.{how}" for how in ("Completed", "Failed", "Cancelled", "Crashed")}
    automation = AutomationCore(
        name=LOST,
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            after={heartbeat},
            expect={heartbeat, *ends},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=3 * HEARTBEAT),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message=f"no heartbeat for {3 * HEARTBEAT} s: the host or its way here is lost",
            )
        ],
    )
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(LOST):
            client.create_automation(automation)
