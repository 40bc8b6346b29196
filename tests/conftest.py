"""What several test files use."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.telemetry import TELEMETRY_OFF

os.environ.update(TELEMETRY_OFF)
# Prefect's database and profiles of the tests, apart from the user's.
PREFECT_HOME = tempfile.mkdtemp(prefix="boss-prefect-")
os.environ["PREFECT_HOME"] = PREFECT_HOME
atexit.register(shutil.rmtree, PREFECT_HOME, ignore_errors=True)


@pytest.fixture
def boss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run a command in an empty folder; its exit code, standard output and standard error."""
    from flows.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["boss", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            app.main()
        return (end.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """A small project after ``boss repro``. Tests that change it work on a copy."""
    from tests.helpers.project import Project

    project = Project.create(tmp_path_factory.mktemp("finished") / "project")
    project.run("boss", "repro")
    project.commit("after the run")
    return project


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server on loopback; the environment that leads to it."""
    from tests.helpers.servers import prefect_server as start

    with start(tmp_path_factory.mktemp("prefect")) as environment:
        yield environment


@pytest.fixture(scope="session")
def flowed(tmp_path_factory: pytest.TempPathFactory, prefect_server: dict[str, str]):
    """A small project after ``boss run`` on the Prefect server, and what that printed."""
    from tests.helpers.project import Project

    project = Project.create(tmp_path_factory.mktemp("flowed") / "project")
    shown = project.run("boss", "run", env=prefect_server)
    project.commit("after the flow")
    return project, shown.stdout + shown.stderr
