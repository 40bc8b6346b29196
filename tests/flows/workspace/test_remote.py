"""What DVC's cache here has of a project, before a stage is sent elsewhere."""

from pathlib import Path

import pytest

from flows.workspace.remote import restorable
from tests.helpers.project import Project


def test_what_dvc_would_restore(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = finished.copy(tmp_path / "project")
    monkeypatch.chdir(project.folder)
    assert restorable(project.folder, "cost")
    assert restorable(project.folder, "finetune@3")
    project.set({"cost.samples": 13})
    assert not restorable(project.folder, "cost")
    assert restorable(project.folder, "teacher")
