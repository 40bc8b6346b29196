"""No stale results: a stage runs again when code changes that can change what it makes.

dvc.yaml names that code, by packages where there are many modules. What a stage imports beside it
is passed over only where a test here shows that no result depends on it.
"""

import ast
import re
from pathlib import Path

import pytest
import yaml

from flows import paths
from flows.config import load_params
from tests.helpers.checkout import ROOT
from tests.helpers.project import Project

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# Results are the same with these in the place of the modules: they show, measure, log and check.
STANDING_IN = {
    "flows/progress.py": (
        "from contextlib import contextmanager\n"
        "@contextmanager\n"
        "def progress(label, total, unit):\n"
        "    yield lambda done: None\n"
    ),
    "flows/errors.py": (
        "from contextlib import contextmanager\n@contextmanager\ndef reported():\n    yield\n"
    ),
    "flows/measure/energy.py": (
        "from contextlib import contextmanager\n"
        "class Usage:\n"
        "    images = None\n"
        "@contextmanager\n"
        "def measured(on, images=None):\n"
        "    yield Usage()\n"
    ),
    "flows/measure/usage.py": "def write_usage(stage, taken):\n    pass\n",
    "flows/tracking/runs.py": (
        "def track_budget(params, budget):\n"
        "    return ''\n"
        "def track_report(params):\n"
        "    return ''\n"
    ),
    "flows/workspace/integrity.py": "def check_inputs():\n    pass\n",
}
# What these import is passed over with them: parameters as they are (test_parameters_are_...), the
# places that dvc.yaml names (test_paths_are_...), and the one exception, whose text is all of it.
PASSED_OVER = {"flows/config.py", "flows/paths.py", "boss_core/errors.py"}

# Runs every stage's command in one process, which imports torch once.
IN_TURN = """
import runpy, sys, yaml
for stage in yaml.safe_load(open("dvc.yaml"))["stages"].values():
    python, option, module, *rest = stage["cmd"].split()
    assert (python, option) == ("python", "-m")
    for budget in [1, 3] if rest else [None]:
        sys.argv = [module, *([str(budget)] if rest else [])]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def imports(path: str) -> set[str]:
    """The modules of ours that a module imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            module = name.replace(".", "/") + ".py"
            if name.split(".")[0] in ("boss_core", "flows") and (ROOT / module).is_file():
                found.add(module)
    return found


def code_of(stage: str) -> set[str]:
    """The modules that a stage imports, directly or not, but for those that are passed over."""
    needed: set[str] = set()
    queue = [f"flows/stages/{stage}.py"]
    while queue:
        path = queue.pop()
        if path not in needed | set(STANDING_IN) | PASSED_OVER:
            needed.add(path)
            queue.extend(imports(path))
    return needed


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check"])
def test_a_stage_depends_on_the_code_that_makes_its_results(stage: str) -> None:
    declared = [d for d in STAGES[stage]["deps"] if d.startswith(("boss_core", "flows"))]
    needed = code_of(stage)
    covered = {
        path for path in needed if any(path == d or path.startswith(f"{d}/") for d in declared)
    }
    assert needed == covered, f"{stage}: no dependency covers {sorted(needed - covered)}"
    for dependency in declared:
        used = any(path == dependency or path.startswith(f"{dependency}/") for path in needed)
        assert used, f"{stage}: {dependency} is a dependency, and nothing of it is imported"


def test_parameters_are_those_of_the_file() -> None:
    """The schema changes no value, and stages read nothing else from it than blocks of values."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert load_params(ROOT / "params.yaml").model_dump(exclude_unset=True) == content
    tree = ast.parse((ROOT / "flows" / "config.py").read_text())
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        made = [node.name for node in kind.body if isinstance(node, ast.FunctionDef)]
        assert all(name.startswith("_") for name in made), f"{kind.name}: {made}"


def test_paths_are_those_of_the_stages() -> None:
    """A path that changed alone would be one that dvc.yaml does not know."""
    named = re.sub(r"\$\{item\.budget\}", "K", (ROOT / "dvc.yaml").read_text())
    known = set(re.findall(r"[\w./-]+", named))
    constants = {v for n, v in vars(paths).items() if n.isupper() and isinstance(v, Path)}
    places = {*constants, *(make("K") for make in (paths.student, paths.curves, paths.metrics))}
    for path in {*places, paths.samples("K")} - {paths.LABEL_COUNTS}:
        assert str(path) in known, path


@pytest.mark.slow
def test_a_run_from_scratch_gives_the_same_whatever_is_passed_over(
    finished: Project, tmp_path: Path
) -> None:
    """The same lock, and so the same bytes of every output, of the commands of dvc.yaml in one
    process; of the processes that DVC and the flow start, `flowed` and `finished` are compared."""
    project = Project.create(tmp_path / "project")
    for name, text in STANDING_IN.items():
        (project.folder / name).write_text(text)
    project.run("python", "-c", IN_TURN)
    project.run("dvc", "commit", "--force")
    assert (project.folder / "dvc.lock").read_bytes() == (finished.folder / "dvc.lock").read_bytes()
    assert project.outputs() == finished.outputs()
