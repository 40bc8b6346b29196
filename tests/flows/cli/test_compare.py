"""Experiments side by side: records of a real DVC experiment, read where git and DVC keep them."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from boss_core.errors import InputError
from flows.cli.compare import compare
from flows.cli.run import show
from flows.workspace.experiment import isolated_copy
from tests.helpers.checkout import ROOT
from tests.helpers.project import Project

# In place of the pipeline: metrics by arithmetic from two parameters. As an earlier version wrote
# them, all in one file, unless there is a file ``new``.
STAGE = """
import json, pathlib, sys, yaml
params = yaml.safe_load(open("params.yaml"))
seed, budgets = params["seed"], params["budgets"]
names = {"classifier": ["classifier", "second_classifier"],
         "imagenet": ["efficientnet_lite0"]}[params["features"]["extractor"]]
numbers = {"samples": params["evaluate"]["samples"]}
words = {"extractor": names[0], "extractor_hash": "e", "judges": dict.fromkeys(names[1:], "s"),
         "reference_hash": "r", "chosen_solver": "ab2"}
def row(value, error):
    return {f"frechet_{n}{s}": v for n in names
            for s, v in (("", value), ("_se", error))}
def write(name, measured):
    made_of = pathlib.Path("samples", str(name), "made_of.json")
    for folder in (made_of.parent, pathlib.Path("metrics")):
        folder.mkdir(exist_ok=True, parents=True)
    if pathlib.Path("new").exists():
        made_of.write_text(json.dumps(words))
    else:
        measured = words | measured
    pathlib.Path("metrics", f"{name}.json").write_text(json.dumps(numbers | measured))
for k in (2, 4):
    pathlib.Path("samples", str(k)).mkdir(exist_ok=True, parents=True)
for k in budgets:
    boss = row(4 / k - 0.5 * seed, 0.1)
    write(k, {"nfe": k, "pretrained_uniform": row(8 / k, 0.3), "boss": boss})
write("teacher", {"nfe": 100, "fine": row(0.5, 0.01)})
"""
PIPELINE = {
    "stages": {
        "measure": {
            "cmd": "python stage.py",
            "params": ["seed", "budgets", "evaluate.samples", "features.extractor"],
            "deps": ["stage.py"],
            "outs": ["samples/2", "samples/4", "samples/teacher"],
            "metrics": ["metrics/2.json", "metrics/4.json", "metrics/teacher.json"],
        }
    }
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder that an earlier version has run with seed 0, and an experiment of this one with seed
    1; its file says 7 since."""
    project = Project(tmp_path_factory.mktemp("compared") / "project")
    project.folder.mkdir()
    (project.folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (project.folder / "stage.py").write_text(STAGE)
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    project.run("git", "init", "-q")
    project.run("dvc", "init", "-q")
    project.set({"budgets": [2, 4]})
    project.commit("start")
    project.run("dvc", "repro", "-q")
    (project.folder / "new").touch()
    with isolated_copy(project.folder, "seed-1", ["seed=1"]) as copy:
        Project(copy).run("dvc", "repro", "-q")
    with isolated_copy(project.folder, "other", ["features.extractor=imagenet"]) as copy:
        Project(copy).run("dvc", "repro", "-q")
    project.set({"seed": 7})
    return project


@pytest.fixture(autouse=True)
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)


