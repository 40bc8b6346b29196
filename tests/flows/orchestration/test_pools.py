"""Work pools: deployments that run on whichever host a worker is, and carry their data there and
back by git and DVC. Real server, workers, repository and remote."""

import asyncio
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.logging import disable_run_logger

from boss_core.errors import InputError
from flows.orchestration import clone
from flows.orchestration.deploy import LOST, deploy, of_clones
from flows.workspace.process import StageError
from tests.helpers.hosts import ended, host, start_run, wait_until
from tests.helpers.prefect_api import api
from tests.helpers.project import Project
from tests.helpers.servers import prefect_server as start_prefect_server

SECRET = "AWS_SECRET_ACCESS_KEY"
OF_BLOCK = "{{ prefect.blocks.secret.aws-secret-access-key }}"
SECRETS = (
    "https://me:secret-1@example.org/boss.git", "https://secret-1@example.org/boss.git",
    "ssh://git:secret-1@example.org/boss.git", "https://example.org/boss.git?token=secret-1",
)  # fmt: skip


@pytest.mark.parametrize("repository", SECRETS)
def test_a_repository_with_a_secret_is_refused(repository: str) -> None:
    with pytest.raises(InputError, match="--repository: has a password or token") as refused:
        deploy("hosts", repository=repository)
    assert "secret-1" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": "registry/boss:1"}, "--image: registry/boss:1 without --repository"),
        ({"branch": "main"}, "--branch: main without --repository"),
        ({"repository": "--upload-pack=x"}, "--repository: '--upload-pack=x'; the address of"),
        ({"repository": "http://[bad"}, "--repository: no address of a repository"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as refused:
        deploy("hosts", **options)
    assert str(refused.value).startswith(said)


def test_what_is_registered_is_of_no_machine() -> None:
    """What a deployment has of its own stays: its schedule, and variables of its pool's."""
    own = {"image": "theirs", "env": {"LEVEL": "3"}, "memory": "8Gi"}
    given = {
        "name": "boss",
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "/here"}}],
        "deployments": [
            {"name": "nightly", "schedules": [{"cron": "0 2 * * *"}], "work_pool": {"name": "p"}},
            {"name": "large", "work_pool": {"name": "p", "job_variables": own}},
        ],
    }
    before = json.dumps(given)
    made = of_clones(given, "registry/boss:1", "git@example.org:boss.git", "main")
    assert json.dumps(given) == before
    step = {"repository": "git@example.org:boss.git", "branch": "main"}
    assert made["pull"] == [{"prefect.deployments.steps.git_clone": step}]
    env = {"BOSS_CLONE": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    nightly, large = made["deployments"]
    assert nightly == {
        "name": "nightly",
        "schedules": [{"cron": "0 2 * * *"}],
        "work_pool": {"name": "p", "job_variables": {"image": "registry/boss:1", "env": env}},
    }
    both = {"image": "registry/boss:1", "env": {"LEVEL": "3", **env}, "memory": "8Gi"}
    assert large["work_pool"] == {"name": "p", "job_variables": both}
    assert "/here" not in json.dumps(made)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server with a pool of each type."""
    with start_prefect_server(tmp_path_factory.mktemp("pools")) as server:
        known = api(server, "collections/views/aggregate-worker-metadata")
        kinds = {kind: made for package in known.values() for kind, made in package.items()}
        for kind, name in (("process", "hosts"), ("docker", "dock"), ("kubernetes", "k8s")):
            # As `prefect work-pool create` does.
            template = kinds[kind]["default_base_job_configuration"]
            if kind == "docker":  # as docs/pools.md has it
                template["variables"]["properties"]["env"]["default"] = {SECRET: OF_BLOCK}
            elif kind == "kubernetes":
                spec = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
                spec["containers"][0]["envFrom"] = [{"secretRef": {"name": "boss"}}]
            body = {"name": name, "type": kind, "base_job_template": template}
            api(server, "work_pools/", body)
        yield server


def published(project: Project, folder: Path) -> str:
    """The project with a DVC remote and a repository that it is pushed to; its address."""
    project.run("dvc", "remote", "add", "--default", "storage", str(folder / "storage"))
    project.commit("a place for data")
    bare = folder / "repository.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(project.folder), str(bare)], check=True)
    project.run("git", "remote", "add", "origin", f"file://{bare}")
    return f"file://{bare}"


def cloned(repository: str, folder: Path) -> Project:
    subprocess.run(["git", "clone", "-q", repository, str(folder)], check=True)
    return Project(folder)


@pytest.mark.slow
def test_pools_that_do_not_fit(pools: dict[str, str], tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project")

    def refused(*options: str) -> str:
        done = project.run("boss", "deploy", *options, code=2, env=pools)
        (line,) = done.stderr.splitlines()
        return line

    of = ("--repository", "git@example.org:boss.git")
    said = refused("--pool", "nowhere", *of)
    assert said.startswith(
        f"error: --pool: 'nowhere' is no work pool of {pools['PREFECT_API_URL']}"
    )
    assert said.endswith("`prefect work-pool create nowhere --type process`")
    said = refused("--pool", "nowhere", "--image", "registry/boss:1", *of)
    assert "`prefect work-pool create nowhere --type docker` or" in said
    assert said.endswith("`prefect work-pool create nowhere --type kubernetes`")
    said = refused("--pool", "hosts", "--image", "registry/boss:1", *of)
    assert said.startswith("error: --image: registry/boss:1, but the pool 'hosts' is of type")
    assert refused("--pool", "dock").endswith("--repository needed")
    assert refused("--pool", "k8s", *of).endswith("--image needed")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_what_a_worker_of_containers_starts(
    pools: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The container as Prefect's own worker would ask for it: no engine is here to run it."""
    pytest.importorskip(f"prefect_{kind}")
    if kind == "docker":
        from prefect_docker.worker import DockerWorkerJobConfiguration as Configuration
    else:
        from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration
    from prefect.blocks.system import Secret
    from prefect.client.orchestration import PrefectClient

    pool = {"docker": "dock", "kubernetes": "k8s"}[kind]
    monkeypatch.setenv(SECRET, "secret-1")  # as who deploys may have it
    project = Project.create(tmp_path / "project")
    repository = "git@example.org:boss.git"
    options = ["--pool", pool, "--image", "registry/boss:1", "--repository", repository]
    shown = project.run("boss", "deploy", *options, "--branch", "main", env=pools)
    registered = api(pools, "deployments/name/boss-pipeline/on-demand")
    assert registered["work_pool_name"] == pool
    assert registered["path"] is None
    assert registered["entrypoint"] == "flows/orchestration/pipeline.py:pipeline"
    step = {"repository": repository, "branch": "main"}
    assert registered["pull_steps"] == [{"prefect.deployments.steps.git_clone": step}]
    assert registered["job_variables"]["image"] == "registry/boss:1"
    everything = json.dumps(api(pools, "deployments/filter", {})) + shown.stdout + shown.stderr
    assert "secret-1" not in everything
    assert str(tmp_path) not in everything.replace(shown.stdout, "")

    async def configuration() -> Any:
        async with PrefectClient(pools["PREFECT_API_URL"]) as client:
            if kind == "docker":
                block = Secret(value="secret-2")
                await block.save("aws-secret-access-key", overwrite=True, client=client)
            run = await client.create_flow_run_from_deployment(registered["id"])
            return await Configuration.resolve_for_flow_run(
                run, client=client, work_pool=await client.read_work_pool(pool), worker_name="one"
            )

    made = asyncio.run(configuration())
    if kind == "docker":
        image, env, command = made.image, made.env, made.command
    else:
        (container,) = made.job_manifest["spec"]["template"]["spec"]["containers"]
        image, command = container["image"], " ".join(container["args"])
        env = {each["name"]: each.get("value") for each in container["env"]}
    assert image == "registry/boss:1"
    assert command.startswith(("prefect flow-run execute", "python -m prefect.engine"))
    assert env["BOSS_CLONE"] == "1"
    assert env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert env["PREFECT__FLOW_RUN_ID"]
    if kind == "docker":
        assert env[SECRET] == "secret-2"  # of the block, which who starts the container reads
    else:
        assert container["envFrom"] == [{"secretRef": {"name": "boss"}}]
        assert SECRET not in env
    assert "secret-2" not in json.dumps(api(pools, "deployments/filter", {}))


@pytest.mark.slow
@pytest.mark.long
def test_two_hosts_that_share_no_folder(
    finished: Project, pools: dict[str, str], tmp_path: Path
) -> None:
    project = Project.create(tmp_path / "project")
    repository = published(project, tmp_path)
    project.run("boss", "deploy", "--pool", "hosts", "--repository", repository, env=pools)
    assert [each["name"] for each in api(pools, "automations/filter", {})].count(LOST) == 1
    with (
        host(tmp_path / "one", pools, "hosts") as one,
        host(tmp_path / "two", pools, "hosts") as two,
    ):
        first = ended(pools, start_run(pools, "on-demand", {}), 900)
        logs = one.log.read_text() + two.log.read_text()
        assert first["state_type"] == "COMPLETED", logs
        assert first["state"]["message"] == "13 Ran, 0 Restored, 0 Cached"
        assert "brought what is known: 0 of 13 stages" in logs
        # Nothing is run twice, on whichever host the next run is.
        second = ended(pools, start_run(pools, "on-demand", {}), 900)
        assert second["state"]["message"] == "0 Ran, 13 Restored, 0 Cached"
        # Other parameters: an experiment, in the repository when the run is over.
        change = {"overrides": ["evaluate.kid_subset_size=16"]}
        third = ended(pools, start_run(pools, "on-demand", change), 900)
        assert third["state_type"] == "COMPLETED", one.log.read_text() + two.log.read_text()
        wrong = ended(pools, start_run(pools, "on-demand", {"overrides": ["budgets=[0]"]}), 300)
        assert wrong["state_type"] == "FAILED"
        assert wrong["state"]["message"].startswith("--set: budgets.0: 0 found")
        for each in (one, two):  # what a run has cloned goes with it
            assert not list((each.folder / "work").iterdir())
            wait_until(lambda: not list((each.folder / "tmp").glob("*prefect")), 30)  # noqa: B023

    mine = cloned(repository, tmp_path / "mine")
    shown = mine.run("dvc", "repro", "--pull").stdout
    assert "Running stage" not in shown
    assert mine.outputs() == finished.outputs()
    assert (mine.folder / "dvc.lock").read_text() == (finished.folder / "dvc.lock").read_text()
    mine.run("dvc", "exp", "pull", "origin", third["name"])
    mine.run("dvc", "exp", "apply", third["name"])
    assert (
        yaml.safe_load((mine.folder / "params.yaml").read_text())["evaluate"]["kid_subset_size"]
        == 16
    )
    assert "up to date" in mine.run("dvc", "status").stdout
    assert {*mine.outputs()} == {*finished.outputs()}


@pytest.mark.slow
@pytest.mark.long
def test_a_host_that_is_lost(finished: Project, pools: dict[str, str], tmp_path: Path) -> None:
    """What had ended on it is not run again, and the server hears of it."""
    project = finished.copy(tmp_path / "project")
    log, waits = tmp_path / "ran", tmp_path / "waits"
    waits.touch()
    for stage in yaml.safe_load((project.folder / "dvc.yaml").read_text())["stages"]:
        first = f"echo {stage} >> {log}"
        if stage == "cost":
            first += f"; while [ -e {waits} ]; do sleep 0.2; done"
        project.stand_in(stage, first)
    project.run("git", "rm", "-q", "--cached", "dvc.lock")
    (project.folder / "dvc.lock").unlink()
    expected = finished.outputs()
    repository = published(project, tmp_path)
    project.run("boss", "deploy", "--pool", "hosts", "--repository", repository, env=pools)

    def ran() -> list[str]:
        return log.read_text().split() if log.exists() else []

    with host(tmp_path / "one", pools, "hosts") as one:
        lost = start_run(pools, "on-demand", {"workers": 1})
        wait_until(lambda: "cost" in ran(), 600, one.log)
        since = time.monotonic()
        one.lose()
    before = ran()
    assert "teacher" in before
    waits.unlink()
    with host(tmp_path / "two", pools, "hosts") as two:
        again = ended(pools, start_run(pools, "on-demand", {}), 900, two.log)
        assert again["state_type"] == "COMPLETED", two.log.read_text()
    assert all(ran().count(stage) == 1 for stage in {*ran()} - {"cost", "finetune", "evaluate"})
    assert ran().count("cost") == 2
    crashed = ended(pools, lost, 600)
    assert crashed["state_type"] == "CRASHED"
    assert crashed["state"]["message"].startswith("no heartbeat for 90 s")
    print(f"lost after {time.monotonic() - since:.0f} s")
    mine = cloned(repository, tmp_path / "mine")
    assert "Running stage" not in mine.run("dvc", "repro", "--pull").stdout
    assert mine.outputs() == expected


@pytest.mark.slow
def test_what_does_not_reach_the_remote_fails(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, that of the stage; a connection that comes back costs nothing."""
    project = finished.copy(tmp_path / "project")
    project.stand_in("prepare")
    mine = cloned(published(project, tmp_path), tmp_path / "mine")
    storage = tmp_path / "storage"
    monkeypatch.setenv(clone.CLONE, "1")
    monkeypatch.setattr(clone, "DELAYS", (0.1, 0.1))
    with disable_run_logger():
        runner = clone.runner_of(mine.folder, ["prepare"])
        storage.write_text("no folder")

        def run(stage: str) -> str:
            return runner.run(stage, environment={}, log=print, timeout=100)

        with pytest.raises(StageError, match=r"^check: the DVC remote cannot be read: [^\n]*$"):
            run("check")
        monkeypatch.setattr(clone, "pull_stage", lambda *_: None)  # lost while the stage runs
        with pytest.raises(StageError) as failed:
            run("check")
        assert str(failed.value).startswith("check: its outputs do not reach the DVC remote: ")
        assert "\n" not in str(failed.value)
        monkeypatch.setattr(clone, "DELAYS", (0.1, 5.0))
        threading.Timer(1.0, storage.unlink).start()
        assert run("prepare") == "Ran"
    other = cloned(f"file://{tmp_path / 'repository.git'}", tmp_path / "other")
    shown = other.run("dvc", "repro", "--pull", "prepare").stdout
    assert "Running stage 'check'" in shown  # which did not arrive
    assert "Running stage 'prepare'" not in shown


@pytest.mark.slow
def test_what_a_clone_needs(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(clone.CLONE, "1")
    project = finished.copy(tmp_path / "project")
    with disable_run_logger(), pytest.raises(InputError, match="no default remote"):
        clone.bring_inputs(project.folder, experiment=False)
    images = project.folder / "inputs" / "images"
    (images / "one.txt").write_text("an input")
    project.run("dvc", "add", "--quiet", "inputs/images/one.txt")
    repository = published(project, tmp_path)
    project.run("dvc", "push", "--quiet", "inputs/images/one.txt.dvc")
    (tmp_path / "gitconfig").write_text("[user]\n\tname = host\n\temail = host@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    mine = cloned(repository, tmp_path / "mine")
    with disable_run_logger():
        clone.bring_inputs(mine.folder, experiment=True)
        assert (mine.folder / "inputs" / "images" / "one.txt").read_text() == "an input"
        # Who may read the repository need not be allowed to write there.
        mine.run("git", "remote", "set-url", "--push", "origin", str(tmp_path / "nowhere.git"))
        with pytest.raises(InputError) as refused:
            clone.bring_inputs(mine.folder, experiment=True)
        clone.bring_inputs(mine.folder, experiment=False)
        for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
            monkeypatch.setenv(name, os.devnull)
        with pytest.raises(InputError, match=r"overrides: git has no user\.name where this worker"):
            clone.bring_inputs(mine.folder, experiment=True)
    assert str(refused.value).startswith("overrides: git push: fatal: ")
    assert "an experiment is sent to the repository" in str(refused.value)
