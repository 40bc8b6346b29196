"""The tests of a module of the library are in a file of its name, or the table says where."""

import ast
from pathlib import Path

from tests.helpers.checkout import ROOT

# Modules without a file of their name, and where what they do is held: for most by whoever uses
# them, as nobody else does.
ELSEWHERE = {
    "bellman/names": "boss_core/bellman/test_objectives",
    "checkpoints/edm": "boss_core/networks/test_edm",  # beside the published network itself
    "checkpoints/load": "flows/search/test_schedule",  # every kind of file that --checkpoint takes
    "costs/gram": "boss_core/costs/test_matrix",
    "costs/heun": "boss_core/bellman/test_objectives",  # every step by its definition
    "costs/measure": "boss_core/costs/test_cost_file",
    "evaluation/extractors": "boss_core/evaluation/test_frechet",  # as what is measured by them
    "data/files": "boss_core/data/test_folder",  # hidden ones, and links
    "errors": "flows/cli/test_bad_input",
    "interop/diffusers_schedulers": "boss_core/interop/test_diffusers_pipelines",
    "interop/pipeline_sampling": "boss_core/interop/test_pipeline_students",
    "interop/pipeline_rounding": "boss_core/interop/test_diffusers_pipelines",
    "interop/recording": "boss_core/interop/test_diffusers_pipelines",
    "networks/ncsnpp_init": "boss_core/training/test_device_rows",
    "networks/normalization_triton": "boss_core/networks/test_normalization",
    "networks/sizes": "boss_core/checkpoints/test_folder",  # cards of absurd sizes
    "ode/batches": "boss_core/costs/test_matrix",
    "search/auto": "flows/search/test_chosen",
    "search/sampled": "flows/search/test_schedule",
    "search/settings": "flows/search/test_schedule",
    "search/steps": "flows/search/test_chosen",
    "straightening/loss": "boss_core/straightening/test_segments",
    "io/tensor_files": "boss_core/io/test_weights",
    "training/settings": "boss_core/training/test_loop",
}
TESTS = ROOT / "tests"


def named(test: Path) -> Path:
    return TESTS / test.with_name(f"test_{test.name}")


def test_every_module_has_its_tests() -> None:
    modules = {
        path.relative_to(ROOT / "boss_core").with_suffix("").as_posix()
        for path in (ROOT / "boss_core").rglob("*.py")
        if path.name != "__init__.py"
    }
    own = {m for m in modules if named(Path("boss_core", f"{m}.py")).is_file()}
    assert modules - own - ELSEWHERE.keys() == set(), "no tests of their name, and not in the table"
    assert ELSEWHERE.keys() - (modules - own) == set(), "have tests of their name, or are gone"
    assert [place for place in ELSEWHERE.values() if not (TESTS / f"{place}.py").is_file()] == []


def test_no_test_imports_a_private_name() -> None:
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                ours = node.module.split(".")[0] in ("boss_core", "flows")
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not (ours and private), f"{path}: {private}"


def test_no_test_imports_another() -> None:
    """What tests share is in tests/helpers, which holds no test."""
    for path in TESTS.rglob("*.py"):
        assert not path.name.startswith("test_") or path.parent.name != "helpers", path
        for line in path.read_text().splitlines():
            if line.startswith(("from tests", "import tests")):
                assert line.startswith("from tests.helpers"), f"{path}: {line}"
