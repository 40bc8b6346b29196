"""The tutorials as notebooks: valid ones, of the same blocks; tests of the pages run these."""

import re
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.pages import Block, blocks

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


def as_cell(block: Block) -> str:
    before = {"bash": "%%bash\n"}.get(block.language, "")
    before = f"%%writefile {block.title}\n" if block.title else before
    return before + block.text.removesuffix("\n")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    from docs.notebooks import main

    main(tmp_path / "notebooks")
    return tmp_path / "notebooks"


def test_every_page_is_a_valid_notebook_of_its_own_blocks(written: Path) -> None:
    assert {path.stem for path in written.iterdir()} == {page.stem for page in PAGES}
    for page in PAGES:
        notebook = nbformat.read(written / f"{page.stem}.ipynb", as_version=4)
        nbformat.validate(notebook)
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        if page.stem in ("digits", "nightly", "your-photographs"):
            assert code.pop(0).startswith("%cd ")
        of_page = blocks(str(page.relative_to(ROOT)))
        assert code == [as_cell(b) for b in of_page if b.language in ("python", "bash")]
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert text.startswith(page.read_text().splitlines()[0])
        links = re.findall(r"\]\(([^)#\s]+)", text)
        assert links
        assert all("://" in link or (written / link).exists() for link in links)


def test_it_writes_the_same_again(written: Path) -> None:
    from docs.notebooks import main

    before = {path: path.read_bytes() for path in written.iterdir()}
    main(written)
    assert {path: path.read_bytes() for path in written.iterdir()} == before
