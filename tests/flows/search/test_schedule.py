"""``boss schedule`` and ``boss sample``, as a user types them."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boss_core.bellman.bootstrap import bootstrap
from boss_core.bellman.names import OBJECTIVES
from boss_core.bellman.objectives import optimal_steps
from boss_core.bellman.recursion import optimal_paths, path_cost, path_standard_error
from boss_core.checkpoints.folder import load_rectified_flow, save_checkpoint
from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.evaluation.extractors import feature_function
from boss_core.evaluation.sampling import sample_images
from boss_core.networks.classifier import Classifier, ClassifierConfig, save_classifier
from boss_core.networks.edm import EDM, EDMConfig
from boss_core.networks.unet import UNet
from boss_core.ode.noise import COSTS, SEARCH, NoiseSource, sample_labels, sample_noise
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import SOLVERS, euler
from boss_core.ode.timesteps import karras, nearest_indices, uniform
from boss_core.search.distances import feature_frechet, sliced_wasserstein
from boss_core.search.find import find_steps
from boss_core.search.forward import oss_paths
from boss_core.search.settings import SearchSettings
from flows.records.extractor import read_extractor
from flows.search import memory
from tests.helpers.checkout import SHARED, needs_shared
from tests.helpers.edm import NCSNPP
from tests.helpers.held_out import beyond_chance
from tests.helpers.unet import CONFIG

MODULE = """
import os
import torch
calls = 0

def velocity(x, t):
    global calls
    calls += 1
    if calls > int(os.environ["CALLS_OF_A_TEST"]):  # the code that is stopped stays the same
        raise KeyboardInterrupt
    return torch.sin(3 * x + 4 * t.view(-1, 1))
"""


def teacher(folder: Path, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    network = UNet(CONFIG)
    torch.nn.init.normal_(network.last.weight, std=0.3)
    save_checkpoint(folder, network)
    return network.eval()


def flow(name: str, stop: int = 0) -> list[str]:
    """A module of the user's with a velocity that can be stopped and counts its calls."""
    sys.modules.pop(name, None)
    Path(f"{name}.py").write_text(MODULE)
    os.environ["CALLS_OF_A_TEST"] = str(stop or 10**9)
    return ["--velocity", f"{name}:velocity", "--shape", "5"]


def test_schedules_are_those_of_the_library(boss) -> None:
    network = teacher(Path("net"))
    code, out, err = boss(
        "schedule", "--checkpoint", "net", "--budget", 4, "--budget", 2, "--grid", 30,
        "--samples", 25, "--batch-size", 8, "--seed", 3,
    )  # fmt: skip
    assert (code, err) == (0, "")
    noise = sample_noise(range(25), (1, 8, 8), seed=3 + COSTS)
    matrix = estimate_cost_matrix(network, noise, uniform(30), batch_size=25)
    for budget, path in optimal_paths(matrix.cost, [2, 4]).items():
        found = Schedule.from_json(Path(f"schedules/{budget}.json").read_text())
        assert found.indices == path.indices
        assert found.predicted_error == pytest.approx(path.cost, rel=1e-4)
        error = path_standard_error(matrix.group_cost, path.indices)
        assert found.standard_error == pytest.approx(error, rel=1e-3)
        assert found.teacher_hash == json.loads(Path("net/card.json").read_text())["weights_sha256"]
        steps = path_cost(matrix.cost, nearest_indices(uniform(30), uniform(budget)))
        assert f"{steps:.4g}"[:4] in out
    assert "25 trajectories of 30 steps: 750 evaluations" in out
    assert f"holding {30 * 8 * 64 * 4 / 2**20:.1f} MiB" in out
    with Image.open("schedules/cost.png") as picture:
        assert min(picture.size) > 300


def test_a_search_goes_on_where_it_stopped(boss) -> None:
    options = ["--grid", 10, "--batch-size", 6, "--budget", 3]
    # The third batch is cut off; two are kept.
    code, *_ = boss("schedule", *flow("stopped", stop=27), *options, "--samples", 24)
    assert code == 130
    code, out, _ = boss("schedule", *flow("stopped"), *options, "--samples", 24)
    assert code == 0
    assert "12 trajectories are in cost.npz already" in out
    assert "12 trajectories of 10 steps: 120 evaluations" in out
    assert sys.modules["stopped"].calls == 2 + 20  # two for `check_repeats`
    first = np.load("schedules/cost.npz")["cost"]
    boss("schedule", *flow("whole"), *options, "--samples", 24, "--out", "whole")
    np.testing.assert_allclose(first, np.load("whole/cost.npz")["cost"], rtol=1e-6)

    # Other budgets need no further evaluation; more samples only those.
    code, out, _ = boss("schedule", *flow("again"), "--grid", 10, "--budget", 5, "--samples", 24)
    assert code == 0
    assert sys.modules["again"].calls == 0
    assert Path("schedules/5.json").exists()
    boss("schedule", *flow("more"), *options, "--samples", 30)
    assert sys.modules["more"].calls == 2 + 10


