"""The reference on the site: each public name of `boss_core`, and the types that these take and
return, with signature and docstring.

Signatures stand as they are written in the code, and docstrings are Markdown, whose "name: text"
lines become a list.
"""

import ast
import re
from collections.abc import Collection, Iterator, Sequence

import boss_core
from docs.sources import docstring, homes, read_home, settled

# A line of docs/api.md: a name, its file, and what it is.
ENTRY = re.compile(r"^- \[`(\w+)`\]\(\.\./\S+\.py\): .+$")
# What a docstring says of parameters or fields: "shape: ...", "low, high: ..."; at the beginning
# of a line, or behind another one.
ITEM = re.compile(r"(?:^|(?<=[.;] ))(`{0,2}\w+`{0,2}(?:, `{0,2}\w+`{0,2})*): ", flags=re.MULTILINE)
# Code that may be the name of something documented here: `find_steps`, not ``euler``.
NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")
RAISES = re.compile(r"(?<=\.)\s+(?=InputError )")  # where a paragraph begins
RECORDS = {"dataclass", "BaseModel", "Settings"}  # what makes a constructor of a class's fields


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
    lines += ["", "## Their types", ""]
    lines += ["What the names above take and return beside each other."]
    return "\n".join([*lines, *types()]) + "\n"


def about(name: str, before: str) -> Iterator[str]:
    """What the module of a name says of all in it, unless it is that of the name before."""
    home = read_home(homes()[name])
    if home.name != before:
        yield f"\n`{home.name}`: {markdown(home.doc, ())}\n"


def types() -> Iterator[str]:
    """The types in signatures of public names that are none themselves, by their modules."""
    named = {used for name in boss_core.__all__ for used in settled(homes()[name], name)[1]}
    for module, name in sorted(named):
        if homes().get(name) == module:
            continue
        yield f"\n```{{py:currentmodule}} {module}\n```\n"
        node = settled(module, name)[0]
        if isinstance(node, ast.ClassDef):
            yield describe_class(node, [])
        elif isinstance(node, ast.Assign):
            yield f"```{{py:type}} {name}\n:canonical: {ast.unparse(node.value)}\n```"


def describe(name: str) -> str:
    """A public name as a directive of Sphinx's Python domain, with Markdown in it."""
    node = settled(homes()[name], name)[0]
    options = [f":canonical: {homes()[name]}.{name}"]
    if isinstance(node, ast.ClassDef):
        return describe_class(node, options)
    assert isinstance(node, ast.FunctionDef), name
    return directive("function", node, signature(node.args, node.returns), options, node.args)


def describe_class(node: ast.ClassDef, options: Sequence[str]) -> str:
    """With those of its methods and properties that have a docstring."""
    arguments = constructor(node)
    taken = "" if arguments is None else signature(arguments)
    members = [
        describe_member(member)
        for member in node.body
        if isinstance(member, ast.FunctionDef) and docstring(member) and member.name != "__init__"
    ]
    return directive("class", node, taken, options, arguments, [*described(node), *members])


def described(node: ast.ClassDef) -> list[str]:
    """What pydantic's fields say of themselves, as a list."""
    said = [
        f"- **{ast.unparse(f.target)}**: {keyword.value.value!s}"
        for f in fields(node)
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


def markdown(text: str, names: Collection[str]) -> str:
    """A docstring as Markdown: a list of these parameters, and links to what is documented."""

    def item(found: re.Match[str]) -> str:
        called = [name.strip("`") for name in found.group(1).split(", ")]
        if not set(called) <= set(names):
            return found.group()
        break_before = "" if found.start() == 0 or text[found.start() - 1] == "\n" else "\n"
        return f"{break_before}- {', '.join(f'**{name}**' for name in called)}: "

    def link(found: re.Match[str]) -> str:
        name = found.group(1)
        return f"{{py:obj}}`{f'{name} <boss_core.{name}>' if name in homes() else name}`"

    return NAME.sub(link, RAISES.sub("\n\n", ITEM.sub(item, text)))


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
    given = {name: getattr(arguments, name) for name in arguments._fields}
    return ast.arguments(**{**given, where: given[where][1:]})


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
    names = [ast.arg(ast.unparse(f.target), plain(f.annotation)) for f in fields(node)]
    defaults = [default(f.value) for f in fields(node)]
    if "dataclass" in kinds:
        given = [value for value in defaults if value is not None]
        return ast.arguments([], names, None, [], [], None, given)
    return ast.arguments([], [], None, names, defaults, None, [])


def fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    """Those that a constructor takes."""
    return [member for member in node.body if isinstance(member, ast.AnnAssign)]


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
