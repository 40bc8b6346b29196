"""What several test files use."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flows.telemetry import TELEMETRY_OFF

os.environ.update(TELEMETRY_OFF)
# Prefect's database and profiles of the tests, apart from the user's.
PREFECT_HOME = tempfile.mkdtemp(prefix="boss-prefect-")
os.environ["PREFECT_HOME"] = PREFECT_HOME
atexit.register(shutil.rmtree, PREFECT_HOME, ignore_errors=True)

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

needs_shared = pytest.mark.skipif(
    not (SHARED / "reference").is_dir(),
    reason="the reference results of the published implementation are not beside this checkout",
)


class Linear(torch.nn.Module):
    """dx/dt = a x + b t, whose solution from x at t = 0 is known (see `solution`)."""

    a, b = -1.3, 0.7

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.a * x + self.b * t.view(-1, *[1] * (x.ndim - 1))

    def solution(self, x: torch.Tensor) -> torch.Tensor:
        """The exact state at t = 1: (x + b/a^2) e^a - b/a - b/a^2."""
        a, b = self.a, self.b
        return (x + b / a**2) * torch.tensor(a).double().exp() - b / a - b / a**2


@pytest.fixture
def boss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run a command in an empty folder; its exit code, standard output and standard error."""
    from flows import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["boss", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """A small project after ``boss repro``. Tests that change it work on a copy."""
    from tests.project import Project

    project = Project.create(tmp_path_factory.mktemp("finished") / "project")
    project.run("boss", "repro")
    project.commit("after the run")
    return project


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server on loopback; the environment that leads to it."""
    from tests.servers import prefect_server as start

    with start(tmp_path_factory.mktemp("prefect")) as environment:
        yield environment


@pytest.fixture(scope="session")
def flowed(tmp_path_factory: pytest.TempPathFactory, prefect_server: dict[str, str]):
    """A small project after ``boss run`` on the Prefect server, and what that printed."""
    from tests.project import Project

    project = Project.create(tmp_path_factory.mktemp("flowed") / "project")
    shown = project.run("boss", "run", env=prefect_server)
    project.commit("after the flow")
    return project, shown.stdout + shown.stderr
