"""The chosen steps of every budget, on the teacher of a small project."""

import json
import re
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from boss_core.bellman.objectives import optimal_steps
from boss_core.checkpoints.folder import load_checkpoint
from boss_core.costs.cost_file import read_costs
from boss_core.costs.matrix import CostMatrix
from boss_core.ode.noise import sample_noise
from boss_core.ode.solvers import ab2, euler
from boss_core.search import distances
from boss_core.search.forward import oss_paths
from boss_core.search.steps import FoundSteps
from flows import paths
from flows.config import Method, Params, load_params
from flows.records.variants import needed_knots, recorded, students, variants
from flows.report import plots
from flows.stages.schedule import chosen_steps
from tests.helpers.held_out import beyond_chance
from tests.helpers.project import Project

SAMPLES, SEED = 20, 4 << 32


class Setting:
    """The parameters, costs and teacher of a project, and the noise of its search."""

    def __init__(self) -> None:
        self.params: Params = load_params()
        self.matrix: CostMatrix = read_costs(paths.COST)[1].result()
        self.network = load_checkpoint(paths.TEACHER)[0]
        self.noise = sample_noise(range(SAMPLES), self.network.config.sample_shape, SEED)

    def choose(self, **change: object) -> dict[int, FoundSteps]:
        schedule = self.params.schedule.model_copy(update=change)
        params = self.params.model_copy(update={"schedule": schedule, "budgets": [1, 4]})
        return dict(chosen_steps(params, self.matrix, self.network, torch.device("cpu")))