def test_a_schedule_is_written_as_soon_as_it_is_found(boss) -> None:
    options = ["--grid", 10, "--samples", 4, "--objective", "refine", "--noises", 20]
    assert boss("schedule", *flow("one"), *options, "--budget", 2, "--out", "one")[0] == 0
    # Cut off in the search of the second budget.
    stop = sys.modules["one"].calls + 3
    budgets = ["--budget", 2, "--budget", 3]
    assert boss("schedule", *flow("two", stop=stop), *options, *budgets)[0] == 130
    assert Path("schedules/2.json").read_text() == Path("one/2.json").read_text()
    assert not Path("schedules/3.json").exists()


def test_other_grids_to_choose_from(boss) -> None:
    code, *_ = boss("schedule", *flow("edm"), "--grid", 20, "--spacing", "karras", "--budget", 4)
    assert code == 0
    found = Schedule.from_json(Path("schedules/4.json").read_text())
    assert found.timesteps == tuple(karras(20)[list(found.indices)])


def test_the_costs_of_another_search_are_not_overwritten(boss) -> None:
    teacher(Path("net"))
    teacher(Path("other"), seed=1)
    options = ["--budget", 2, "--grid", 5, "--samples", 2]
    assert boss("schedule", "--checkpoint", "net", *options)[0] == 0
    before = Path("schedules/cost.npz").read_bytes()
    code, _, err = boss("schedule", "--checkpoint", "other", *options)
    assert code == 2
    assert err.startswith("error: schedules/cost.npz: the costs of another search: teacher_hash is")
    code, _, err = boss("schedule", "--checkpoint", "net", *options, "--seed", 1)
    assert code == 2
    assert "seed is 0 there and 1 now" in err
    assert Path("schedules/cost.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("reference", "evaluations"),
    [("heun", "160 evaluations of"), ("rk45", "80 evaluations, and those of RK45's own steps,")],
)
def test_costs_on_the_path_of_another_solver(boss, reference: str, evaluations: str) -> None:
    network = teacher(Path("net"))
    options = ["--checkpoint", "net", "--budget", 3, "--grid", 8, "--batch-size", 10]
    code, out, err = boss("schedule", *options, "--samples", 10, "--reference", reference)
    assert (code, err) == (0, "")
    assert f"10 trajectories of 8 steps: {evaluations}" in " ".join(out.split())
    noise = sample_noise(range(10), (1, 8, 8), seed=COSTS)
    matrix = estimate_cost_matrix(network, noise, uniform(8), batch_size=10, reference=reference)
    np.testing.assert_allclose(np.load("schedules/cost.npz")["cost"], matrix.cost, rtol=1e-6)
    for solver in ("euler", "ab2"):  # the second from the same costs
        code, out, _ = boss(
            "schedule",
            *options,
            "--samples",
            10,
            "--reference",
            reference,
            "--solver",
            solver,
            "--replace",
        )
        assert code == 0
        assert "evaluations" not in out
        found = Schedule.from_json(Path("schedules/3.json").read_text())
        path = optimal_steps(matrix, [3], solver=solver)[3]
        assert found.indices == path.indices
        assert found.predicted_error == pytest.approx(path.cost, rel=1e-4)

    code, _, err = boss("schedule", *options)
    assert code == 2
    assert f"another search: reference is {reference} there and euler now" in err


def test_costs_that_name_no_reference_are_eulers(boss) -> None:
    options = ["--budget", 2, "--grid", 5, "--samples", 2]
    boss("schedule", *flow("before"), *options)
    with np.load("schedules/cost.npz") as file:
        old = {name: file[name] for name in file.files if name != "reference"}
    search = json.loads(str(old["search"]))
    assert search.pop("reference") == "euler"
    np.savez("schedules/cost.npz", **old | {"search": json.dumps(search)})
    code, out, _ = boss("schedule", *flow("before"), *options)
    assert code == 0
    assert "2 trajectories are in cost.npz already" in out
    assert sys.modules["before"].calls == 0
    code, _, err = boss("schedule", *flow("before"), *options, "--reference", "heun")
    assert code == 2
    assert "reference is euler there and heun now" in err


def test_costs_of_an_older_version_are_named(boss) -> None:
    options = ["--budget", 2, "--grid", 5, "--samples", 2]
    assert boss("schedule", *flow("older"), *options)[0] == 0
    with np.load("schedules/cost.npz") as file:
        old = {name: file[name] for name in file.files if name != "norms"}
    np.savez("schedules/cost.npz", **old)
    code, _, err = boss("schedule", *flow("older"), *options)
    assert code == 2
    assert err.startswith("error: schedules/cost.npz: not the costs of a search")
    assert "norms" in err


