"""Trains a small network with checkpoints, as a process that tests kill or start twice.

python -m tests.helpers.trainer FOLDER [name=value ...]; the result lies in
FOLDER/result.safetensors.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import distributed

from boss_core.io.pixels import from_uint8
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.training import distributed as processes
from boss_core.training.device_rows import DeviceRows
from boss_core.training.flow_matching import flow_matching_loss
from boss_core.training.loop import train
from boss_core.training.randomness import device_generator, step_generator
from boss_core.training.resume import Checkpoints
from boss_core.training.settings import TrainingSettings

CPU = torch.device("cpu")
SIZE = 8
DEFAULTS = {
    "kill_at": -1, "iterations": 40, "learning_rate": 1e-3, "data_seed": 0, "start_seed": 0,
    "nan_at": -1,
}  # fmt: skip


def main(folder: Path, given: dict[str, float]) -> None:
    """Write the gradient of the first step, the averaged weights and the curve; the main process
    dies at step ``kill_at``. In float64: Adam makes noise of the gradients that should be 0."""
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo")
    main_process = processes.own_share().rank == 0
    images = np.random.default_rng(int(given["data_seed"])).integers(256, size=(60, 1, 8, 8))
    data = DeviceRows.of(images.astype(np.uint8), CPU)
    torch.manual_seed(int(given["start_seed"]))
    network = UNet(UNetConfig(
        image_size=8, channels=1, base_channels=8, channel_multipliers=(1, 2), blocks=1,
        attention_sizes=(4,),
    )).double()  # fmt: skip
    torch.nn.init.normal_(network.last.weight, std=0.1)  # 0 would hide the gradient of the rest
    batch = data.batches(
        lambda step, share: (share.take(step_generator(0, step).integers(60, size=SIZE)),)
    )

    def loss(network, step, share):
        draw = device_generator(0, step, CPU)
        noise = torch.randn(SIZE, 1, 8, 8, generator=draw).double()
        t = torch.rand(SIZE, generator=draw).double()
        pixels = from_uint8(batch(step, share)).double()
        value = flow_matching_loss(network, pixels, share.take(noise), share.take(t))
        # In the last process alone: the others have to hear of it.
        ill = step == given["nan_at"] and share.rank == share.of - 1
        return value * (torch.nan if ill else 1.0)

    share, whole = processes.own_share(), processes.BatchShare()
    loss(network, 0, share).backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    if share.of > 1:
        processes.average(list(gradients.values()))
    if main_process:
        tensors = {name: g.contiguous() for name, g in gradients.items()}
        save_file(tensors, folder / "gradient.safetensors")

    done = 0

    def on_step(steps: int) -> None:
        nonlocal done
        done += steps
        if done == given["kill_at"] and main_process:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = TrainingSettings(
        iterations=int(given["iterations"]), batch_size=SIZE, learning_rate=given["learning_rate"],
        learning_rate_schedule="cosine", warmup=5, gradient_clip=1.0, ema_decay=0.9,
    )  # fmt: skip
    kept = Checkpoints(folder / "checkpoints", 10, {"seed": 0}, [data.array])
    trained = train(
        network, loss, settings, log_every=7, on_step=on_step, checkpoints=kept,
        validate=lambda network: {"validation_loss": float(loss(network, 99, whole))},
    )  # fmt: skip
    if main_process:
        tensors = {n: t.contiguous() for n, t in trained.network.state_dict().items()}
        save_file(tensors, folder / "result.safetensors")
        (folder / "curve.json").write_text(json.dumps(trained.curve))


if __name__ == "__main__":
    pairs = (argument.split("=") for argument in sys.argv[2:])
    main(Path(sys.argv[1]), DEFAULTS | {name: float(value) for name, value in pairs})
