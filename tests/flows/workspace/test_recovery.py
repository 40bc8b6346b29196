"""What a kill can leave cut short, of DVC's own files."""

from pathlib import Path

import pytest
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.utils.strictyaml import load as load_as_dvc

from boss_core.errors import InputError
from flows.workspace import recovery
from flows.workspace.dvc_lock import CutShortError, forget, locked_stages, read_lock
from flows.workspace.integrity import absent, verify
from flows.workspace.recovery import restore, set_aside_cut_short
from tests.helpers.project import Project

CUT = "schema: '2.0'\nstages:\n  check:\n    cmd: 'pyth"


def test_a_run_goes_on_where_a_kill_cut_files_short(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    (project.folder / "dvc.lock").write_text(CUT)
    (project.folder / ".dvc/tmp/rwlock").write_text('{"/a": {"wr')
    done = project.run("boss", "repro")
    assert "dvc.lock: cut short, as a kill leaves it; moved to dvc.lock.cut-short" in done.stderr
    assert ".dvc/tmp/rwlock: cut short, as a kill leaves it; removed" in done.stderr
    assert "> python" not in done.stdout  # all is restored, nothing runs
    assert project.outputs() == finished.outputs()
    assert "up to date" in project.run("dvc", "status").stdout
    assert (project.folder / "dvc.lock.cut-short").read_text() == CUT
    assert "cut-short" not in project.run("git", "status", "--porcelain").stdout
    again = project.run("boss", "repro")
    assert "cut short" not in again.stderr


@pytest.mark.parametrize(
    ("name", "left", "says"),
    [("dvc.lock", "", "moved to dvc.lock.cut-short"),
     ("dvc.lock", "schema: '2.0'\nstages:\n", "moved to dvc.lock.cut-short"),
     (".dvc/tmp/rwlock", "", "removed"), (".dvc/tmp/rwlock", '{"/a": {"wr', "removed")],
)  # fmt: skip
def test_a_file_cut_short_by_a_kill_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str,
    left: str, says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(recovery, "PATIENCE", 0.0)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(left)
    set_aside_cut_short(tmp_path)
    assert f"{path}: cut short, as a kill leaves it; {says}" in capsys.readouterr().err
    assert not path.exists()
    aside = [p.read_text() for p in path.parent.iterdir() if p.is_file()]
    assert aside == ([left] if name == "dvc.lock" else [])
    set_aside_cut_short(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_lock_cut_anywhere_is_taken_as_dvc_takes_it_or_moved_away(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PATIENCE", 0.0)
    whole = (finished.folder / "dvc.lock").read_bytes()
    # Two stages of it, the second with two-byte signs to cut through; every fifth length, for the
    # time it takes.
    start = whole.index(b"\n  prepare:")
    end = start + whole[start:].index(b"\n    outs:") + 300
    content = whole[:end].replace(b"flows.stages.prepare", "flows.stages.prépare".encode())
    lock, aside = tmp_path / "dvc.lock", tmp_path / "dvc.lock.cut-short"
    taken = 0
    for size in range(0, len(content), 5):
        lock.write_bytes(content[:size])
        try:
            dvc, _ = load_as_dvc(str(lock), Lockfile.SCHEMA)
        except DvcException:
            dvc = None
        set_aside_cut_short(tmp_path)
        if lock.exists():
            taken += 1
            assert dvc is not None, size
            assert locked_stages(tmp_path).keys() == dvc.get("stages", {}).keys()
            assert absent(tmp_path) == []
            continue
        assert aside.read_bytes() == content[:size]
        assert dvc is None or any(  # which DVC takes: an output whose hash is not there yet
            not out.get("md5") for stage in dvc["stages"].values() for out in stage.get("outs", [])
        ), size
        with pytest.raises(CutShortError, match=r"dvc\.lock: cut short or altered"):
            read_lock(content[:size], lock)
        cut = content[:size]
    # Those that only look leave it where it is.
    lock.write_bytes(cut)
    with pytest.raises(CutShortError, match=r"dvc\.lock: cut short or altered"):
        verify(tmp_path, remove=True)
    restore(tmp_path)  # has nothing to go by, and ends
    assert lock.read_bytes() == cut
    assert 20 < taken < len(content) / 5 - 20


def test_a_conflict_of_git_is_nobodys_to_remove(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    lock = project.folder / "dvc.lock"
    text = lock.read_text()
    ours, theirs = text.replace("size: ", "size: 1"), text.replace("size: ", "size: 2")
    project.run("git", "checkout", "-q", "-b", "side")
    lock.write_text(theirs)
    project.commit("side")
    project.run("git", "checkout", "-q", "-")
    lock.write_text(ours)
    project.commit("main")
    project.run("git", "merge", "-q", "side", code=1)
    left = lock.read_bytes()
    assert b"<<<<<<<" in left
    done = project.run("boss", "repro", code=2)
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: dvc.lock: a conflict of git's in line ")
    assert lock.read_bytes() == left
    with pytest.raises(InputError, match="a conflict of git's"):
        verify(project.folder, remove=True)


def test_a_stage_taken_out_leaves_the_rest_as_dvc_reads_it(
    finished: Project, tmp_path: Path
) -> None:
    lock = tmp_path / "dvc.lock"
    # Text to DVC and to YAML 1.2 alike; YAML 1.1 reads and writes other texts so.
    before = (finished.folder / "dvc.lock").read_text()
    lock.write_text(before.replace("seed: ", "note: '1e5'\n        other: 'no'\n        seed: "))
    whole, _ = load_as_dvc(str(lock), Lockfile.SCHEMA)
    forget(tmp_path, {"report"})
    left, _ = load_as_dvc(str(lock), Lockfile.SCHEMA)
    del whole["stages"]["report"]
    assert left == whole
