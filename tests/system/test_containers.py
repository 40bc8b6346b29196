"""docker/: what the files promise, and the services of compose.yaml as plain processes.

The processes get the commands, variables and health checks of compose.yaml, with ports of their
own and this machine's loopback in place of the network between containers.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.telemetry import TELEMETRY_OFF
from tests.helpers.checkout import ROOT
from tests.helpers.compose import (
    COMPOSE,
    DOCKER,
    DOCKERFILE,
    SERVICES,
    Stack,
    instructions,
    postgres_programs,
)


def test_image_does_not_run_as_root() -> None:
    assert instructions("USER") == ["boss"]
    assert "useradd --create-home --non-unique --uid ${UID} boss" in DOCKERFILE
    assert "UID=1000" in instructions("ARG")


def test_images_of_others_are_pinned_by_their_digest() -> None:
    (base,) = [line for line in instructions("ARG") if line.startswith("BASE=")]
    images = [base.removeprefix("BASE="), SERVICES["postgres"]["image"]]
    assert all(re.fullmatch(r"[a-z]+:[\w.-]+@sha256:[0-9a-f]{64}", image) for image in images)


def test_nothing_in_the_image_reports_home() -> None:
    (variables,) = [line for line in instructions("ENV") if line.startswith("PATH=")]
    found = dict(pair.split("=", 1) for pair in variables.split())
    assert {name: found.get(name) for name in TELEMETRY_OFF} == TELEMETRY_OFF


def test_dependencies_are_a_layer_below_the_sources() -> None:
    lock = DOCKERFILE.index("COPY requirements.lock")
    installed = DOCKERFILE.index("--require-hashes")
    sources = DOCKERFILE.index("COPY --chown=boss:boss . .")
    assert lock < installed < sources


def test_image_holds_no_data_and_no_secret() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    named = {rule[1:] for rule in rules if rule.startswith("!")}
    assert not named & {".git", ".env", "docker", "data", "models", "results"}
    assert {"boss_core", "configs", "flows", "dvc.yaml", "params.yaml"} <= named
    assert {"requirements.lock", "studies/cifar10/ddpmpp64.json"} <= named  # a preset names that
    # One by one, as not every builder knows exceptions below a * in the middle.
    inputs = {str(path.relative_to(ROOT)) for path in (ROOT / "inputs").rglob("README.md")}
    assert {rule for rule in named if rule.startswith("inputs")} == inputs


def test_password_is_asked_for_and_in_no_file() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    given = re.findall(r"://\w+:([^@\s]*)@", text) + re.findall(r"\w*PASSWORD\w*: *(.*)", text)
    assert given
    assert all(value.startswith("${POSTGRES_PASSWORD") for value in given)
    assert "${POSTGRES_PASSWORD:?" in text
    assert ".env" in (DOCKER / ".gitignore").read_text().split()


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_checked_local_and_kept(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert source.startswith(".") or source in COMPOSE["volumes"]
    for needed in service.get("depends_on", {}).values():
        assert needed == {"condition": "service_healthy"}


def test_services_are_the_four_and_three_share_the_image() -> None:
    assert set(SERVICES) == {"postgres", "prefect", "mlflow", "worker"}
    ours = [service for name, service in SERVICES.items() if name != "postgres"]
    assert {service["image"] for service in ours} == {"boss"}
    assert (ROOT / "docker" / ours[0]["build"]["context"]).resolve() == ROOT
    assert (ROOT / ours[0]["build"]["dockerfile"]).is_file()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="boss-postgres-") as database:
        stack = Stack(tmp_path_factory.mktemp("stack"), Path(database), programs)
        try:
            stack.up()
            yield stack
        finally:
            stack.down()


TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"


@pytest.mark.slow
def test_each_server_keeps_its_tables_in_its_own_database(stack: Stack) -> None:
    prefect = {name for (name,) in stack.query("prefect", TABLES)}
    mlflow = {name for (name,) in stack.query("mlflow", TABLES)}
    assert {"flow_run", "work_pool", "worker"} <= prefect
    assert {"experiments", "runs", "metrics"} <= mlflow
    assert "flow_run" not in mlflow
    assert "experiments" not in prefect


WORKERS = """
    SELECT work_pool.name, work_pool.type, worker.name
    FROM worker JOIN work_pool ON work_pool.id = worker.work_pool_id
"""


@pytest.mark.slow
def test_worker_is_online_in_the_pool(stack: Stack) -> None:
    # A worker counts as healthy from its start, a moment before it makes the pool.
    deadline = time.monotonic() + 60
    while not (rows := stack.query("prefect", WORKERS)) and time.monotonic() < deadline:
        time.sleep(0.3)
    ((pool, kind, name),) = rows
    assert (pool, kind) == ("local", "process")
    (worker,) = stack.ask("4200", "/api/work_pools/local/workers/filter", {})
    assert (worker["name"], worker["status"]) == (name, "ONLINE")


FLOW = """
import mlflow
from prefect import flow

@flow
def record(value: float):
    with mlflow.start_run():
        mlflow.log_metric("frechet", value)
        mlflow.log_text("kept", "notes/note.txt")
"""

DEPLOY = """
from prefect import flow
from prefect.deployments import run_deployment

found = flow.from_source(".", "record.py:record")
found.deploy("here", work_pool_name="local", build=False, push=False, print_next_steps=False)
print("state", run_deployment("record/here", parameters={"value": 2.5}, timeout=120).state.type)
"""


@pytest.mark.slow
def test_worker_runs_a_flow_that_logs_through_the_mlflow_server(stack: Stack) -> None:
    folder = stack.folder / "worker"
    (folder / "record.py").write_text(FLOW)
    done = subprocess.run(
        [sys.executable, "-c", DEPLOY],
        env=stack.environment("worker"),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr + (stack.folder / "worker.log").read_text()
    assert "state StateType.COMPLETED" in done.stdout, log
    assert stack.query("prefect", "SELECT state_type FROM flow_run") == [("COMPLETED",)]
    ((run_id, key, value),) = stack.query("mlflow", "SELECT run_uuid, key, value FROM metrics")
    assert (key, value) == ("frechet", 2.5)
    (artifact,) = (stack.folder / "artifacts").rglob("note.txt")
    assert run_id in artifact.parts
    assert artifact.read_text() == "kept"


@pytest.mark.slow
def test_mlflow_answers_to_its_name_in_the_network_and_to_no_other(stack: Stack) -> None:
    port, path = stack.ports["5000"], "/api/2.0/mlflow/experiments/get?experiment_id=0"
    found = stack.ask("5000", path, Host=f"mlflow:{port}")
    assert found["experiment"]["name"] == "Default"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        stack.ask("5000", path, Host=f"elsewhere.example:{port}")


@pytest.mark.slow
@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("buildah") or not shutil.which("debootstrap"),
    reason="root, buildah and debootstrap are needed to build the image here",
)
def test_the_image_builds_and_works(tmp_path: Path) -> None:
    """Minutes, and 12 GB of disk: base, packages, the bare image, and stages in a mounted clone."""
    done = subprocess.run(
        [DOCKER / "prove.sh"], env=os.environ | {"TMPDIR": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "+ boss check" in done.stdout
    assert "1 Ran" in done.stdout or "2 Ran" in done.stdout  # check and prepare in the bare image
    assert "up to date" in done.stdout
