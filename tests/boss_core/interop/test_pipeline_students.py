"""Students of every kind of pipeline, against what the same evaluations buy without one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.backends.registry import lookup_backend

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from diffusers import DiffusionPipeline, SD3Transformer2DModel

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators
from boss_core.interop.guidance import without_guidance
from boss_core.interop.pipeline_lora import (
    add_lora,
    compile_blocks,
    denoisers,
    freeze,
    load_lora,
    remove_lora,
    save_lora,
)
from boss_core.interop.pipeline_sampling import sample_pipeline
from boss_core.interop.pipeline_students import Groups, load_states, save_states, train_student
from boss_core.interop.teacher_forcing import KnotStates, straighten_call, teacher_states
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import uniform
from boss_core.training.settings import TrainingSettings
from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.families import FAMILIES, Family
from tests.helpers.single_pipelines import ace_step, ace_step_prompts

GRID, KNOTS = uniform(12), (0, 4, 8, 12)
SCHEDULE = Schedule(timesteps=tuple(GRID[list(KNOTS)]), indices=KNOTS)
HELD_OUT = range(1000, 1016)
SIZE, GROUPS = 16, 8


def settings(iterations: int) -> TrainingSettings:
    return TrainingSettings(
        iterations=iterations, batch_size=1, learning_rate=4e-3, learning_rate_schedule="cosine",
        warmup=10, gradient_clip=1.0, ema_decay=0.9,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_is_nearer_than_its_evaluations_buy(name: str, tmp_path: Path) -> None:
    """Than the guided pipeline in as many evaluations, and, where it has no guidance, in as many
    steps: on noise and prompts that it has not seen, loaded by diffusers into a fresh pipeline."""
    family = FAMILIES[name]
    pipeline = family.make()

    def call(rows: range, **changes: Any) -> dict[str, Any]:
        return family.prompts(rows) | {"generator": sample_generators(rows, 3)} | changes

    off, evaluations = without_guidance(pipeline, call(range(2)), SCHEDULE.timesteps)
    assert evaluations == 1.0
    rows = [range(k * SIZE, (k + 1) * SIZE) for k in range(GROUPS)]
    states, counted = zip(
        *(teacher_states(pipeline, GRID, KNOTS, call(part)) for part in rows), strict=True
    )
    guided = float(counted[0].max())

    def ends(of: Any, times: Any, **changes: Any) -> tuple[torch.Tensor, float]:
        found = sample_pipeline(of, times, call(HELD_OUT, **changes), decode=False)
        return found.latents, found.evaluations

    fine, _ = ends(pipeline, GRID)
    rival, taken = ends(pipeline, uniform(1) if guided > 1 else SCHEDULE.timesteps)
    plain, _ = ends(pipeline, SCHEDULE.timesteps, **off)
    weights = add_lora(pipeline, 8, seed=0)
    groups = Groups(lambda k: call(rows[k], **off), lambda k: states[k], range(GROUPS))
    trained = train_student(pipeline, SCHEDULE, weights, groups, settings(120), seed=0)
    curve = trained.curve
    save_lora(pipeline, tmp_path)
    fresh = family.make()
    load_lora(fresh, tmp_path)
    student, own = ends(fresh, SCHEDULE.timesteps, **off)
    assert own == 3.0
    assert taken <= own
    in_place, _ = ends(pipeline, SCHEDULE.timesteps, **off)
    assert (student - in_place).abs().max() < 1e-6 * max(1.0, float(in_place.abs().max()))

    def distance(found: torch.Tensor) -> float:
        return float((found - fine).square().flatten(1).sum(dim=1).mean())

    assert distance(student) < distance(rival)
    assert distance(student) < 0.5 * distance(plain)
    assert curve[-1]["loss"] < curve[0]["loss"]


class Compiler:
    """A backend of `torch.compile`, and how often what it compiled is evaluated."""

    def __init__(self, name: str) -> None:
        self.compile, self.evaluated = lookup_backend(name), 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        compiled = self.compile(graph, inputs)

        def evaluate(*args: Any) -> Any:
            self.evaluated += 1
            return compiled(*args)

        return evaluate


def taught(
    family: Family, folder: Path, backend: Any = None, *, checkpointing: bool = False
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of a few steps beside an adapter of the user's, and the file of the student."""
    pipeline, rows = family.make(), range(2)
    freeze(pipeline)
    if checkpointing:
        for network in denoisers(pipeline).values():
            network.enable_gradient_checkpointing()
    if backend is not None:
        compile_blocks(pipeline, backend)

    def call(**changes: Any) -> dict[str, Any]:
        return family.prompts(rows) | {"generator": sample_generators(rows, 3)} | changes

    off, _ = without_guidance(pipeline, call(), SCHEDULE.timesteps)
    states, _ = teacher_states(pipeline, GRID, KNOTS, call())
    weights = add_lora(pipeline, 2, seed=0)
    groups = Groups(lambda k: call(**off), lambda k: states, range(1), range(1))
    trained = train_student(pipeline, SCHEDULE, weights, groups, settings(4), seed=0)
    save_lora(pipeline, folder)
    remove_lora(pipeline)
    again, _ = teacher_states(pipeline, GRID, KNOTS, call())
    for before, after in zip(states.states, again.states, strict=True):
        assert torch.allclose(before, after, atol=1e-5)
    files = {path: load_file(path) for path in sorted(folder.rglob("*.safetensors"))}
    kept = {
        f"{path.relative_to(folder)} {k}": t for path, of in files.items() for k, t in of.items()
    }
    row = trained.curve[-1]
    return [row["loss"], row["validation_loss"]], kept


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not any("_orig_mod" in name for name in one)
    for name, weight in one.items():
        assert (weight - other[name]).norm() <= 1e-4 * weight.norm().clamp_min(1e-3), name


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("name", "checkpointing"), [("sd3", (False,)), ("wan 2.2", (False, True))])
def test_compiled_blocks_train_the_same_student(
    name: str, checkpointing: tuple[bool, ...], tmp_path: Path
) -> None:
    """The same losses and the same files, with the activations kept or computed again; those of
    SD3 are computed again in the test of ``boss straighten --compile``."""
    family = FAMILIES[name]
    losses, weights = taught(family, tmp_path / "plain")
    evaluated = []
    for again in checkpointing:
        torch.compiler.reset()
        backend = Compiler("aot_eager")
        folder = tmp_path / f"{again}"
        found, kept = taught(family, folder, backend, checkpointing=again)
        assert found == pytest.approx(losses, rel=1e-4)
        alike(weights, kept)
        evaluated.append(backend.evaluated)
    assert evaluated[0] > 0
    assert evaluated == sorted(set(evaluated))  # those of the backward passes come on top


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=8)  # torch's own, which this raises; put back
@pytest.mark.long
def test_a_network_of_many_kinds_of_blocks_trains_compiled() -> None:
    """Three kinds as SD3.5-medium has, with guidance and without, and then with an adapter and with
    gradients: more graphs of one function than torch makes unasked, after which blocks run as they
    are."""
    torch.compiler.reset()
    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=4, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32,
        pooled_projection_dim=64, out_channels=4, dual_attention_layers=(0, 1), qk_norm="rms_norm",
    )  # fmt: skip
    pipeline = tiny.sd3()
    pipeline.transformer = network
    freeze(pipeline)
    backend = Compiler("eager")
    compile_blocks(pipeline, backend)

    def blocks_run(batch: int) -> int:
        before = backend.evaluated
        network(
            hidden_states=torch.randn(batch, 4, 8, 8), timestep=torch.ones(batch),
            encoder_hidden_states=torch.randn(batch, 5, 32),
            pooled_projections=torch.randn(batch, 64),
        )  # fmt: skip
        return backend.evaluated - before

    with torch.no_grad():
        assert [blocks_run(4), blocks_run(2)] == [4, 4]  # the teacher's guided calls, and others
        add_lora(pipeline, 2, seed=0)
        assert blocks_run(2) == 4
    assert [blocks_run(2), blocks_run(2)] == [4, 4]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))),
    reason="no compiler of C++, which inductor needs",
)
def test_the_compiler_that_is_the_default_does_too() -> None:
    """One graph of it, which takes long enough: the losses and gradients of a call. Wan's block,
    which is compiled in a third of the time of SD3's."""
    pipeline, rows, times = FAMILIES["wan"].make(), range(2), uniform(1)

    def call(**changes: Any) -> dict[str, Any]:
        return tiny.wan_prompts(rows) | {"generator": sample_generators(rows, 3)} | changes

    off, _ = without_guidance(pipeline, call(), times)
    states, _ = teacher_states(pipeline, uniform(2), (0, 2), call())
    weights = add_lora(pipeline, 2, seed=0)
    found = []
    for compiled in (False, True):
        if compiled:
            torch.compiler.reset()
            compile_blocks(pipeline)
        losses = straighten_call(
            pipeline, times, "euler", call(**off), states, lambda k: weights.collect()
        )
        found.append((losses, [w.grad for w in weights.weights if w.grad is not None]))
        for weight in weights.weights:
            weight.grad = None
    (before, plain), (after, other) = found
    assert torch.allclose(before, after, rtol=1e-4)
    assert len(plain) == len(other) > 0
    norm = sum(float(g.norm()) ** 2 for g in plain) ** 0.5
    for one, two in zip(plain, other, strict=True):
        assert (one - two).norm() <= 1e-4 * norm


