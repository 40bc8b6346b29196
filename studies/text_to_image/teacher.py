"""A small text-to-image pipeline, trained on CIFAR-10 with captions made from its labels.

    python -m studies.text_to_image.teacher FOLDER --data CIFAR10 --minutes 8

Flow matching on the linear path (Lipman et al. 2023), as Stable Diffusion 3 trains: noise levels
by a logit-normal law, x_t = (1 - sigma) x + sigma noise, and the network learns noise - x. Writes
``pipeline/``, which diffusers loads, pictures of its samples and ``teacher.json`` into FOLDER.
Another call goes on from there: with the state of the optimiser where FOLDER still has
``training.pt``, else from the weights of the pipeline alone.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from boss_core.errors import InputError
from boss_core.io.files import replacing, replacing_folder, write_bytes
from boss_core.io.pixels import from_uint8, to_uint8
from boss_core.ode.noise import sample_noise
from studies.text_to_image.autoencoder import SCALING
from studies.text_to_image.captions import (
    CLASSES,
    SIDE,
    TEMPLATES,
    every_caption,
    grid,
    prompts,
    read_cifar10,
)
from studies.text_to_image.pipeline import CALL, Size, describe, load_pipeline, make_pipeline

PIPELINE, STATE, RECORD = "pipeline", "training.pt", "teacher.json"
DROPPED = 0.1  # the share of captions left out, which classifier-free guidance needs
EMA, CLIP = 0.999, 1.0
DECAY_FROM = 0.7  # of the time: the learning rate falls to 0 from there on
GRID_EVERY, LOG_EVERY = 120.0, 100  # seconds, steps
STEPS = 28  # of the samples in a picture


@dataclass
class Training:
    """What a step changes. averaged: the exponential average of the weights, which is kept."""

    network: Any
    averaged: Any
    optimizer: torch.optim.Optimizer
    step: int = 0
    fresh: int = 0  # the step at which the optimiser began

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }


def main(arguments: list[str] | None = None) -> None:
    """Train for so many minutes."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--images", type=int, help="of the training set, from its start; all")
    parser.add_argument("--minutes", type=float, default=8.0, help="with compiling and pictures")
    parser.add_argument("--steps", type=int, help="in place of minutes")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--warmup", type=int, default=500, help="steps up to the learning rate")
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--heads", type=int, default=Size.heads)
    parser.add_argument("--head", type=int, default=Size.head, help="channels of each head")
    parser.add_argument("--guidance", type=float, default=3.0, help="of the pictures")
    parser.add_argument("--shown", type=int, default=8, help="samples of each class in a picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    try:
        train(parser.parse_args(arguments))
    except InputError as error:
        sys.exit(f"error: {error}")


def train(chosen: argparse.Namespace) -> None:
    """Until the time is over; then the pipeline, its record and its pictures are in the folder."""
    began = time.monotonic()
    device = torch.device(chosen.device)
    torch.set_float32_matmul_precision("high")
    images, labels = read_cifar10(chosen.data, "train", chosen.images)
    data = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    size = Size(chosen.layers, chosen.heads, chosen.head)
    pipeline, run = _start(chosen, size, device)
    record = _record(chosen.folder)
    record["size"] = describe(size, run.network)
    record["images"] = len(images)
    encoded = _encode_captions(pipeline, device)
    flops = 3 * _flops(run.averaged, encoded)  # backward takes twice as much
    print(
        f"teacher: {record['size']['parameters']:,} weights, {flops / 1e9:.1f} GFLOP an image;"
        f" {len(images):,} images; from step {run.step}",
        flush=True,
    )
    if not chosen.no_compile:
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
        for block in run.network.transformer_blocks:
            block.compile(dynamic=False)
    torch.manual_seed(chosen.seed + run.step)
    started, logged, shown = run.step, (time.monotonic(), run.step), time.monotonic()
    losses: list[Tensor] = []
    while True:
        share = (time.monotonic() - began) / (60.0 * chosen.minutes)
        if chosen.steps:
            share = (run.step - started) / chosen.steps
        if share >= 1.0 and run.step > started:
            break
        rate = chosen.learning_rate * _rate((run.step - run.fresh + 1) / chosen.warmup, share)
        losses.append(_step(run, data, encoded, chosen.batch_size, rate))
        if len(losses) == LOG_EVERY:
            value = float(torch.stack(losses).mean())
            losses.clear()
            speed = (run.step - logged[1]) * chosen.batch_size / (time.monotonic() - logged[0])
            logged = time.monotonic(), run.step
            row = {"step": run.step, "loss": value, "images_per_second": speed, "rate": rate}
            record["curve"].append(row)
            if run.step % (5 * LOG_EVERY) == 0 or len(record["curve"]) == 1:
                print(
                    f"step {run.step:>6}: loss {value:.4f}, {speed:,.0f} images/s,"
                    f" {speed * flops / 1e12:.0f} TFLOP/s, {share:.0%} of the time",
                    flush=True,
                )
            if not np.isfinite(value):
                raise InputError(f"training: loss {value} at step {run.step}; a lower rate needed")
        if time.monotonic() - shown > GRID_EVERY:
            _picture(chosen, pipeline, run.step)
            shown = time.monotonic()
    _ran(record, chosen, run.step, run.step - started, (time.monotonic() - began) / 60.0)
    _finish(chosen, pipeline, run, record)


def _ran(
    record: dict[str, Any], chosen: argparse.Namespace, step: int, steps: int, minutes: float
) -> None:
    """Note what this call did."""
    run = {"minutes": minutes, "steps": steps, "batch_size": chosen.batch_size}
    run |= {"learning_rate": chosen.learning_rate, "device": _name(torch.device(chosen.device))}
    record["runs"].append(run)
    record["steps"] = step
    record["samples_seen"] = sum(r["steps"] * r["batch_size"] for r in record["runs"])


def _start(
    chosen: argparse.Namespace, size: Size, device: torch.device
) -> tuple[StableDiffusion3Pipeline, Training]:
    """A pipeline whose transformer is the average, and the training, new or as it was left."""
    there = chosen.folder / PIPELINE
    fresh = not there.exists()
    if fresh:
        pipeline = make_pipeline(size, chosen.seed).to(device)
    else:
        pipeline = load_pipeline(there, device, torch.float32)
        config = pipeline.transformer.config
        found = config.num_layers, config.num_attention_heads, config.attention_head_dim
        if found != (size.layers, size.heads, size.head):
            raise InputError(
                f"{there}: layers, heads, channels of a head {found}, but"
                f" {(size.layers, size.heads, size.head)} asked for; the same, or another folder,"
                " needed"
            )
    averaged = pipeline.transformer.requires_grad_(False).eval()
    network = copy.deepcopy(averaged).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
    )
    run = Training(network, averaged, optimizer)
    state = chosen.folder / STATE
    if not fresh and state.exists():
        kept = torch.load(state, map_location=device, weights_only=True)
        network.load_state_dict(kept["network"])
        averaged.load_state_dict(kept["averaged"])
        optimizer.load_state_dict(kept["optimizer"])
        run.step = kept["step"]
    elif not fresh:
        run.step = run.fresh = _record(chosen.folder).get("steps", 0)
    return pipeline, run


