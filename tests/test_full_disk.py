"""A full disk: what DVC cannot store is an error, and what is a convenience is a line."""

import subprocess
from pathlib import Path

import pytest

from flows.integrity import recorded, unstored
from tests.project import Project

# A mount that this command and what it starts see, and that ends with them.
OWN_MOUNTS = ("unshare", "--map-root-user", "--mount", "sh", "-c")


@pytest.fixture
def small_cache(finished: Project, tmp_path: Path) -> tuple[Project, str]:
    """The project with an empty cache, and the command that mounts a disk of 100 kB for it."""
    cache = tmp_path / "cache"
    cache.mkdir()
    mount = f"mount -t tmpfs -o size=100k none {cache}"
    if subprocess.run([*OWN_MOUNTS, mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    project = finished.copy(tmp_path / "project")
    (project.folder / "dvc.lock").unlink()
    project.run("dvc", "cache", "dir", "--local", str(cache))
    return project, mount


def test_what_dvc_could_not_store_is_an_error(small_cache: tuple[Project, str]) -> None:
    project, mount = small_cache
    larger = mount.replace("-o size=100k", "-o remount,size=50m")
    script = f"""{mount}
        boss repro >&2; echo boss: $?
        dvc repro >&2; echo dvc: $?
        {larger}; dvc commit --quiet --force prepare; dvc status prepare"""
    done = project.run(*OWN_MOUNTS, script)
    # DVC alone ends as if all were well; the stage that would read it tells.
    assert done.stdout.split("\n")[:2] == ["boss: 2", "dvc: 255"]
    cache = project.folder.parent / "cache"
    said = (
        f"error: {cache}: DVC could not store data in its cache (0 bytes free on its disk); free"
        " some, `dvc commit --force prepare` keeps what was made, then run again"
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in errors
    assert not [line for line in errors if line != said and "error: the run stopped" not in line]
    assert "up to date" in done.stdout


@pytest.mark.slow
def test_the_flow_too(small_cache: tuple[Project, str], prefect_server) -> None:
    project, mount = small_cache
    script = f"{mount}; exec boss run --target prepare"
    done = project.run(*OWN_MOUNTS, script, code=2, env=prefect_server)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: prepare: {project.folder.parent / 'cache'}: DVC could not")


def test_what_is_not_in_the_cache(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    assert unstored(project.folder, ended=True) == {}
    (report,) = [r for r in recorded(project.folder) if r.path.name == "report.html"]
    report.cached.unlink()
    assert unstored(project.folder, ended=True) == {"report": [report.path]}
    assert unstored(project.folder, "report", ended=True) == {"report": [report.path]}
    assert unstored(project.folder, "prepare", ended=True) == {}
    # Of a run that failed before: DVC was not asked to store it.
    assert unstored(project.folder, ended=False) == {}
    (report.cached.parent / ".x.tmp").touch()  # as DVC leaves it where it could not
    assert unstored(project.folder, ended=False) == {"report": [report.path]}
    # Recorded, but of a budget that is gone.
    (project.folder / report.path).unlink()
    assert unstored(project.folder, ended=True) == {}
