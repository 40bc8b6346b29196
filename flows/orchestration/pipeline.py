"""The Prefect flow: every stage of dvc.yaml as a task, budgets side by side.

A task asks DVC to bring one stage up to date, so DVC's fingerprints decide what runs and DVC's
cache holds what was computed: after the flow ``dvc repro`` has nothing to do, and the other way
round. The final state of a task says what DVC did: Ran, Restored or Cached.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import as_completed
from prefect.runtime import deployment, flow_run, task_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from boss_core.errors import InputError
from flows.config import TIMEOUT, WORKERS, load_params
from flows.measure.command import named, typed
from flows.orchestration.clone import bring_inputs, runner_of, send_experiment
from flows.orchestration.elsewhere import Elsewhere, machines
from flows.orchestration.elsewhere_clusters import THREADS, named_cluster
from flows.orchestration.elsewhere_runners import end_of
from flows.orchestration.elsewhere_task import Done
from flows.orchestration.gpus import announce_gpus, gpu_slot, threads, visible_gpus
from flows.orchestration.order import run_all
from flows.orchestration.prefect_artifacts import log_table, publish_results
from flows.orchestration.progress_artifacts import shown_progress
from flows.orchestration.request import check_folder, check_request
from flows.orchestration.revision import take_revision
from flows.records.passwords import without_password
from flows.stages.runner import TURNS
from flows.tracking.connection import PROJECT
from flows.workspace.dvc_lock import arrange
from flows.workspace.experiment import isolated_copy
from flows.workspace.experiment_names import named_after, unused_name
from flows.workspace.graph import Stage, out_of_date, read_stages
from flows.workspace.process import (
    RUNNING_ELSEWHERE,
    TURNS_FILE,
    Outcome,
    Runner,
    StageError,
    WorkspaceBusyError,
    exclusive,
)
from flows.workspace.recovery import restore, set_aside_cut_short
from flows.workspace.scm import settle_git

DELAYS = [2.0, 5.0, 10.0, 20.0, 40.0]  # seconds until the next try of a stage in a busy workspace
MEASURE = {"evaluate", "report"}  # targets that bring the metrics of all budgets up to date


@dataclass(frozen=True)
class Run:
    """What all tasks of one run of the flow share on this machine. processes: of a stage that
    trains."""

    runner: Runner
    environment: dict[str, str]
    gpus: list[str]
    processes: int
    workers: int
    timeout: float


@flow(name="boss-pipeline", task_runner=ThreadPoolTaskRunner())  # type: ignore[arg-type]
def pipeline(
    overrides: list[str] | None = None,
    targets: list[str] | None = None,
    workers: int = WORKERS,
    timeout: float = TIMEOUT,
    name: str | None = None,
    runner: str = THREADS,
) -> Any:
    """Bring the pipeline up to date.

    Args:
        overrides: Parameters to change, as `budgets=[4,6]`: the run then works in a copy and
            becomes a DVC experiment; without any it works in the folder itself.
        targets: Stages to bring up to date, with what they need; none for all.
        workers: Stages that may run side by side.
        timeout: Seconds after which a single stage is ended.
        name: The experiment's name; none for one that says what is changed.
        runner: Where stages run: `threads`, on this machine; or on those of a cluster, which share
            no folder with it, `dask://HOST:PORT` or `ray://HOST:PORT`.
    """
    root = Path.cwd()
    try:
        if workers < 1:
            raise InputError(f"workers: {workers}; at least 1 needed")
        named_cluster(runner)
        check_folder(root)
        set_aside_cut_short(root)
        settle_git(root)
        bring_inputs(root, experiment=bool(overrides))
        check_request(root, overrides or (), targets or (), name)
        if not overrides:
            # Who asked Prefect for a run is not there to ask again: it waits for its turn.
            with exclusive(root, _say_waiting if deployment.name else None):
                set_aside_cut_short(root)  # where the one that it waited for was killed
                state = _run(root, root, targets or (), workers, timeout, {}, runner)
            if state.is_completed():
                _end_with_table(root, targets or (), ["table"])
            return state
        experiment = name or _own_name(root, overrides)
        with isolated_copy(root, experiment, overrides, targets or ()) as copy:
            extra = {"DVC_EXP_NAME": experiment}
            state = _run(root, copy, targets or (), workers, timeout, extra, runner)
            if state.is_failed():
                raise StageError(state.message or "a stage failed")
        send_experiment(root, experiment)
        get_run_logger().info("experiment %s: the workspace is as it was", experiment)
        _end_with_table(root, targets or (), ["compare", experiment])
        return Completed(message=state.message, data=experiment)
    except (InputError, StageError) as error:
        return Failed(message=" ".join(str(error).split()))


def _say_waiting() -> None:
    get_run_logger().info("another run is at work in this folder: waiting for its end")


def _end_with_table(root: Path, targets: Sequence[str], command: Sequence[str]) -> None:
    """Of a deployment's run that measured every budget: one from a shell prints it there."""
    if deployment.name and (not targets or MEASURE & {*targets}):
        log_table(root, command)


def _own_name(root: Path, overrides: Sequence[str]) -> str:
    """A name for the experiment by what it changes, which the flow run then has too: on Prefect's
    page it would be one of random words."""
    name = unused_name(root, named_after(root, overrides))
    if flow_run.id and flow_run.name != name:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run.id), name=name)
    return name


