"""The pages a person looks at after a run, in a real browser: Prefect's run page, MLflow's runs.

Screenshots go to the folder named by BOSS_SCREENSHOTS, else to pytest's temporary one.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests.helpers.prefect_api import STAGES, VARIANTS, artifacts, flow_run
from tests.helpers.project import Project
from tests.helpers.servers import mlflow_server

pytestmark = [
    pytest.mark.ui,
    pytest.mark.skipif(
        shutil.which("chromium") is None, reason="Debian's chromium is not installed"
    ),
]

# Nothing but the page itself: no look-ups of the browser's own.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip


@pytest.fixture(scope="module")
def page() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("BOSS_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def tracking(flowed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server on the database of the run."""
    project: Project = flowed[0]
    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_server(project.folder / "mlflow.db", project.folder / "mlruns", folder) as url:
        yield url


def test_the_prefect_run_page(page, screenshots: Path, flowed, prefect_server) -> None:
    run = flow_run(prefect_server, flowed[1])
    base = prefect_server["PREFECT_API_URL"].removesuffix("/api")
    page.goto(f"{base}/runs/flow-run/{run['id']}")
    page.get_by_text(run["name"]).first.wait_for()
    page.get_by_text("boss-pipeline").first.wait_for()
    page.wait_for_function("document.querySelector('canvas') !== null")
    page.wait_for_timeout(2000)  # the timeline is a canvas: nothing in it to wait for
    page.screenshot(path=screenshots / "prefect-run.png")
    page.locator("li.p-tab", has_text="Task Runs").click()
    for stage in STAGES:
        page.get_by_text(stage).first.wait_for(state="attached")
    page.wait_for_timeout(1000)
    page.screenshot(path=screenshots / "prefect-tasks.png")
    (table,) = [a for a in artifacts(prefect_server, run) if a["key"] == "boss-results"]
    page.goto(f"{base}/artifacts/artifact/{table['id']}")
    page.get_by_text("MLflow run").first.wait_for()
    page.locator("table a").first.wait_for()
    links = [(a.inner_text(), a.get_attribute("href")) for a in page.locator("table a").all()]
    assert [text for text, _ in links] == ["K=1", "K=3"]
    assert all("/#/experiments/" in href for _, href in links)
    page.screenshot(path=screenshots / "prefect-results.png")


def test_mlflow_compares_the_budgets(page, screenshots: Path, flowed, tracking: str) -> None:
    project: Project = flowed[0]
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id])
    budgets = [run.info.run_id for run in runs if run.info.run_name.startswith("K=")]
    (parent,) = [run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(budgets) == 2

    shown = "runs?workflowType=machine_learning"
    page.goto(f"{tracking}/#/experiments/{experiment.experiment_id}/{shown}")
    page.get_by_text(client.get_run(parent).info.run_name).first.wait_for()
    page.screenshot(path=screenshots / "mlflow-runs.png")

    chosen = f"runs={json.dumps(budgets)}&experiments={json.dumps([experiment.experiment_id])}"
    page.goto(f"{tracking}/#/compare-runs?{chosen.replace(' ', '')}")
    for name in ("K=1", "K=3"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.screenshot(path=screenshots / "mlflow-compare.png")
    of_methods = [run for run in runs if "boss.budget_run" in run.data.tags]
    assert len(of_methods) == 2 * len(VARIANTS)

    page.goto(f"{tracking}/#/experiments/{experiment.experiment_id}/runs/{parent}")
    page.get_by_text("K=3").first.wait_for()  # the description: what is best at each budget
    page.screenshot(path=screenshots / "mlflow-parent.png")
