"""The names that are imported from `boss_core` itself, and the page that lists them."""

import ast
import importlib
import inspect
import re
import subprocess
import sys

import pytest

import boss_core
from tests.helpers.checkout import ROOT

PAGE = ROOT / "docs" / "api.md"
# A line of the page: the name, its file, and what it is.
LINE = re.compile(r"^- \[`(\w+)`\]\(\.\./(\S+)\.py\): (.+)$", flags=re.MULTILINE)
# The end of a sentence, which those of "et al. 2022" and "eq. 5" are not.
SENTENCE_END = re.compile(r"\.(?=\s+(?:[A-Z`]|\w+:)|$)")


def entries() -> dict[str, tuple[str, str]]:
    """Name to module and line, as the page has them."""
    found = LINE.findall(PAGE.read_text())
    assert len(found) == len({name for name, _, _ in found}), "docs/api.md: a name twice"
    return {name: (path.replace("/", "."), line) for name, path, line in found}


def summary(name: str) -> str:
    """The first sentence of the docstring of a name, as Markdown."""
    text = inspect.getdoc(getattr(boss_core, name)) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = SENTENCE_END.split(paragraph)[0].rstrip(":")
    return sentence.replace("``", "`") + "."


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", boss_core.__all__)
def test_a_name_is_the_object_of_its_home_module(name: str) -> None:
    module, _ = entries()[name]
    found = getattr(boss_core, name)
    assert found is getattr(importlib.import_module(module), name)
    assert found.__module__ == module  # made there, not imported there from elsewhere


def test_the_page_lists_the_names() -> None:
    assert sorted(entries()) == sorted(boss_core.__all__)
    wrong = [
        f"docs/api.md, {name}: {line!r} should be {summary(name)!r}, as its docstring says"
        for name, (_, line) in entries().items()
        if line != summary(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, boss_core; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert in_a_fresh_process(code) == "[]"


def test_names_are_listed_before_they_are_loaded() -> None:
    code = "import sys, boss_core; print(*dir(boss_core)); assert 'torch' not in sys.modules"
    assert set(boss_core.__all__) <= set(in_a_fresh_process(code).split())


def test_all_names_can_be_imported_at_once() -> None:
    found: dict[str, object] = {}
    exec("from boss_core import *", found)
    assert set(boss_core.__all__) <= set(found)


def test_no_name_hides_a_module() -> None:
    modules = {path.stem for path in (ROOT / "boss_core").iterdir()}
    assert not modules & set(boss_core.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'boss_core' has no attribute 'euller'"):
        _ = boss_core.euller  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'euller'"):
        exec("from boss_core import euller")


def test_a_type_checker_sees_the_names() -> None:
    """Those of the block that only a type checker reads, and no others."""
    source = (ROOT / "boss_core" / "__init__.py").read_text()
    block = source.partition("if TYPE_CHECKING:\n")[2].partition("\n\n")[0]
    found: dict[str, object] = {}
    exec("\n".join(line[4:] for line in block.splitlines()), found)
    del found["__builtins__"]
    assert sorted(found) == sorted(boss_core.__all__)


def test_code_of_the_project_imports_from_the_modules() -> None:
    """A name through the package would hide from the stages' dependencies which code makes it."""
    for path in [*ROOT.glob("boss_core/**/*.py"), *ROOT.glob("flows/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "boss_core":
                names = {alias.name for alias in node.names} & set(boss_core.__all__)
                assert not names, f"{path}: {sorted(names)} from boss_core, not from the module"
