"""``boss server`` and ``boss deploy``: Prefect's server, and what is registered with it."""

import signal

import typer


def server() -> None:
    """Start Prefect's server on this machine, in the background, at the address in
    PREFECT_API_URL; comes back when it answers."""
    from flows.orchestration.server import start

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends what it has begun to start
    print(start())


def deploy(
    pool: str = typer.Option(
        "local", help="A process work pool of the Prefect server; `local` is made where missing."
    ),
) -> None:
    """Register the deployments of prefect.yaml with the Prefect server, for this folder."""
    from flows.orchestration.launch import deploy as register

    register(pool)
