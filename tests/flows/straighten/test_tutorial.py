"""docs/tutorials/diffusers-pipeline.md, from the first block to the last."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from tests.helpers.pages import Block, blocks

PAGE = "docs/tutorials/diffusers-pipeline.md"
NUMBER = re.compile(r"[0-9][0-9.,]*(?:e-?[0-9]+)?")


def shape(line: str) -> str:
    """A line without its numbers, which differ with the machine, and what pads them."""
    return " ".join(NUMBER.sub("N", line).replace("┃", "│").split())


def call(block: Block, boss) -> str:
    """The commands of a block in this process, and what they print."""
    shown = ""
    for line in block.text.replace("\\\n", " ").splitlines():
        name, *words = shlex.split(line)
        if name == "boss":
            code, out, errors = boss(*words)
            assert code == 0, errors
            shown += out
        elif name == "printf":
            assert words[0] == "%s\\n"
            Path(words[-1]).write_text("".join(f"{word}\n" for word in words[1:-2]))
        else:
            assert [name, *words] == ["python", "make_sd3.py"]
            exec(compile(Path("make_sd3.py").read_text(), "make_sd3.py", "exec"), {})
    return shown


@pytest.mark.slow
def test_the_page_runs_as_it_stands(boss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    shown, distances = "", {}
    for block in blocks(PAGE):
        if block.language == "bash":
            shown = call(block, boss)
        elif block.title:
            Path(block.title).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, PAGE, "exec"), {})
        else:
            printed = {shape(line) for line in shown.splitlines()}
            assert [line for line in block.text.splitlines() if shape(line) not in printed] == []
            distances |= dict(re.findall(r"│ (\w+, [12] steps?) .*│ +([\d.]+) │", shown))
    assert Path("fast/2/report.html").is_file()
    monkeypatch.delitem(sys.modules, "fixed_flow_scheduler")
    assert 1.5 * float(distances["student, 2 steps"]) < float(distances["guided, 1 step"])
    assert Image.open("fox.png").size == (16, 16)
