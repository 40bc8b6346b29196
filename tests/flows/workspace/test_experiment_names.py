"""Names of experiments that say what they change."""

from pathlib import Path

import pytest
from filelock import FileLock

from flows.workspace.experiment import check_experiment
from flows.workspace.experiment_names import named_after, unused_name
from tests.helpers.checkout import ROOT
from tests.helpers.project import Project


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["budgets=[4,6]"], "budgets-4-6"),
        (["finetune.training.iterations=600"], "finetune.training.iterations-600"),
        (["cost.grid=50", "seed=3"], "grid-50_seed-3"),
        (["evaluate.kid_subset_size=40"], "kid_subset_size-40"),
        (["teacher.training.learning_rate=2e-3"], "teacher.training.learning_rate-2e-3"),
        (["data.path=Bühne (1)/x..y"], "data.path-B-hne-1-x.y"),
        (["tracking.uri=sqlite:///other.db"], "uri-sqlite-other.db"),
        (["tracking.uri=postgresql://me:secret@host/db"], "uri"),
        (["tracking.uri=postgresql://host/db?user=me&password=secret"], "uri"),
        (["data.path=a.lock"], "data.path-a"),
        (["finetune.methods=[]"], "methods"),
        (["no.such.name=1"], "name-1"),
        (["seed=1"] * 20, "_".join(["seed-1"] * 20)[:60].rstrip("_-")),
    ],
)
def test_a_name_says_what_is_changed(overrides: list[str], name: str) -> None:
    """`path` is of several parameters, `grid` of one."""
    assert named_after(ROOT, overrides) == name


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    project.run("git", "init", "-q")
    project.commit("start")
    assert unused_name(tmp_path, "seed-1") == "seed-1"
    commit = project.run("git", "rev-parse", "HEAD").stdout.strip()
    project.run("git", "update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/seed-1", commit)
    assert unused_name(tmp_path, "seed-1") == "seed-1-2"
    copies = tmp_path / ".dvc" / "tmp" / "boss-copies"
    copies.mkdir(parents=True)
    with FileLock(copies / "seed-1-2.lock"):  # a run of that name is at work
        assert unused_name(tmp_path, "seed-1") == "seed-1-3"
    assert unused_name(tmp_path, "seed-1") == "seed-1-2"
    for overrides in (["data.path=-x"], ["seed=.."], ["a/b=c"]):  # and each is one that may be
        check_experiment(tmp_path, named_after(tmp_path, overrides))
