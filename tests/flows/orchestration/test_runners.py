"""What is asked for and not there, or not to be had by machines elsewhere, is a line."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from boss_core.errors import InputError
from flows.config import load_params
from flows.orchestration.elsewhere import check_seen
from flows.orchestration.elsewhere_clusters import Cluster, check_cluster, named_cluster
from tests.helpers.project import Project


@pytest.mark.parametrize(
    "runner",
    ["spark://head:7077", "dask", "dask://head", "dask://:8786", "ray://head:none", "ray://h:1/x",
     "tcp://head:8786", "dask://user@head:8786", "Threads", ""],
)  # fmt: skip
def test_what_is_no_runner_is_a_line(boss, runner: str) -> None:
    code, _, err = boss("run", "--runner", runner)
    assert code == 2
    expected = f"error: --runner: {runner!r}; threads, dask://HOST:PORT or ray://HOST:PORT needed"
    assert err.splitlines() == [expected]


def test_names_of_clusters() -> None:
    assert named_cluster("threads") is None
    assert named_cluster("dask://head:8786") == Cluster("dask", "head", 8786)
    assert named_cluster("ray://[::1]:10001") == Cluster("ray", "::1", 10001)
    assert Cluster("ray", "::1", 10001).address == "ray://[::1]:10001"


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What answers as Prefect's server does when it is asked whether it is there."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
        yield
        server.shutdown()


@pytest.fixture
def closed() -> Iterator[str]:
    """A port of this machine at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_cluster_that_is_not_there(healthy, closed: str, kind: str) -> None:
    with pytest.raises(InputError) as error:
        check_cluster(f"{kind}://{closed}")
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"--runner: {kind}://{closed}: ")
    assert line.endswith("Connection refused; a cluster there needed")


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:1/api"])
def test_a_server_that_workers_cannot_reach(
    monkeypatch: pytest.MonkeyPatch, url: str | None
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url or "")
    with pytest.raises(InputError) as error:
        check_cluster("dask://127.0.0.1:8786")
    (line,) = str(error.value).splitlines()
    needed = "the address of a running server that the workers of dask://127.0.0.1:8786 reach too"
    assert line == f"PREFECT_API_URL: {url or 'not set'}; {needed} needed"


@pytest.mark.parametrize(("kind", "module"), [("dask", "prefect_dask"), ("ray", "prefect_ray")])
def test_an_extra_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, kind: str, module: str
) -> None:
    monkeypatch.setattr("flows.extras.find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        check_cluster(f"{kind}://127.0.0.1:8786")
    expected = f"{module} is not installed; pip install 'boss-flow[{kind}]' needed"
    assert str(error.value) == f"--runner: {kind}://127.0.0.1:8786: {expected}"


def test_what_answers_and_is_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.orchestration import elsewhere_runners

    monkeypatch.setattr(elsewhere_runners, "PATIENCE", 2.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        cluster = Cluster("dask", *mute.getsockname())
        with pytest.raises(InputError) as error, elsewhere_runners.connected(cluster):
            pass
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"--runner: {cluster.address}: ")
    assert line.endswith("; a cluster there with a worker needed")


@pytest.fixture(scope="module")
def unrun(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has not run. Each test has what it changes in a copy."""
    return Project.create(tmp_path_factory.mktemp("unrun") / "project")


@pytest.mark.parametrize(
    ("config", "local", "why"),
    [
        ("", "", "no default remote; "),
        ("", "[core]\n remote = s\n['remote \"s\"']\n url = s3://bucket\n",
         "remote 's' is in the settings of this machine only, which do not leave it; "),
        ("[core]\n remote = s\n['remote \"s\"']\n url = ../storage\n", "",
         "remote 's': ../storage: a path from here; "),
        ("[core]\n remote = s\n['remote \"s\"']\n url = s3://b\n secret_access_key = abc\n", "",
         "remote 's': secret_access_key: would go to every worker with the project; "),
        ("[core]\n remote = s\n['remote \"s\"']\n url = ssh://me:abc@host/x\n", "",
         "remote 's': url: a password: would go to every worker with the project; "),
    ],
)  # fmt: skip
def test_a_remote_that_workers_would_not_have(
    unrun: Project, tmp_path: Path, config: str, local: str, why: str
) -> None:
    project = unrun.copy(tmp_path / "project")
    (project.folder / ".dvc" / "config").write_text(config)
    (project.folder / ".dvc" / "config.local").write_text(local)
    with pytest.raises(InputError) as error:
        check_seen(project.folder, load_params(project.folder / "params.yaml"))
    (line,) = str(error.value).splitlines()
    assert line.startswith(f".dvc/config: {why}")
    assert line.endswith(" needed")
    assert "abc" not in line


def test_inputs_that_workers_would_not_have(unrun: Project, tmp_path: Path) -> None:
    project = unrun.copy(tmp_path / "project")
    project.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    params = load_params(project.folder / "params.yaml")
    check_seen(project.folder, params)
    image = project.folder / "inputs" / "images" / "1.png"
    image.write_bytes(b"image")

    def refused() -> str:
        with pytest.raises(InputError) as error:
            check_seen(project.folder, load_params(project.folder / "params.yaml"))
        (line,) = str(error.value).splitlines()
        return line

    assert refused() == (
        "params.yaml: data.path: inputs/images: git ignores inputs/images/1.png there, and workers"
        " have what git and DVC know; `dvc add inputs/images` of a folder in the project needed"
    )
    elsewhere = tmp_path / "images"
    elsewhere.mkdir()
    image.unlink()
    project.set({"data.path": str(elsewhere)})
    assert refused().startswith(f"params.yaml: data.path: {elsewhere}: outside the project, and ")
    link = project.folder / "inputs" / "linked"
    link.symlink_to(elsewhere)
    project.set({"data.path": "inputs/linked"})
    assert refused().startswith("params.yaml: data.path: inputs/linked: outside the project, and ")


def test_no_secret_of_the_callers_goes_with_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.context import SettingsContext, serialize_context
    from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

    from flows.orchestration.elsewhere_runners import submit

    class Taking:
        def submit(self, _task: object) -> dict[str, Any]:
            return serialize_context()  # as those of Dask and Ray do

    with temporary_settings({PREFECT_API_KEY: "callers", PREFECT_API_URL: "http://head/api"}):
        sent = submit(Taking(), None)["settings_context"]  # type: ignore[arg-type]
    assert sent["settings"] == {"api": {"url": "http://head/api"}}
    assert "callers" not in repr(sent)
    monkeypatch.setenv("PREFECT_API_KEY", "workers")
    monkeypatch.setenv("PREFECT_API_URL", "http://other/api")
    there = SettingsContext(**sent).settings.api
    assert there.url == "http://head/api"
    assert there.key is not None
    assert there.key.get_secret_value() == "workers"
