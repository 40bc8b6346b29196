"""The whole pipeline, killed at random moments until it ends: as one that nothing disturbed.

Takes minutes, so it is asked for: BOSS_KILLS=50 pytest -m long tests/faults (docs/reliability.md);
BOSS_SEED for other moments.
"""

import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers.flow import wait_until_ended
from tests.helpers.project import Project, environment
from tests.helpers.undisturbed import assert_as_undisturbed

KILLS = int(os.environ.get("BOSS_KILLS", "0"))
SEED = int(os.environ.get("BOSS_SEED", "0"))
# A stage of the small project takes some 4 seconds, the start of a run as long.
LONGEST = 16.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not KILLS, reason="takes minutes: set BOSS_KILLS to a number of kills"),
]


@pytest.mark.parametrize("way", ["repro", "run"])
def test_killed_at_random_moments_it_ends_as_undisturbed(
    finished: Project, tmp_path: Path, prefect_server, way: str
) -> None:
    moments = random.Random(f"{way} {SEED}")
    kills = ended = 0
    at: list[str] = []
    while kills < KILLS or not ended:
        project = Project.create(tmp_path / f"project-{ended}")
        for log, killed in killed_runs(project, way, prefect_server, moments, KILLS - kills):
            kills += killed
            shown = log.read_text()
            assert "Traceback" not in shown, shown
            if killed:
                at.append(last_line(shown))
        assert_as_undisturbed(project, finished, way, prefect_server)
        ended += 1
        shutil.rmtree(project.folder)
    print(f"\n{way}: {kills} kills, {ended} runs ended; at:", *at, sep="\n  ")


def killed_runs(
    project: Project, way: str, server: dict[str, str], moments: random.Random, most: int
) -> Iterator[tuple[Path, bool]]:
    """Start, and kill at a random moment, until a run ends by itself; each run's log and whether it
    was killed. No stage that had ended runs again."""
    number = 0
    while True:
        stages_done = in_lock(project)
        log = project.folder.parent / f"{project.folder.name}-{number}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                ["boss", way], cwd=project.folder, env=environment(server), stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        deadline = moments.uniform(0.2, LONGEST) if number < most else 600
        try:
            code = process.wait(deadline)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            wait_until_ended(project.folder)
            code = None
        again = set(re.findall(r"Running stage '([^']+)'", log.read_text())) & stages_done
        assert not again, f"{again} had ended and ran again:\n{log.read_text()}"
        assert code in (None, 0), log.read_text()
        yield log, code is None
        if code == 0:
            return
        number += 1


def in_lock(project: Project) -> set[str]:
    """The stages that DVC has on record as done."""
    path = project.folder / "dvc.lock"
    return set(yaml.safe_load(path.read_text())["stages"]) if path.exists() else set()


def last_line(shown: str) -> str:
    """Where a run was when it was killed."""
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    return lines[-1][:70] if lines else "its start"