@pytest.mark.parametrize(("solver", "nfe"), [("euler", 3), ("ab2", 3), ("heun", 6)])
def test_samples_are_those_of_the_library(boss, solver: str, nfe: int) -> None:
    network = teacher(Path("net"))
    found = Schedule(
        timesteps=(0.0, 0.2, 0.5, 1.0), indices=(0, 2, 5, 10), solver=solver, objective="x"
    )
    Path("3.json").write_text(found.to_json())
    code, out, err = boss(
        "sample", "--schedule", "3.json", "--checkpoint", "net", "-n", 9, "--seed", 5
    )
    assert (code, err) == (0, "")
    assert f"9 images, {nfe} network evaluations each" in out
    images = sample_images(
        network, found.timesteps, samples=9, shape=(1, 8, 8), seed=5, batch_size=9,
        device=torch.device("cpu"), solver=solver,
    )  # fmt: skip
    with Image.open("samples.png") as picture:  # three by three, enlarged fourfold
        assert picture.size == (4 * 26, 4 * 26)
        pixels = np.asarray(picture)[::4, ::4]
    for k, image in enumerate(images):
        y, x = divmod(k, 3)
        np.testing.assert_array_equal(pixels[9 * y : 9 * y + 8, 9 * x : 9 * x + 8], image[0])


def test_a_student_brings_its_steps_and_others_are_warned_of(boss) -> None:
    network = teacher(Path("net"))
    boss("schedule", "--checkpoint", "net", "--budget", 2, "--grid", 5, "--samples", 2)
    steps = Schedule.from_json(Path("schedules/2.json").read_text())
    save_checkpoint(Path("student"), network, teacher_hash=steps.teacher_hash, schedule=steps)
    code, out, err = boss("sample", "--checkpoint", "student", "-n", 1)
    assert (code, err) == (0, "")
    assert "2 network evaluations" in out

    teacher(Path("other"), seed=1)
    code, _, err = boss("sample", "--checkpoint", "other", "--schedule", "schedules/2.json")
    assert code == 0
    assert err.startswith("warning: schedules/2.json: found for the network ")
    assert str(steps.teacher_hash)[:12] in err


def test_a_denoiser_of_edm_on_its_own_grid(boss) -> None:
    torch.manual_seed(0)
    network = EDM(EDMConfig.model_validate(NCSNPP))
    save_checkpoint(Path("edm"), network)
    options = ["--spacing", "karras", "--grid", 9, "--samples", 2, "--budget", 3]
    assert boss("schedule", "--checkpoint", "edm", *options)[0] == 0
    noise = sample_noise(range(2), network.config.sample_shape, COSTS)
    matrix = estimate_cost_matrix(network.eval(), noise, karras(9), batch_size=2)
    found = Schedule.from_json(Path("schedules/3.json").read_text())
    assert found.indices == optimal_paths(matrix.cost, [3])[3].indices
    assert boss("sample", "--checkpoint", "edm", "--schedule", "schedules/3.json", "-n", 2)[0] == 0


@needs_shared
def test_a_rectified_flow_checkpoint_has_the_hash_that_it_has_when_imported(boss) -> None:
    folder = SHARED / "reference" / "rf_256"
    network = ["--checkpoint", folder / "checkpoint_0.pth", "--config", folder / "config.json"]
    options = ["--grid", 6, "--samples", 1, "--budget", 2]
    assert boss("schedule", *network, *options)[0] == 0
    averaged = load_rectified_flow(folder / "checkpoint_0.pth", folder / "config.json")
    card = save_checkpoint(Path("imported"), averaged)
    found = Schedule.from_json(Path("schedules/2.json").read_text())
    assert found.teacher_hash == card.weights_sha256
    code, _, err = boss("schedule", *network, "--raw-weights", *options)
    assert code == 2
    assert "teacher_hash is" in err


