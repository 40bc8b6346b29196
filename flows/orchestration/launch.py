"""Starting the flow from a shell: what surrounds Prefect."""

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from boss_core.errors import InputError
from flows.orchestration.elsewhere_clusters import THREADS, check_cluster, named_cluster
from flows.orchestration.request import changed_by, check_folder, check_request
from flows.orchestration.server import answers, prefect_url
from flows.telemetry import TELEMETRY_OFF
from flows.workspace.experiment_names import named_after, unused_name
from flows.workspace.presets import named_by, preset_overrides
from flows.workspace.process import stages_running
from flows.workspace.recovery import set_aside_cut_short
from flows.workspace.scm import settle_git

# A server that answers nothing while no stage runs is lost after so many seconds. Prefect's client
# alone would wait a minute for each answer, six times, at each of several calls.
LOST = 30.0

PREFECT_ENVIRONMENT = TELEMETRY_OFF | {
    # A busy machine takes longer than the default to start a server for one run.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # A server says 500 while its database is being restarted: asked again, for half a minute.
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
}


def launch(
    overrides: Sequence[str],
    targets: Sequence[str],
    workers: int,
    timeout: float,
    name: str | None,
    presets: Sequence[str] = (),
    runner: str = THREADS,
) -> str | None:
    """Run the flow in this process, and return the name of the experiment that it made, None
    where nothing is changed by ``presets`` or ``overrides``; InputError when it fails.

    What can be refused is refused before a server is started."""
    named_cluster(runner)
    check_folder(Path())
    changes = [*preset_overrides(Path(), presets), *overrides]
    set_aside_cut_short(Path())
    settle_git(Path())
    check_request(Path(), changes, targets, name, changed_by(presets, overrides))
    if presets and name is None:  # which alone say more than all that they change
        name = unused_name(Path(), named_by(Path(), presets, overrides))
    check_cluster(runner)
    _prepare_prefect()
    import httpx

    from flows.orchestration.pipeline import pipeline

    url = prefect_url()
    ended: list[int] = []  # the exit code, once it is known
    if url is not None:  # else a temporary one, which is ended as this process ends
        threading.Thread(target=_end_when_lost, args=(url, ended), daemon=True).start()
    # Prefect's page, too, shows the run by its name.
    shown = name or (named_after(Path(), changes) if changes else None)
    named: Any = pipeline.with_options(flow_run_name=shown) if shown else pipeline
    try:
        state: Any = named(
            overrides=changes,
            targets=list(targets),
            workers=workers,
            timeout=timeout,
            name=name,
            runner=runner,
            return_state=True,
        )
    except (httpx.TransportError, httpx.HTTPStatusError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        if url is None:
            raise InputError(_lost(why)) from error
        _end_at_once(f"error: {_lost(why)}", 2)
    ended.append(0 if state.is_completed() else 2)
    if state.is_cancelled() or state.name == "Cancelling":
        raise InputError(
            "cancelled on Prefect's page, which ends the run of a deployment; one from a shell"
            " finishes its stages and is ended by Ctrl-C"
        )
    if not state.is_completed():
        raise InputError(state.message or f"the flow ended as {state.name}")
    return str(state.result()) if changes else None


def _lost(why: str) -> str:
    return f"Prefect's server was lost; every finished stage is kept, run again ({why})"


def _end_when_lost(url: str, ended: list[int]) -> None:
    """End this process when the server has not answered for a while, as one that is frozen. Not
    while a stage runs: that needs no server, which may be there again when it ends.

    ended: has the exit code once the run is over, when only Prefect's own reports are waiting."""
    since = time.monotonic()
    while True:
        time.sleep(LOST / 10)
        if stages_running() or answers(url):
            since = time.monotonic()
        elif time.monotonic() - since > LOST:
            why = f"{url}: no answer for {LOST:g} s"
            if ended:
                lacks = "warning: Prefect's server may lack the end of this run, which is over"
                _end_at_once(f"{lacks} ({why})", ended[0])
            _end_at_once(f"error: {_lost(why)}", 2)


def _end_at_once(message: str, code: int) -> NoReturn:
    """Prefect would try for minutes to send the rest of its events."""
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _prepare_prefect() -> None:
    """Settings that hold before Prefect is imported. A server that does not answer is passed
    over for a temporary one, so that the work goes on."""
    for key, value in PREFECT_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    url = prefect_url()
    if url and not answers(url):
        print(
            f"warning: Prefect at {url} does not answer; the run goes on with a server of its own,"
            " and that one will not show it",
            file=sys.stderr,
        )
        # None at all: to an empty one Prefect would try to send its events. In its environment or
        # in its profile, of which it brings one for temporary servers.
        os.environ.pop("PREFECT_API_URL", None)
        os.environ["PREFECT_PROFILE"] = "ephemeral"
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()  # it may have been imported to read its profile
