"""What a Prefect server says of the runs of the flow."""

import re
from typing import Any

STAGES = {
    "check", "prepare", "features", "teacher", "cost", "schedule", "trajectories", "finetune@1",
    "finetune@3", "floor", "evaluate@1", "evaluate@3", "report",
}  # fmt: skip


VARIANTS = (
    "pretrained_uniform", "pretrained_bellman", "straightened_uniform", "boss", "multistep",
    "chosen_uniform", "chosen", "chosen_straightened",
)  # fmt: skip


def api(server: dict[str, str], path: str, body: dict | None = None) -> Any:
    """One call of Prefect's REST API."""
    import httpx

    url = f"{server['PREFECT_API_URL']}/{path}"
    reply = httpx.get(url) if body is None else httpx.post(url, json=body)
    reply.raise_for_status()
    return reply.json()


def flow_run(server: dict[str, str], shown: str) -> dict[str, Any]:
    """The flow run whose log is ``shown``."""
    name = re.search(r"Beginning flow run '([^']+)'", shown)
    assert name, shown
    found = api(server, "flow_runs/filter", {"flow_runs": {"name": {"any_": [name[1]]}}})
    return found[0]


def artifacts(server: dict[str, str], run: dict[str, Any]) -> list[dict[str, Any]]:
    body = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
    return api(server, "artifacts/filter", body)
