"""The blocks of code on a page of the docs."""

import re
from dataclasses import dataclass

from tests.helpers.checkout import ROOT

_FENCED = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<title>[\w.]+)")?\n(?P<text>.*?)^```$',
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """language: python, bash (to be run) or text (what is printed). title: the file to save it
    as, None for Python that is run as it stands."""

    language: str
    title: str | None
    text: str


def blocks(page: str, language: str | None = None) -> list[Block]:
    """Those of a page, in order, or those of one language."""
    found = [Block(**each.groupdict()) for each in _FENCED.finditer((ROOT / page).read_text())]
    return [block for block in found if language in (None, block.language)]


def commands(page: str, start: str = "") -> list[str]:
    """The lines of a page's bash, without remarks and with what they are continued by."""
    joined = "".join(block.text for block in blocks(page, "bash")).replace("\\\n", " ")
    lines = [" ".join(line.partition("  #")[0].split()) for line in joined.splitlines()]
    return [line for line in lines if line.startswith(start)]
