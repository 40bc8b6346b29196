"""One direction: the pipeline imports the library, never back."""

import ast
import subprocess
import sys

from tests.helpers.checkout import ROOT

FORBIDDEN = {"prefect", "dvc", "mlflow", "yaml", "flows"}
MODULES = sorted((ROOT / "boss_core").rglob("*.py"))
# Imports diffusers, which loads yaml and need not be there; loaded only where it is used.
OF_DIFFUSERS = ROOT / "boss_core" / "interop" / "fixed_flow_scheduler.py"


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
        if path != OF_DIFFUSERS
    ]
    code = f"import sys, {', '.join(names)}; print(sorted({FORBIDDEN} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_checking_parameters_needs_no_torch() -> None:
    code = "import sys, flows.cli.app, flows.stages.check; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