def test_distances_side_by_side(project: Project, capsys) -> None:
    """boss: 2 and 1.5, apart by 0.5 ± sqrt(0.1² + 0.1²) = 0.14; the others are the same."""
    compare(["seed-1"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "seed-1: seed=1 (0); in brackets those of workspace"
    assert shown[1] == "frechet_second_classifier (lower is better), by second_classifier"
    rows = [" ".join(line.split()) for line in shown]
    assert "NFE method workspace seed-1" in rows
    assert "2 pretrained, uniform steps 4 ±0.3 4 ±0.3" in rows
    assert "BOSS: straightened, Bellman steps 2 ±0.1 1.5* ±0.1" in rows
    assert "4 pretrained, uniform steps 2 ±0.3 2 ±0.3" in rows
    assert "100 the teacher (the floor) 0.5 ±0.01 0.5 ±0.01" in rows
    assert not [line for line in shown if line.startswith("warning")]


def test_a_commit_of_an_earlier_version(project: Project, tmp_path: Path, monkeypatch, capsys):
    """Beside the folder it was made in, all of whose words are in the files that DVC shows."""
    copy = project.copy(tmp_path / "copy")
    monkeypatch.chdir(copy.folder)
    assert "extractor_hash" in Path("metrics/4.json").read_text()
    copy.commit("a run of an earlier version")
    for name in ("metrics", "samples"):
        shutil.rmtree(name)
    compare(["HEAD", "seed-1"])
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "NFE method HEAD seed-1" in rows
    assert "BOSS: straightened, Bellman steps 2 ±0.1 1.5* ±0.1" in rows


def test_budgets_of_runs_before_are_not_shown(
    project: Project, tmp_path: Path, monkeypatch, capsys
):
    """Whose stages dvc.lock keeps, and whose metrics the experiment has not made."""
    copy = project.copy(tmp_path / "copy")
    monkeypatch.chdir(copy.folder)
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    lock["stages"]["measure"]["params"]["params.yaml"]["budgets"] = [2]
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    compare(["seed-1"])
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "4 pretrained, uniform steps 2 ±0.3" in rows  # of the experiment alone
    assert "seed-1: seed=1 (0), budgets=[2, 4] ([2]); in brackets those of workspace" in rows


def test_a_folder_that_has_measured_nothing_has_no_column(
    project: Project, tmp_path: Path, monkeypatch, capsys
) -> None:
    copy = project.copy(tmp_path / "copy")
    monkeypatch.chdir(copy.folder)
    Path("dvc.lock").unlink()
    for name in ("metrics", "samples"):
        shutil.rmtree(name)
    compare(["seed-1"])
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows[0].startswith("seed-1: seed=1 (7)")
    assert "workspace: nothing measured yet; `boss repro` does" in rows
    assert "NFE method seed-1" in rows
    assert "2 pretrained, uniform steps 4 ±0.3" in rows


def test_what_is_no_measure_of_the_same_is_said(project: Project, capsys) -> None:
    path = Path("metrics/teacher.json")
    kept = path.read_text()
    record = json.loads(kept)
    record |= {"samples": 500, "judges": {"second_classifier": "another"}, "reference_hash": "q"}
    path.unlink()  # a link into DVC's cache, perhaps
    path.write_text(json.dumps(record))
    try:
        compare(["seed-1", "workspace"])
        shown = capsys.readouterr().out.splitlines()
    finally:
        path.write_text(kept)
    assert "warning: workspace: its second_classifier is not that of seed-1: no common measure" in (
        shown
    )
    assert "warning: workspace: measured against other images than seed-1" in shown
    lacks = "warning: workspace: 500 samples, seed-1 2,000; of fewer samples distances are larger"
    assert lacks in shown


def test_mistakes(project: Project) -> None:
    with pytest.raises(
        InputError, match="seed-2: no experiment and no commit; one of them needed, as other, see"
    ):
        compare(["seed-2"])
    with pytest.raises(InputError, match=r"HEAD: has no dvc.lock"):
        compare(["HEAD"])


def test_metrics_that_the_cache_has_lost(project: Project, tmp_path: Path, monkeypatch) -> None:
    copy = project.copy(tmp_path / "copy")
    monkeypatch.chdir(copy.folder)
    for file in (copy.folder / ".dvc" / "cache").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(InputError, match=r"seed-1: metrics/2.json is not in DVC's cache any more"):
        compare(["seed-1"])


def test_a_run_shows_its_table_beside_the_folders_where_they_have_a_judge_in_common(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    show("seed-1")
    assert "NFE method workspace seed-1" in " ".join(capsys.readouterr().out.split())
    show("other")
    shown = capsys.readouterr()
    assert shown.out.startswith(
        "not beside this folder's last run: evaluate.judges: no distance in common: measured are"
        " workspace by second_classifier, classifier; other by efficientnet_lite0\n"
    )
    assert "NFE method other" in " ".join(shown.out.split())
    # And alone beside a folder that has measured nothing.
    copy = project.copy(tmp_path / "copy")
    shutil.rmtree(copy.folder / "metrics")
    monkeypatch.chdir(copy.folder)
    show("seed-1")
    assert "NFE method seed-1" in " ".join(capsys.readouterr().out.split())
    show("none")
    assert capsys.readouterr().err.startswith("warning: no table: none: ")


def test_words_that_are_not_there(project: Project, tmp_path: Path, monkeypatch) -> None:
    """Of a commit whose record has numbers alone."""
    copy = project.copy(tmp_path / "copy")
    monkeypatch.chdir(copy.folder)
    numbers = b'{"nfe": 2}'
    md5 = hashlib.md5(numbers, usedforsecurity=False).hexdigest()
    cached = Path(".dvc/cache/files/md5", md5[:2], md5[2:])
    cached.parent.mkdir(exist_ok=True)
    cached.write_bytes(numbers)
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    (out,) = (o for o in lock["stages"]["measure"]["outs"] if o["path"] == "metrics/2.json")
    out["md5"] = md5
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    copy.commit("numbers alone")
    says = r"HEAD: recorded by another version of this project, without samples/2/made_of\.json"
    with pytest.raises(InputError, match=says):
        compare(["HEAD"])
