"""``boss ui``."""

import contextlib
import os
import signal
import subprocess
import sys

import typer

from flows.config import load_params


def ui(port: int = typer.Option(5000, help="Port on this machine.")) -> None:
    """Open the MLflow UI on the runs of this project; Ctrl-C ends it."""
    from flows.records.passwords import without_password
    from flows.tracking.connection import prepare_database, tracking_uri
    from flows.tracking.links import runs_page

    params = load_params()
    uri = tracking_uri(params)
    prepare_database(uri)
    shown = without_password(uri)
    page = runs_page(uri, params.budgets)
    print(f"MLflow UI: http://127.0.0.1:{port}{page} (Ctrl-C to stop), showing {shown}")
    raise SystemExit(_serve(uri, port))


def _serve(uri: str, port: int) -> int:
    """MLflow's exit code; it ends with this process, whatever ends that."""
    from flows.telemetry import TELEMETRY_OFF
    from flows.workspace.guard import guarded

    command = ["mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | TELEMETRY_OFF | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri  # a command line with a password is seen by all
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen(
        guarded([sys.executable, "-m", *command]), env=environment, start_new_session=True
    )
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()
