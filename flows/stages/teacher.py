"""The teacher: a U-Net trained here with the flow-matching loss, or a checkpoint brought along,
which is this project's or one of Rectified Flow.

Everything downstream, student initialisation included, uses the weights saved here: the EMA.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from boss_core.checkpoints import (
    Network,
    load_checkpoint,
    load_rectified_flow,
    save_checkpoint,
)
from boss_core.draws import Share, step_generator
from boss_core.errors import InputError
from boss_core.files import write_bytes
from boss_core.losses import flow_matching_loss
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.pixels import from_uint8
from boss_core.training import Row, train
from boss_core.velocity import sample_noise, with_labels
from flows import paths
from flows.config import Params, Teacher
from flows.labels import write_label_counts
from flows.progress import progress
from flows.records import Images, read_images, read_json
from flows.runtime import device, run_stage

CURVE = ["step", "loss", "gradient_norm", "learning_rate", "validation_loss"]


def main(params: Params) -> None:
    data = read_images("train")
    data_classes = read_json(paths.DATA / "card.json")["classes"]
    curve: list[Row] = []
    network: Network
    if params.teacher.source == "checkpoint":
        network = read_teacher(params.teacher)
        shape = network.config.sample_shape
        if data.images.shape[1:] != shape:
            raise InputError(
                f"{params.teacher.path}: a network for images {'x'.join(map(str, shape))}, but the"
                f" data has {'x'.join(map(str, data.images.shape[1:]))}"
            )
    else:
        classes = data_classes if params.teacher.conditional else None
        network, curve = _train(params, data, classes, device(params))
    save_checkpoint(paths.TEACHER, network.cpu())
    write_label_counts(network.config.classes, data.labels, data_classes)
    table = pd.DataFrame(curve, columns=CURVE)
    write_bytes(paths.curves("teacher"), table.to_csv(index=False).encode())


def read_teacher(teacher: Teacher) -> Network:
    """The network that the parameters name: of Rectified Flow where they name its configuration,
    else of this project."""
    path = Path(teacher.path)
    if teacher.config is None:
        if path.is_file():
            raise InputError(
                f"params.yaml: teacher.config: null, but teacher.path, {path}, is a file; the"
                " configuration of that Rectified Flow checkpoint needed, by name or as a JSON file"
            )
        return load_checkpoint(path)[0]
    if path.is_dir():
        found = sorted(path.glob("*.pth"))
        if len(found) != 1:
            raise InputError(
                f"{path}: {len(found)} .pth files; exactly one, a Rectified Flow checkpoint, needed"
                " where teacher.config names a configuration"
            )
        path = found[0]
    return load_rectified_flow(path, teacher.config)


def _train(
    params: Params, data: Images, classes: int | None, on: torch.device
) -> tuple[UNet, list[Row]]:
    teacher = params.teacher
    if teacher.conditional and classes is None:
        raise InputError(
            "params.yaml: teacher.conditional: true needs labels, and the data has none; false"
            " needs none"
        )
    channels, height, width = data.images.shape[1:]
    if height != width:
        raise InputError(f"data: images are {width}x{height}; the U-Net needs square images")
    torch.manual_seed(params.seed)
    network = UNet(
        UNetConfig(
            image_size=height,
            channels=channels,
            base_channels=teacher.base_channels,
            channel_multipliers=tuple(teacher.channel_multipliers),
            blocks=teacher.blocks,
            attention_sizes=tuple(teacher.attention_sizes),
            classes=classes,
        )
    ).to(on)

    def pixels(rows: np.ndarray, of: Images) -> Tensor:
        return from_uint8(torch.from_numpy(np.ascontiguousarray(of.images[rows])).to(on))

    def labels(rows: np.ndarray, of: Images) -> Tensor | None:
        if classes is None or of.labels is None:
            return None
        return torch.from_numpy(of.labels[rows]).to(on)

    def loss(network: UNet, step: int, share: Share) -> Tensor:
        draw = step_generator(params.seed, step)
        rows = draw.integers(len(data.images), size=teacher.training.batch_size)
        batch = pixels(rows, data)
        noise = draw.standard_normal(batch.shape, dtype=np.float32)
        t = draw.random(len(batch), dtype=np.float32)
        return flow_matching_loss(
            with_labels(network, labels(rows, data)),
            batch,
            torch.from_numpy(noise).to(on),
            torch.from_numpy(t).to(on),
        )

    # The same held-out images, noise and times at every look, so that the curve is smooth.
    test = read_images("test")
    held_out_rows = np.arange(min(len(test.images), 512))
    held_out, held_out_labels = pixels(held_out_rows, test), labels(held_out_rows, test)
    held_out_noise = sample_noise(range(len(held_out)), tuple(held_out.shape[1:]), params.seed)
    held_out_t = (torch.arange(len(held_out), device=on) + 0.5) / len(held_out)

    def validate(network: UNet) -> Row:
        velocity = with_labels(network, held_out_labels)
        value = flow_matching_loss(velocity, held_out, held_out_noise.to(on), held_out_t)
        return {"validation_loss": float(value)}

    with progress("teacher", teacher.training.iterations, "steps") as advance:
        trained = train(network, loss, teacher.training, validate=validate, on_step=advance)
    return trained.network, trained.curve


if __name__ == "__main__":
    run_stage(main)
