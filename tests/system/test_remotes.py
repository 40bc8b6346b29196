"""A DVC remote between two machines, here two folders that share nothing else: a folder, an SSH
server and an S3 server. What lets a user in is in the environment only."""

import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.project import Project, environment
from tests.helpers.remotes import SSHD, Remote, s3_server, shared_folder, ssh_server
from tests.helpers.servers import prefect_server

pytestmark = pytest.mark.slow

KINDS = {"folder": shared_folder, "ssh": ssh_server, "s3": s3_server}


@pytest.fixture(scope="module", params=KINDS)
def remote(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Remote]:
    if request.param == "ssh" and SSHD is None:
        pytest.skip("no SSH server on this machine (Debian: apt-get install openssh-server)")
    if request.param == "s3":
        pytest.importorskip("moto")
    with KINDS[request.param](tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture(scope="module")
def pushed(remote: Remote, finished: Project, tmp_path_factory) -> Project:
    """A project with a remote, to which all of it was pushed."""
    project = finished.copy(tmp_path_factory.mktemp("pushed") / "project")
    project.run("dvc", "remote", "add", "--default", "shared", remote.url)
    for option, value in remote.options.items():
        project.run("dvc", "remote", "modify", "shared", option, value)
    project.commit("a remote")
    project.run("dvc", "push", env=remote.environment)
    return project


def clone(project: Project, folder: Path) -> Project:
    project.run("git", "clone", "--quiet", str(project.folder), str(folder))
    return Project(folder)


def test_a_clone_that_pulls_has_nothing_to_run(
    pushed: Project, remote: Remote, tmp_path: Path
) -> None:
    second = clone(pushed, tmp_path / "second")
    assert not second.outputs()
    second.run("dvc", "pull", env=remote.environment)
    assert second.outputs() == pushed.outputs()
    assert "up to date" in second.run("dvc", "status").stdout
    shown = second.run("boss", "repro").stdout
    assert "Data and pipelines are up to date." in shown
    assert "> python" not in shown
    assert second.run("git", "status", "--porcelain").stdout == ""
    # What this folder's cache holds is all there: nothing is left to push.
    assert "Everything is up to date" in second.run("dvc", "push", env=remote.environment).stdout


@pytest.mark.long
def test_no_secret_is_kept(pushed: Project, remote: Remote, tmp_path: Path) -> None:
    """Neither in the project, DVC's files and MLflow's among them, nor in what Prefect's server
    keeps and prints."""
    second = clone(pushed, tmp_path / "second")
    shown = second.run("dvc", "pull", "--verbose", env=remote.environment)
    said = shown.stdout + shown.stderr
    (tmp_path / "prefect").mkdir()
    with prefect_server(tmp_path / "prefect") as environment:
        done = second.run("boss", "run", env=environment | remote.environment)
    said += done.stdout + done.stderr
    assert "0 Ran" in said
    assert (second.folder / "mlflow.db").stat().st_size
    (tmp_path / "said").write_text(said)
    for secret in remote.secrets:
        holding = [path for path in tmp_path.rglob("*") if holds(path, secret)]
        assert not holding
        assert secret not in database_text(second.folder / "mlflow.db")


def holds(path: Path, secret: str) -> bool:
    return path.is_file() and secret.encode() in path.read_bytes()


def database_text(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return "\n".join(connection.iterdump())
    finally:
        connection.close()


@pytest.mark.long
def test_without_the_secret_nobody_is_let_in(
    pushed: Project, remote: Remote, tmp_path: Path
) -> None:
    if not remote.secrets:
        pytest.skip("a folder has none")
    second = clone(pushed, tmp_path / "second")
    assert re.search("permission denied|forbidden", refused_pull(second, remote.stranger), re.I)
    assert not second.outputs()


def refused_pull(project: Project, variables: dict[str, str]) -> str:
    """What DVC says of it, which is its own words."""
    command, env = ["dvc", "pull"], environment(variables)
    done = subprocess.run(
        command, cwd=project.folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR: "))


@pytest.mark.long
def test_a_remote_that_is_gone_holds_up_no_run(
    pushed: Project, remote: Remote, tmp_path: Path
) -> None:
    """Push and pull fail, without a traceback; what is here needs no remote."""
    project = pushed.copy(tmp_path / "project")
    gone = {"url": f"{tmp_path}/gone"}
    if remote.url.startswith("ssh"):
        gone = {"url": "ssh://127.0.0.1:1/nowhere"}
    if remote.url.startswith("s3"):
        gone = {"endpointurl": "http://127.0.0.1:1"}
    for option, value in gone.items():
        project.run("dvc", "remote", "modify", "shared", option, value)
    second = clone(project, tmp_path / "second")
    (second.folder / ".dvc" / "config").write_text((project.folder / ".dvc/config").read_text())
    assert refused_pull(second, remote.environment)
    assert "up to date" in project.run("boss", "repro", env=remote.environment).stdout
    # What only a pull would bring.
    lacks = second.run("boss", "compare", "HEAD", code=2).stderr
    assert "`dvc pull`" in lacks
    assert len(lacks.splitlines()) == 1