def test_a_conditional_network_has_its_labels(boss) -> None:
    torch.manual_seed(0)
    network = UNet(CONFIG.model_copy(update={"classes": 3})).eval()
    torch.nn.init.normal_(network.last.weight, std=0.3)
    save_checkpoint(Path("net"), network)
    options = ["--budget", 2, "--grid", 6, "--samples", 5, "--batch-size", 2, "--seed", 1]
    assert boss("schedule", "--checkpoint", "net", *options)[0] == 0
    seed = COSTS + 1
    noise, labels = sample_noise(range(5), (1, 8, 8), seed), sample_labels(range(5), 3, seed)
    assert len(set(labels.tolist())) > 1
    expected = estimate_cost_matrix(network, noise, uniform(6), batch_size=5, labels=labels)
    far = np.triu_indices(7, k=2)
    np.testing.assert_allclose(
        np.load("schedules/cost.npz")["cost"][far], expected.cost[far], rtol=1e-4
    )

    sample = ["sample", "--checkpoint", "net", "--schedule", "schedules/2.json", "-n", 4]
    pictures = []
    for label in (0, 2):
        assert boss(*sample, "--label", label)[0] == 0
        pictures.append(Path("samples.png").read_bytes())
    assert pictures[0] != pictures[1]
    code, _, err = boss(*sample, "--label", 3)
    assert code == 2
    assert "--label: 3; 0..2 needed" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schedule", "--budget", 3], "--checkpoint, --velocity or --pipeline needed"),
        (["schedule", "--checkpoint", "none", "--budget", 3], "none: no such file or folder"),
        (["schedule", "--checkpoint", "net", "--budget", 0], "--budget: 0; 1..100"),
        (["schedule", "--checkpoint", "net", "--budget", 9, "--grid", 8], "--budget: 9; 1..8"),
        (["schedule", "--checkpoint", "net", "--budget", 2, "--spacing", "log"], "'log'; uniform"),
        (["schedule", "--checkpoint", "net", "--budget", 2, "--reference", "x"], "'x'; euler, he"),
        (["schedule", "--checkpoint", "net", "--budget", 2, "--device", "tpu"], "--device: 'tpu'"),
        (["schedule", "--velocity", "nowhere:v", "--shape", "3", "--budget", 2], "No module named"),
        (["schedule", "--velocity", "json:v", "--shape", "3", "--budget", 2], "no attribute 'v'"),
        (["schedule", "--velocity", "json", "--shape", "3", "--budget", 2], "package.module:attr"),
        (["schedule", "--velocity", "json:dumps", "--budget", 2], "--shape: missing"),
        (["schedule", "--velocity", "json:dumps", "--shape", "3,8", "--budget", 2], "joined by x"),
        (["sample", "--checkpoint", "net"], "--schedule: missing"),
        (["sample", "--checkpoint", "net", "--schedule", "s.json"], "s.json: no such file"),
        (["sample", "--checkpoint", "net", "--schedule", "bad.json"], "bad.json: timesteps"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(boss, arguments, message) -> None:
    teacher(Path("net"))
    Path("bad.json").write_text("{}")
    code, _, err = boss(*arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("schedules").exists()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("x * float('nan')", "velocity: not finite at t = 0 (step 0 of 5)"),
        ("x[:, :3]", "velocity: returned shape (2, 3) for states of shape (2, 5)"),
        ("x.double()", "velocity: returned torch.float64 for states of torch.float32"),
        ("None", "velocity: returned None; a tensor of the shape of its states"),
        ("(x, t)", "velocity: returned a tuple of 2; a tensor of the shape of its states"),
        ("{'sample': x}", "velocity: returned a dict with 'sample'; a tensor of the shape of its"),
        ("x @ t", "/broken.py:2: RuntimeError: size mismatch, got input (2)"),
        ("x.sample", "/broken.py:2: AttributeError: 'Tensor' object has no attribute 'sample'"),
    ],
)
def test_a_velocity_that_breaks_its_promise_is_named(boss, returned: str, message: str) -> None:
    sys.modules.pop("broken", None)
    Path("broken.py").write_text(f"def velocity(x, t):\n    return {returned}\n")
    options = ["--grid", 5, "--budget", 2, "--samples", 2]
    network = ["--velocity", "broken:velocity", "--shape", "5"]
    code, _, err = boss("schedule", *network, *options)
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err


