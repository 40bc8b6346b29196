"""One direction: the pipeline imports the library, never back."""

import ast
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import ROOT

FORBIDDEN = {"prefect", "dvc", "mlflow", "yaml", "flows"}
MODULES = sorted((ROOT / "boss_core").rglob("*.py"))


def test_the_library_names_no_pipeline_package() -> None:
    assert len(MODULES) > 10
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not FORBIDDEN & {name.split(".")[0] for name in names}, path


def test_importing_the_library_loads_no_pipeline_package() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
    ]
    code = f"import sys, {', '.join(names)}; print(sorted({FORBIDDEN} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_checking_parameters_needs_no_torch() -> None:
    code = "import sys, flows.cli, flows.stages.check; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# What a stage's results do not depend on: how work is reported and logged, where files lie, how
# parameters are checked (their values are dependencies of their own).
NEUTRAL = {
    "boss_core/__init__.py",
    "boss_core/networks/__init__.py",
    "boss_core/errors.py",
    "boss_core/files.py",
    "boss_core/settings.py",
    "flows/__init__.py",
    "flows/stages/__init__.py",
    "flows/config.py",
    "flows/errors.py",
    "flows/links.py",
    "flows/paths.py",
    "flows/progress.py",
    "flows/records.py",
    "flows/runtime.py",
    "flows/stages/check.py",
    "flows/telemetry.py",
    "flows/tracking.py",
}


def imported(path: Path, found: set[str]) -> set[str]:
    """The project's own files that a file imports, and those that these import in turn, but
    for the neutral ones."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            file = Path(*name.split(".")).with_suffix(".py")
            if (ROOT / file).is_file() and str(file) not in found | NEUTRAL:
                found.add(str(file))
                imported(file, found)
    return found


def test_every_stage_depends_on_the_code_that_it_runs() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        definition = stage.get("do", stage)
        if name == "check":
            continue
        declared = {dep for dep in definition["deps"] if str(dep).endswith(".py")}
        main = f"flows/stages/{name}.py"
        needed = {main} | imported(Path(main), set())
        assert (name, sorted(declared)) == (name, sorted(needed))
