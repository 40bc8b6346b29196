"""Which package may import which: data flows one way, and the pipeline imports the library."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT

# What every module may import beside its own package: modules of no subject.
LIBRARY_GROUND = {"boss_core.errors", "boss_core.io"}
PIPELINE_GROUND = {
    "flows.config", "flows.errors", "flows.extras", "flows.paths", "flows.progress",
    "flows.strict_yaml", "flows.telemetry",
}  # fmt: skip

# From a package to those it imports beside the ground. An arrow that is not here fails; one that
# is here and that nobody uses does too.
LIBRARY = {
    "errors": set(),
    "io": set(),
    "ode": set(),
    "data": set(),
    "costs": {"ode"},
    "networks": {"ode"},
    "training": {"ode"},
    "bellman": {"costs", "ode"},
    "search": {"bellman", "costs", "ode"},
    "straightening": {"checkpoints", "ode", "training"},
    "checkpoints": {"networks", "ode"},
    "evaluation": {"networks", "ode"},
    "interop": {"costs", "ode", "straightening", "training"},
}
PIPELINE = {
    # The ground knows the names of what can be asked for, and loads no torch.
    "config": {"boss_core.bellman", "boss_core.ode", "boss_core.search", "boss_core.training"},
    "records": {"boss_core"},
    "measure": {"boss_core", "flows.records"},
    "report": {"boss_core", "flows.records"},
    "tracking": {"boss_core", "flows.measure", "flows.records"},
    "workspace": set(),
    "stages": {
        "boss_core", "flows.measure", "flows.records", "flows.report", "flows.search",
        "flows.straighten", "flows.tracking", "flows.workspace",
    },
    "orchestration": {
        "flows.measure", "flows.records", "flows.report", "flows.stages", "flows.tracking",
        "flows.workspace",
    },
    "search": {"boss_core", "flows.records", "flows.report"},
    "straighten": {"boss_core", "flows.measure", "flows.records", "flows.report", "flows.search"},
    "cli": {
        "boss_core", "flows.measure", "flows.orchestration", "flows.records", "flows.search",
        "flows.stages", "flows.straighten", "flows.tracking", "flows.workspace",
    },
}  # fmt: skip
# The only importer of each of these, which start servers, take locks, and come in new versions.
ONLY = {"mlflow": "flows.tracking", "dvc": "flows.workspace", "prefect": "flows.orchestration"}
# Imports diffusers, which loads yaml and need not be there; loaded only where it is used.
OF_DIFFUSERS = ROOT / "boss_core" / "interop" / "fixed_flow_scheduler.py"


def modules(root: str) -> Iterator[tuple[Path, str]]:
    """The modules of a package, each with the package of its own: ``boss_core.ode``."""
    for path in sorted((ROOT / root).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__init__":
            yield path, ".".join(parts[:2])


def imported(path: Path) -> Iterator[str]:
    """The names of all that a module imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ("boss_core", "flows"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def arrows(root: str) -> dict[str, dict[str, set[str]]]:
    """From each package to those of ours that it imports, with the modules that do."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path, package in modules(root):
        for name in imported(path):
            other = ".".join(name.split(".")[:2])
            if name.split(".")[0] in ("boss_core", "flows") and other != package:
                found[package][other].add(str(path.relative_to(ROOT)))
    return found


def test_the_library_imports_in_one_direction() -> None:
    for package, others in arrows("boss_core").items():
        allowed = {f"boss_core.{name}" for name in LIBRARY[package.removeprefix("boss_core.")]}
        for other, files in others.items():
            assert other in allowed | LIBRARY_GROUND, f"{package} -> {other}: {sorted(files)}"
        unused = allowed - set(others)
        assert not unused, f"{package} may import {sorted(unused)}, and does not: take that out"


def test_the_pipeline_imports_in_one_direction() -> None:
    for package, others in arrows("flows").items():
        allowed = PIPELINE.get(package.removeprefix("flows."), set())
        ground = PIPELINE_GROUND | LIBRARY_GROUND
        for other, files in others.items():
            known = other in allowed | ground or other.split(".")[0] in allowed
            assert known, f"{package} -> {other}: {sorted(files)}"
        unused = {a for a in allowed if not any(o == a or o.split(".")[0] == a for o in others)}
        assert not unused, f"{package} may import {sorted(unused)}, and does not: take that out"


@pytest.mark.parametrize("library", ONLY)
def test_one_package_imports_it(library: str) -> None:
    importers = {
        package
        for root in ("boss_core", "flows")
        for path, package in modules(root)
        if library in {name.split(".")[0] for name in imported(path)}
    }
    assert importers == {ONLY[library]}


def test_no_package_but_the_library_itself_has_anything_in_its_init() -> None:
    for root in ("boss_core", "flows"):
        for path in (ROOT / root).rglob("__init__.py"):
            assert path == ROOT / "boss_core" / "__init__.py" or not path.read_text(), path


def test_importing_the_library_loads_no_package_of_the_pipeline() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path, _ in modules("boss_core")
        if path != OF_DIFFUSERS
    ]
    pipeline = {"prefect", "dvc", "mlflow", "yaml", "flows"}
    code = f"import sys, {', '.join(names)}; print(sorted({pipeline} & set(sys.modules)))"
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
