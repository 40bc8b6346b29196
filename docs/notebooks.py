"""The tutorials as notebooks: ``python -m docs.notebooks`` writes build/notebooks/*.ipynb.

A block of Python is a cell as it stands, one with a title a file that the cell writes, a block of
commands a cell of bash; all else is text. Run them where the pages are: in the environment of
`make`, the files beside the notebook or, where the page is about the project, in its folder.
"""

import os
import re
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt
from markdown_it.token import Token
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "tutorials"
OUT = ROOT / "build" / "notebooks"
# Pages whose commands are of the project; the others write what they make beside the notebook.
IN_THE_PROJECT = ("digits", "nightly", "your-photographs")

_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def notebook(page: Path, out: Path) -> NotebookNode:
    """A page as a notebook that lies in the folder ``out``."""
    text = page.read_text()
    lines = text.splitlines(keepends=True)
    cells: list[NotebookNode] = []
    if page.stem in IN_THE_PROJECT:
        cells.append(new_code_cell(f"%cd {os.path.relpath(ROOT, out)}"))
    end = 0
    for token in MarkdownIt("commonmark").parse(text):
        source = _code(token)
        if source is not None and token.map is not None:
            _add_text("".join(lines[end : token.map[0]]), page, out, cells)
            cells.append(new_code_cell(source))
            end = token.map[1]
    _add_text("".join(lines[end:]), page, out, cells)
    for number, cell in enumerate(cells):
        cell["id"] = f"{page.stem}-{number}"  # the same bytes every time
    return new_notebook(cells=cells, metadata={"kernelspec": _KERNEL})


def _code(token: Token) -> str | None:
    """The cell of a fenced block; None where it is none to run."""
    if token.type != "fence":
        return None
    language, _, title = token.info.partition(" ")
    source = token.content.removesuffix("\n")
    if language == "bash":
        return f"%%bash\n{source}"
    if language != "python":
        return None
    name = re.fullmatch(r'title="([\w.]+)"', title)
    return f"%%writefile {name[1]}\n{source}" if name else source


def _add_text(text: str, page: Path, out: Path, cells: list[NotebookNode]) -> None:
    def from_out(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        return f"{link[1]}{os.path.relpath(target, out)}"

    if text.strip():
        cells.append(new_markdown_cell(_LINK.sub(from_out, text.strip("\n"))))


def main(out: Path = OUT) -> None:
    """Write a notebook for each tutorial into a folder, which is made where it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    for page in sorted(PAGES.glob("*.md")):
        target = out / f"{page.stem}.ipynb"
        nbformat.write(notebook(page, out), target)
        print(os.path.relpath(target))


if __name__ == "__main__":
    main()
