"""A small project in a folder of its own: the real stages, DVC and MLflow, tiny settings."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from flows.workspace.presets import read_preset
from tests.helpers.checkout import ROOT

SOURCES = (
    "boss_core", "configs", "flows", "inputs", "dvc.yaml", "params.yaml", "prefect.yaml",
    ".gitignore", ".dvcignore",
)  # fmt: skip

# The smallest run there is, which users have as `boss run --preset smoke`.
TINY: dict[str, Any] = read_preset(ROOT, "smoke")

# Beside the preset `smoke`, which takes minutes with photographs on a CPU: hardly any training, and
# as few images as there can be, each of which takes the judge 60 ms.
FEWER: dict[str, Any] = {
    "budgets": [2],
    "teacher.training.iterations": 3,
    "teacher.training.batch_size": 8,
    "cost.samples": 6,
    "trajectories.samples": 10,
    "finetune.training.iterations": 2,
    "finetune.training.batch_size": 8,
    "evaluate.samples": 4,
    "evaluate.reference_samples": 6,
    "evaluate.kid_subset_size": 4,
}


class Project:
    """A copy of this repository's pipeline, as a git and DVC repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path, change: dict[str, Any] | None = None) -> "Project":
        folder.mkdir(parents=True)
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, folder / name, ignore=skip)
            else:
                shutil.copy(source, folder / name)
        project = cls(folder)
        project.set(TINY | (change or {}))
        project.run("git", "init", "-q")
        project.run("dvc", "init", "-q")
        shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
        project.commit("start")
        return project

    @classmethod
    def bare(cls, folder: Path) -> "Project":
        """The parameters and inputs alone, for stages that the test calls itself."""
        shutil.copy(ROOT / "params.yaml", folder)
        for name in ("configs", "inputs"):
            shutil.copytree(ROOT / name, folder / name)
        project = cls(folder)
        project.set(TINY)
        return project

    def copy(self, folder: Path) -> "Project":
        """The same project, its cache and outputs included, somewhere else."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)

    def commit(self, message: str) -> None:
        author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        self.run("git", "add", "-A")
        self.run("git", *author, "commit", "-qm", message)

    def set(self, change: dict[str, Any]) -> None:
        """Change parameters, by their dotted names."""
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for name, value in change.items():
            *blocks, last = name.split(".")
            block = params
            for part in blocks:
                block = block[part]
            block[last] = value
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def set_command(self, stage: str, change: Callable[[str], str]) -> None:
        """Change what a stage of dvc.yaml runs."""
        path = self.folder / "dvc.yaml"
        pipeline = yaml.safe_load(path.read_text())
        definition = pipeline["stages"][stage]
        definition["cmd"] = change(definition["cmd"])
        path.write_text(yaml.safe_dump(pipeline, sort_keys=False))

    def stand_in(self, stage: str, first: str = "") -> None:
        """Let a stage of dvc.yaml bring back the outputs that it has now, instead of computing
        them: for tests of who runs it, when, and what DVC then does. Its command changes, and so
        the stage runs.

        first: a shell command that comes before."""
        kept = self.folder.parent / "kept" / stage
        definition = yaml.safe_load((self.folder / "dvc.yaml").read_text())["stages"][stage]
        outs = [*definition["outs"], *definition.get("metrics", ())]
        for pattern in outs:
            for path in self.folder.glob(pattern.replace("${item.budget}", "*")):
                target = kept / path.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, target)
        copied = f'here=$PWD; cd {kept}; cp -r --parents {" ".join(outs)} "$here"'
        self.set_command(stage, lambda _: f"{first}; {copied}" if first else copied)

    def run(
        self, *command: str, code: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; fails the test unless it exits with ``code``."""
        done = subprocess.run(
            command, cwd=self.folder, env=environment(env), capture_output=True, text=True
        )
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start(
        self, *command: str, env: dict[str, str] | None = None, pipe: bool = False
    ) -> "subprocess.Popen[str]":
        """Start a command in the project, its output in one pipe, in a process group of its own.
        pipe: what it reads comes through one, too."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment(env),
            stdin=subprocess.PIPE if pipe else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def outputs(self) -> dict[str, str]:
        """The hash of every output file of the stages, which what they took is none of."""
        folders = ("data", "models", "trajectories", "results", "metrics", "samples")
        files = [p for name in folders for p in (self.folder / name).rglob("*") if p.is_file()]
        return {
            str(p.relative_to(self.folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(files)
            if p.parent.name != "usage"
        }


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with its own interpreter first and no server but those given."""
    here = str(Path(sys.executable).parent)
    found = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "CUDA_VISIBLE_DEVICES"):
        found.pop(name, None)
    return found | (extra or {})


def running_in(folder: Path) -> list[int]:
    """The processes whose working folder is ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve():
                found.append(int(process.name))
        except OSError:
            continue
    return found
