"""The same on a Ray cluster: a head on which nothing runs, and nodes that share nothing."""

from pathlib import Path

import pytest

from tests.helpers.clusters import (
    asleep,
    end,
    give_remote,
    needs_namespaces,
    place,
    plain,
    ray_cluster,
    start,
    until,
)
from tests.helpers.flow import run, states
from tests.helpers.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.long, needs_namespaces]


def test_a_node_killed_on_ray(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, prefect_server
) -> None:
    project = Project.create(tmp_path / "project")
    # Long enough to be found at it.
    plain(project, teacher="sleep 20")
    with place(tmp_path_factory.getbasetemp()) as at, ray_cluster(at, tmp_path, 2) as cluster:
        give_remote(project, at)
        options = ["--runner", cluster.address, "--target", "cost"]
        log = tmp_path / "log"
        process = start(project, prefect_server, log, *options)
        until(lambda: asleep(cluster, 20), 600, process)
        (number,) = [n for n, one in enumerate(cluster.workers) if asleep(cluster, 20, [one])]
        end(cluster.workers[number])
        assert process.wait(600) == 0, log.read_text()
        shown = log.read_text()
    found = states(prefect_server, shown)
    assert found == dict.fromkeys(["check", "prepare", "teacher", "cost"], "Ran")
    assert (project.folder / "results" / "cost.npz").read_text() == "cost\n"
    again = run(project, prefect_server, "--target", "cost")
    assert set(states(prefect_server, again).values()) == {"Cached"}


def test_the_whole_pipeline_on_ray(
    finished: Project, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, prefect_server
) -> None:
    project = Project.create(tmp_path / "project")
    with place(tmp_path_factory.getbasetemp()) as at, ray_cluster(at, tmp_path, 2) as cluster:
        give_remote(project, at)
        run(project, prefect_server, "--runner", cluster.address)
    assert project.outputs() == finished.outputs()
    locks = [(each.folder / "dvc.lock").read_bytes() for each in (project, finished)]
    assert locks[0] == locks[1]
    assert "up to date" in project.run("dvc", "status").stdout
