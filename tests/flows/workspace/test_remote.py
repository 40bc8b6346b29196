"""What goes to and comes from the DVC remote of a project, asked from another folder."""

from pathlib import Path

from flows.workspace.remote import restorable
from tests.helpers.project import Project


def test_what_dvc_would_restore(finished: Project, tmp_path: Path) -> None:
    """Of the folder that is asked about, not of the one that the process is in."""
    project = finished.copy(tmp_path / "project")
    assert restorable(project.folder, "cost")
    assert restorable(project.folder, "finetune@3")
    project.set({"cost.samples": 13})
    assert not restorable(project.folder, "cost")
    assert restorable(project.folder, "teacher")
