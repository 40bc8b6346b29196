"""The copy of a workspace that a run with changed parameters works in: real git and DVC."""

from pathlib import Path

import pytest

from boss_core.errors import InputError
from flows.workspace import isolated_copy
from tests.project import Project


def test_links_lead_to_the_same_in_the_copy(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project")
    (tmp_path / "elsewhere" / "zero").mkdir(parents=True)
    (tmp_path / "elsewhere" / "zero" / "a.png").write_bytes(b"a")
    (project.folder / "inputs" / "inside").symlink_to("teacher")
    (project.folder / "inputs" / "file").symlink_to("teacher/README.md")
    (project.folder / "inputs" / "nowhere").symlink_to("nothing")
    project.commit("links")
    (project.folder / "inputs" / "outside").symlink_to("../../elsewhere")  # not committed
    with isolated_copy(project.folder, "copy", ["seed=1"], ["check"]) as copy:
        inputs = copy / "inputs"
        assert (inputs / "outside" / "zero" / "a.png").read_bytes() == b"a"
        assert (inputs / "inside").resolve() == inputs / "teacher"
        assert (inputs / "file").resolve() == inputs / "teacher" / "README.md"
        assert (inputs / "nowhere").readlink() == Path("nothing")
        Project(copy).run("dvc", "repro", "check")
    assert (tmp_path / "elsewhere" / "zero" / "a.png").exists()
    assert "copy" in project.run("dvc", "exp", "list", "--name-only").stdout.split()

    images = project.folder / "inputs" / "images"
    (images / "README.md").unlink()
    images.rmdir()
    images.symlink_to("../../elsewhere")
    message = "inputs/images: a link in place of a folder that git knows"
    with pytest.raises(InputError, match=message), isolated_copy(project.folder, "b", ["seed=1"]):
        pass
