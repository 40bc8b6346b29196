"""Threads: what a stage computes with on a CPU."""

import subprocess
import sys
from pathlib import Path

from flows.stages.runner import TURNS
from tests.helpers.project import Project, environment

STAGE = """
import sys
from flows.config import load_params
from flows.stages.runner import device
import torch
for _ in range(2):  # the second time it has its turn already
    device(load_params(), small=sys.argv[1] == "small")
print("threads", torch.get_num_threads(), flush=True)
sys.stdin.read()
"""


def start(folder: Path, size: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, size],
        cwd=folder,
        env=environment({"OMP_NUM_THREADS": "2", TURNS: str(folder / "turns")}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_small_networks_have_a_thread_each_and_others_take_turns(tmp_path: Path) -> None:
    Project.bare(tmp_path)
    stages = [start(tmp_path, "large")]
    said = [stages[0].stdout]
    assert said[0] is not None
    assert said[0].readline() == "threads 2\n"
    stages += [start(tmp_path, "large"), start(tmp_path, "small")]
    _, waits, small = (stage.stdout for stage in stages)
    assert waits is not None
    assert small is not None
    assert waits.readline() == "waiting for the cores: another stage computes on all of them\n"
    assert small.readline() == "threads 1\n"
    stages[0].kill()  # whose turn ends with it
    assert waits.readline() == "threads 2\n"
    for stage in stages:
        stage.communicate("")
