"""The caller's side of stages on other machines (`flows.orchestration.elsewhere_task`): which go
there, what each is handed, and how what they made comes back into the folder."""

import contextlib
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import TaskRunResult
from prefect.task_runners import TaskRunner

from boss_core.errors import InputError
from boss_core.io.files import write_bytes
from flows import paths
from flows.config import PARAMS, Params
from flows.orchestration.elsewhere_clusters import check_cluster, named_cluster
from flows.orchestration.elsewhere_runners import connected, submit
from flows.orchestration.elsewhere_task import Done, Job, stage_elsewhere
from flows.stages.check import named_inputs
from flows.workspace.bundle import bundle, left_behind
from flows.workspace.dvc_lock import locked_stages, put
from flows.workspace.graph import Stage
from flows.workspace.integrity import cache_folder
from flows.workspace.process import RUNNING_ELSEWHERE, StageError
from flows.workspace.remote import Reads, check_remote, pull, push, read_outputs, restorable

# `check` looks at inputs that dvc.yaml does not name; `report` at whole folders, from which it
# removes what earlier runs left there.
HERE = {"check", "report"}


@dataclass
class Elsewhere:
    """The machines of a cluster, for the stages of the project in ``folder``.

    away: stages whose results came from there. pending: their outputs, which are in DVC's remote
    and not in the folder yet. sent: stages that ran here whose outputs the remote has."""

    folder: Path
    runner: TaskRunner[Any]
    content: bytes
    reads: Mapping[str, Reads]
    environment: Mapping[str, str]
    processes: int
    timeout: float
    away: set[str] = field(default_factory=set)
    pending: list[str] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)

    def takes(self, stage: Stage) -> bool:
        """Whether a stage that is out of date is for another machine. Not what DVC restores here,
        from outputs of which all are in place."""
        if stage.name in HERE or stage.name.endswith(".dvc"):
            return False
        return bool(stage.needs & self.away) or not restorable(self.folder, stage.name)

    def start(self, stage: Stage, after: list[Any]) -> Any:
        """Send a stage there; its future. after: those of the stages that it needs."""
        outputs = self.reads[stage.name].outputs
        needs = {*outputs.values()}
        unsent = needs - self.away - self.sent
        push(self.folder, unsent)
        self.sent |= unsent
        entries = locked_stages(self.folder)
        job = Job(
            stage.name,
            tuple(sorted(outputs)),
            {name: entries[name] for name in entries if name in needs or name == stage.name},
            self.content,
            self.environment,
            0 if not stage.computes else self.processes if stage.trains else 1,
            self.timeout,
        )
        RUNNING_ELSEWHERE.add(stage.name)
        task: Any = stage_elsewhere.with_options(name=stage.name, task_run_name=stage.name)
        return submit(
            self.runner,
            task,
            parameters={"stage": stage.name, "job": job},
            dependencies={"stage": {TaskRunResult(id=each.task_run_id) for each in after}},
        )

    def receive(self, stage: str, done: Done) -> None:
        """Record what a machine handed back: `bring` then has the outputs."""
        put(self.folder, stage, done.entry)
        for records, folder in (
            (done.runs, cache_folder(self.folder) / "runs"),
            (done.usage, self.folder / paths.usage("").parent),
        ):
            for name, content in records.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_bytes(folder / name, content)
        self.away.add(stage)
        self.pending += [out["path"] for out in done.entry.get("outs", [])]

    def bring(self) -> None:
        """The outputs that machines made into the folder. StageError where the remote fails."""
        pull(self.folder, self.pending)
        self.pending.clear()

    def lacking(self) -> list[str]:
        """`bring`, and why that failed, if it did."""
        try:
            self.bring()
        except StageError as error:
            return [str(error)]
        return []


@contextlib.contextmanager
def machines(
    runner: str,
    folder: Path,
    params: Params,
    environment: Mapping[str, str],
    timeout: float,
    changed: Set[str],
) -> Iterator[Elsewhere | None]:
    """What ``--runner`` names, ready for the stages of the project in ``folder``; None for this
    machine. InputError where the cluster or what it needs is not there. changed: the stages that
    are out of date."""
    cluster = named_cluster(runner)
    if cluster is None:
        yield None
        return
    check_seen(folder, params, changed)
    check_cluster(runner)
    with connected(cluster) as tasks:
        try:
            yield Elsewhere(
                folder,
                tasks,
                bundle(folder),
                read_outputs(folder),
                environment,
                params.compute.processes,
                timeout,
            )
        finally:
            RUNNING_ELSEWHERE.clear()


def check_seen(folder: Path, params: Params, changed: Set[str] = frozenset()) -> None:
    """InputError for a project that machines elsewhere would not have as it is: without a DVC
    remote of theirs too, or with inputs that neither git nor DVC brings there, or that are not what
    DVC has of them. changed: the stages that are out of date."""
    check_remote(folder)
    for added in sorted(name for name in changed if name.endswith(".dvc")):
        raise InputError(
            f"{added}: its data is not there as it was added, and workers get what was; `dvc add"
            f" {added.removesuffix('.dvc')}`, or `dvc checkout {added}`, needed"
        )
    for name, path in named_inputs(params).items():
        why = ""
        if path.is_absolute() or not (folder / path).resolve().is_relative_to(folder.resolve()):
            why = "outside the project"
        elif left := left_behind(folder, path):
            why = f"git ignores {left[0]} there"
        if why:
            raise InputError(
                f"{PARAMS}: {name}: {path}: {why}, and workers have what git and DVC know;"
                f" `dvc add {path}` of a folder in the project needed"
            )
