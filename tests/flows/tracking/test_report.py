"""The report with the run of its pipeline run."""

import json
from pathlib import Path

import mlflow
import pandas as pd

from tests.helpers.in_process import boss
from tests.helpers.mlflow_runs import runs
from tests.helpers.project import Project
from tests.helpers.records import VARIANTS, record


def parent_of(project: Project):
    (parent,) = [run for run in runs(project) if "boss.pipeline" in run.data.tags]
    return parent


def table(project: Project, folder: Path) -> pd.DataFrame:
    """As ``mlflow.load_table`` reads it."""
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    path = client.download_artifacts(parent_of(project).info.run_id, "table.json", str(folder))
    return pd.read_json(path, orient="split")


def test_page_plots_and_table_are_with_the_pipelines_run(finished: Project, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    parent = parent_of(finished)
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {
        "report.html", "plots", "table.json",
    }  # fmt: skip
    page = Path(client.download_artifacts(parent.info.run_id, "report.html", str(tmp_path)))
    assert page.read_bytes() == (finished.folder / "results/report.html").read_bytes()
    plots = {Path(a.path).name for a in client.list_artifacts(parent.info.run_id, "plots")}
    assert plots == {path.name for path in (finished.folder / "results/plots").iterdir()}
    assert "table.json" in parent.data.tags["mlflow.loggedArtifacts"]  # which its page shows
    shown = table(finished, tmp_path)
    assert len(shown) == 2 * len(VARIANTS) + 1
    for k in (1, 3):
        of_budget = shown[shown["K"] == k].set_index("method")
        assert list(of_budget["frechet"]) == sorted(of_budget["frechet"])
        for name in VARIANTS:
            expected = record(finished, k)[name]["frechet_second_classifier"]
            assert abs(of_budget["frechet"][name] - expected) < 1e-9
        assert set(of_budget["samples"]) == {70}
        assert of_budget["rank"].iloc[0] in ("best", "level")
    (teacher,) = shown[shown["method"] == "teacher"].to_dict("records")
    assert (teacher["K"], teacher["nfe"], teacher["rank"]) == (12, 12, "reference")


def test_a_report_is_logged_once_and_only_beside_its_records(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    folder = project.folder
    assert "report" not in boss(project, "track", "--rebuild").stdout
    # Another page of the same records: the table does not grow.
    page = folder / "results/report.html"
    text = page.read_text()
    page.unlink()
    page.write_text(text + "<!-- again -->\n")
    shown = boss(project, "track", "--rebuild").stdout
    assert shown.splitlines()[-1] == "report: logged to MLflow"
    assert len(table(project, tmp_path)) == 2 * len(VARIANTS) + 1
    # Of fewer budgets, as in an experiment of some of them: that of more stays.
    project.set({"budgets": [3]})
    distances = folder / "results/frechet.csv"
    rows = distances.read_text().splitlines()
    distances.unlink()
    distances.write_text("\n".join([rows[0], rows[2]]) + "\n")
    page.unlink()
    page.write_text(text)
    assert "report" not in boss(project, "track", "--rebuild").stdout
    assert parent_of(project).data.tags["report.budgets"] == "1,3"
    # Of other records than there are: it would show what they are not.
    elsewhere = tmp_path / "elsewhere.db"
    project.set({"tracking.uri": f"sqlite:///{elsewhere}"})
    found = json.loads((folder / "metrics/3.json").read_text())
    found["boss"]["frechet_second_classifier"] += 1
    (folder / "metrics/3.json").unlink()
    (folder / "metrics/3.json").write_text(json.dumps(found))
    assert "report" not in boss(project, "track", "--rebuild").stdout
    assert b"report.html" not in elsewhere.read_bytes()
