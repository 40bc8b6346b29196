"""How long work will take, said once it has begun: by its first batch."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flows.progress import progress

# Steps after the first, which starts things up, by which the rest is told where each is a batch.
_STEPS = 5


@contextmanager
def announced(
    label: str, total: int, unit: str, batch: int | None = None
) -> Iterator[Callable[[int], None]]:
    """As `flows.progress.progress`, with a line that says how long all will take.

    batch: samples in a batch, of each of which a call tells one step; None where a call tells one
        step of a training. What a call tells more than that was done before.
    """
    before, counted, calls, start = 0, 0, 0, 0.0
    with progress(label, total, unit) as advance:

        def told(done: int) -> None:
            nonlocal before, counted, calls, start
            advance(done)
            if done > (batch or 1):
                before += done
                return
            calls += 1
            if calls == 1:
                start = time.monotonic()
                return
            counted += done
            if calls == 1 + _STEPS:
                each = (time.monotonic() - start) / counted
                left = total - before
                print(f"{label}: {left:,} {unit}, about {_duration(each * left)}", flush=True)

        yield told


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