def test_a_training_looks_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in every step, where a card waits for it: diffusers goes through all modules."""
    family = FAMILIES["sd3"]
    looked: list[type] = []
    own = DiffusionPipeline._execution_device

    def device(pipeline: DiffusionPipeline) -> torch.device:
        looked.append(type(pipeline))
        return own.fget(pipeline)

    def train(iterations: int) -> tuple[type, int]:
        pipeline, rows = family.make(), range(2)

        def call(k: int = 0) -> dict[str, Any]:
            return family.prompts(rows) | {"generator": sample_generators(rows, 3)}

        states, _ = teacher_states(pipeline, GRID, KNOTS, call())
        weights = add_lora(pipeline, 2, seed=0)
        groups = Groups(call, lambda k: states, range(1), range(1))
        before = type(pipeline), len(looked)
        train_student(pipeline, SCHEDULE, weights, groups, settings(iterations), seed=0)
        assert type(pipeline) is before[0]
        return before[0], len(looked) - before[1]

    monkeypatch.setattr(DiffusionPipeline, "_execution_device", property(device))
    assert train(1) == train(3)
    assert train(1)[1] == 1


def test_the_latents_of_a_scheduler_for_each_frame() -> None:
    """SkyReels steps copies of its scheduler, one a frame."""
    rows = range(2)
    call = odd.skyreels_prompts(rows) | {"generator": sample_generators(rows, 3)}
    found = sample_pipeline(odd.skyreels(), uniform(2), call, decode=False)
    frames = found.output.frames.float()  # (B, channels, frames, height, width)
    assert torch.equal(found.latents, frames.transpose(1, 2).flatten(1))
    assert found.evaluations == 2.0


@pytest.mark.parametrize("steps", [1, 2])
def test_what_prepares_the_conditions_takes_no_step(steps: int) -> None:
    """ACE-Step has a network for them, and a ControlNet is one of every step."""
    rows = range(1)
    music = ace_step_prompts(rows) | {"guidance_scale": 1.0}
    music |= {"generator": sample_generators(rows, 3)}
    assert sample_pipeline(ace_step(), uniform(steps), music, decode=False).evaluations == steps
    call = odd.sd3_controlnet_prompts(rows) | {"guidance_scale": 1.0}
    call |= {"generator": sample_generators(rows, 3)}
    found = sample_pipeline(odd.sd3_controlnet(), uniform(steps), call, decode=False)
    assert found.evaluations == 2 * steps


def test_states_on_disk(tmp_path: Path) -> None:
    seen = torch.tensor([[True, False]])
    states = KnotStates((torch.randn(3, 1, 2), torch.randn(3, 1, 5)), seen)
    path = tmp_path / "states.safetensors"
    save_states(path, states, {"key": "k"})
    found = load_states(path)
    assert all(map(torch.equal, found.states, states.states))
    assert found.seen is not None
    assert torch.equal(found.seen, seen)
    picked = found.at([0, 2])
    assert torch.equal(picked.states[1], states.states[1][[0, 2]])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="truncated or altered"):
        load_states(path)
