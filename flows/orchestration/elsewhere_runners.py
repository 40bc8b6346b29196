"""Prefect's task runners of Dask and Ray: connecting to a cluster, sending a task without a secret
of the caller's, and how it ended."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, SettingsContext, get_settings_context
from prefect.task_runners import TaskRunner

from boss_core.errors import InputError
from flows.orchestration.elsewhere_clusters import PATIENCE, Cluster, said


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[TaskRunner[Any]]:
    """Prefect's task runner of a cluster that answers and has a worker; InputError without."""
    with contextlib.ExitStack() as held:
        try:
            runner = held.enter_context(_dask(cluster) if cluster.kind == "dask" else _ray(cluster))
        # Of what answers and is no such cluster they raise what they like.
        except Exception as error:
            late = isinstance(error, TimeoutError) and not str(error)
            why = f"no worker within {PATIENCE:g} s" if late else said(error)
            raise InputError(
                f"--runner: {cluster.address}: {why}; a cluster there with a worker needed"
            ) from error
        yield runner


async def _has_workers(address: str) -> None:
    """Wait until a scheduler of Dask's knows a worker: its client would wait for ever for what
    takes a connection and says nothing."""
    from distributed.core import rpc

    async with rpc(address) as scheduler:
        while not (await scheduler.identity())["workers"]:
            await asyncio.sleep(0.5)


@contextlib.contextmanager
def _dask(cluster: Cluster) -> Iterator[Any]:
    from prefect_dask import DaskTaskRunner

    # At length, that a scheduler is gone, which the run's end says in a line.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    address = cluster.address.replace("dask://", "tcp://")
    asyncio.run(asyncio.wait_for(_has_workers(address), PATIENCE))
    with DaskTaskRunner(address=address, client_kwargs={"timeout": PATIENCE}) as runner:
        yield runner


@contextlib.contextmanager
def _ray(cluster: Cluster) -> Iterator[Any]:
    from prefect_ray import RayTaskRunner

    with contextlib.ExitStack() as held:
        # A busy head has not started the process for its first client when that gives up.
        for patient in (True, False):
            # The stages' lines are in the logs of their task runs.
            runner = RayTaskRunner(address=cluster.address, init_kwargs={"log_to_driver": False})
            try:
                held.enter_context(runner)
                break
            except ConnectionError:
                if not patient:
                    raise
        yield runner


class _OwnSettings(SettingsContext):
    """Prefect's settings as a task takes them along: of the caller's the server's address alone.
    Prefect would send all, its API key among them; a worker has its own."""

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        api = {"url": self.settings.api.url}
        return {"profile": {"name": "boss", "variables": {}}, "settings": {"api": api}}


@flow(name="boss-pipeline")
def _standing_in() -> None:
    """For the flow in what a task takes along of it: the one of a deployment is of a module that no
    other machine has under its name."""


def submit(runner: TaskRunner[Any], task: Any, **options: Any) -> Any:
    """Start a task on a cluster, none of the caller's secrets with it; its future."""
    own, run = get_settings_context(), FlowRunContext.get()
    with contextlib.ExitStack() as held:
        held.enter_context(_OwnSettings(profile=own.profile, settings=own.settings))
        if run is not None:
            held.enter_context(run.model_copy(update={"flow": _standing_in, "parameters": {}}))
        return runner.submit(task, **options)


def end_of(future: Any) -> "State[Any] | str":
    """How a task on a cluster ended; a few words where the cluster lost it."""
    future.wait()
    if isinstance(state := future._final_state, State):
        if hasattr(future.wrapped_future, "release"):
            # Dask would compute again what a worker made that was lost since, as long as it may
            # be asked for.
            future.wrapped_future.release()
        return state
    try:
        future.wrapped_future.result(timeout=1)
    except Exception as error:
        return f"lost by the cluster: {said(error)}"
    return "lost by the cluster"


def wanted() -> Callable[[], bool]:
    """A question for the task that this is called in: whether whoever started it still waits for
    it. Dask lets a task run on whose client is gone; Ray ends its process."""
    if "distributed" not in sys.modules:
        return lambda: True
    import distributed

    try:
        worker = distributed.get_worker()
        key = worker.get_current_task()
    except ValueError:  # no worker of Dask's
        return lambda: True

    def waited_for() -> bool:
        found = worker.state.tasks.get(key)
        return found is not None and found.state in ("executing", "long-running")

    return waited_for
