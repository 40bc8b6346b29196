"""A project as it stands as one git revision: nothing of the user's repository is touched."""

import subprocess
from pathlib import Path

import pytest

from boss_core.errors import InputError
from flows.workspace.bundle import bundle, left_behind, unbundle


def git(folder: Path, *arguments: str) -> str:
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    done = subprocess.run(
        ["git", *author, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "a project ü"
    (folder / ".dvc").mkdir(parents=True)
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text("*.npz\n/inputs/**\n!/inputs/**/\n!*.dvc\n")
    # Whatever git would make of line ends and large files.
    (folder / ".gitattributes").write_text("*.txt text eol=crlf\n*.bin filter=lfs\n")
    (folder / "kept.txt").write_bytes(b"one\r\ntwo\n")
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    (folder / "script.sh").write_text("echo\n")
    (folder / "script.sh").chmod(0o755)
    (folder / "gone.txt").write_text("removed later")
    (folder / "forced.npz").write_text("ignored, and tracked")
    (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    git(folder, "add", "--all")
    git(folder, "add", "--force", "forced.npz")
    git(folder, "commit", "--quiet", "--message", "start")
    (folder / "kept.txt").write_bytes(b"edited\r\nand\nnot committed")
    (folder / "gone.txt").unlink()
    (folder / "new name ß.txt").write_text("not even added")
    (folder / "link").symlink_to("kept.txt")
    (folder / "costs.npz").write_text("ignored")
    for name in ("config.local", "tmp/x", "cache/x"):
        path = folder / ".dvc" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("password = here")
    return folder


def test_it_has_what_stands_there_and_leaves_the_repository_alone(
    project: Path, tmp_path: Path
) -> None:
    before = git(project, "status", "--porcelain"), git(project, "for-each-ref")
    index = (project / ".git" / "index").read_bytes()
    content = bundle(project)
    assert (git(project, "status", "--porcelain"), git(project, "for-each-ref")) == before
    assert (project / ".git" / "index").read_bytes() == index
    clone = tmp_path / "elsewhere" / "clone"
    unbundle(content, clone)
    found = {p.relative_to(clone) for p in clone.rglob("*") if ".git" not in p.parts}
    names = {
        ".dvc/.gitignore", ".gitignore", ".gitattributes", "kept.txt", "forced.npz",
        "weights.bin", "script.sh",
        "new name ß.txt", "link",
    }  # fmt: skip
    assert found - {Path(".dvc")} == {Path(name) for name in names}
    for name in names:
        assert (clone / name).read_bytes() == (project / name).read_bytes()
    assert (clone / "script.sh").stat().st_mode & 0o111
    assert (clone / "link").readlink() == Path("kept.txt")
    assert git(clone, "log", "--format=%an %ae %P").strip() == "boss boss@localhost"
    unbundle(bundle(project), tmp_path / "second")
    head = "rev-parse", "HEAD"
    assert git(clone, *head) == git(tmp_path / "second", *head)  # the same files, the same revision


def test_a_folder_without_git(project: Path, tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(project / ".git")
    unbundle(bundle(project), tmp_path / "clone")
    assert (tmp_path / "clone" / "kept.txt").read_bytes().startswith(b"edited")
    assert not (tmp_path / "clone" / "costs.npz").exists()


def test_a_repository_inside_is_refused(project: Path) -> None:
    inside = project / "their_network"
    inside.mkdir()
    git(inside, "init", "--quiet")
    (inside / "network.py").write_text("x = 1\n")
    git(inside, "add", "--all")
    git(inside, "commit", "--quiet", "--message", "theirs")
    with pytest.raises(InputError, match=r"^their_network: a git repository inside the project"):
        bundle(project)


def test_what_git_ignores_is_left_behind_but_what_dvc_has(project: Path) -> None:
    images = project / "inputs" / "images"
    images.mkdir(parents=True)
    (images / "1.png").write_text("")
    assert left_behind(project, Path("inputs/images")) == ["inputs/images/1.png"]
    (project / "inputs" / "images.dvc").write_text("outs: []\n")
    assert left_behind(project, Path("inputs/images")) == []
