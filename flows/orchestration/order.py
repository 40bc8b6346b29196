"""Which stage starts when: each as soon as what it needs is there, side by side where it can be."""

from collections.abc import Callable
from typing import Any

from flows.workspace.graph import Stage
from flows.workspace.process import Outcome


def run_all(
    stages: list[Stage],
    changed: set[str],
    workers: int,
    *,
    start: Callable[[Stage, bool], Any],
    first_of: Callable[[list[Any]], Any],
    end_of: Callable[[Any], Outcome | str],
) -> tuple[dict[str, Outcome], list[str]]:
    """Start every stage once those that it needs have ended well, at most ``workers`` at a time:
    how each ended, and the messages of those that failed. What needs one of these does not start.

    stages: in an order in which each comes after those it needs.
    changed: those that DVC would not skip as they stand (`out_of_date`).
    start: starts one, told whether it is known that there is nothing to do; what it returns stands
        for the stage at work.
    first_of: waits for one of those at work to end, and returns it.
    end_of: how one ended, or why it failed.
    """
    outcomes: dict[str, Outcome] = {}
    failures: list[str] = []
    waiting = {stage.name: stage for stage in stages}
    running: dict[Any, Stage] = {}
    lost: set[str] = set()
    while waiting or running:
        for stage in list(waiting.values()):
            if stage.needs & lost:
                lost.add(stage.name)
                del waiting[stage.name]
            elif stage.needs <= outcomes.keys() and len(running) < workers:
                # Nothing that it needs is new, and DVC says that it is as recorded.
                known = stage.name not in changed and all(
                    outcomes[need] == Outcome.CACHED for need in stage.needs
                )
                running[start(stage, known)] = stage
                del waiting[stage.name]
        if not running:
            continue
        ended = first_of(list(running))
        name, how = running.pop(ended).name, end_of(ended)
        if isinstance(how, Outcome):
            outcomes[name] = how
        else:
            lost.add(name)
            failures.append(how)
    return outcomes, failures
