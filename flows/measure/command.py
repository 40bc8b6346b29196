"""The command of a person's that a stage is part of, and since when that runs.

Whoever starts stages says it in their environment; of a stage without it DVC was called itself, and
what that was given cannot be known."""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# A variable of the stages: a `Command` as JSON.
COMMAND = "BOSS_COMMAND"


@dataclass(frozen=True)
class Command:
    """command: as it was typed. since: UNIX seconds; None where that is not known. commit: of git,
    of the folder that it was called in; None without one."""

    command: str
    since: float | None
    commit: str | None


def named(command: str) -> dict[str, str]:
    """The variable of a command that begins now, for the environment of its stages."""
    return {COMMAND: json.dumps(asdict(Command(command, time.time(), git_commit())))}


def calling() -> Command:
    """The command that this process is part of, or is."""
    if found := os.environ.get(COMMAND):
        return Command(**json.loads(found))
    if "DVC_STAGE" in os.environ:  # which DVC sets
        name = "dvc exp run" if "DVC_EXP_NAME" in os.environ else "dvc repro"
        return Command(name, None, git_commit())
    return Command(typed(sys.argv), None, git_commit())


def typed(arguments: list[str]) -> str:
    """What was typed, of ``sys.argv``."""
    program, *rest = arguments
    return shlex.join([Path(program).name, *rest])


def git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # not a git repository, or no git: DVC runs without it too
    return found.stdout.strip()
