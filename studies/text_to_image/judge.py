"""How good the samples of a small text-to-image pipeline are, in few steps and of its students.

    python -m studies.text_to_image.judge FOLDER --data CIFAR10 --classifier FILE [--lite0 FILE]

Reads all sets in FOLDER/samples and writes FOLDER/judged.json and, for comparisons in pairs,
FOLDER/distances.npz: for each set the squared distance of latents to the teacher's from the same
noise and prompt; the share of images that a CIFAR-10 classifier takes for what the prompt names;
and the Frechet and kernel distances to the teacher's samples and to real test images, by the
features of that classifier and of EfficientNet-Lite0, which has seen neither the data nor the
networks. Sets that were judged already are not judged again. A picture of some samples of each set
goes to FOLDER/pictures.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boss_core.errors import InputError
from boss_core.io.files import replacing, sha256, write_bytes
from boss_core.networks.classifier import Classifier, load_classifier
from studies.text_to_image.captions import CLASSES, grid, prompts, read_cifar10
from studies.text_to_image.frechet import (
    Features,
    frechet_distance,
    kernel_distance,
    of_features,
)
from studies.text_to_image.samples import FOLDER, TEACHER, read_made, read_set, set_path

LITE0 = "efficientnet_lite0"
RESULTS, DISTANCES, PICTURES = "judged.json", "distances.npz", "pictures"
SHOWN = 2 * len(CLASSES)  # of each set
TOGETHER = 500  # images

Judge = Callable[[Tensor], Tensor]  # uint8 images (B, 3, H, W) to features


def main(arguments: list[str] | None = None) -> None:
    """Judge what was not."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--real", type=int, default=4096, help="test images, at most")
    parser.add_argument(
        "--classifier",
        type=Path,
        default=Path("../shared/data/cifar10-classifier/classifier.safetensors"),
    )
    parser.add_argument("--judges", nargs="+", choices=["classifier", LITE0], default=None,
                        help="all that are there")  # fmt: skip
    parser.add_argument("--lite0", type=Path, help="its weights; those of the installed package")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    try:
        judge(parser.parse_args(arguments))
    except InputError as error:
        sys.exit(f"error: {error}")


def judge(chosen: argparse.Namespace) -> None:
    """All sets in the folder; InputError without the teacher's."""
    device = torch.device(chosen.device)
    folder: Path = chosen.folder
    names = sorted(path.stem for path in (folder / FOLDER).glob("*.safetensors"))
    if TEACHER not in names:
        raise InputError(f"{folder / FOLDER}: no {TEACHER}.safetensors; the teacher's set needed")
    classifier = load_classifier(chosen.classifier).to(device)
    judges: dict[str, Judge] = {"classifier": classifier.features}
    if chosen.judges is None or LITE0 in chosen.judges:
        judges |= _independent(chosen, device)
    real, _ = read_cifar10(chosen.data, "test", chosen.real)
    teacher, latents, images = read_set(set_path(folder, TEACHER))
    about = {
        "samples": len(images), "real": len(real), "judges": list(judges),
        "classifier": sha256(chosen.classifier)[:12], "teacher": teacher.key,
    }  # fmt: skip
    path = folder / RESULTS
    kept = json.loads(path.read_text()) if path.exists() else {}
    results = kept.get("sets", {}) if kept.get("about") == about else {}
    distances = _distances(folder) if results else {}
    references = {
        name: {
            TEACHER: of_features(_features(network, images, device)),
            "real": of_features(_features(network, real, device)),
        }
        for name, network in judges.items()
    }
    _picture(folder, TEACHER, images)
    for name in names:
        made = read_made(set_path(folder, name))
        key = sha256(set_path(folder, name))
        if results.get(name, {}).get("sha256") == key and name in distances:
            continue
        _, own, pixels = read_set(set_path(folder, name))
        if own.shape != latents.shape:
            raise InputError(
                f"{set_path(folder, name)}: {tuple(own.shape)}; {tuple(latents.shape)}, as the"
                " teacher's, needed"
            )
        distances[name] = (own - latents).square().flatten(1).sum(dim=1).numpy()
        results[name] = asdict(made) | {"sha256": key, "distance": _mean(distances[name])}
        results[name] |= _right(classifier, pixels, device)
        for of_judge, network in judges.items():
            found = of_features(_features(network, pixels, device))
            results[name] |= _compare(of_judge, found, references[of_judge], name)
        _picture(folder, name, pixels)
        print(
            f"{name}: distance {results[name]['distance']['mean']:.4g}, right class"
            f" {results[name]['right_class']['mean']:.1%}",
            flush=True,
        )
    results = {name: results[name] for name in names}
    with replacing(folder / DISTANCES) as part, part.open("wb") as file:
        np.savez(file, **{name: distances[name].astype(np.float32) for name in names})
    write_bytes(path, json.dumps({"about": about, "sets": results}, indent=1).encode() + b"\n")


def _distances(folder: Path) -> dict[str, NDArray[Any]]:
    path = folder / DISTANCES
    if not path.exists():
        return {}
    with np.load(path) as kept:
        return {name: kept[name] for name in kept.files}


def _independent(chosen: argparse.Namespace, device: torch.device) -> dict[str, Judge]:
    """EfficientNet-Lite0, where its code and weights are there; else InputError if it was asked
    for, or a line."""
    needed = chosen.lite0 is not None or chosen.judges is not None
    try:
        if importlib.util.find_spec("boss_core.networks.efficientnet") is None:
            raise InputError("EfficientNet-Lite0: no code for it in this version; a later needed")
        module: Any = importlib.import_module("boss_core.networks.efficientnet")
        weights = chosen.lite0 or module.published_weights()
        return {LITE0: module.load_efficientnet(weights).to(device)}
    except InputError as error:
        if needed:
            raise
        print(f"judge: left out: {error}", flush=True)
        return {}


@torch.no_grad()
def _features(network: Judge, images: NDArray[np.uint8], device: torch.device) -> Tensor:
    found = [network(part.to(device)) for part in torch.from_numpy(images).split(TOGETHER)]
    return torch.cat(found)


@torch.no_grad()
def _right(
    classifier: Classifier, images: NDArray[np.uint8], device: torch.device
) -> dict[str, Any]:
    """How often the classifier sees what the prompt names."""
    _, labels = prompts(len(images))
    logits = _features(classifier, images, device)
    return {"right_class": _mean((logits.argmax(dim=1).cpu().numpy() == labels).astype(float))}


def _compare(
    of_judge: str, found: Features, references: dict[str, Features], name: str
) -> dict[str, Any]:
    compared: dict[str, Any] = {}
    for to, reference in references.items():
        if name == to:
            continue
        kernel, spread = kernel_distance(found, reference)
        compared[f"frechet_{of_judge}_{to}"] = frechet_distance(found, reference)
        compared[f"kid_{of_judge}_{to}"] = {"mean": kernel, "deviation": spread}
    return compared


def _mean(values: NDArray[Any]) -> dict[str, float]:
    """With its standard error."""
    error = float(values.std(ddof=1) / len(values) ** 0.5)
    return {"mean": float(values.mean()), "error": error}


def _picture(folder: Path, name: str, images: NDArray[np.uint8]) -> None:
    path = folder / PICTURES / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(images[:SHOWN], len(CLASSES), scale=1).save(path)


if __name__ == "__main__":
    main()
