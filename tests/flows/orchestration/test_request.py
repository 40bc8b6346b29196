"""What is refused of a run before anything is copied or started."""

from pathlib import Path

import pytest

from boss_core.errors import InputError
from flows.orchestration.request import check_overrides, check_request
from tests.helpers.project import Project


@pytest.fixture
def here(finished: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished project, which is only looked at."""
    monkeypatch.chdir(finished.folder)
    return finished.folder


@pytest.mark.parametrize(
    ("overrides", "targets", "name", "says"),
    [
        ([], ["finetun"], None, "target: 'finetun'; a stage needed, one of check, prepare"),
        (
            ["finetune.iteratoins=3"], [], None,
            "--set: finetune.iteratoins: no such parameter; known here:",
        ),
        (["budgets=[0]"], [], None, "--set: budgets.0: 0 found; input should be greater"),
        (["budgets"], [], None, "--set: 'budgets'; NAME=VALUE needed"),
        (["budgets=[13]"], [], None, "--set: budgets: 13 is above cost.grid (12)"),
        ([], [], "mine", "--name: 'mine' without --set or --preset;"),
        (["budgets=[4"], [], None, "--set: budgets: '[4'; a value as YAML has it needed"),
        (["budgets=${x}"], [], None, "--set: budgets: '${x}'; a value as YAML has it needed"),
        (["data.path=/none"], [], None, "--set: data.path: /none: no such file or folder;"),
        *(
            (["seed=1"], [], name, f"--name: {name!r}; letters")
            for name in ("/elsewhere", "..", "a/b", "a b", "-x", "x.lock")
        ),
    ],
)  # fmt: skip
def test_bad_input(
    here: Path, overrides: list[str], targets: list[str], name: str | None, says: str
) -> None:
    with pytest.raises(InputError) as refused:
        check_request(here, overrides, targets, name)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


def test_boss_run_says_it_before_anything_starts(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    done = project.run("boss", "run", "--set", "budgets=[0]", code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --set: budgets.0: 0 found; input should be greater")
    assert done.stdout == ""
    assert project.outputs() == finished.outputs()


def test_inputs_that_a_copy_would_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline of gigabytes lies beside the project, or in it where git ignores it."""
    (tmp_path / "project").mkdir()
    project = Project.bare(tmp_path / "project")
    project.run("git", "init", "-q")
    monkeypatch.chdir(project.folder)
    for place in ("../lora", "weights/lora"):
        Path(place).mkdir(parents=True)
    Path("linked").symlink_to("../lora")
    Path(".gitignore").write_text("/weights/\n")
    set_to = "teacher.pipeline.lora={}".format
    for path, why in (("../lora", "leads out of the project"), ("weights/lora", "is ignored")):
        with pytest.raises(InputError) as refused:
            check_overrides(project.folder, [set_to(path)])
        said = str(refused.value)
        assert said.startswith(f"--set: teacher.pipeline.lora: {path}: {why}")
        there = (project.folder / path).resolve()
        assert said.endswith(f"in a copy elsewhere; the absolute path, {there}, needed")
        check_overrides(project.folder, [set_to(there)])
    check_overrides(project.folder, [set_to("linked")])
    Path("weights/lora.dvc").write_text("")
    check_overrides(project.folder, [set_to("weights/lora")])
