"""Where this checkout lies, and what may lie beside it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


SHARED = ROOT.parent / "shared"


needs_shared = pytest.mark.skipif(
    not (SHARED / "reference").is_dir(),
    reason="the reference results of the published implementation are not beside this checkout",
)
