"""``boss schedule`` as a command: what its own steps add to the search."""

import sys
from pathlib import Path

import pytest

FAILING = """
calls = 0

def velocity(x, t):
    global calls
    calls += 1
    if calls > {most}:
        raise ValueError("no more of this")
    return -x
"""


@pytest.mark.parametrize("objective", ["oss", "refine", "auto"])
def test_a_callable_that_fails_while_it_is_searched(boss, tmp_path: Path, objective: str) -> None:
    name = f"failing_{objective}"
    (tmp_path / f"{name}.py").write_text(FAILING.format(most=25))
    search = ("schedule", "--velocity", f"{name}:velocity", "--shape", "2", "--budget", 2)
    size = ("--grid", 4, "--samples", 4, "--batch-size", 4, "--noises", 200)
    code, _, says = boss(*search, *size, "--objective", objective, "--device", "cpu")
    assert code == 2
    assert says.splitlines()[-1].startswith(f"error: velocity: '{name}:velocity': ")
    assert says.endswith("ValueError: no more of this\n")
    assert "Traceback" not in says
    assert (tmp_path / "schedules" / "cost.npz").exists()  # what was measured before is kept
    sys.modules.pop(name)
