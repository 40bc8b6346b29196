"""The Prefect flow: every stage of dvc.yaml as a task, budgets side by side.

A task asks DVC to bring one stage up to date, so DVC's fingerprints decide what runs and DVC's
cache holds what was computed: after the flow ``dvc repro`` has nothing to do, and the other way
round. The final state of a task says what DVC did: Ran, Restored or Cached.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import as_completed
from prefect.runtime import flow_run, task_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from boss_core.errors import InputError
from flows.config import TIMEOUT, WORKERS, load_params
from flows.orchestration.gpus import announce_gpus, gpu_slot, threads, visible_gpus
from flows.orchestration.prefect_artifacts import publish_results
from flows.orchestration.request import check_folder, check_request
from flows.tracking.connection import PROJECT
from flows.workspace.experiment import isolated_copy
from flows.workspace.graph import Stage, out_of_date, read_stages
from flows.workspace.process import Outcome, Runner, StageError, WorkspaceBusyError, exclusive
from flows.workspace.recovery import restore, set_aside_cut_short
from flows.workspace.scm import settle_git

DELAYS = [2.0, 5.0, 10.0, 20.0, 40.0]  # seconds until the next try of a stage in a busy workspace


@dataclass(frozen=True)
class Run:
    """What all tasks of one run of the flow share. processes: of a stage that trains."""

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
) -> Any:
    """Bring the pipeline up to date.

    Args:
        overrides: Parameters to change, as `budgets=[4,6]`: the run then works in a copy and
            becomes a DVC experiment; without any it works in the folder itself.
        targets: Stages to bring up to date, with what they need; none for all.
        workers: Stages that may run side by side.
        timeout: Seconds after which a single stage is ended.
        name: The experiment's name; none for the name of the flow run.
    """
    root = Path.cwd()
    try:
        if workers < 1:
            raise InputError(f"workers: {workers}; at least 1 needed")
        check_folder(root)
        set_aside_cut_short(root)
        settle_git(root)
        check_request(root, overrides or (), targets or (), name)
        if not overrides:
            with exclusive(root):
                return _run(root, root, targets or (), workers, timeout, {})
        experiment = name or flow_run.name or "boss"
        with isolated_copy(root, experiment, overrides, targets or ()) as copy:
            state = _run(root, copy, targets or (), workers, timeout, {"DVC_EXP_NAME": experiment})
            if state.is_failed():
                raise StageError(state.message or "a stage failed")
        get_run_logger().info("dvc exp show lists it as %s; the workspace is as it was", experiment)
        return state
    except (InputError, StageError) as error:
        return Failed(message=" ".join(str(error).split()))


def _run(
    root: Path,
    folder: Path,
    targets: Sequence[str],
    workers: int,
    timeout: float,
    extra: dict[str, str],
) -> State[Any]:
    """All stages in ``folder``: the workspace ``root``, or a copy of it."""
    params = load_params(folder / "params.yaml")
    gpus = visible_gpus(params)
    announce_gpus(gpus)
    # A copy's runs belong into the workspace's database, beside those they are compared with.
    environment = {PROJECT: str(root), **extra}
    runner = Runner(folder)
    run = Run(runner, environment, gpus, params.compute.processes, workers, timeout)
    try:
        outcomes, failures = _all_stages(run, read_stages(folder, targets), out_of_date(folder))
    except BaseException:  # cancelled, as by Ctrl-C
        runner.stop()  # nothing goes on behind its back
        if folder == root:
            restore(folder)
        raise
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


def _all_stages(
    run: Run, stages: list[Stage], changed: set[str]
) -> tuple[dict[str, Outcome], list[str]]:
    """Submit every stage as soon as what it needs is there, at most ``workers`` at a time."""
    outcomes: dict[str, Outcome] = {}
    failures: list[str] = []
    waiting = {stage.name: stage for stage in stages}
    running: dict[Any, Stage] = {}
    done: dict[str, Any] = {}
    lost: set[str] = set()
    while waiting or running:
        for stage in list(waiting.values()):
            if stage.needs & lost:
                lost.add(stage.name)
                del waiting[stage.name]
            elif stage.needs <= outcomes.keys() and _has_room(stage, running.values(), run):
                # Nothing that it needs is new, and DVC says that it is as recorded.
                known = stage.name not in changed and all(
                    outcomes[need] == Outcome.CACHED for need in stage.needs
                )
                named: Any = bring_up_to_date.with_options(
                    name=stage.name, task_run_name=stage.name
                )
                future = named.submit(
                    stage,
                    run,
                    known,
                    wait_for=[done[need] for need in sorted(stage.needs)],  # arrows on the page
                )
                running[future] = stage
                del waiting[stage.name]
        if not running:
            continue
        future = next(iter(as_completed(list(running))))
        finished = running.pop(future).name
        done[finished] = future
        future.wait()  # known to be over: this fetches how it ended
        state = future.state
        if state.is_completed():
            outcomes[finished] = Outcome(state.name or Outcome.RAN)
        else:
            lost.add(finished)
            failures.append(state.message or f"{finished}: {state.name}")
    return outcomes, failures


def _has_room(stage: Stage, running: Collection[Stage], run: Run) -> bool:
    """Whether the stage may start now, beside those that are running."""
    if len(running) >= run.workers:
        return False
    beside = [other for other in running if other.computes]
    return not (beside and stage.computes and any(_alone(s, run) for s in (stage, *beside)))


def _alone(stage: Stage, run: Run) -> bool:
    """Whether the stage has all cores, and nothing that computes beside it.

    Budgets are side by side, on a share of the cores each. What comes before them is one stage
    after another on the whole: on a share, it would leave the others idle. A stage's last bits
    depend on its threads, so these depend on nothing that varies from run to run."""
    return stage.computes and not stage.of_matrix and not run.gpus


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
    cores = threads(1 if _alone(stage, run) else run.workers)
    try:
        gpus = run.gpus if stage.computes else []
        count = run.processes if stage.trains else 1
        with gpu_slot(gpus, count, stopped=run.runner.stopped, log=logger.info) as gpu:
            outcome = run.runner.run(
                stage.name,
                environment={**run.environment, "OMP_NUM_THREADS": str(cores), **gpu},
                log=logger.info,
                timeout=run.timeout,
            )
    except (StageError, InputError) as error:
        return Failed(message=str(error))
    except WorkspaceBusyError as error:
        if task_run.run_count > len(DELAYS):
            return Failed(message=str(error))
        raise
    return Completed(name=outcome, message=f"{outcome} by DVC")
