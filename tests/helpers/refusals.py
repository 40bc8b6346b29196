"""What is refused, in one line."""

from collections.abc import Callable
from typing import Any

import pytest

from boss_core.errors import InputError


def refused(load: Callable[[], Any], *texts: str) -> None:
    with pytest.raises(InputError) as caught:
        load()
    assert "\n" not in str(caught.value)
    for text in texts:
        assert text in str(caught.value)
