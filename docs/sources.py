"""The code of `boss_core` as it is written: what a module has, and where its names come from.
Nothing is imported."""

import ast
import copy
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
LONGEST = 40  # characters of a constant that stands in a signature by its value
Documented = ast.FunctionDef | ast.ClassDef | ast.Module


@dataclass(frozen=True)
class Home:
    """A module.

    found: functions, classes and values by name. imported: from modules of the library, by the
    name here, each with its module and its name there.
    """

    name: str
    doc: str
    found: dict[str, Definition]
    imported: dict[str, tuple[str, str]]


@cache
def read_home(name: str) -> Home:
    """A module, or the package itself, by its dotted name."""
    path = ROOT / Path(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text("utf-8"))
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("boss_core.")
        for alias in node.names
    }
    found = {called: node for node in tree.body for called in names_given(node)}
    return Home(name, docstring(tree), found, imported)  # type: ignore[arg-type]


def names_given(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) and node.value else targets
    return [target.id for target in targets if isinstance(target, ast.Name)]


def homes() -> dict[str, str]:
    """Public name to module, by the imports that a type checker reads in boss_core/__init__.py."""
    return {name: module for name, (module, _) in read_home("boss_core").imported.items()}


def origin(name: str, module: str) -> tuple[str, Definition] | None:
    """Where what a module calls so is defined, and how; None where that is not in the library."""
    home = read_home(module)
    if name in home.found:
        return module, home.found[name]
    if name in home.imported:
        there, called = home.imported[name]
        return origin(called, there)
    return None


def docstring(node: Documented) -> str:
    """Without the indentation of its code; empty where there is none."""
    return cleandoc(ast.get_docstring(node, clean=False) or "")


@cache
def settled(module: str, name: str) -> tuple[Definition, tuple[tuple[str, str], ...]]:
    """A definition as it is shown, without code and private members: names of the library's types
    in full, short constants by their values. With the types that it names, each by its module."""
    found = origin(name, module)
    assert found is not None, f"{module}.{name}"
    here, node = found
    shown = without_code(copy.deepcopy(node))
    settling = _Settling(here)
    shown = settling.visit(shown)
    return shown, tuple(settling.types)


def without_code(node: ast.stmt) -> ast.stmt:
    """With the docstring alone in the body of a function, and in that of a class fields and what
    can be called from outside."""
    if isinstance(node, ast.FunctionDef):
        node.body = node.body[:1] if docstring(node) else [ast.Pass()]
    elif isinstance(node, ast.ClassDef):
        doc = node.body[:1] if docstring(node) else []
        node.body = doc + [without_code(member) for member in node.body if is_shown(member)]
    return node


def is_shown(member: ast.stmt) -> bool:
    """Whether it is a field that a constructor takes, or a method that users call."""
    if isinstance(member, ast.AnnAssign):
        field, kind = ast.unparse(member.target), ast.unparse(member.annotation)
        return not field.startswith("_") and not kind.startswith("ClassVar")
    if not isinstance(member, ast.FunctionDef):
        return False
    return member.name in ("__init__", "__call__") or not member.name.startswith("_")


class _Settling(ast.NodeTransformer):
    """Puts for the names in a definition what they stand for."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.types: list[tuple[str, str]] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """Not its bases."""
        node.body = [self.visit(member) for member in node.body]
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        found = origin(node.id, self.module) if isinstance(node.ctx, ast.Load) else None
        if found is None:
            return node
        module, definition = found
        value = getattr(definition, "value", None)
        if value is not None and is_literal(value):
            return value if len(ast.unparse(value)) <= LONGEST else node
        if isinstance(definition, ast.FunctionDef) or isinstance(value, ast.Call):
            return node  # a default that is called, or a type variable
        if node.id.isupper():
            return node  # a constant that is computed, or long
        self.types.append((module, node.id))
        public = homes().get(node.id) == module
        return ast.Name(f"{'boss_core' if public else module}.{node.id}", node.ctx)


def is_literal(node: ast.expr) -> bool:
    """Whether it is a number, a text, or a tuple of such."""
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True
