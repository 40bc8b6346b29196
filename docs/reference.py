"""The reference on the site: each public name of `boss_core` with its signature and docstring.

Read from the source, without importing it: signatures stand as they are written there, and
docstrings are Markdown, whose "name: text" lines become a list.
"""

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path

import boss_core

ROOT = Path(__file__).resolve().parent.parent
# A line of docs/api.md: a name, its file, and what it is.
ENTRY = re.compile(r"^- \[`(\w+)`\]\(\.\./\S+\.py\): .+$")
# What a docstring says of parameters or fields: "shape: ...", "low, high: ..."; at the beginning
# of a line, or behind another one.
ITEM = re.compile(r"(?:^|(?<=[.;] ))(`{0,2}\w+`{0,2}(?:, `{0,2}\w+`{0,2})*): ", flags=re.MULTILINE)
# Code that may be the name of something documented here: `find_steps`, not ``euler``.
NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")
RAISES = re.compile(r"(?<=\.)\s+(?=InputError )")  # where a paragraph begins
RECORDS = {"dataclass", "BaseModel", "Settings"}  # what makes a constructor of a class's fields


@dataclass(frozen=True)
class Home:
    """A module: its name, its docstring, and the functions and classes in it by name."""

    name: str
    doc: str
    found: dict[str, ast.FunctionDef | ast.ClassDef]


@cache
def read_home(name: str) -> Home:
    """A module by its dotted name."""
    tree = ast.parse((ROOT / Path(*name.split(".")).with_suffix(".py")).read_text("utf-8"))
    found = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return Home(name, docstring(tree), found)


@cache
def homes() -> dict[str, str]:
    """Public name to module, by the imports that a type checker reads in boss_core/__init__.py."""
    tree = ast.parse((ROOT / "boss_core" / "__init__.py").read_text("utf-8"))
    return {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("boss_core.")
        for alias in node.names
    }


def with_reference(page: str) -> str:
    """docs/api.md with all that is said of a name in the place of its line. A public name that has
    no line there comes at the end."""
    title, _, rest = page.partition("\n")
    lines = [title, "", "```{py:currentmodule} boss_core", "```"]
    missing = dict.fromkeys(boss_core.__all__)
    module = ""
    for line in rest.splitlines():
        entry = ENTRY.match(line)
        if entry is None:
            lines.append(line)
            module = "" if line.startswith("#") else module  # a section says again what it is
            continue
        name = entry.group(1)
        missing.pop(name, None)
        lines += [*about(name, module), describe(name), ""]
        module = homes()[name]
    if missing:
        lines += ["", "## Others", "", *map(describe, missing)]
    return "\n".join(lines) + "\n"


def about(name: str, before: str) -> Iterator[str]:
    """What the module of a name says of all in it, unless it is that of the name before."""
    home = read_home(homes()[name])
    if home.name != before:
        yield f"\n`{home.name}`: {markdown(home.doc, ())}\n"


def describe(name: str) -> str:
    """A public name as a directive of Sphinx's Python domain, with Markdown in it."""
    node = read_home(homes()[name]).found[name]
    options = [f":canonical: {homes()[name]}.{name}"]
    if isinstance(node, ast.ClassDef):
        return describe_class(node, options)
    return directive("function", node, signature(node.args, node.returns), options, node.args)


def describe_class(node: ast.ClassDef, options: Sequence[str]) -> str:
    """With those of its methods and properties that have a docstring."""
    arguments = constructor(node)
    taken = "" if arguments is None else signature(arguments)
    members = [
        describe_member(member)
        for member in node.body
        if isinstance(member, ast.FunctionDef) and docstring(member)
        if member.name == "__call__" or not member.name.startswith("_")
    ]
    return directive("class", node, taken, options, arguments, [*described(node), *members])


def described(node: ast.ClassDef) -> list[str]:
    """What pydantic's fields say of themselves, as a list."""
    fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and is_field(f)]
    said = [
        f"- **{ast.unparse(f.target)}**: {keyword.value.value!s}"
        for f in fields
        if isinstance(f.value, ast.Call)
        for keyword in f.value.keywords
        if keyword.arg == "description" and isinstance(keyword.value, ast.Constant)
    ]
    return [*said, ""] if said else []


