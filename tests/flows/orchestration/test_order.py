"""The order in which stages start, on a clock of the test's own."""

from dataclasses import dataclass, field

import numpy as np

from flows.orchestration.order import run_all
from flows.workspace.graph import Stage
from flows.workspace.process import Outcome


@dataclass
class Clock:
    """Stages that take given times; some fail. spans: when each started and ended."""

    takes: dict[str, float]
    fail: frozenset[str] = frozenset()
    now: float = 0.0
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)

    def start(self, stage: Stage, known: bool) -> str:
        self.spans[stage.name] = (self.now, self.now + (0 if known else self.takes[stage.name]))
        if known:
            self.known.add(stage.name)
        return stage.name

    def first_of(self, running: list[str]) -> str:
        first = min(running, key=lambda name: self.spans[name][1])
        self.now = self.spans[first][1]
        return first

    def end_of(self, name: str) -> Outcome | str:
        if name in self.fail:
            return f"{name}: no luck"
        return Outcome.CACHED if name in self.known else Outcome.RAN

    def run(self, needs: dict[str, str], changed: set[str], workers: int):
        stages = [Stage(name, frozenset(of), True, False) for name, of in needs.items()]
        return run_all(
            stages, changed, workers,
            start=self.start, first_of=self.first_of, end_of=self.end_of,
        )  # fmt: skip


# As the pipeline with two budgets: t(eacher), c(ost), f(loor), s(tudents), e(valuations), r(eport).
NEEDS = {"t": "", "c": "t", "f": "t", "1": "c", "2": "c", "3": "1f", "4": "2f", "r": "34"}
TAKES = {"t": 5.0, "c": 2.0, "f": 3.0, "1": 4.0, "2": 4.0, "3": 2.0, "4": 2.0, "r": 1.0}


def test_as_long_as_the_longest_path_where_there_are_enough_workers() -> None:
    for workers, length in ((4, 14.0), (2, 15.0), (1, sum(TAKES.values()))):
        clock = Clock(TAKES)
        outcomes, failures = clock.run(NEEDS, set(NEEDS), workers)
        assert clock.now == length
        assert outcomes == dict.fromkeys(NEEDS, Outcome.RAN)
        assert failures == []


def test_what_needs_a_failed_stage_does_not_start_and_all_else_does() -> None:
    clock = Clock(TAKES, fail=frozenset("2"))
    outcomes, failures = clock.run(NEEDS, set(NEEDS), 2)
    assert failures == ["2: no luck"]
    assert set(outcomes) == set("tcf13")
    assert set(clock.spans) == set("tcf132")


def test_nothing_is_skipped_behind_a_stage_that_did_something() -> None:
    clock = Clock(TAKES)
    outcomes, _ = clock.run(NEEDS, {"f"}, 2)
    assert {name for name, how in outcomes.items() if how == Outcome.RAN} == set("f34r")
    assert clock.known == set("tc12")


def test_of_any_stages_none_starts_before_what_it_needs_nor_beside_too_many() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        names = "abcdefgh"[: draw.integers(1, 9)]
        needs = {
            n: "".join(m for m in names[:i] if draw.random() < 0.4) for i, n in enumerate(names)
        }
        workers = int(draw.integers(1, 5))
        clock = Clock({name: float(draw.integers(1, 9)) for name in names})
        outcomes, failures = clock.run(needs, set(names), workers)
        assert set(outcomes) == set(names)
        assert failures == []
        for name, (start, _) in clock.spans.items():
            assert all(clock.spans[need][1] <= start for need in needs[name])
            assert sum(s <= start < e for s, e in clock.spans.values()) <= workers
