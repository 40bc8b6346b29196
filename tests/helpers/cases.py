"""Properties on generated cases: how many of them, and what a refusal looks like.

``BOSS_CASES=2000 python -m pytest tests/faults`` draws so many for each property; a plain run as
many as take a second or so. The cases are the same every time.
"""

import os
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from boss_core.errors import InputError

Found = TypeVar("Found")

ASKED = int(os.environ.get("BOSS_CASES", "0"))


def cases(plain: int) -> settings:
    """The settings of a property that a plain run draws so many cases for."""
    return settings(
        max_examples=ASKED or plain,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


def result_or_line(load: Callable[[], Found], *named: str) -> Found | None:
    """What ``load`` gives; None where it refuses, in one line that has one of the names."""
    try:
        return load()
    except InputError as error:
        line = str(error)
        assert len(line.splitlines()) == 1, line
        assert not named or any(name in line for name in named), line
        return None


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of this content, cut, longer, or with bytes that are not what they were."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "flip", "zero", "longer", "out"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if how == "cut":
        return content[:place]
    if how == "flip":
        found = bytearray(content)
        for _ in range(draw(st.integers(1, 3))):
            found[draw(st.integers(0, len(found) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(found)
    length = draw(st.integers(1, 64))
    after = content[place + length :]
    if how == "zero":
        return content[:place] + bytes(len(content) - place - len(after)) + after
    if how == "longer":
        return content + draw(st.binary(min_size=1, max_size=64))
    return content[:place] + after
