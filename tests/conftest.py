"""What several test files use."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from flows.telemetry import TELEMETRY_OFF
from tests.helpers.once import made_once
from tests.helpers.project import Project
from tests.helpers.servers import prefect_server as start_prefect_server

os.environ.update(TELEMETRY_OFF)
# Where there is no network, as here, the Hub would be asked again and again for what is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A thread that waits for the others of its process by spinning would keep other tests from their
# core, and take ten times as long itself.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Prefect's database and profiles of the tests, apart from the user's.
PREFECT_HOME = tempfile.mkdtemp(prefix="boss-prefect-")
os.environ["PREFECT_HOME"] = PREFECT_HOME
# Fixtures below that take a minute or more to make, once.
WHOLE_RUNS = {"finished", "flow_folder"}
# Files whose slow tests take two minutes and more together.
LONG = {
    "test_deployments.py", "test_experiments.py", "test_gpus.py", "test_launch.py",
    "test_methods.py", "test_pipeline.py", "test_pipeline_students.py", "test_pipelines.py",
    "test_postgres_writers.py", "test_remotes.py", "test_runners_dask.py", "test_runs.py",
}  # fmt: skip
atexit.register(shutil.rmtree, PREFECT_HOME, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a whole run of the pipeline is slow. Files with slow tests first, the longest of
    them before the others: a file is a process's as a whole, and a long one begun last would run
    alone."""
    for item in items:
        if WHOLE_RUNS & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    slow = {
        item.path
        for item in items
        if item.get_closest_marker("slow") or item.get_closest_marker("ui")
    }
    items.sort(key=lambda item: (item.path not in slow, item.path.name not in LONG))


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
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project after ``boss repro``. Tests that change it work on a copy."""

    def make(folder: Path) -> None:
        project = Project.create(folder / "project")
        project.run("boss", "repro")
        project.commit("after the run")

    return Project(made_once(tmp_path_factory, "finished", make) / "project")


@pytest.fixture(scope="session")
def all_methods(tmp_path_factory: pytest.TempPathFactory, finished: Project) -> tuple[Project, str]:
    """`finished` after a run of every method of finetuning, named in an order of their own, and
    what that printed."""
    from flows.config import Method

    def make(folder: Path) -> None:
        project = finished.copy(folder / "project")
        project.set({"finetune.methods": [*reversed(get_args(Method))]})
        (folder / "shown").write_text(project.run("boss", "repro").stdout)

    folder = made_once(tmp_path_factory, "all-methods", make)
    return Project(folder / "project"), (folder / "shown").read_text()


@pytest.fixture(scope="session")
def flow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project after ``boss run``, what that printed, and what Prefect's server kept."""

    def make(folder: Path) -> None:
        project = Project.create(folder / "project")
        (folder / "prefect").mkdir()
        with start_prefect_server(folder / "prefect") as environment:
            # Others than those of `finished`, whose bytes are the same.
            environment |= {"OMP_NUM_THREADS": "3"}
            shown = project.run("boss", "run", env=environment)
        (folder / "shown").write_text(shown.stdout + shown.stderr)
        project.commit("after the flow")

    return made_once(tmp_path_factory, "flowed", make)


@pytest.fixture(scope="session")
def prefect_server(
    tmp_path_factory: pytest.TempPathFactory, flow_folder: Path
) -> Iterator[dict[str, str]]:
    """A Prefect server on loopback that knows the run of `flowed`; the environment that leads to
    it. Each of pytest's processes has one of its own, on a copy of the database."""
    home = tmp_path_factory.mktemp("prefect") / "home"
    shutil.copytree(flow_folder / "prefect", home)
    with start_prefect_server(home) as environment:
        yield environment


@pytest.fixture(scope="session")
def flowed(flow_folder: Path) -> tuple[Project, str]:
    """A small project after ``boss run`` on a Prefect server, and what that printed."""
    return Project(flow_folder / "project"), (flow_folder / "shown").read_text()