def describe_member(node: ast.FunctionDef) -> str:
    """A method or property of a class."""
    kinds = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    if kinds & {"property", "cached_property"}:
        returns = [] if node.returns is None else [f":type: {ast.unparse(node.returns)}"]
        return directive("property", node, "", returns)
    options = [f":{kind}:" for kind in sorted(kinds & {"classmethod", "staticmethod"})]
    arguments = node.args if "staticmethod" in kinds else without_self(node.args)
    return directive("method", node, signature(arguments, node.returns), options, arguments)


def directive(
    kind: str,
    node: ast.FunctionDef | ast.ClassDef,
    taken: str,
    options: Sequence[str],
    arguments: ast.arguments | None = None,
    members: Sequence[str] = (),
) -> str:
    """The entry of something of a kind, with its signature as it is taken; arguments: those that
    its docstring describes."""
    fence = "`" * (6 if kind == "class" else 5)  # around those of members
    names = [] if arguments is None else names_of(arguments)
    lines = [f"{fence}{{py:{kind}}} {node.name}{taken}", *options, ""]
    return "\n".join([*lines, markdown(docstring(node), names), "", *members, fence])


def docstring(node: ast.FunctionDef | ast.ClassDef | ast.Module) -> str:
    """Without the indentation of its code; empty where there is none."""
    return cleandoc(ast.get_docstring(node, clean=False) or "")


def markdown(text: str, names: Collection[str]) -> str:
    """A docstring as Markdown: a list of these parameters, and links to what is documented."""

    def item(found: re.Match[str]) -> str:
        called = [name.strip("`") for name in found.group(1).split(", ")]
        if not set(called) <= set(names):
            return found.group()
        break_before = "" if found.start() == 0 or text[found.start() - 1] == "\n" else "\n"
        return f"{break_before}- {', '.join(f'**{name}**' for name in called)}: "

    text = RAISES.sub("\n\n", ITEM.sub(item, text))
    return NAME.sub(r"{py:obj}`\1`", text)


def names_of(arguments: ast.arguments) -> list[str]:
    """What the arguments are called."""
    return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def signature(arguments: ast.arguments, returns: ast.expr | None = None) -> str:
    """As it is written in the source, in a line."""
    result = "" if returns is None else f" -> {ast.unparse(returns)}"
    return f"({ast.unparse(arguments)}){result}"


def without_self(arguments: ast.arguments) -> ast.arguments:
    """The arguments of a method as its callers give them."""
    where = "posonlyargs" if arguments.posonlyargs else "args"
    fields = {name: getattr(arguments, name) for name in arguments._fields}
    return ast.arguments(**{**fields, where: fields[where][1:]})


def constructor(node: ast.ClassDef) -> ast.arguments | None:
    """The arguments that make an object of a class: those of its `__init__`, or its fields; None
    where it has neither."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return without_self(member.args)
    kinds = {
        ast.unparse(each).partition("(")[0].rpartition(".")[2]
        for each in (*node.decorator_list, *node.bases)
    }
    if not kinds & RECORDS:
        return None
    fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and is_field(f)]
    names = [ast.arg(ast.unparse(f.target), plain(f.annotation)) for f in fields]
    defaults = [default(f.value) for f in fields]
    if "dataclass" in kinds:
        given = [value for value in defaults if value is not None]
        return ast.arguments([], names, None, [], [], None, given)
    return ast.arguments([], [], None, names, defaults, None, [])


def is_field(node: ast.AnnAssign) -> bool:
    """Whether it is a public one, that a constructor takes."""
    name, kind = ast.unparse(node.target), ast.unparse(node.annotation)
    return not name.startswith("_") and not kind.startswith("ClassVar")


def plain(annotation: ast.expr) -> ast.expr:
    """The type itself of one that pydantic checks further."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        first = annotation.slice
        return first.elts[0] if isinstance(first, ast.Tuple) else first
    return annotation


def default(value: ast.expr | None) -> ast.expr | None:
    """The default of a field; None where it has to be given."""
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "Field")):
        return value
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    if "default_factory" in given:
        return ast.Constant(...)
    return given.get("default", value.args[0] if value.args else None)
