"""The pages of `dvc plots`, by the real DVC: all that draws them is in them."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest

from flows.workspace.plots import TEMPLATE, settle_plots
from tests.helpers.project import Project, environment

PLOTS = """
plots:
  - distance:
      x: nfe
      y: {distances.csv: [euler, boss]}
"""
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org")
SCRIPT = re.compile(r"(<script[^>]*>).*?</script>", flags=re.DOTALL)


def run(*command: str, code: int = 0) -> str:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With curves, one of which has changed since the last commit."""
    monkeypatch.chdir(tmp_path)
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    Path("dvc.yaml").write_text(PLOTS)
    curves = Path("distances.csv")
    curves.write_text("nfe,euler,boss\n2,6.25,0.78\n4,1.45,0.602\n")
    run("git", "add", "-A")
    run(*GIT, "commit", "-qm", "start")
    curves.write_text(curves.read_text().replace("6.25", "5.125"))
    return tmp_path


def test_the_page_needs_no_network(repository: Path) -> None:
    template = repository / TEMPLATE
    template.write_text("<!-- Vega-Lite 5.8 of vl-convert-python 1.0 -->{plot_divs}")  # outdated
    settle_plots(Path())
    run("dvc", "plots", "diff", "HEAD")
    page = (repository / "dvc_plots/index.html").read_text()
    assert "5.125" in page  # of the folder
    assert "6.25" in page  # of the commit
    opened = SCRIPT.sub(r"\1", page)  # what a browser reads before a script runs
    assert not re.findall(r"src\s*=|href\s*=|@import|://", opened)
    assert opened.count("<script") == 2  # what draws, and the curves
    assert "window.vegaEmbed=" in page
    assert not re.search(r"\{(plot_divs|scripts|refresh_tag)\}", page)

    made = template.stat().st_mtime_ns
    settle_plots(Path())
    assert template.stat().st_mtime_ns == made  # not again

    # A page of the user's own stays.
    run("dvc", "config", "--local", "plots.html_template", "mine.html")
    template.unlink()
    settle_plots(Path())
    config = configparser.ConfigParser()
    config.read(".dvc/config.local")
    assert config["plots"]["html_template"] == "mine.html"
    assert not template.exists()


def test_what_is_in_the_way_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settle_plots(Path())  # no project of DVC's
    assert not list(tmp_path.iterdir())
    (tmp_path / TEMPLATE).mkdir(parents=True)
    settle_plots(Path())
    assert capsys.readouterr().err == (
        f"warning: {TEMPLATE}: Is a directory; the pages of `dvc plots` need a network\n"
    )
    assert not Path(".dvc/config.local").exists()
    Path(".dvc/config").write_text("[plots\n")
    settle_plots(Path())


def test_a_run_leaves_plots_that_need_no_network(
    finished: Project, flowed: tuple[Project, str], tmp_path: Path
) -> None:
    """By DVC as a user calls it, after `boss repro` and after `boss run`."""
    for project in (finished, flowed[0]):
        out = tmp_path / project.folder.parent.name
        project.run("dvc", "plots", "show", "--out", str(out))
        opened = SCRIPT.sub(r"\1", (out / "index.html").read_text())
        assert opened.count("<script") > 2
        assert "://" not in opened
        assert project.run("git", "status", "--porcelain").stdout == ""
