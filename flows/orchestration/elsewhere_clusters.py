"""The clusters that stages can run on, by what `boss run --runner` names: Dask's and Ray's. What is
not there is refused in a line; Prefect is not imported for that."""

import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from boss_core.errors import InputError
from flows.extras import install, lacking
from flows.orchestration.server import answers, prefect_url

THREADS = "threads"  # of the process that runs the flow: the stages run on its machine
CLUSTERS = ("dask", "ray")
PATIENCE = 30.0  # seconds that a cluster has to answer


@dataclass(frozen=True)
class Cluster:
    """kind: one of `CLUSTERS`. host, port: of Dask's scheduler, or of the port of Ray's head for
    clients, 10001 where nothing else is said."""

    kind: str
    host: str
    port: int

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"


def named_cluster(runner: str) -> Cluster | None:
    """What ``--runner`` names; None for the threads of this process. InputError for neither."""
    if runner == THREADS:
        return None
    try:
        parts = urlsplit(runner)
        host, port = parts.hostname, parts.port
    except ValueError:  # no number, or none of a port
        host = port = None
    rest = parts.path or parts.query or parts.username if host else ""
    if not host or not port or parts.scheme not in CLUSTERS or rest:
        raise InputError(
            f"--runner: {runner!r}; threads, dask://HOST:PORT or ray://HOST:PORT needed"
        )
    return Cluster(parts.scheme, host, port)


def check_cluster(runner: str) -> None:
    """InputError where the runner is none, or its cluster or Prefect's server is not there."""
    cluster = named_cluster(runner)
    if cluster is None:
        return
    if module := lacking(cluster.kind):
        raise InputError(f"--runner: {runner}: {module} is not installed; {install(cluster.kind)}")
    url = prefect_url()
    if url is None or not answers(url):
        raise InputError(
            f"PREFECT_API_URL: {url or 'not set'}; the address of a running server that the workers"
            f" of {runner} reach too needed"
        )
    try:
        socket.create_connection((cluster.host, cluster.port), PATIENCE).close()
    except OSError as error:
        raise InputError(f"--runner: {runner}: {said(error)}; a cluster there needed") from error


def said(error: Exception) -> str:
    """The first line of what an error says, of one that shows another's traceback the last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "Traceback" in str(error) else 0].rstrip(".")[:200]
