"""What straightening a pipeline costs beyond its network, at the size that people have.

    python -m benchmarks.straighten                     # SD3.5-medium, on a GPU
    python -m benchmarks.straighten --network flux      # FLUX.1-dev
    python -m benchmarks.straighten --network tiny      # on a CPU, to see that it runs

Random weights in the published configurations, random prompt embeddings, 1024 x 1024: times do not
depend on what they hold. Printed, of one run:

- a training step: one optimiser step of `train_student` (K calls of the network with gradients,
  one after another) over K bare forward and backward passes of the same network with the same
  adapter, at the same batch; and its share of the measured matrix rate;
- the search and the rollout: `estimate_pipeline_cost` and `teacher_states` over the pipeline's own
  call with as many steps.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from boss_core.interop.diffusers_pipelines import estimate_pipeline_cost, sample_generators
from boss_core.interop.diffusers_schedulers import fixed_scheduler
from boss_core.interop.pipeline_lora import add_lora, compile_blocks, freeze
from boss_core.interop.pipeline_students import Groups, train_student
from boss_core.interop.teacher_forcing import teacher_states
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import uniform
from boss_core.training.attention import whole_attention_gradients
from boss_core.training.settings import TrainingSettings

BUDGET = 4


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("sd3", "flux", "tiny"), default="sd3")
    parser.add_argument("--batch", type=int, default=4, help="samples in a call")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=6, help="training steps to time")
    parser.add_argument("--grid", type=int, default=10, help="steps of search and rollout to time")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="the blocks of the network")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device(device):
        pipeline, call = {"sd3": sd3, "flux": flux, "tiny": tiny}[asked.network](asked.batch)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    freeze(pipeline)
    table = Table(title=f"{asked.network}, batch {asked.batch}, rank {asked.rank}, {device}")
    for title in ("", "seconds", "bare", "bare over it"):
        table.add_column(title, justify="right")
    teacher(pipeline, call, asked.grid, device, table)
    Console(width=110).print(table)  # compiling may take longer than there is time
    if asked.compile:
        compile_blocks(pipeline)
    if asked.checkpointing:
        pipeline.transformer.enable_gradient_checkpointing()
    lines = student(pipeline, call, asked, device, table)
    Console(width=110).print(table)
    for line in lines:
        print(line)


def teacher(
    pipeline: Any, call: Callable[[], dict[str, Any]], grid: int, device: torch.device, table: Table
) -> None:
    """Search and rollout, against the pipeline's own call on the same steps."""
    times = uniform(grid)
    own = pipeline.scheduler

    def bare() -> None:
        pipeline.scheduler = fixed_scheduler(own, times)
        pipeline(**call(), num_inference_steps=grid, output_type="latent")
        pipeline.scheduler = own

    def search() -> None:
        estimate_pipeline_cost(pipeline, times, [call()], check=False)

    def rollout() -> None:
        teacher_states(pipeline, times, (0, grid // 2, grid), call())

    seconds = {f.__name__: timed(f, device) for f in (bare, search, rollout)}
    for name in ("search", "rollout"):
        row(table, f"{name}, {grid} steps", seconds[name], seconds["bare"])


def student(
    pipeline: Any,
    call: Callable[[], dict[str, Any]],
    asked: argparse.Namespace,
    device: torch.device,
    table: Table,
) -> list[str]:
    """A training step against bare passes, and what it says of the card."""
    times = uniform(BUDGET)
    off = {"guidance_scale": 1.0} if asked.network != "flux" else {}
    states, _ = teacher_states(pipeline, times, tuple(range(BUDGET + 1)), call())
    weights = add_lora(pipeline, asked.rank, seed=0)
    given = inputs(pipeline, call() | off)
    network = pipeline.transformer
    trained = [p for p in network.parameters() if p.requires_grad]

    @whole_attention_gradients()
    def bare() -> None:
        for _ in range(BUDGET):
            network(**given, return_dict=False)[0].float().square().mean().backward()
        for parameter in trained:
            parameter.grad = None

    passes = timed(bare, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    settings = TrainingSettings(
        iterations=asked.iterations + 2, batch_size=1, learning_rate=1e-4,
        learning_rate_schedule="cosine", warmup=1, gradient_clip=1.0, ema_decay=0.99,
    )  # fmt: skip
    ended: list[float] = []

    def on_step(_: int) -> None:
        if len(ended) in (1, asked.iterations + 1):  # the first two warm up
            synchronize(device)
        ended.append(time.perf_counter())

    groups = Groups(lambda _: call() | off, lambda _: states, range(1))
    schedule = Schedule(timesteps=tuple(times))
    train_student(pipeline, schedule, weights, groups, settings, seed=0, on_step=on_step)
    step = (ended[-1] - ended[1]) / asked.iterations
    gigabytes = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    # A card that is warm by then may be slower: hence the mean of before and after.
    passes = (passes + timed(bare, device)) / 2
    row(table, f"training step, K = {BUDGET}", step, passes)
    minutes = 1000 * step / 60
    rate = matrix_rate(device) if device.type == "cuda" else 0.0
    operations = BUDGET * counted(network, given)
    lines = [
        f"{sum(p.numel() for p in network.parameters()):,} weights,"
        f" {sum(p.numel() for p in trained):,} trained;"
        f" 1,000 steps of K = {BUDGET}: {minutes:.1f} min",
        f"{operations / 1e12:.3g} TFLOP a training step, what is computed a second time left out",
    ]
    if device.type == "cuda":
        lines.append(
            f"{operations / step / 1e12:.0f} TFLOP/s, {operations / step / rate:.0%} of the"
            f" {rate / 1e12:.0f} of a large bf16 product; {gigabytes:.1f} GiB at the most"
        )
    return lines


def counted(network: Any, given: Mapping[str, Any]) -> int:
    """Operations of a forward and backward pass, on the meta device, to which the network goes for
    good: on a card the counting itself keeps the states that checkpointing lets go."""
    network.to("meta")
    if network.is_gradient_checkpointing:
        network.disable_gradient_checkpointing()
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    counter = FlopCounterMode(display=False)
    # Compiled blocks cannot be counted.
    with torch.compiler.set_stance("force_eager"), counter:
        network(**meta, return_dict=False)[0].float().square().mean().backward()
    return counter.get_total_flops()


def inputs(pipeline: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """What the pipeline gives its network in the first step."""
    kept: dict[str, Any] = {}

    def keep(_: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        kept.update(kwargs)

    handle = pipeline.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    pipeline(**call, num_inference_steps=1, output_type="latent")
    handle.remove()
    kept.pop("return_dict", None)
    return kept


def row(table: Table, title: str, seconds: float, bare: float) -> None:
    """A line of the table."""
    table.add_row(title, f"{seconds:.3f}", f"{bare:.3f}", f"{bare / seconds:.3f}")


def timed(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Seconds, the median of a few after one that warms up."""
    found = []
    for _ in range(repeats + 1):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - began)
    return sorted(found[1:])[repeats // 2]


def synchronize(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a bf16 product of 8192 x 8192 matrices."""
    a, b, out = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(3))
    return 2 * 8192**3 / timed(lambda: torch.mm(a, b, out=out), device, repeats=20)


def sd3(batch: int) -> tuple[Any, Callable[[], dict[str, Any]]]:
    """Stable Diffusion 3.5 medium."""
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, num_layers=24, attention_head_dim=64,
        num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536,
        pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
    ).to(torch.bfloat16)  # fmt: skip
    return of_sd3(transformer, batch, tokens=333, width=4096, pooled=2048, size=1024)


def tiny(batch: int) -> tuple[Any, Callable[[], dict[str, Any]]]:
    """A network of no consequence, for a CPU."""
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=64,
        pooled_projection_dim=64, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    return of_sd3(transformer, batch, tokens=8, width=32, pooled=64, size=128)


def of_sd3(
    transformer: Any, batch: int, *, tokens: int, width: int, pooled: int, size: int
) -> tuple[Any, Callable[[], dict[str, Any]]]:
    """Its pipeline, and the arguments of a call with guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    none = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3",
         "tokenizer_3")
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, **none)
    dtype = transformer.dtype
    given = {
        "prompt_embeds": torch.randn(batch, tokens, width, dtype=dtype),
        "negative_prompt_embeds": torch.randn(batch, tokens, width, dtype=dtype),
        "pooled_prompt_embeds": torch.randn(batch, pooled, dtype=dtype),
        "negative_pooled_prompt_embeds": torch.randn(batch, pooled, dtype=dtype),
        "guidance_scale": 4.5, "height": size, "width": size,
    }  # fmt: skip
    return pipeline, lambda: given | {"generator": sample_generators(range(batch), 0)}


def flux(batch: int) -> tuple[Any, Callable[[], dict[str, Any]]]:
    """FLUX.1-dev: 12 billion weights."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    transformer = FluxTransformer2DModel(guidance_embeds=True)
    torch.set_default_dtype(before)
    none = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipeline = FluxPipeline(transformer=transformer, scheduler=scheduler, **none)
    given = {
        "prompt_embeds": torch.randn(batch, 512, 4096, dtype=torch.bfloat16),
        "pooled_prompt_embeds": torch.randn(batch, 768, dtype=torch.bfloat16),
        "guidance_scale": 3.5, "height": 1024, "width": 1024,
    }  # fmt: skip
    return pipeline, lambda: given | {"generator": sample_generators(range(batch), 0)}


if __name__ == "__main__":
    main()
