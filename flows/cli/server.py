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
        "local", help="A work pool of the Prefect server; `local` is made where missing."
    ),
    repository: str | None = typer.Option(
        None,
        help="The git repository that each run clones, on whichever host a worker of the pool is;"
        " data travels by its default DVC remote. Without it runs are in this folder.",
    ),
    branch: str | None = typer.Option(None, help="Of the repository; its default one without it."),
    image: str | None = typer.Option(
        None, help="Of the containers, for a pool of type docker, kubernetes, ..."
    ),
) -> None:
    """Register the deployments of prefect.yaml with the Prefect server, for this folder or for
    the hosts of a pool."""
    from flows.orchestration.deploy import deploy as register

    register(pool, image=image, repository=repository, branch=branch)
