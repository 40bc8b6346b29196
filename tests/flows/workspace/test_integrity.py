"""Altered files are found: in the cache, in the folder, and by the stage that would read them."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from boss_core.errors import InputError
from flows.workspace.integrity import recorded, verify
from tests.helpers.project import Project


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, and neither its size nor its time nor its mode."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_every_output_is_recorded_by_its_hash(finished: Project) -> None:
    found = {str(r.path): r for r in recorded(finished.folder)}
    files = finished.outputs()
    assert files.keys() <= found.keys()
    for name in files:
        content = (finished.folder / name).read_bytes()
        assert found[name].md5 == hashlib.md5(content).hexdigest(), name
        assert found[name].cached.read_bytes() == content


def test_a_flipped_bit_in_any_file_is_found(
    finished: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = finished.copy(tmp_path / "project")
    assert verify(project.folder, remove=False) == 0
    files = {path for r in recorded(project.folder) for path in (project.folder / r.path, r.cached)}
    files = {path for path in files if path.is_file()}
    assert len(files) > 100
    for path in files:
        flip(path)
    capsys.readouterr()
    # A listing that is altered says nothing of its files any more.
    listings = {path for path in files if path.name.endswith(".dir")}
    for path in listings:
        flip(path)
    assert verify(project.folder, remove=True) == len(files - listings)
    assert f"{len(files - listings)} altered and removed" in capsys.readouterr().out
    for path in listings:
        flip(path)
    assert verify(project.folder, remove=False) == len(listings)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "dvc.lock: not there"),
        (b"", "dvc.lock: cut short or altered"),
        (b"schema: '2.0'\nsta", "dvc.lock: cut short or altered"),
        (b"schema: '2.0'\nstages: [", "dvc.lock: cut short or altered"),
        (b"schema: '2.0'\nstages:\n  check:\n    outs:\n    - path: x\n", "dvc.lock: cut short"),
        (b"\xff\xfe", "dvc.lock: cut short or altered"),
    ],
)
def test_where_no_outputs_are_known_nothing_is_said_to_be_whole(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "dvc.lock").write_bytes(content)
    with pytest.raises(InputError, match=says):
        verify(tmp_path, remove=True)


def test_an_altered_file_is_not_read_and_comes_back(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    (found,) = [r for r in recorded(project.folder) if r.path == Path("data/train.npy")]
    flip(found.cached)
    shutil.rmtree(project.folder / "data")
    shown = project.run("dvc", "repro", "prepare").stdout
    assert "> python" not in shown  # DVC restores it, and sees nothing
    done = project.run("boss", "verify", code=2)
    assert f"(the cache's copy of {found.path}): altered" in done.stdout
    assert f"{found.path}: altered, in this folder" in done.stdout
    said = project.run("dvc", "repro", "--force", "--single-item", "floor", code=255)
    assert "error: data/train.npy: not what its stage made" in said.stdout + said.stderr
    assert "Traceback" not in said.stderr

    project.run("boss", "verify", "--remove")
    project.run("boss", "repro")
    assert project.outputs() == finished.outputs()
    assert "0 altered" in project.run("boss", "verify").stdout
