"""The copy of a workspace that a run with changed parameters works in: real git and DVC."""

from pathlib import Path

import pytest
import yaml

from boss_core.errors import InputError
from flows.orchestration.request import check_request
from flows.workspace.experiment import isolated_copy, override
from tests.helpers.checkout import ROOT
from tests.helpers.project import Project


def test_links_lead_to_the_same_in_the_copy(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "Bühne (1)")
    (tmp_path / "elsewhere" / "zero").mkdir(parents=True)
    (tmp_path / "elsewhere" / "zero" / "a.png").write_bytes(b"a")
    (project.folder / "inputs" / "inside").symlink_to("teacher")
    (project.folder / "inputs" / "file").symlink_to("teacher/README.md")
    (project.folder / "inputs" / "nowhere").symlink_to("nothing")
    project.run("git", "add", "--force", "inputs/inside", "inputs/file", "inputs/nowhere")
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

    # Names and commits are looked at before anything is copied or started.
    images.unlink()
    images.mkdir()
    with pytest.raises(InputError, match="--name: 'copy' is an experiment already; another name"):
        check_request(project.folder, ["seed=2"], [], "copy")
    with pytest.raises(InputError, match="--name: 'a b'; letters, digits"):
        check_request(project.folder, ["seed=2"], [], "a b")
    project.commit("another")
    check_request(project.folder, ["seed=2"], [], "copy")  # an experiment of the last commit
    project.run("git", "update-ref", "-d", "HEAD")
    with pytest.raises(InputError, match="no git commit; a DVC experiment needs one to belong to"):
        check_request(project.folder, ["seed=2"], [], None)


@pytest.mark.slow  # DVC many times
def test_what_users_bring_is_in_the_copy_and_in_no_commit(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project")
    inputs = project.folder / "inputs"
    cloned = inputs / "teacher" / "cloned"  # as from a hub, with its own repository
    for path in (
        inputs / "images" / "cats" / "1.png", inputs / "mine" / "2.png", cloned / "weights.bin",
        project.folder / "schedules" / "8.json", project.folder / "dvc_plots" / "index.html",
        project.folder / "samples.png",
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())
    assert project.run("git", "status", "--short").stdout == ""
    project.run("git", "-C", str(cloned), "init", "-q")
    project.run("dvc", "add", "-q", "inputs/mine")
    # A repository within is one to git whatever it ignores.
    expected = "?? inputs/.gitignore\n?? inputs/mine.dvc\n?? inputs/teacher/cloned/\n"
    assert project.run("git", "status", "--short").stdout == expected
    with isolated_copy(project.folder, "copy", ["seed=1"], ["check"]) as copy:
        found = {str(p.relative_to(copy)) for p in (copy / "inputs").rglob("*") if p.is_file()}
        # The second from DVC's cache, in which a file has no other name.
        assert (copy / "inputs" / "mine" / "2.png").read_bytes() == b"2.png"
        Project(copy).run("dvc", "repro", "-q", "check")
    own = {name for name in found if not name.endswith(("README.md", ".dvc", ".gitignore"))}
    assert own == {
        "inputs/images/cats/1.png", "inputs/mine/2.png", "inputs/teacher/cloned/weights.bin"
    }  # fmt: skip
    refs = ("git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/copy")
    (ref,) = project.run(*refs).stdout.split()
    recorded = project.run("git", "ls-tree", "-r", "--name-only", ref).stdout.split()
    assert "dvc.lock" in recorded
    assert not own & set(recorded)


@pytest.mark.parametrize(
    ("value", "means"),
    [("ä", "ä"), ("'ä'", "ä"), ("/x/ä ö", "/x/ä ö"), ("photos (1)", "photos (1)"),
     ("it's", "it's"), ("a=b#1", "a=b#1"), ("ends (\\", "ends (\\"), ("inputs/a", "inputs/a")],
)  # fmt: skip
def test_any_text_is_a_value(tmp_path: Path, value: str, means: str) -> None:
    params = tmp_path / "params.yaml"
    before = (ROOT / "params.yaml").read_text()
    params.write_text(before)
    override(params, [f"data.path={value}"])
    expected = yaml.safe_load(before)
    expected["data"]["path"] = means
    assert yaml.safe_load(params.read_text()) == expected


@pytest.mark.parametrize("change", ["data={}", "teacher={training: {}}"])
def test_a_change_of_nothing_is_refused(tmp_path: Path, change: str) -> None:
    params = tmp_path / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text())
    with pytest.raises(
        InputError, match=r"--set: \w+: '.*' changes nothing; \w+.NAME=VALUE needed"
    ):
        override(params, [change])