def test_one_trajectory_has_no_interval(boss) -> None:
    teacher(Path("net"))
    arguments = ["--budget", 3, "--grid", 12, "--samples", 1]
    code, out, err = boss("schedule", "--checkpoint", "net", *arguments)
    assert (code, err) == (0, "")
    assert "nan" not in out
    assert "one trajectory cannot say how sure errors and knots are" in out
    found = Schedule.from_json(Path("schedules/3.json").read_text())
    assert found.knot_stability is found.standard_error is None


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("objective", ["l2_squared", "l2", "minimax", "gits"])
def test_objectives_are_those_of_the_library(boss, solver: str, objective: str) -> None:
    network = teacher(Path("net"))
    code, out, err = boss(
        "schedule", "--checkpoint", "net", "--budget", 3, "--grid", 12, "--samples", 8,
        "--solver", solver, "--objective", objective, "--gamma", 2,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "knots: each within a grid step of here in " in out
    noise = sample_noise(range(8), (1, 8, 8), seed=COSTS)
    matrix = estimate_cost_matrix(network, noise, uniform(12), batch_size=8)
    path = optimal_steps(matrix, [3], objective=objective, solver=solver, gamma=2)[3]
    stable = bootstrap(matrix, [3], objective=objective, solver=solver, gamma=2)[3]
    found = Schedule.from_json(Path("schedules/3.json").read_text())
    assert found.knot_stability == pytest.approx(stable.knots)
    assert (found.indices, found.solver, found.objective) == (path.indices, solver, objective)
    if objective == "l2_squared":
        assert found.predicted_error == pytest.approx(path.cost, rel=1e-4)


def test_steps_forward_are_those_of_the_library(boss) -> None:
    network = teacher(Path("net"))
    arguments = ["--grid", 8, "--samples", 4, "--noises", 20, "--solver", "ab2"]
    code, _, err = boss(
        "schedule", "--checkpoint", "net", "--budget", 3, *arguments, "--objective", "oss"
    )
    assert (code, err) == (0, "")
    noise = sample_noise(range(20), (1, 8, 8), seed=SEARCH)
    path = oss_paths(network, noise, uniform(8), [3], solver="ab2", batch_size=20)[3]
    assert Schedule.from_json(Path("schedules/3.json").read_text()).indices == path.indices


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_refined_steps_sample_nearer_to_the_teacher(boss, solver: str) -> None:
    network = teacher(Path("net"))
    arguments = ["--checkpoint", "net", "--budget", 3, "--grid", 20, "--samples", 4]
    arguments += ["--solver", solver, "--noises", 40, "--seed", 2]
    noise = sample_noise(range(40), (1, 8, 8), seed=SEARCH + 2)
    distance = sliced_wasserstein(euler(network, noise, uniform(20)))
    found = {}
    for objective in ("l2_squared", "refine"):
        assert boss("schedule", *arguments, "--objective", objective, "--replace")[0] == 0
        times = Schedule.from_json(Path("schedules/3.json").read_text()).timesteps
        found[objective] = float(distance(SOLVERS[solver](network, noise, times)[None]))
    assert found["refine"] < found["l2_squared"]


def test_auto_says_whose_steps_it_took_and_how_sure_it_is(boss) -> None:
    teacher(Path("net"))
    code, out, err = boss(
        "schedule", "--checkpoint", "net", "--budget", 3, "--budget", 2, "--grid", 12,
        "--samples", 4, "--solver", "ab2", "--objective", "auto", "--noises", 40,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "schedule: 40 trajectories of 12 steps to compare with" in out
    assert "schedule: 80 trajectories of 12 steps to compare with" in out
    for budget in (2, 3):
        found = Schedule.from_json(Path(f"schedules/{budget}.json").read_text())
        assert f"schedule: K = {budget}, ab2: " in out
        assert found.solver == "ab2"
        assert found.objective in (*OBJECTIVES, "uniform", "oss", "refine")
        assert found.held_out is not None
        winner, gain = found.held_out.winner, found.held_out.gain
        assert found.objective == (winner if beyond_chance(found.held_out) else "l2_squared")
        assert winner == "l2_squared" or f"{winner} {gain:+.1%} ± " in out
        rows = [[cell.strip() for cell in line.split("│")] for line in out.splitlines()]
        assert any(row[1:3] == [str(budget), found.objective] for row in rows)


def test_steps_refined_by_features_are_nearer_in_those_of_the_folder(boss) -> None:
    network = teacher(Path("net"))
    torch.manual_seed(0)
    save_classifier(
        Path("features/classifier.safetensors"),
        Classifier(ClassifierConfig(channels=1, classes=3, width=8, features=6)),
    )
    card = {"extractor": "classifier", "weights": "classifier.safetensors"}
    Path("features/card.json").write_text(json.dumps(card))
    extractor = read_extractor(Path("features"))
    noise = sample_noise(range(40), (1, 8, 8), seed=SEARCH)
    features = feature_function(extractor, 40, torch.device("cpu"))
    distance = feature_frechet(euler(network, noise, uniform(20)), features)
    arguments = ["--checkpoint", "net", "--budget", 3, "--grid", 20, "--samples", 4]
    arguments += ["--noises", 40, "--features", "features"]
    found, settings = {}, set()
    for objective in ("l2_squared", "refine"):
        assert boss("schedule", *arguments, "--objective", objective, "--replace")[0] == 0
        schedule = Schedule.from_json(Path("schedules/3.json").read_text())
        found[objective] = float(distance(euler(network, noise, schedule.timesteps)[None]))
        settings.add(schedule.settings_hash)
    assert found["refine"] < found["l2_squared"]
    # Another extractor is another search.
    torch.manual_seed(1)
    save_classifier(
        Path("features/classifier.safetensors"),
        Classifier(ClassifierConfig(channels=1, classes=3, width=8, features=6)),
    )
    assert boss("schedule", *arguments, "--objective", "refine")[0] == 0
    settings.add(Schedule.from_json(Path("schedules/3.json").read_text()).settings_hash)
    assert len(settings) == 3
    Path("features/classifier.safetensors").unlink()
    code, _, err = boss("schedule", *arguments, "--out", "other")
    assert (code, Path("other").exists()) == (2, False)
    assert "features/classifier.safetensors: no such file; the weights of classifier" in err
    code, _, err = boss("schedule", *flow("points"), *arguments[2:], "--out", "other")
    assert (code, Path("other").exists()) == (2, False)
    assert "--features: features, but samples are 5; images of 1 or 3 channels needed" in err


def test_auto_and_fitted_weights_on_every_kind_of_network(boss) -> None:
    torch.manual_seed(0)
    conditional = UNet(CONFIG.model_copy(update={"classes": 3}))
    torch.nn.init.normal_(conditional.last.weight, std=0.3)
    save_checkpoint(Path("conditional"), conditional)
    save_checkpoint(Path("edm"), EDM(EDMConfig.model_validate(NCSNPP)))
    kinds = {
        "conditional": ["--checkpoint", "conditional"],
        "edm": ["--checkpoint", "edm", "--spacing", "karras"],
        "velocity": flow("any_velocity"),
    }
    if (SHARED / "reference").is_dir():  # Rectified Flow's own layout
        folder = SHARED / "reference" / "rf_cifar"
        kinds["rf"] = ["--checkpoint", folder / "checkpoint_0.pth"]
        kinds["rf"] += ["--config", folder / "config.json"]
    for name, network in kinds.items():
        code, out, err = boss(
            "schedule", *network, "--budget", 3, "--grid", 5, "--samples", 2, "--noises", 20,
            "--solver", "ab2", "--objective", "auto", "--out", name,
        )  # fmt: skip
        assert (code, err) == (0, ""), name
        assert "schedule: K = 3, ab2: " in out
        assert Schedule.from_json(Path(f"{name}/3.json").read_text()).solver == "ab2"
        code, out, err = boss(
            "schedule", *network, "--budget", 3, "--grid", 5, "--samples", 16,
            "--solver", "multistep", "--out", f"{name}-fitted",
        )  # fmt: skip
        assert (code, err) == (0, ""), name
        fitted = Schedule.from_json(Path(f"{name}-fitted/3.json").read_text())
        assert [len(of) for of in fitted.weights] == [1, 2, 3]


@pytest.mark.parametrize("reference", ["euler", "heun"])
def test_fitted_weights_are_those_of_the_library(boss, reference: str) -> None:
    network = teacher(Path("net"))
    options = ["schedule", "--checkpoint", "net", "--grid", 12, "--solver", "multistep"]
    options += ["--reference", reference, "--samples", 20]
    code, out, err = boss(*options, "--budget", 2, "--budget", 4)
    assert (code, err) == (0, "")
    assert "weights: fitted, in K.json; standard errors up to" in out
    found = {k: Schedule.from_json(Path(f"schedules/{k}.json").read_text()) for k in (2, 4)}
    source = NoiseSource(network.config.sample_shape, 0)
    noise, _ = source.draw(range(20), COSTS)
    matrix = estimate_cost_matrix(network, noise, uniform(12), batch_size=20, reference=reference)
    settings = SearchSettings(solver="multistep")
    wanted = find_steps(
        network, matrix, [2, 4], settings, source, sliced_wasserstein, reference=reference
    )
    for budget, steps in wanted:
        schedule = found[budget]
        assert schedule.indices == steps.indices
        assert schedule.solver == "multistep"
        for a, b in zip(schedule.weights, steps.fitted.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

    # Another budget from the costs that are there, whose states were not kept.
    code, out, _ = boss(*options, "--budget", 3, "--budget", 4, "--replace")
    assert code == 0
    assert "trajectories to fit weights to: 240 sample steps" in out
    again = Schedule.from_json(Path("schedules/4.json").read_text())
    assert again.indices == found[4].indices
    for a, b in zip(again.weights, found[4].weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

    # Two velocities a step; and what is made of the file.
    assert boss(*options, "--budget", 4, "--order", 2, "--out", "two")[0] == 0
    two = Schedule.from_json(Path("two/4.json").read_text())
    assert [len(of) for of in two.weights] == [1, 2, 2, 2]
    assert boss(*options, "--budget", 4, "--objective", "uniform", "--out", "even")[0] == 0
    even = Schedule.from_json(Path("even/4.json").read_text())
    assert (even.indices, even.objective) == ((0, 3, 6, 9, 12), "uniform")
    assert [len(of) for of in even.weights] == [1, 2, 3, 3]
    code, out, _ = boss(
        "sample", "--checkpoint", "net", "--schedule", "schedules/4.json", "-n", 3, "--out", "g.png"
    )
    assert (code, "4 network evaluations each" in out) == (0, True)
    code, _, err = boss("export", "schedules/4.json", "--to", "comfyui")
    assert code == 2
    assert "the target comfyui-node brings one that does" in err
    code, out, err = boss("export", "schedules/4.json", "--to", "comfyui-node", "--out", "node.py")
    assert code == 0
    assert "custom_nodes" in err
    assert f"WEIGHTS = [\n    [1.0],\n    {list(again.weights[1])!r}" in Path("node.py").read_text()
    assert json.loads(boss("export", "schedules/4.json", "--to", "json")[1])["weights"] == [
        list(of) for of in again.weights
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective", "uniform"], "--solver: euler; multistep needed with --objective uniform"),
        (["--solver", "multistep", "--grid", 101], "at most 100 needed with --solver multistep"),
        (["--solver", "multistep", "--order", 4], "--order"),
        (["--solver", "heun"], "--solver: 'heun'; euler or ab2 or multistep needed"),
        (["--objective", "best"], "--objective: 'best'; l2_squared, l2, minimax, gits, oss"),
        (["--solver", "ab2", "--grid", 400], "--grid: 400; at most 300 needed with --solver ab2"),
        (["--noises", 3], "--noises"),
    ],
)
def test_what_cannot_be_searched_is_said_before_any_work(boss, options, message) -> None:
    teacher(Path("net"))
    code, _, err = boss("schedule", "--checkpoint", "net", "--budget", 2, *options)
    assert code == 2
    assert message in err
    assert not Path("schedules").exists()


def test_schedules_of_another_search_are_kept(boss) -> None:
    teacher(Path("net"))
    options = ["schedule", "--checkpoint", "net", "--budget", 2, "--grid", 6, "--samples", 4]
    assert boss(*options)[0] == 0
    first = Path("schedules/2.json").read_bytes()
    for other, found in (
        (["--solver", "ab2"], "for ab2 by l2_squared"),
        (["--objective", "minimax"], "for euler by minimax"),
    ):
        code, out, err = boss(*options, *other)
        assert (code, out) == (2, "")
        said = f"schedules/2.json: for euler by l2_squared, and these steps would be {found}; anoth"
        assert said in err
        assert Path("schedules/2.json").read_bytes() == first
    # The same again, more of it, and other budgets, are not another search.
    assert boss(*options)[0] == 0
    assert Path("schedules/2.json").read_bytes() == first
    assert boss(*options, "--samples", 8)[0] == 0
    assert boss(*options, "--budget", 3)[0] == 0
    code, out, _ = boss(*options, "--solver", "ab2", "--replace")
    assert code == 0
    assert "evaluations" not in out  # from the same costs
    found = Schedule.from_json(Path("schedules/2.json").read_text())
    assert found.solver == "ab2"
    place = 1 if found.indices[1] == 5 else 5
    moved = {"timesteps": (0.0, place / 6, 1.0), "indices": (0, place, 6)}
    Path("schedules/2.json").write_text(found.model_copy(update=moved).to_json())
    _, out, _ = boss(*options, "--solver", "ab2")
    assert f"schedules/2.json: replaced; its steps were 0 {place / 6:.4g} 1\n" in out
    assert "single steps of ab2, 8 trajectories (compares steps of one solver, not" in " ".join(
        out.split()
    )
    teacher(Path("other"), seed=1)
    Path("schedules/cost.npz").unlink()
    code, _, err = boss(*[str(o).replace("net", "other") for o in options], "--solver", "ab2")
    assert code == 2
    assert "schedules/2.json: for the network " in err


def test_auto_is_the_same_search_again(boss) -> None:
    options = ["--grid", 5, "--samples", 2, "--noises", 20, "--budget", 2, "--objective", "auto"]
    for _ in range(2):
        assert boss("schedule", *flow("same"), *options)[0] == 0


def test_a_student_on_steps_of_another_is_said(boss) -> None:
    network = teacher(Path("net"))
    own = Schedule(timesteps=(0.0, 0.25, 0.5, 1.0), indices=(0, 1, 2, 4), objective="uniform")
    other = Schedule(timesteps=(0.0, 0.5, 1.0), indices=(0, 2, 4), objective="uniform")
    moved = own.model_copy(update={"timesteps": (0.0, 0.25, 0.75, 1.0), "solver": "ab2"})
    save_checkpoint(Path("student"), network, schedule=own)
    for steps, says in (
        (own, ""),
        (other, "warning: s.json: 2 steps of euler, but this student was trained for its own 3"),
        (moved, "warning: s.json: other steps of ab2, but this student was trained for its own 3 "),
    ):
        Path("s.json").write_text(steps.to_json())
        code, _, err = boss("sample", "--checkpoint", "student", "--schedule", "s.json", "-n", 1)
        assert code == 0
        assert err.startswith(says)
        assert bool(err) == bool(says)


# Eight steps as a distilled model's page gives them.
PUBLISHED = (1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031)


def test_published_noise_levels_are_sampled_as_they_are(boss) -> None:
    network = teacher(Path("net"))
    times = [1 - level for level in PUBLISHED] + [1.0]
    for text in (",".join(map(str, PUBLISHED)), " ".join(map(str, PUBLISHED)) + ", 0"):
        code, out, err = boss("sample", "--checkpoint", "net", "--sigmas", text, "-n", 1)
        assert (code, err) == (0, "")
        assert "1 image, 8 network evaluations\n" in out
        with Image.open("samples.png") as picture:
            found = np.asarray(picture)[::4, ::4]
        images = sample_images(
            network, times, samples=1, shape=(1, 8, 8), seed=0, batch_size=1,
            device=torch.device("cpu"),
        )  # fmt: skip
        np.testing.assert_array_equal(found, images[0, 0])
    # From a first level just below 1, as shifted ones have, samplers begin with noise as well.
    assert boss("sample", "--checkpoint", "net", "--sigmas", "0.9997,0.5", "-n", 1)[0] == 0
    code, _, err = boss("sample", "--checkpoint", "net", "--sigmas", "0.6,0.3", "-n", 1)
    assert code == 2
    assert "timesteps: begin at 0.4, noise level 0.6; steps from noise, 0, needed" in err


def test_published_noise_levels_are_compared_on_the_grid(boss) -> None:
    network = teacher(Path("net"))
    options = ["--grid", 50, "--samples", 6, "--budget", 4]
    lists = ["--compare", ",".join(map(str, PUBLISHED)), "--compare", "1,0.5,0"]
    code, out, _ = boss("schedule", "--checkpoint", "net", *options, *lists)
    assert code == 0
    noise = sample_noise(range(6), (1, 8, 8), seed=COSTS)
    matrix = estimate_cost_matrix(network, noise, uniform(50), batch_size=6)
    rows = [[cell.strip() for cell in line.split("│")] for line in out.splitlines()]
    # By hand: 50 (1 - sigma) rounded; 0.00031 falls on the end.
    for name, path in (
        ("7 (--compare 1)", (0, 17, 28, 35, 41, 44, 48, 50)),
        ("2 (--compare 2)", (0, 25, 50)),
    ):
        (row,) = [row for row in rows if row[1:2] == [name]]
        assert float(row[2]) == pytest.approx(path_cost(matrix.cost, path), rel=1e-3)
    said = "--compare 1: on the nearest points of the grid, up to 0.0095 away; 8 steps become 7, as"
    assert said in " ".join(out.split())
    assert "--compare 2:" not in out


@pytest.mark.parametrize("grid", [1, 4])
def test_a_flow_that_is_straight_costs_nothing(boss, grid: int) -> None:
    sys.modules.pop("straight", None)
    Path("straight.py").write_text("def velocity(x, t):\n    return 0 * x + 1\n")
    network = ["--velocity", "straight:velocity", "--shape", "3"]
    code, _, err = boss("schedule", *network, "--grid", grid, "--samples", 3, "--budget", 1)
    assert (code, err) == (0, "")
    assert Path("schedules/cost.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("gib", "shape", "grid", "batch"),
    [
        # A quarter of what is free, at most 2 GiB, by 2,000 times the bytes of a sample:
        (64, (3, 32, 32), 100, 64),  # 2 GiB / 23.4 MiB = 87
        (4, (3, 32, 32), 100, 32),  # 1 GiB / 23.4 MiB = 43
        (64, (1, 8, 8), 100, 512),  # the largest
        (64, (3, 256, 256), 100, 1),  # 2 GiB / 1.5 GiB
        (64, (3, 1024, 1024), 100, 1),
        # A quarter by the velocities, of 10^6 steps:
        (4, (5,), 10**6, 32),  # 1 GiB / 19 MiB = 53
    ],
)
def test_samples_at_a_time_by_the_memory_that_is_free(
    monkeypatch: pytest.MonkeyPatch, gib: int, shape: tuple[int, ...], grid: int, batch: int
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: gib << 30)
    assert memory.search_batch(shape, grid, torch.device("cpu")) == batch


def test_files_that_a_container_has_read_count_as_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meminfo, cpu = tmp_path / "meminfo", torch.device("cpu")
    meminfo.write_text("MemTotal:       65536000 kB\nMemAvailable:   16777216 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_bytes(cpu) == 16 << 30  # no container
    (tmp_path / "memory.max").write_text(f"{8 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{7 << 30}\n")
    assert memory.free_bytes(cpu) == 1 << 30
    stat = f"anon {2 << 30}\nfile {5 << 30}\nactive_file {1 << 30}\ninactive_file {4 << 30}\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert memory.free_bytes(cpu) == 5 << 30
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(cpu) == 16 << 30


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/slurm/job_7", "slurm/job_7", ("memory.max", "memory.current")),
        ("0::/slurm/job_7/step_0", "slurm/job_7", ("memory.max", "memory.current")),  # of its job
        (
            "4:cpu,memory:/job_7",
            "memory/job_7",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ),
    ],
)
def test_the_limit_of_a_job_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, folder: str, names: tuple[str, str]
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable:   16777216 kB\n")
    (tmp_path / "groups").write_text(f"1:name=systemd:/a\n{line}\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / folder).mkdir(parents=True)
    for name, gib in zip(names, (8, 7), strict=True):
        (tmp_path / folder / name).write_text(f"{gib << 30}\n")
    assert memory.free_bytes(torch.device("cpu")) == 1 << 30


def test_a_function_around_a_network_in_training_mode_is_refused(boss) -> None:
    sys.modules.pop("dropped", None)
    Path("dropped.py").write_text(
        "import torch\nnet = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.1))\n"
        "def velocity(x, t):\n    return net(x)\n"
    )
    network = ["--velocity", "dropped:velocity", "--shape", "3"]
    code, _, err = boss("schedule", *network, "--samples", 8, "--budget", 2)
    assert (code, err.count("\n")) == (2, 1)
    assert "random, or in training mode (dropout, batch norm; eval() ends it)" in err
    assert not Path("schedules/cost.npz").exists()
    network = ["--velocity", "dropped:velocity", "--shape", "1x8x8"]
    Path("dropped.py").write_text(
        "import torch\ndef velocity(x, t):\n    return torch.randn_like(x)\n"
    )
    sys.modules.pop("dropped", None)
    code, _, err = boss("sample", *network, "--sigmas", "1,0.5", "-n", 2)
    assert (code, err.count("\n")) == (2, 1)
    assert "random, or in training mode" in err
    assert not Path("samples.png").exists()


def test_a_search_takes_its_batch_for_all_that_it_does(boss, monkeypatch) -> None:
    sizes: set[int] = set()
    sys.modules.pop("sized", None)
    Path("sized.py").write_text(
        "import builtins\ndef velocity(x, t):\n    builtins.sizes.add(len(x))\n    return x.sin()\n"
    )
    monkeypatch.setattr("builtins.sizes", sizes, raising=False)
    network = ["--velocity", "sized:velocity", "--shape", "3"]
    options = ["--grid", 5, "--samples", 200, "--noises", 300, "--budget", 2, "--objective", "auto"]
    assert boss("schedule", *network, *options, "--out", "free")[0] == 0
    assert max(sizes) == 512  # 600 trajectories to compare on
    sizes.clear()
    assert boss("schedule", *network, *options, "--batch-size", 7, "--out", "given")[0] == 0
    assert max(sizes) == 7
