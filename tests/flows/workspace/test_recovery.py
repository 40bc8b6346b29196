"""What a kill can leave cut short, of DVC's own files."""

from pathlib import Path

import pytest

from tests.helpers.project import Project


@pytest.mark.parametrize(
    ("name", "left"),
    [("dvc.lock", ""), ("dvc.lock", "schema: '2.0'\nstages:\n  check:\n    cmd: 'pyth"),
     (".dvc/tmp/rwlock", ""), (".dvc/tmp/rwlock", '{"/a": {"wr')],
)  # fmt: skip
def test_a_file_cut_short_by_a_kill_is_removed(
    finished: Project, tmp_path: Path, name: str, left: str
) -> None:
    project = finished.copy(tmp_path / "project")
    (project.folder / name).write_text(left)
    done = project.run("boss", "repro")
    assert f"{name}: cut short, as a kill leaves it; removed" in done.stderr
    assert "> python" not in done.stdout  # all is restored, nothing runs
    assert project.outputs() == finished.outputs()
    assert "up to date" in project.run("dvc", "status").stdout
    again = project.run("boss", "repro")
    assert "cut short" not in again.stderr
