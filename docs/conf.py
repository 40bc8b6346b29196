"""The site of `make docs`: README, docs and the reference of the public names, by Sphinx and MyST.

Sphinx reads the repository as it lies, so that a link between pages holds here and on the site.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from docs.reference import with_reference  # noqa: E402
from docs.sources import homes  # noqa: E402

HOME, REFERENCE = "README", "docs/api"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs")

# The menu. A page that stands nowhere by name comes where its folder does.
MENU = {
    "Start": ("docs/choose", "docs/tutorials/*", "docs/troubleshooting", "docs/glossary"),
    "Your network": ("docs/teachers/*", "docs/export"),
    "The pipeline": ("docs/pipeline", "docs/data", "docs/training", "docs/containers", "docs/*"),
    "Method and results": ("docs/method", "docs/results/*", "docs/log"),
    "Reference": (REFERENCE, "CONTRIBUTING", "CHANGELOG"),
}

project = "BOSS"
extensions = ["myst_parser", "sphinx.ext.viewcode"]
root_doc = HOME
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in PAGES]
include_patterns = [page if page.endswith(".md") else f"{page}/**" for page in PAGES]

myst_heading_anchors = 6  # GitHub's
# What GitHub has not.
myst_disable_syntax = ["myst_line_comment", "myst_block_break", "myst_target"]
smartquotes = False
highlight_language = "none"  # of blocks that do not name theirs: a terminal's
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

html_theme = "furo"  # has its fonts and scripts with it
html_title = "BOSS"
html_copy_source = False
html_show_copyright = False


def menu() -> str:
    """The pages, in the order of `MENU`, as the lists that Sphinx makes its menu of."""
    pages = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for pattern in ("*.md", "docs/**/*.md")
        for path in ROOT.glob(pattern)
    } - {HOME}
    named = {name for names in MENU.values() for name in names if "*" not in name}
    lists = []
    for caption, names in MENU.items():
        listed: list[str] = []
        for name in names:
            folder = name.removesuffix("/*")
            found = {page for page in pages - named if page.rpartition("/")[0] == folder}
            listed += [name] if folder == name else sorted(found)
        head = ("```{toctree}", ":hidden:", f":caption: {caption}", "")
        lists.append("\n".join([*head, *listed, "```"]))
    return "\n\n".join(lists)


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """What the site has more than the file: the menu on the first page, the reference on its."""
    if name == HOME:
        source[0] += f"\n\n{menu()}\n"
    elif name == REFERENCE:
        source[0] = with_reference(source[0])


def find_source(app: Sphinx, module: str) -> tuple[str, dict[str, tuple[str, int, int]]]:
    """The code behind a [source] link, read from its file: nothing is imported."""
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    code = path.read_text(encoding="utf-8")
    return code, ModuleAnalyzer.for_string(code, module).find_tags()


def follow(app: Sphinx, module: str, name: str) -> str:
    """The module that a public name, or a member of it, comes from; others stand under theirs."""
    return homes().get(name.partition(".")[0], module)


def add_entrance(app: Sphinx, error: Exception | None) -> None:
    """The first page under the name that browsers and servers look for."""
    if error is None:
        page = f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={HOME}.html">\n'
        (Path(app.outdir) / "index.html").write_text(page)


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.connect("source-read", read_page)
    app.connect("viewcode-find-source", find_source)
    app.connect("viewcode-follow-imported", follow)
    app.connect("build-finished", add_entrance)
