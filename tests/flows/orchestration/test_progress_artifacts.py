"""A bar for what takes long, on a real server."""

import json
from typing import Any

import httpx
import pytest
from prefect import flow, task
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.orchestration import progress_artifacts
from flows.orchestration.progress_artifacts import shown_progress

SHORT = ["teacher: 50/120 steps, 6/s, 12 s left", "no line of progress"]
LONG = [
    "teacher: 1,000/10,000 steps, 60/s, 150 s left",  # 17 s of 167
    "teacher: 7,500/10,000 steps, 60/s, 42 s left",
]


@pytest.mark.slow
def test_a_long_stage_has_a_bar_and_a_short_one_none(prefect_server: dict[str, str]) -> None:
    told: list[str] = []

    @task
    def stage(name: str, lines: list[str], ends: bool) -> None:
        with shown_progress(name, told.append) as log:
            for line in lines:
                log(line)
            if not ends:
                raise ValueError("the stage failed")

    @flow
    def three() -> str:
        stage("cost", SHORT, True)
        stage("finetune@3", LONG, True)
        stage("teacher", LONG, False, return_state=True)
        from prefect.runtime import flow_run as own

        return str(own.id)

    with temporary_settings({PREFECT_API_URL: prefect_server["PREFECT_API_URL"]}):
        run = three()
    body = {"artifacts": {"flow_run_id": {"any_": [run]}}}
    url = f"{prefect_server['PREFECT_API_URL']}/artifacts/filter"
    found: list[dict[str, Any]] = httpx.post(url, json=body).json()
    bars = {a["key"]: (json.loads(str(a["data"])), a["description"]) for a in found}
    assert bars == {
        "boss-finetune-3": (100.0, "finetune@3: done"),
        "boss-teacher": (75.0, "teacher: 42 s left"),  # where it failed
    }
    assert told == [*SHORT, *LONG, *LONG]


def test_a_server_that_does_not_answer_ends_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(progress_artifacts, "create_progress_artifact", refuse)
    told: list[str] = []
    with shown_progress("teacher", told.append) as log:
        for line in LONG:
            log(line)
    assert told == LONG