def _run(
    root: Path,
    folder: Path,
    targets: Sequence[str],
    workers: int,
    timeout: float,
    extra: dict[str, str],
    where: str,
) -> State[Any]:
    """All stages of the project in ``folder``: the workspace ``root``, or a copy of it. where: they
    run, as ``--runner`` has it."""
    params = load_params(folder / "params.yaml")
    gpus = visible_gpus(params)
    announce_gpus(gpus)
    # A copy's runs belong into the workspace's database, beside those they are compared with.
    # They take turns with those of other copies, too.
    turns = str((root / TURNS_FILE).resolve())
    called = {**named(_called()), **extra}
    environment = {PROJECT: str(root), TURNS: turns, **called}
    take_revision(folder, params)
    runner = runner_of(folder, targets)
    run = Run(runner, environment, gpus, params.compute.processes, workers, timeout)
    stages = read_stages(folder, targets)
    try:
        changed_stages = out_of_date(folder)
        with machines(where, folder, params, called, timeout, changed_stages) as elsewhere:
            outcomes, failures = _all_stages(run, stages, changed_stages, elsewhere)
            if elsewhere:
                failures += elsewhere.lacking()
    except BaseException:  # cancelled, as by Ctrl-C
        runner.stop()  # nothing goes on behind its back
        if folder == root:
            restore(folder)
        raise
    if not targets:
        arrange(folder, [stage.name for stage in stages])
    if failures:
        restore(folder)
        kept = "every finished stage is kept"
        return Failed(message=f"{'; '.join(failures)} ({kept})")
    changed = any(
        outcome != Outcome.CACHED for stage, outcome in outcomes.items() if "evaluate" in stage
    )
    publish_results(params, root, folder, environment, changed=changed)
    counts = {kind: list(outcomes.values()).count(kind) for kind in Outcome}
    return Completed(message=", ".join(f"{n} {kind}" for kind, n in counts.items()), data=counts)


def _called() -> str:
    """What this run is of: a deployment, or what was typed, without passwords."""
    if name := deployment.name:
        return f"deployment {flow_run.flow_name}/{name}"
    return without_password(typed(sys.argv))


def _all_stages(
    run: Run, stages: list[Stage], changed: set[str], elsewhere: Elsewhere | None
) -> tuple[dict[str, Outcome], list[str]]:
    """All stages as tasks: see `run_all`."""
    futures: dict[str, Any] = {}
    logger = get_run_logger()

    def start(stage: Stage, known: bool) -> Any:
        after = [futures[need] for need in sorted(stage.needs)]  # arrows on the page
        if elsewhere and not known:
            if elsewhere.takes(stage):
                futures[stage.name] = elsewhere.start(stage, after)
                return futures[stage.name]
            elsewhere.bring()  # what it reads
        named: Any = bring_up_to_date.with_options(name=stage.name, task_run_name=stage.name)
        futures[stage.name] = named.submit(stage, run, known, wait_for=after)
        return futures[stage.name]

    def how_it_ended(future: Any) -> Outcome | str:
        state = end_of(future)  # known to be over: this fetches how
        RUNNING_ELSEWHERE.discard(name_of(future))
        if isinstance(state, str):
            return f"{name_of(future)}: {state}"
        if not state.is_completed():
            return str(state.message or state.name)
        if elsewhere and isinstance(done := state.result(), Done):
            elsewhere.receive(name_of(future), done)
            logger.info("%s: %s on %s", name_of(future), done.outcome, done.host)
            return done.outcome
        return Outcome(state.name or Outcome.RAN)

    def name_of(future: Any) -> str:
        return next(name for name, each in futures.items() if each is future)

    return run_all(
        stages,
        changed,
        run.workers,
        start=start,
        first_of=lambda running: next(iter(as_completed(running))),
        end_of=how_it_ended,
    )


def _can_pass(_task: Any, _run: Any, state: State[Any]) -> bool:
    """A workspace that somebody else is using will be free again; nothing else is tried twice."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, WorkspaceBusyError)


@task(
    cache_policy=NO_CACHE,  # DVC's cache is the only one
    retries=len(DELAYS),
    retry_delay_seconds=DELAYS,
    retry_condition_fn=_can_pass,
    persist_result=False,
)
def bring_up_to_date(stage: Stage, run: Run, known: bool) -> Any:
    """Run, restore or skip one stage. ``known``: DVC has said that there is nothing to do."""
    if known:
        return Completed(name=Outcome.CACHED, message="nothing changed")
    logger = get_run_logger()
    environment = dict(run.environment)
    if run.gpus:
        environment["OMP_NUM_THREADS"] = str(threads(run.workers))
    try:
        gpus = run.gpus if stage.computes else []
        count = run.processes if stage.trains else 1
        with (
            gpu_slot(gpus, count, stopped=run.runner.stopped, log=logger.info) as gpu,
            shown_progress(stage.name, logger.info) as log,
        ):
            outcome = run.runner.run(
                stage.name,
                environment=environment | gpu,
                log=log,
                timeout=run.timeout,
            )
    except (StageError, InputError) as error:
        return Failed(message=str(error))
    except WorkspaceBusyError as error:
        if task_run.run_count > len(DELAYS):
            return Failed(message=str(error))
        raise
    return Completed(name=outcome, message=f"{outcome} by DVC")
