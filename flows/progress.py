"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

_LOG_INTERVAL = 10.0  # seconds between two lines in a log


class _Rate(ProgressColumn):
    def render(self, task) -> Text:  # type: ignore[no-untyped-def]
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of units done since it was last called. ``total``:
    None where nobody can know it."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(
                f"{{task.completed:,.0f}} {unit}"
                if total is None
                else f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"
            ),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.advance(task, done)
        return

    start = last = time.monotonic()
    completed = 0

    def advance(done: int) -> None:
        nonlocal last, completed
        completed += done
        now = time.monotonic()
        if now - last >= _LOG_INTERVAL and completed != total:
            last = now
            rate = completed / (now - start)
            if total is None:
                print(f"{label}: {completed:,} {unit}, {rate:,.0f}/s", flush=True)
            else:
                print(
                    f"{label}: {completed:,}/{total:,} {unit}, {rate:,.0f}/s,"
                    f" {(total - completed) / rate:.0f} s left",
                    flush=True,
                )

    yield advance
    seconds = time.monotonic() - start
    print(f"{label}: {completed:,} {unit} in {seconds:.1f} s", flush=True)
