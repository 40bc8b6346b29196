"""docs/tutorials: their commands and Python in the order of the page, on small networks.

your-network.md is run by `test_docs.py`, diffusers-pipeline.md by
`tests/flows/straighten/test_tutorial.py`, nightly.md by
`tests/flows/orchestration/test_deployments.py`.
"""

import re
import shlex
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from PIL import Image

from boss_core.networks.efficientnet import WEIGHTS_SHA256
from flows.config import load_params
from flows.records.record import read_record
from flows.stages import (
    check,
    cost,
    evaluate,
    features,
    finetune,
    floor,
    prepare,
    report,
    schedule,
    teacher,
    trajectories,
)
from flows.workspace.experiment_names import named_after
from flows.workspace.presets import named_by, read_preset
from tests.helpers.checkout import ROOT
from tests.helpers.pages import blocks, commands
from tests.helpers.project import FEWER, Project

DIGITS = "docs/tutorials/digits.md"
PHOTOGRAPHS = "docs/tutorials/your-photographs.md"
STAGES = (check, prepare, features, teacher, cost, schedule, trajectories, floor)  # before budgets
FRECHET = "frechet_efficientnet_lite0"


def printed(page: str) -> list[str]:
    """What the page shows of the output, but for tables."""
    lines = [line for block in blocks(page, "text") for line in block.text.splitlines()]
    return [line for line in lines if not line.startswith((" ", "NFE"))]


def test_digits(
    boss, finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """After `boss repro`, whose students are of 1 and 3 evaluations here. Both experiments of the
    page are not made: tests/flows/orchestration/test_experiments.py has such."""
    project = finished.copy(tmp_path / "project")
    monkeypatch.chdir(project.folder)
    assert commands(DIGITS)[:2] == ["make .venv/installed", "source .venv/bin/activate"]
    look, smoke, repro, *samples, run, compare = commands(DIGITS, "boss")
    shutil.copy(ROOT / "params.yaml", "of-the-page.yaml")
    monkeypatch.setattr(
        "flows.cli.check.load_params", lambda: load_params(Path("of-the-page.yaml"))
    )
    said = boss(*look.split()[1:])[1]
    assert [line for line in printed(DIGITS) if line not in said] == []
    assert smoke == "boss run --preset smoke"
    assert repro == "boss repro"
    assert len(samples) == 2
    for line in samples:
        assert boss(*line.replace("/2/", "/3/").split()[1:])[0] == 0
    pictures = [Image.open(name) for name in ("student.png", "teacher.png")]
    assert len({picture.size for picture in pictures}) == 1
    assert pictures[0].tobytes() != pictures[1].tobytes()
    (block,) = blocks(DIGITS, "python")
    exec(compile(block.text.replace("/2/", "/3/"), DIGITS, "exec"), {})
    shown = capsys.readouterr().out
    assert re.fullmatch(
        r"teacher in 3 evaluations: \d\.\d{3}\nstudent in 3 evaluations: \d\.\d{3}\n", shown
    )
    name = named_after(ROOT, re.findall(r"--set (\S+)", run))
    assert compare == f"boss compare {name}"
    assert f"`dvc exp apply {name}`" in (ROOT / DIGITS).read_text()


@pytest.mark.slow
def test_your_photographs(
    boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two runs of the page are one, of the stages in this process, with what `smoke` and
    `FEWER` leave of the preset; and what the judge's name leaves in table, report and MLflow."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="not installed (pip install .[judges])")
    project = Project.create(tmp_path / "project")
    shutil.copy(ROOT / "params.yaml", project.folder)
    monkeypatch.chdir(project.folder)
    (block,) = blocks(PHOTOGRAPHS, "python")
    exec(compile(block.text, PHOTOGRAPHS, "exec"), {})
    sizes = {Image.open(path).size for path in Path("inputs/images").glob("*.png")}
    assert len(sizes) > 100
    python, look, smoke, run, apply, show, *samples = commands(PHOTOGRAPHS)[-8:]
    assert python == f"python {block.title}"
    code, said, _ = boss(*look.split()[1:])
    assert code == 0
    assert [line for line in printed(PHOTOGRAPHS)[:-1] if line not in said.splitlines()] == []

    assert smoke == "boss run --preset photos64 --preset smoke"
    assert run == "boss run --preset photos64"
    assert apply == f"dvc exp apply {named_by(ROOT, ['photos64'], [])}"
    assert f"`{apply}` brings it into this folder" in printed(PHOTOGRAPHS)[-1]
    project.set(read_preset(ROOT, "photos64") | read_preset(ROOT, "smoke") | FEWER)
    params = load_params()
    for stage in STAGES:
        stage.main(params)
    finetune.main(params, 2)
    evaluate.main(params, 2)
    report.main(params)
    shown = capsys.readouterr().out + boss(*show.split()[1:])[1]
    for line in samples:
        assert boss(*shlex.split(line.replace("/4/", "/2/"))[1:])[0] == 0
    assert Image.open("student.png").tobytes() != Image.open("teacher.png").tobytes()

    assert FRECHET in shown
    assert "classifier" not in shown
    found = read_record(2)
    assert (found["extractor"], found["extractor_hash"]) == ("efficientnet_lite0", WEIGHTS_SHA256)
    table = pd.read_csv("results/frechet.csv")
    assert table["boss"].tolist() == [found["boss"][FRECHET]]
    assert found["boss"] != found["straightened_uniform"]
    html = Path("results/report.html").read_text()
    assert f"<h2>{FRECHET} for every budget" in html
    assert f"efficientnet_lite0 <code>{WEIGHTS_SHA256[:12]}</code>" in html
    assert "classifier" not in html
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    logged = client.search_runs([experiment.experiment_id])
    assert {run.data.tags.get("extractor") for run in logged} >= {"efficientnet_lite0"}
    names = {name for run in logged for name in run.data.metrics}
    (of_boss,) = [run.data for run in logged if run.data.tags.get("method") == "boss"]
    assert of_boss.tags["judge"] == "efficientnet_lite0"
    assert of_boss.metrics["frechet"] == found["boss"][FRECHET]
    assert not any("classifier" in name for name in names)