@pytest.fixture
def setting(finished: Project, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.chdir(finished.folder)
    return Setting()


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("objective", ["l2_squared", "l2", "minimax", "gits"])
def test_an_objective_of_the_costs(setting: Setting, objective: str, solver: str) -> None:
    found = setting.choose(objective=objective, solver=solver, gamma=1.3)
    expected = optimal_steps(setting.matrix, [1, 4], objective=objective, solver=solver, gamma=1.3)
    assert found == {k: FoundSteps(objective, path.indices) for k, path in expected.items()}


def test_oss_on_the_noise_of_the_search(setting: Setting) -> None:
    found = setting.choose(objective="oss")
    expected = oss_paths(
        setting.network, setting.noise, setting.matrix.timesteps, [1, 4], solver="ab2",
        batch_size=7,
    )  # fmt: skip
    assert found == {k: FoundSteps("oss", path.indices) for k, path in expected.items()}


@pytest.mark.parametrize("name", ["sliced_wasserstein", "energy", "detail", "features"])
def test_refined_steps_have_no_better_neighbour(setting: Setting, name: str) -> None:
    found = setting.choose(objective="refine", distance=name)[4]
    grid = setting.matrix.timesteps
    ends = euler(setting.network, setting.noise, grid)
    make = getattr(distances, {"detail": "detail_error"}.get(name, name), None)
    if make is None:  # the features that evaluate the images too
        from boss_core.evaluation.extractors import Extractor
        from boss_core.io.pixels import to_uint8
        from boss_core.networks.classifier import load_classifier

        weights = Extractor("classifier", paths.FEATURES / "classifier.safetensors").weights
        network = load_classifier(weights)
        features = lambda x: network.features(to_uint8(x))  # noqa: E731
        make = partial(distances.feature_frechet, features=features)
    distance = make(ends)

    def value(indices: tuple[int, ...]) -> float:
        return float(distance(ab2(setting.network, setting.noise, grid[list(indices)])[None]))

    best = value(found.indices)
    for k in range(1, 4):
        for offset in (-1, 1):
            moved = list(found.indices)
            moved[k] += offset
            if np.all(np.diff(moved) > 0):
                assert best <= value(tuple(moved)) * (1 + 1e-6)
    assert found.objective == "refine"


def test_the_best_of_all_is_said_for_every_budget(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    found = setting.choose(objective="auto")
    lines = [line for line in capsys.readouterr().out.splitlines() if ", ab2: " in line]
    assert [int(re.match(r"schedule: K = (\d+)", line)[1]) for line in lines] == [1, 4]
    assert lines[0].endswith(
        "nothing is nearer to the teacher's samples than l2_squared, which stays"
    )
    for budget, line in zip((1, 4), lines, strict=True):
        chosen, held_out = found[budget].objective, found[budget].held_out
        assert held_out is not None
        assert (f": {chosen} is" in line) == ("chosen" in line)
        assert ("chosen" in line) == beyond_chance(held_out)
        if held_out.gain:
            assert f": {held_out.winner} is {held_out.gain:.1%} nearer" in line
        if "chosen" not in line:
            cheapest = optimal_steps(setting.matrix, [budget], solver="ab2")[budget]
            assert found[budget] == FoundSteps("l2_squared", cheapest.indices, held_out)


def test_equal_steps_are_one_column(finished: Project, tmp_path: Path) -> None:
    """Those of `schedule.objective: uniform` are not measured a second time as what they are
    compared with."""
    project = finished.copy(tmp_path / "project")
    project.set({"schedule.solver": "multistep", "schedule.objective": "uniform"})
    project.run("python", "-m", "flows.stages.schedule")
    found = json.loads((project.folder / paths.SCHEDULES).read_text())
    for schedules in found.values():
        assert "chosen_uniform" not in schedules
        assert schedules["chosen"]["indices"] == schedules["uniform"]["indices"]
        assert schedules["chosen"]["solver"] == "multistep"


def test_columns_are_those_of_the_schedules(setting: Setting) -> None:
    from flows.records.variants import read_schedules

    schedules = read_schedules()[3]
    papers = {name: schedules[name] for name in ("uniform", "bellman", "quadratic")}
    usual = ["straightened_uniform", "boss", "chosen_straightened"]
    four = ["pretrained_uniform", "pretrained_bellman", "straightened_uniform", "boss"]
    assert list(variants(papers, usual)) == four
    assert list(students(papers, usual)) == ["straightened_uniform", "boss"]
    # Euler's chosen steps need no uniform ones beside the paper's, and no solver in their title.
    own = papers | {"chosen": schedules["bellman"]}
    assert list(variants(own, usual)) == [*four, "chosen", "chosen_straightened"]
    assert variants(own, usual)["chosen"].title == "pretrained, chosen steps"
    found = variants(schedules, usual)
    assert found["chosen_straightened"].title == "straightened, chosen steps, ab2"
    assert list(students(schedules, usual)) == usual
    # A record of before there were others.
    assert list(recorded({name: {} for name in four})) == four


def test_students_are_those_of_the_methods_and_need_their_knots_only(setting: Setting) -> None:
    from flows.records.variants import read_schedules

    schedules = read_schedules()[3]
    every = get_args(Method)
    found = variants(schedules, every)
    assert list(students(schedules, every)) == [
        "straightened_uniform", "boss", "boss_lora", "reflow_uniform", "reflow_distill",
        "chosen_straightened",
    ]  # fmt: skip
    assert len({variant.title for variant in found.values()}) == len(found) == 11
    # Of a pipeline with guidance there are two more.
    more = variants(schedules | {"fewer": schedules["bellman"]}, every, unguided=True)
    assert set(more) - set(found) == {"pretrained_fewer", "pretrained_unguided"}
    assert set(plots.COLOURS) == set(more)
    assert len(set(plots.COLOURS.values())) == 13
    # In any order of asking, the columns come in that of the table; the teacher's are always there.
    assert list(variants(schedules, ["reflow_uniform", "boss"])) == [
        "pretrained_uniform", "pretrained_bellman", "boss", "reflow_uniform", "multistep",
        "chosen_uniform", "chosen",
    ]  # fmt: skip
    last = schedules["uniform"].indices[-1]
    for name, knots in {
        "boss": schedules["bellman"].indices,
        "boss_lora": schedules["bellman"].indices,
        "reflow_uniform": (0, last),
        "reflow_distill": (0, last),
    }.items():
        assert needed_knots(found[name], schedules) == knots


@pytest.mark.parametrize(
    ("name", "options"),
    [("bellman", []), ("chosen", ["--solver", "ab2", "--objective", "auto"])],
)
def test_the_command_finds_what_the_stages_find(
    finished: Project, tmp_path: Path, name: str, options: list[str]
) -> None:
    """One search: on the same network and settings the same schedules, to the bit."""
    params = load_params(finished.folder / "params.yaml")
    wanted = params.schedule
    arguments = [
        "--checkpoint", "models/teacher", "--grid", params.cost.grid, "--seed", params.seed,
        "--samples", params.cost.samples, "--batch-size", params.cost.batch_size,
        "--noises", wanted.samples, "--gamma", wanted.gamma, "--out", tmp_path / name, *options,
    ]  # fmt: skip
    if wanted.distance == "features":
        arguments += ["--features", "models/features"]
    for budget in params.budgets:
        arguments += ["--budget", budget]
    finished.run("boss", "schedule", *map(str, arguments))
    of_stages = json.loads((finished.folder / "results" / "schedules.json").read_text())
    for budget in params.budgets:
        found = json.loads((tmp_path / name / f"{budget}.json").read_text())
        assert found == of_stages[str(budget)][name]
    costs = [
        np.load(folder / "cost.npz") for folder in (finished.folder / "results", tmp_path / name)
    ]
    for array in costs[0].files:
        np.testing.assert_array_equal(costs[0][array], costs[1][array])
