"""The services of compose.yaml on a Docker engine, by the lines of docs/containers.md.

Where the engine reaches no registry of images: BOSS_BASE_IMAGE and BOSS_POSTGRES_IMAGE name some
that it has, in place of those of the files.
"""

import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers.checkout import ROOT

Compose = Callable[..., str]
WORKER = ("exec", "-T", "worker")  # -T: no terminal
PREPARE = ("boss-pipeline/on-demand", "--watch", "--param", 'targets=["prepare"]')
OURS = ("prefect", "mlflow", "worker")


def engine() -> bool:
    try:
        asked = (["docker", "info"], ["docker", "compose", "version"])
        return all(subprocess.run(ask, capture_output=True).returncode == 0 for ask in asked)
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not engine(), reason="a Docker engine with compose is needed"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docker") / "boss"
    subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
    (folder / "docker/.env").write_text(f"POSTGRES_PASSWORD=secret\nBOSS_UID={os.getuid()}\n")
    return folder


@pytest.fixture(scope="module")
def compose(checkout: Path) -> Iterator[Compose]:
    """Minutes, and some 15 GB of the engine's disk for the first build."""
    base, postgres = (os.environ.get(f"BOSS_{name}_IMAGE") for name in ("BASE", "POSTGRES"))
    services = {name: {"build": {"args": {"BASE": base}}} for name in OURS} if base else {}
    if postgres:
        services["postgres"] = {"image": postgres}
    other = checkout.parent / "other.yaml"
    other.write_text(yaml.safe_dump({"services": services}))
    # A project of its own: the volumes of a user's are not to be removed.
    command = ["docker", "compose", "--project-name", "boss-test", "--file", "docker/compose.yaml"]

    def run(*arguments: str, timeout: float = 300) -> str:
        done = subprocess.run(
            [*command, "--file", str(other), *arguments], cwd=checkout, timeout=timeout, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    try:
        run("up", "--build", "--detach", "--wait", timeout=1800)
        yield run
    finally:
        run("down", "--volumes")


def page(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
        return answer.read()


def test_services_come_up_with_their_pages(compose: Compose) -> None:
    assert b"<title>Prefect" in page(4200)
    assert b"<title>MLflow" in page(5000)
    assert compose("ps", "--format", "{{.Name}} {{.Health}}").count(" healthy") == 4


def test_a_run_leaves_its_results_in_the_checkout(compose: Compose, checkout: Path) -> None:
    deployed = compose(*WORKER, "boss", "deploy")
    assert "http://127.0.0.1:4200/deployments/" in deployed.replace("\n", "")
    ran = compose(*WORKER, "prefect", "deployment", "run", *PREPARE)
    assert "http://127.0.0.1:4200/runs/flow-run/" in ran
    assert "2 Ran, 0 Restored" in ran
    results = checkout / "data"
    assert {path.stat().st_uid for path in (results, *results.iterdir())} == {os.getuid()}
    status = ["git", "status", "--short"]
    changed = subprocess.run(status, cwd=checkout, capture_output=True, text=True).stdout
    assert changed.split() == ["??", "dvc.lock"]


def test_the_database_is_saved_and_restarted(compose: Compose) -> None:
    for database in ("prefect", "mlflow"):
        saved = compose("exec", "-T", "postgres", "pg_dump", "-U", "boss", database)
        assert "CREATE TABLE public." in saved
        assert "PostgreSQL database dump complete" in saved
    compose("restart", "postgres")
    ran = compose(*WORKER, "prefect", "deployment", "run", *PREPARE)
    assert "0 Ran, 0 Restored, 2" in ran
    # What Prefect and MLflow know is in volumes: it outlives the containers.
    compose("down")
    compose("up", "--detach", "--wait")
    runs = compose(*WORKER, "prefect", "flow-run", "ls", "--output", "json")
    assert runs.count('"Completed"') >= 2
