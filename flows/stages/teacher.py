"""The teacher: a U-Net, NCSN++ or DDPM++ trained here with the flow-matching loss, a checkpoint
brought along, which is this project's or one of Rectified Flow, or a diffusers pipeline.

Everything downstream, student initialisation included, uses the weights saved here: the EMA.
"""

from pathlib import Path

import torch

from boss_core.checkpoints.folder import (
    Network,
    load_checkpoint,
    load_rectified_flow,
    save_checkpoint,
)
from boss_core.checkpoints.rectified_flow import read_config
from boss_core.errors import InputError
from boss_core.networks.ncsnpp import NCSNpp, NCSNppConfig
from boss_core.networks.ncsnpp_init import initialise
from boss_core.networks.threads import is_small
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.training.flow_matching import LabelledImages
from boss_core.training.loop import Row, Trained, train
from boss_core.training.resume import Checkpoints
from flows import paths
from flows.config import Params, Teacher, network_settings
from flows.measure.energy import Usage, measured
from flows.measure.usage import write_usage
from flows.records.json_files import Images, read_images, read_json
from flows.records.labels import write_label_counts
from flows.records.tables import write_table
from flows.stages.runner import device, is_main, run_stage
from flows.stages.training import checkpoints, training_progress

CURVE = ["step", "loss", "gradient_norm", "learning_rate", "validation_loss"]


def main(params: Params) -> None:
    if params.teacher.source == "diffusers":
        from flows.stages.pipelines.teacher import write_teacher

        write_teacher(params)
        _write_curve([])
        write_usage("teacher", {"training": None})
        return
    data = read_images("train")
    data_classes = read_json(paths.DATA / "card.json")["classes"]
    curve: list[Row] = []
    network: Network
    kept: Checkpoints | None = None
    usage: Usage | None = None
    if params.teacher.source == "checkpoint":
        network = read_teacher(params.teacher)
        check_shape(network.config.sample_shape, data.images.shape[1:], params.teacher)
    else:
        classes = data_classes if params.teacher.conditional else None
        trained, kept, usage = _train(params, data, classes)
        if not is_main():
            return
        network, curve = trained.network, trained.curve
    save_checkpoint(paths.TEACHER, network.cpu())
    write_label_counts(network.config.classes, data.labels, data_classes)
    _write_curve(curve)
    write_usage("teacher", {"training": usage})
    if kept is not None:
        kept.remove()


def _write_curve(curve: list[Row]) -> None:
    write_table(paths.curves("teacher"), curve, CURVE)


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


def check_shape(of_network: tuple[int, ...], of_data: tuple[int, ...], teacher: Teacher) -> None:
    """InputError unless the network of the parameters is for images (C, H, W) as the data's."""
    if tuple(of_network) != tuple(of_data):
        name = "path" if teacher.source == "checkpoint" else "config"
        found, needed = ("x".join(map(str, shape)) for shape in (of_network, of_data))
        raise InputError(
            f"params.yaml: teacher.{name}: {getattr(teacher, name)} is for images {found}, but the"
            f" data has {needed}; the same needed"
        )


def _train(
    params: Params, data: Images, classes: int | None
) -> tuple[Trained[UNet | NCSNpp], Checkpoints, Usage | None]:
    """The network, its checkpoints, and what all of the training took; None where it went on."""
    teacher, size = params.teacher, params.teacher.training.batch_size
    if teacher.conditional and classes is None:
        raise InputError(
            "params.yaml: teacher.conditional: true needs labels, and the data has none; false"
            " needs none"
        )
    torch.manual_seed(params.seed)
    network = _new_network(teacher, data.images.shape[1:], classes)
    on = device(params, small=is_small(network))
    network.to(on)
    learned = LabelledImages.of(data.images, data.labels if classes is not None else None, on)
    test = read_images("test")
    held_out = LabelledImages.of(test.images, test.labels if classes is not None else None, on)
    validation_loss = held_out.validation_loss(seed=params.seed)
    kept = checkpoints(
        params,
        "teacher",
        {"network": network.config.model_dump(mode="json"), "flip": teacher.flip},
        [data.images] if learned.labels is None else [data.images, learned.labels.array],
    )
    iterations = teacher.training.iterations
    with (
        training_progress("teacher", iterations) as advance,
        measured(on, iterations * size) as usage,
    ):
        trained = train(
            network,
            learned.training_loss(seed=params.seed, batch_size=size, flip=teacher.flip),
            teacher.training,
            precision=params.compute.precision,
            compile=params.compute.compile,
            validate=lambda network: {"validation_loss": validation_loss(network)},
            on_step=advance,
            checkpoints=kept,
        )
    return trained, kept, None if trained.start else usage


def _new_network(teacher: Teacher, shape: tuple[int, ...], classes: int | None) -> UNet | NCSNpp:
    """What the parameters describe, for images of that shape; InputError where they do not fit."""
    channels, height, width = shape
    if teacher.config is not None:
        config = config_to_train(teacher)
        check_shape(config.sample_shape, shape, teacher)
        network = NCSNpp(config)
        initialise(network)
        return network
    return UNet(
        network_settings(
            UNetConfig,
            "teacher",
            image_size=height,
            image_width=None if width == height else width,
            channels=channels,
            base_channels=teacher.base_channels,
            channel_multipliers=tuple(teacher.channel_multipliers),
            blocks=teacher.blocks,
            attention_sizes=tuple(teacher.attention_sizes),
            classes=classes,
        )
    )


def config_to_train(teacher: Teacher) -> NCSNppConfig:
    """The configuration that the parameters name, of a network to train."""
    assert teacher.config is not None
    if teacher.conditional:
        raise InputError(
            f"params.yaml: teacher.conditional: true with teacher.config: {teacher.config}, a"
            " network without classes; false, or config: null for a U-Net, needed"
        )
    return read_config(teacher.config)[0]


if __name__ == "__main__":
    run_stage(main, trains=lambda params: params.teacher.source == "train")