@torch.no_grad()
def _encode_captions(pipeline: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the pipeline's own prompt path makes of every caption, and of none: the last one."""
    tokens, _, pooled, _ = pipeline.encode_prompt(
        [*every_caption(), ""], None, None, do_classifier_free_guidance=False, device=device,
        max_sequence_length=CALL["max_sequence_length"],
    )  # fmt: skip
    return tokens.float(), pooled.float()


def _step(
    run: Training,
    data: tuple[Tensor, Tensor],
    encoded: tuple[Tensor, Tensor],
    batch_size: int,
    rate: float,
) -> Tensor:
    """One step of AdamW; its loss, for which the host does not wait."""
    images, labels = data
    device = images.device
    chosen = torch.randint(len(images), (batch_size,), device=device)
    x = from_uint8(images[chosen]) * SCALING
    x = torch.where(torch.rand(batch_size, 1, 1, 1, device=device) < 0.5, x.flip(-1), x)
    texts = labels[chosen] * len(TEMPLATES)
    texts = texts + torch.randint(len(TEMPLATES), (batch_size,), device=device)
    none = torch.rand(batch_size, device=device) < DROPPED
    texts = torch.where(none, len(CLASSES) * len(TEMPLATES), texts)
    sigma = torch.randn(batch_size, device=device).sigmoid()
    noise = torch.randn_like(x)
    level = sigma.view(-1, 1, 1, 1)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        velocity = run.network(
            hidden_states=(1.0 - level) * x + level * noise,
            timestep=1000.0 * sigma,
            encoder_hidden_states=encoded[0][texts],
            pooled_projections=encoded[1][texts],
            return_dict=False,
        )[0]
    loss = F.mse_loss(velocity.float(), noise - x)
    loss.backward()
    nn.utils.clip_grad_norm_(run.network.parameters(), CLIP)
    run.optimizer.step()
    run.step += 1
    decay = min(EMA, run.step / (10.0 + run.step))
    with torch.no_grad():
        torch._foreach_lerp_(
            list(run.averaged.parameters()), list(run.network.parameters()), 1.0 - decay
        )
    return loss.detach()


def _rate(warm: float, share: float) -> float:
    """Of the peak learning rate: up in the warm-up, down in the last part of the time.

    warm: the share of the warm-up that is done, beyond 1 after it. share: of the time."""
    down = min(1.0, max(0.0, 1.0 - share) / (1.0 - DECAY_FROM))
    return min(1.0, warm) * down


def _flops(network: nn.Module, encoded: tuple[Tensor, Tensor]) -> float:
    """Of one evaluation for one image, as torch counts them."""
    device = encoded[0].device
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network(
            hidden_states=torch.zeros(1, 3, SIDE, SIDE, device=device),
            timestep=torch.zeros(1, device=device),
            encoder_hidden_states=encoded[0][:1],
            pooled_projections=encoded[1][:1],
        )
    return float(counted.get_total_flops())


def _picture(chosen: argparse.Namespace, pipeline: Any, step: int) -> None:
    """Samples of the average: a class a row."""
    count = chosen.shown * len(CLASSES)
    texts, _ = prompts(count)
    noise = sample_noise(range(count), (3, SIDE, SIDE), chosen.seed).to(pipeline.device)
    images = pipeline(
        prompt=texts, latents=noise, guidance_scale=chosen.guidance, num_inference_steps=STEPS,
        output_type="latent", **CALL,
    ).images  # fmt: skip
    pixels = to_uint8(images.float() / SCALING).cpu().numpy()
    rows = np.arange(count).reshape(chosen.shown, len(CLASSES)).T.reshape(-1)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    grid(pixels[rows], chosen.shown).save(chosen.folder / f"grid-{step:06d}.png")


def _finish(
    chosen: argparse.Namespace, pipeline: Any, run: Training, record: dict[str, Any]
) -> None:
    """The state first: where the rest is cut off, another call goes on from it."""
    folder = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / STATE) as path:
        torch.save(run.state(), path)
    _picture(chosen, pipeline, run.step)
    half = copy.deepcopy(run.averaged)
    whole = StableDiffusion3Pipeline(**{**pipeline.components, "transformer": half.bfloat16()})
    with replacing_folder(folder / PIPELINE) as path:
        whole.save_pretrained(path)
    write_bytes(folder / RECORD, json.dumps(record, indent=1).encode() + b"\n")
    print(f"{folder}: step {run.step}; {record['samples_seen']:,} images seen", flush=True)


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    return json.loads(path.read_text()) if path.exists() else {"curve": [], "runs": []}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
