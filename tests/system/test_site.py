"""The reference of the site: every public name, as its docstring has it. `make docs` builds it."""

import inspect
import re

import pytest

import boss_core
from docs.reference import describe, markdown, with_reference
from tests.helpers.checkout import ROOT

ENTRY = re.compile(r"^`+\{py:(?:class|function|type)\} (\w+)(?:\((.*)\))?", flags=re.MULTILINE)
MADE_OTHERWISE = {"VelocityField"}  # by whoever has such a call


def test_every_public_name_has_its_place() -> None:
    page, _, types = with_reference((ROOT / "docs/api.md").read_text()).partition("## Their types")
    entries = [name for name, _ in ENTRY.findall(page)]
    assert sorted(entries) == sorted(boss_core.__all__)
    named = {name for name, _ in ENTRY.findall(types)}
    assert {"Path", "Fitted", "Estimate", "Extractor", "Times"} <= named  # dict[int, Path], ...
    assert not named & set(boss_core.__all__)
    assert "## Others" not in page
    assert page.index("\n## Solvers\n") < page.index("{py:function} euler(")
    assert page.index("{py:function} rk45(") < page.index("\n## The cost of every step\n")


def test_a_name_without_a_line_comes_at_the_end() -> None:
    page = with_reference("# Public names\n\n- [`euler`](../boss_core/ode/solvers.py): Euler.\n")
    first, _, others = page.partition("## Their types")[0].partition("## Others")
    assert [name for name, _ in ENTRY.findall(first)] == ["euler"]
    names = {name for name, _ in ENTRY.findall(others)}
    assert names == set(boss_core.__all__) - {"euler"}


@pytest.mark.parametrize("name", boss_core.__all__)
def test_the_signature_is_that_of_the_code(name: str) -> None:
    """By Python's own `inspect`, which imports what is only read here."""
    found = getattr(boss_core, name)
    entry = describe(name)
    match = ENTRY.match(entry)
    assert match is not None
    parameters, inner = match[2] or "", 1
    while inner:  # what is in brackets, from the innermost on
        parameters, inner = re.subn(r"\[[^][]*\]", "", parameters)
    shown = re.findall(r"(?:^|, )\*{0,2}(\w+)(?=: |=|,|$)", parameters)
    assert shown == ([] if name in MADE_OTHERWISE else list(inspect.signature(found).parameters))


def test_a_docstring_becomes_a_list_of_what_is_taken() -> None:
    text = (
        "Steps of a path.\n\n"
        "shape: of one, as `find_steps` has it. seed: of ``all``.\n"
        "low, high: the ends\n    of it, where\n\n        low < high.\n\n"
        "Beside: no parameter. InputError for others."
    )
    assert markdown(text, ["shape", "seed", "low", "high"]) == (
        "Steps of a path.\n\n"
        "- **shape**: of one, as {py:obj}`find_steps <boss_core.find_steps>` has it. \n"
        "- **seed**: of ``all``.\n"
        "- **low**, **high**: the ends\n    of it, where\n\n        low < high.\n\n"
        "Beside: no parameter.\n\nInputError for others."
    )
