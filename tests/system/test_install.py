"""What `pip install boss-flow` brings, without the extras: the library and the commands for any
network. Beside it there is nothing of the pipeline, which is not hidden here but not there."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import boss_core
from flows.cli.app import OF_A_PROJECT, app
from flows.extras import EXTRAS
from tests.helpers.checkout import ROOT
from tests.helpers.installed import PROJECT, brought_by, light_environment

NETWORK = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.layer(x) * (1 + t.view(-1, 1, 1, 1)) - x

velocity = Network()
"""
OF = ("--velocity", "my_code:velocity", "--shape", "1x8x8")
SEARCH = (*OF, "--grid", "12", "--samples", "16", "--budget", "2", "--budget", "3")
STRAIGHTEN = (
    "straighten", "--network", "my_code:Network", "--shape", "1x8x8", "--budget", "2", "--grid",
    "12", "--samples", "16", "--trajectories", "32", "--held-out", "16", "--iterations", "20",
)  # fmt: skip
LIGHT = (
    ("schedule", *SEARCH),
    ("schedule", *SEARCH, "--solver", "multistep", "--out", "fitted"),
    ("schedule", *SEARCH, "--solver", "ab2", "--objective", "auto", "--noises", "32", "--out", "a"),
    ("schedule", *SEARCH, "--reference", "rk45", "--out", "rk45"),
    (*STRAIGHTEN, "--out", "fast"),
    ("sample", *OF, "--schedule", "schedules/3.json", "-n", "4"),
    ("export", "schedules/3.json", "--to", "diffusers"),
    ("export", "schedules/3.json", "--to", "diffusers-fixed"),
    ("export", "schedules/3.json", "--to", "comfyui"),
    ("export", "schedules/3.json", "--to", "flow_matching"),
    ("export", "fitted/3.json", "--to", "comfyui-node"),
    ("export", "fitted/3.json", "--to", "json", "--out", "exported.json"),
)
# All commands in one process, which imports torch once; prints their exit codes at the end.
IN_TURN = """
import json, sys
from flows.cli.app import main
codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["boss", *arguments]
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code or 0)
print(codes)
there = {"prefect", "mlflow", "dvc", "psycopg2", "pandas", "peft", "diffusers"} & set(sys.modules)
assert not there, there
"""
# Of programs that a user has beside this one, or that are looked for before they are imported.
OTHERS = {"comfy", "fixed_flow_scheduler", "triton"}


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the packages of an install without extras."""
    return light_environment(tmp_path_factory.mktemp("light") / "venv")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, outside the project."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_code.py").write_text(NETWORK)
    return tmp_path


def boss(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command of this checkout in that environment, from the folder that the test is in."""
    return within(python, "-m", "flows.cli.app", *arguments)


