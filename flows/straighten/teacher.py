"""The pipeline that a student is taught by, and how each of its samples is called."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import pipeline_hash
from boss_core.interop.guidance import without_guidance
from boss_core.interop.pipeline_checks import silent
from boss_core.interop.pipeline_encodings import free_encoders, remember_encodings
from boss_core.interop.pipeline_lora import check_adaptable, compile_blocks, denoisers, freeze
from boss_core.interop.pipeline_networks import (
    attention_layers,
    own_processors,
    pipeline_networks,
)
from boss_core.ode.timesteps import uniform
from flows.search.hub import at_revision, revision_of
from flows.search.options import parse_shape
from flows.search.pipeline_arguments import prepare_calls
from flows.search.pipeline_call import (
    SampleCalls,
    call_arguments,
    conditions,
    one_line,
    read_prompts,
)
from flows.search.pipeline_loading import load_pipeline
from flows.search.refusals import pipeline_refusals
from flows.straighten.processes import join_processes, say
from flows.straighten.request import PipelineRequest

# Prompts that are held out: this share of them, where there are at least so many.
HELD_OUT_SHARE, FEWEST_PROMPTS = 0.25, 8


@dataclass(frozen=True)
class PipelineTeacher:
    """A pipeline, on its device, whose parts need no gradients.

    hash: of its weights, the user's adapters included. conditions: of prompts and arguments.
    training, held_out: the calls of samples to learn from and to measure on.
    without: what turns guidance off in a call. student_nfe: network evaluations of a sample in a
    step then; more than 1 with control networks. compiled: blocks are, when first evaluated.
    revision: its commit, of a pipeline from the hub.
    """

    pipeline: Any
    hash: str
    conditions: str
    device: torch.device
    training: SampleCalls
    held_out: SampleCalls
    without: Mapping[str, Any] = field(default_factory=dict)
    student_nfe: float = 1.0
    compiled: bool = False
    revision: str | None = None

    def student_call(self, calls: SampleCalls, part: range, *, seed: int) -> dict[str, Any]:
        """The call of the samples without guidance."""
        return calls.call(part, seed=seed) | dict(self.without)


def load_teacher(asked: PipelineRequest) -> PipelineTeacher:
    """The pipeline that the options name, ready to be taught from; InputError for what cannot be
    trained, before any work."""
    of = asked.teacher
    on = join_processes(asked.device)
    size = None if of.size is None else parse_shape(of.size, 2)
    rows = read_prompts(of.prompts)
    calls = SampleCalls(rows, call_arguments(of.guidance, size, of.call))
    revision = of.revision or revision_of(of.source)
    source = at_revision(of.source, revision)
    pipeline, weights = load_pipeline(source, of.dtype, torch.device("cpu"))
    if asked.training.rank is not None:
        check_adaptable(pipeline)
    for number, path in enumerate(of.lora):
        _load_lora(pipeline, path, f"teacher_{number}")
    if of.lora:
        weights = pipeline_hash(pipeline)
    pipeline.to(on)
    freeze(pipeline)
    if asked.training.checkpointing:
        _checkpoint_activations(pipeline)
    if of.compile:
        compile_blocks(pipeline)
    # One sample at a time decides how batches are called: images of all, or one for each.
    calls = prepare_calls(pipeline, calls, asked.training.batch_size)
    training, held_out = _split(calls)
    with pipeline_refusals(pipeline):
        changes, evaluations = without_guidance(
            pipeline, training.call(range(1), seed=asked.seed), uniform(min(asked.budgets) + 1)
        )
    remember_encodings(pipeline)
    return PipelineTeacher(
        pipeline, weights, conditions(calls, of.dtype), on, training, held_out, changes,
        evaluations, of.compile, revision,
    )  # fmt: skip


def _load_lora(pipeline: Any, path: str, name: str) -> None:
    """An adapter of the user's, as part of the teacher; InputError where it is none of this
    pipeline's."""
    place = Path(path)
    where = {"weight_name": place.name} if place.is_file() else {}
    folder = str(place.parent) if place.is_file() else path
    before = _adapters(pipeline)
    try:
        with silent():  # of parts that it has nothing for
            pipeline.load_lora_weights(folder, adapter_name=name, **where)
    except Exception as error:  # whatever diffusers, peft and torch make of another network's
        raise InputError(
            f"--lora: {path}: no LoRA of this {type(pipeline).__name__}"
            f" ({type(error).__name__}: {one_line(error):.200}); one needed"
        ) from error
    if _adapters(pipeline) == before:
        raise InputError(
            f"--lora: {path}: nothing in it belongs to the networks of this"
            f" {type(pipeline).__name__}; a LoRA of it needed"
        )
    names = [f"teacher_{k}" for k in range(int(name.rsplit("_", 1)[1]) + 1)]
    pipeline.set_adapters(names)


def _adapters(pipeline: Any) -> int:
    """The adapters in all parts."""
    parts = (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
    return sum(len(getattr(part, "peft_config", {})) for part in parts)


def _checkpoint_activations(pipeline: Any) -> None:
    for name, network in denoisers(pipeline).items():
        if not getattr(network, "_supports_gradient_checkpointing", False):
            raise InputError(
                f"--gradient-checkpointing: the {name} of {type(pipeline).__name__} has none;"
                " leave it out, with a smaller --batch-size and more --accumulate"
            )
        network.enable_gradient_checkpointing()


def _split(calls: SampleCalls) -> tuple[SampleCalls, SampleCalls]:
    """The rows to learn from and those to measure on: the last quarter, at most 64; the same ones,
    with other noise, where there are few."""
    count = len(calls.rows)
    if count < FEWEST_PROMPTS:
        say(
            f"prompts: {count}, too few to hold any out ({FEWEST_PROMPTS} needed): the student is"
            " measured on the same ones, with other noise"
        )
        return calls, calls
    held = min(64, round(HELD_OUT_SHARE * count))
    return replace(calls, rows=calls.rows[:-held]), replace(calls, rows=calls.rows[-held:])


class _Encoded(Exception):  # noqa: N818 - the end, no error
    """What comes before the first evaluation of a network is done."""


def encode_all(pipeline: Any, calls: Sequence[Callable[[], Mapping[str, Any]]]) -> None:
    """Have the pipeline encode what these calls need, up to its first evaluation of a network, and
    free the encoders: the results are remembered."""

    def stop(*_: Any) -> None:
        raise _Encoded

    networks = pipeline_networks(pipeline)
    layers = attention_layers(networks)
    handles = [network.register_forward_pre_hook(stop) for network in networks.values()]
    try:
        for call in calls:
            stopped = suppress(_Encoded)
            with torch.no_grad(), silent(), own_processors(layers), stopped:
                pipeline(**call(), num_inference_steps=2, output_type="latent")
    finally:
        for handle in handles:
            handle.remove()
    freed = free_encoders(pipeline)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if freed:
        say(f"prompts: encoded; {freed / 2**30:,.2f} GiB of encoders freed")
