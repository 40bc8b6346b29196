"""Folders that git does not know, does not trust, or has no commit of."""

import os
import shutil
from pathlib import Path

import pytest

from boss_core.errors import InputError
from flows.workspace.scm import require_commit, settle_git
from tests.helpers.project import Project


def test_a_downloaded_archive_runs_and_a_repository_takes_over(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = finished.copy(tmp_path / "project")
    shutil.rmtree(project.folder / ".git")
    (project.folder / ".dvc/config.local").write_text("[cache]\n    type = copy\n")
    done = project.run("boss", "repro")
    assert "no git repository; the stages run all the same" in done.stderr
    assert "up to date" in project.run("dvc", "status").stdout
    assert "no git" not in project.run("boss", "repro").stderr
    monkeypatch.chdir(project.folder)
    with pytest.raises(InputError, match=r"no git repository; one with a commit needed"):
        require_commit(Path())
    project.run("git", "init", "-q")
    settle_git(Path())
    config = (project.folder / ".dvc/config.local").read_text()
    assert "no_scm" not in config
    assert "type = copy" in config
    with pytest.raises(InputError, match="no git commit; a DVC experiment needs one"):
        require_commit(Path())
    project.commit("start")
    require_commit(Path())


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to another user")
def test_a_repository_of_another_user_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    project = Project(folder)
    folder.mkdir()
    project.run("git", "init", "-q")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 12345, 12345)
    with pytest.raises(InputError, match=r"another user.* safe\.directory .*repository` needed"):
        require_commit(folder)


def test_a_machine_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="git is not installed"):
        require_commit(tmp_path)