def within(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def test_commands_for_any_network_run_without_the_extras(light: Path, folder: Path) -> None:
    done = within(light, "-c", IN_TURN, json.dumps(LIGHT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == str([0] * len(LIGHT)), done.stdout + done.stderr
    made_something(folder)


def made_something(folder: Path) -> None:
    """What the commands of `LIGHT` are to leave there."""
    schedule = json.loads((folder / "schedules" / "3.json").read_text())
    assert schedule["timesteps"][0] == 0
    assert schedule["timesteps"][-1] == 1
    assert len(schedule["timesteps"]) == 4
    assert json.loads((folder / "exported.json").read_text())["solver"] == "multistep"
    assert Image.open(folder / "samples.png").size >= (16, 16)
    assert Image.open(folder / "schedules" / "cost.png").size > (100, 100)
    assert (folder / "fast" / "2" / "student.safetensors").stat().st_size > 0


def test_a_command_without_its_extra_says_which_in_a_line(light: Path, folder: Path) -> None:
    (folder / "prompts.txt").write_text("a photo\n")
    asked = {command.__name__: "pipeline" for command in OF_A_PROJECT}
    assert set(asked) >= {"run", "repro", "check", "ui", "server", "deploy", "track"}
    needed = {"compare": ("HEAD",)}  # a command's own arguments are looked at first
    lines = [((name, *needed.get(name, ())), extra) for name, extra in asked.items()]
    pipeline = ("--pipeline", "./sd3", "--prompts", "prompts.txt", "--budget", "2")
    lines += [
        (("schedule", *pipeline), "diffusers"),
        (("straighten", *pipeline, "--out", "fast"), "diffusers"),
        ((*STRAIGHTEN, "--rank", "2", "--out", "fast"), "diffusers"),
    ]
    done = within(light, "-c", IN_TURN, json.dumps([arguments for arguments, _ in lines]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == str([2] * len(lines))
    for (_, extra), said in zip(lines, done.stderr.splitlines(), strict=True):
        assert re.fullmatch(r"error: .* needed", said)
        assert said.endswith(f"pip install 'boss-flow[{extra}]' needed")
    assert not (folder / "fast").exists()


def test_the_help_and_the_version_need_no_extra(light: Path, folder: Path) -> None:
    shown = boss(light, "--help").stdout
    assert "boss-flow[pipeline]" in shown
    for command in app.registered_commands:
        assert re.search(rf"│ {command.callback.__name__} ", shown)
    assert "--set" in boss(light, "run", "--help").stdout
    assert boss(light, "--version").stdout == f"boss-flow {boss_core.__version__}\n"


def test_every_import_is_of_a_package_that_is_declared() -> None:
    """In the light install, or known by the extra that brings it."""
    light = brought_by(PROJECT["dependencies"])
    homes = packages_distributions()
    known = {name for names in EXTRAS.values() for name in names} | OTHERS
    for path in (*(ROOT / "boss_core").rglob("*.py"), *(ROOT / "flows").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for root in {name.split(".")[0] for name in names}:
                ours = root in sys.stdlib_module_names or root in ("boss_core", "flows")
                brought = any(canonicalize_name(n) in light for n in homes.get(root, ()))
                assert ours or brought or root in known, f"{path}: {root}"


def test_each_extra_brings_the_modules_that_are_said_to_be_in_it() -> None:
    light = brought_by(PROJECT["dependencies"])
    homes = packages_distributions()
    for extra, modules in EXTRAS.items():
        requirements = PROJECT["optional-dependencies"][extra]
        brought = brought_by(requirements).keys()
        for module in modules:
            assert brought & {canonicalize_name(n) for n in homes[module]}, f"{extra}: {module}"
        # And what pyproject.toml names, unless it is there anyway.
        named = {canonicalize_name(Requirement(text).name) for text in requirements} - light.keys()
        known = {m for names in EXTRAS.values() for m in names}
        for name in named - {"fastapi"}:  # whose version alone matters: Prefect's
            roots = {
                root for root, owners in homes.items() if name in map(canonicalize_name, owners)
            }
            assert roots & known, f"{extra}: {name}"


def test_the_version_is_written_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == boss_core.__version__


@pytest.mark.slow
def test_the_wheel_runs_outside_the_repository(light: Path, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"  # in which setuptools leaves what it makes on its way
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = [n for n in tracked.stdout.split("\0") if n and (ROOT / n).is_file()]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    made = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([*pip, *made], check=True, capture_output=True)
    shutil.rmtree(source)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        held = {n for n in opened.namelist() if ".dist-info/" not in n}
        (metadata,) = (n for n in opened.namelist() if n.endswith("/METADATA"))
        about = BytesParser().parsebytes(opened.read(metadata))
    # All that is in the two packages, and nothing else: also what is no Python.
    assert held == {n for n in names if n.split("/")[0] in ("boss_core", "flows")}
    assert about["Version"] == boss_core.__version__
    assert about["License-Expression"] == "Apache-2.0"
    assert {"pipeline", "diffusers", "judges"} <= set(about.get_all("Provides-Extra"))
    needed = [Requirement(text) for text in about.get_all("Requires-Dist")]
    alone = {r.name for r in needed if r.marker is None}
    assert "torch" in alone
    assert not alone & {"prefect", "mlflow", "dvc", "psycopg2-binary"}

    into = [*pip, "--python", str(light)]
    subprocess.run([*into, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    subprocess.run([*into, "check"], check=True)  # nothing that it needs is lacking
    where = subprocess.run(
        [light, "-c", "import boss_core; print(boss_core.__file__)"], env={},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout).is_relative_to(light.parents[1])
    for arguments in (*LIGHT[:2], *LIGHT[4:6], *LIGHT[-2:]):
        done = subprocess.run(
            [light.with_name("boss"), *arguments], env={}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    made_something(folder)
