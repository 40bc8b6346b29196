"""No file that the project reads can run code: each in turn is replaced by ones that would."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch_fidelity.sample_similarity_lpips import URL_VGG16_LPIPS
from torchvision.models import VGG16_Weights

from boss_core.checkpoints.folder import load_checkpoint, save_checkpoint
from boss_core.checkpoints.rectified_flow import load_rectified_flow, read_config
from boss_core.costs.cost_file import read_costs
from boss_core.data.arrays import npy, npz
from boss_core.data.folder import folder
from boss_core.data.images import image_shape, read_images
from boss_core.data.parquet import parquet
from boss_core.errors import InputError
from boss_core.evaluation.extractors import Extractor, feature_function
from boss_core.evaluation.frechet import evaluate_images
from boss_core.networks.classifier import Classifier, ClassifierConfig, save_classifier
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.search.lpips import load_lpips
from flows.config import load_params
from flows.records.extractor import read_extractor
from flows.search.export import read_schedule
from tests.helpers.project import Project

CPU = torch.device("cpu")
MARK = "code-ran"


class Attack:
    """Unpickled, it leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.mark = folder / MARK

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.mark}'",)


def attacks(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The contents of files that run code in whoever reads them without care."""
    made = folder / "attack"
    attack = Attack(folder)
    yield "pickle", pickle.dumps(attack)
    for name, content in (("tensors", {"a": attack}), ("object", attack)):
        torch.save(content, made)
        yield f"torch {name}", made.read_bytes()
    torch.save({"a": attack}, made, _use_new_zipfile_serialization=False)
    yield "torch legacy", made.read_bytes()
    with made.open("wb") as file:
        np.save(file, np.array([attack], dtype=object), allow_pickle=True)
    yield "npy", made.read_bytes()
    with made.open("wb") as file:
        objects = np.array([attack], dtype=object)
        np.savez(file, **dict.fromkeys(("images", "labels", "cost", "search", "sum"), objects))
    yield "npz", made.read_bytes()
    yield "yaml", f"!!python/object/apply:os.system [\"touch '{attack.mark}'\"]\n".encode()
    made.unlink()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """Read without care, each of them leaves its mark."""
    readers = {
        "pickle": lambda path: pickle.loads(path.read_bytes()),
        "npy": lambda path: np.load(path, allow_pickle=True),
        "npz": lambda path: np.load(path, allow_pickle=True)["images"],
        "yaml": lambda path: yaml.unsafe_load(path.read_text()),
    }
    for kind, content in attacks(tmp_path):
        path = tmp_path / "file"
        path.write_bytes(content)
        read = readers.get(kind, lambda path: torch.load(path, weights_only=False))
        read(path)
        assert (tmp_path / MARK).exists(), kind
        (tmp_path / MARK).unlink()


# Runs stages in one process, each of whose files is first what runs code where that kind of file is
# read without care, then a pickle of torch. How they end is of no matter; where the first did not
# disturb a stage, it does not read the file. What Python does not open for the stage is replaced
# all at once (but .safetensors, which others open): a stage that ends well has read none of it, and
# else each file is replaced alone.
WALK = """
import contextlib, importlib, io, json, os, sys
from pathlib import Path
from flows.config import load_params
contents, stages, mark = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
own = {".npy": "npy", ".npz": "npz", ".pt": "torch object", ".json": "yaml", ".csv": "pickle"}
read, opened = {}, set()
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        opened.add(os.path.abspath(arguments[0]))
sys.addaudithook(note)
def run(stage, arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module(f"flows.stages.{stage}").main(load_params(), *arguments)
def disturbs(stage, arguments, replaced):
    good = {name: Path(name).read_bytes() for name in replaced}
    for name, kind in replaced.items():
        Path(name).write_bytes((contents / kind).read_bytes())
    try:
        run(stage, arguments)
        failed = False
    except BaseException:
        failed = True
    for name, content in good.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    if mark.exists():
        raise SystemExit(f"{stage}: of {replaced} one ran code")
    return failed
for stage, arguments, files in stages:
    opened.clear()
    run(stage, arguments)  # or its failures would say nothing
    first = {name: own.get(Path(name).suffix, "torch legacy") for name in files}
    closed = {
        name: kind for name, kind in first.items()
        if os.path.abspath(name) not in opened and not name.endswith(".safetensors")
    }
    if disturbs(stage, arguments, closed):
        closed = {}
    for name in files:
        if name not in closed and disturbs(stage, arguments, {name: first[name]}):
            read.setdefault(stage, []).append(name)
            disturbs(stage, arguments, {name: "torch tensors"})
print(json.dumps(read))
"""


def read_files(project: Project) -> list[tuple[str, list[int], list[str]]]:
    """Each stage, its arguments, and every data file that dvc.yaml says it reads."""
    text = (project.folder / "dvc.lock").read_text()
    found = []
    for name, stage in yaml.safe_load(text)["stages"].items():
        stage_name, _, budget = name.partition("@")
        if budget == "1":
            continue  # as for the other
        files = []
        for entry in stage.get("deps", []):
            path = project.folder / entry["path"]
            if Path(entry["path"]).parts[0] in ("boss_core", "flows") or path.name == "params.ok":
                continue
            inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            files += [str(p.relative_to(project.folder)) for p in inside]
        files = [f for f in files if not f.startswith(("inputs/", "samples/"))]
        found.append((stage_name, [int(budget)] if budget else [], files))
    return found


@pytest.mark.long
@pytest.mark.slow
def test_no_output_of_a_stage_runs_code_in_the_next(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    # A stage that does not read the file is run to its end: the shortest that the files allow. The
    # classifier is the same, or the features that are kept of its reference would be of another.
    short = {"teacher.training.iterations": 1, "finetune.training.iterations": 1}
    project.set(short | {"evaluate.samples": 32})
    contents = tmp_path / "contents"
    contents.mkdir()
    for kind, content in attacks(project.folder):
        (contents / kind).write_bytes(content)
    stages = json.dumps(read_files(project))
    done = project.run("python", "-c", WALK, str(contents), stages, MARK)
    read = json.loads(done.stdout.splitlines()[-1])
    # The walk means something: these are the files that the stages do read.
    suffixes = {Path(name).suffix for names in read.values() for name in names}
    assert {".npy", ".npz", ".json", ".pt", ".safetensors", ".csv"} <= suffixes
    assert read.keys() >= {"cost", "schedule", "trajectories", "finetune", "floor", "evaluate"}
    assert not (project.folder / MARK).exists()


def checkpoint(weights: bool) -> Callable[[Path], Any]:
    """A folder whose card or whose weights are the file."""

    def load(path: Path) -> None:
        folder = path.with_name("checkpoint")
        shutil.rmtree(folder, ignore_errors=True)
        config = UNetConfig(
            image_size=8,
            channels=1,
            base_channels=8,
            channel_multipliers=(1,),
            blocks=1,
            attention_sizes=(),
        )
        save_checkpoint(folder, UNet(config))
        path.rename(folder / ("model.safetensors" if weights else "card.json"))
        load_checkpoint(folder)

    return load


def lpips(path: Path) -> None:
    for name in (URL_VGG16_LPIPS, VGG16_Weights.IMAGENET1K_V1.url):
        shutil.copy(path, path.with_name(name.rsplit("/", 1)[1]))
    load_lpips(path.parent)


def images(path: Path) -> None:
    path.rename(path.with_suffix(".png"))
    found = folder(path.parent)
    list(read_images(found, image_shape(found)))


def arrays(path: Path) -> None:
    shutil.copy(path, path.with_name("labels.npy"))
    np.save(path.with_name("images.npy"), np.zeros((1, 8, 8), np.uint8))
    npy(path.parent)


# What a user's folders hold, each with what reads it.
READERS: dict[str, Callable[[Path], Any]] = {
    "params.yaml": load_params,
    "schedule": read_schedule,
    "costs": read_costs,
    "card": checkpoint(weights=False),
    "weights": checkpoint(weights=True),
    "Rectified Flow": lambda path: load_rectified_flow(path, "cifar10"),
    "its configuration": lambda path: read_config(str(path)),
    "Inception": lambda path: feature_function(Extractor("inception", path), 1, CPU),
    "classifier": lambda path: feature_function(Extractor("classifier", path), 1, CPU),
    "EfficientNet": lambda path: feature_function(Extractor("efficientnet_lite0", path), 1, CPU),
    "extractor's card": lambda path: read_extractor(
        path.rename(path.with_name("card.json")).parent
    ),
    "LPIPS": lpips,
    "images": images,
    "npy": arrays,
    "npz": npz,
    "Parquet": lambda path: parquet(path, "image", "label"),
}


@pytest.mark.parametrize("name", READERS)
def test_no_input_runs_code(name: str, tmp_path: Path) -> None:
    for kind, content in attacks(tmp_path):
        (tmp_path / "input").mkdir()
        path = tmp_path / "input" / "file"
        path.write_bytes(content)
        with pytest.raises(InputError) as refused:
            READERS[name](path)
        assert "\n" not in str(refused.value), kind
        assert not (tmp_path / MARK).exists(), kind
        shutil.rmtree(tmp_path / "input")


def test_features_that_are_kept_hold_numbers_only(tmp_path: Path) -> None:
    """torch-fidelity would unpickle what it finds under the name of its cache."""
    rng = np.random.default_rng(0)
    real, other = rng.integers(256, size=(2, 20, 1, 8, 8), dtype=np.uint8)
    weights = tmp_path / "classifier.safetensors"
    torch.manual_seed(0)
    save_classifier(
        weights, Classifier(ClassifierConfig(channels=1, classes=2, width=8, features=8))
    )

    def measure() -> dict[str, float]:
        return evaluate_images(
            other, real, Extractor("classifier", weights), cache=tmp_path / "cache",
            kid_subset_size=10, batch_size=20, seed=0, device=CPU,
        )  # fmt: skip

    first = measure()
    assert measure() == first  # from what it kept, arrays and tensors
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) == 2
    for path in kept:
        good = path.read_bytes()
        for kind, content in attacks(tmp_path):
            path.write_bytes(content)
            with pytest.raises(InputError, match=f"{path}: .* remove it"):
                measure()
            assert not (tmp_path / MARK).exists(), kind
        path.write_bytes(good)
    assert measure() == first
