"""Altered files are found: in the cache, in the folder, and by the stage that would read them."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from boss_core.errors import InputError
from flows.workspace.integrity import cache_folder, recorded, verify
from tests.helpers.in_process import boss
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
    done = boss(project, "verify", code=2)
    assert f"(the cache's copy of {found.path}): altered" in done.stdout
    assert f"{found.path}: altered, in this folder" in done.stdout
    said = project.run("dvc", "repro", "--force", "--single-item", "floor", code=255)
    assert "error: data/train.npy: not what its stage made" in said.stdout + said.stderr
    assert "Traceback" not in said.stderr

    boss(project, "verify", "--remove")
    project.run("boss", "repro")
    assert project.outputs() == finished.outputs()
    shown = boss(project, "verify").stdout
    assert "0 altered" in shown
    assert "not in this folder" not in shown
    shutil.rmtree(project.folder / "data")
    (project.folder / "metrics/3.json").unlink()
    shown = boss(project, "verify").stdout
    assert "\nnot in this folder: data, metrics/3.json; `dvc checkout` or the next run" in shown


@pytest.mark.parametrize(
    "setting",
    ["dir = {}", 'dir = "{}"', "dir = {} # ours", "dir = {}%x", "local = shared"],
)
@pytest.mark.parametrize("level", ["global", "repo", "local"])
def test_the_cache_is_where_dvc_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, setting: str
) -> None:
    project = Project(tmp_path / "project")
    (project.folder / ".dvc").mkdir(parents=True)
    (project.folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    config = project.folder / ".dvc/config.local"
    if level == "global":
        monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
        config = tmp_path / "config"
    elif level == "repo":
        config = project.folder / ".dvc/config"
    cache = tmp_path / "shared"
    lines = f"[core]\n    no_scm = true\n[cache]\n    {setting.format(cache)}\n"
    config.write_text(lines + f'[remote "shared"]\n    url = {cache}\n')
    expected = f"{cache}%x" if "%" in setting else str(cache)
    assert cache_folder(project.folder) == Path(expected)
    if setting == "dir = {}":
        from dvc.repo import Repo

        with Repo(str(project.folder)) as repo:
            assert repo.cache.repo.path == f"{expected}/files/md5"


def test_settings_that_dvc_cannot_read(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[cache\n")
    with pytest.raises(InputError, match="DVC's settings: config file error") as error:
        cache_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_what_cannot_be_looked_at_is_counted(
    finished: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = finished.copy(tmp_path / "project")
    files = {str(r.path): r for r in recorded(project.folder)}
    files["data"].cached.unlink()
    files["results/report.html"].cached.unlink()
    (project.folder / "results/report.html").unlink()
    inside = sum(path.is_file() for path in (project.folder / "data").rglob("*"))
    assert verify(project.folder, remove=False) == 0
    shown = capsys.readouterr().out
    assert (
        f"data: its list of files in DVC's cache is not there; {inside} files in this folder could"
        " not be looked at\n"
    ) in shown
    assert "results/report.html: neither in this folder nor in DVC's cache\n" in shown
    assert shown.endswith(" files, 0 altered, 2 outputs that could not be looked at\n")


def test_an_altered_file_in_a_cache_of_all_projects_is_found(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    (project.folder / ".dvc/cache").rename(tmp_path / "cache")
    (tmp_path / "config").write_text(f"[cache]\n    dir = {tmp_path / 'cache'}\n")
    settings = {"DVC_GLOBAL_CONFIG_DIR": str(tmp_path)}
    md5 = hashlib.md5((project.folder / "data/train.npy").read_bytes()).hexdigest()
    flip(tmp_path / "cache/files/md5" / md5[:2] / md5[2:])
    done = project.run("boss", "verify", code=2, env=settings)
    assert "(the cache's copy of data/train.npy): altered" in done.stdout
