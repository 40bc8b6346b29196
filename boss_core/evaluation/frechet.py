"""How far samples are from real images, by torch-fidelity (no formula of our own).

A metric's name says what was measured: ``fid`` is the Frechet distance of the original
Inception network and of nothing else; with another extractor it is ``frechet_<extractor>``.
"""

import contextlib
import hashlib
import io
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_featuresdict_to_statistics_cached,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kid_features_to_metric,
)
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)
from torch_fidelity.registry import register_feature_extractor
from torch_fidelity.utils import (
    create_feature_extractor,
    extract_featuresdict_from_input_id_cached,
)

from boss_core.errors import InputError
from boss_core.evaluation.comparison import Estimate
from boss_core.evaluation.extractors import Extractor
from boss_core.evaluation.uncertainty import blocks_of, frechet_with_error, kid_with_error
from boss_core.io.files import is_of_the_disk
from boss_core.io.tensor_files import arrays_only
from boss_core.networks import efficientnet
from boss_core.networks.classifier import load_classifier
from boss_core.networks.efficientnet import load_efficientnet


class _OneLayer(FeatureExtractorBase):
    """What torch-fidelity asks of an extractor that gives one kind of features for all metrics."""

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor]:
        if images.dtype != torch.uint8:  # torch-fidelity passes on whatever it is given
            raise InputError(f"images: {images.dtype}; uint8 needed")
        return (self.features(images),)

    def features(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) to (B, features)."""
        raise NotImplementedError


class ClassifierExtractor(_OneLayer):
    """The features of a `Classifier`, registered with torch-fidelity as ``classifier``."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        self.classifier = load_classifier(Path(feature_extractor_weights_path))

    def features(self, images: Tensor) -> Tensor:
        return self.classifier.features(images[:, : self.classifier.config.channels])


class EfficientNetExtractor(_OneLayer):
    """Those of `EfficientNetLite0`, registered with torch-fidelity as ``efficientnet_lite0``."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        self.network = load_efficientnet(Path(feature_extractor_weights_path))

    def features(self, images: Tensor) -> Tensor:
        return self.network(images)


register_feature_extractor("classifier", ClassifierExtractor)
register_feature_extractor(efficientnet.NAME, EfficientNetExtractor)


@dataclass(frozen=True)
class Measured:
    """What one set of samples measures.

    metrics: by their names: the Frechet distance and KID, with ``_se`` behind the name the standard
        error over the noise (`boss_core.evaluation.uncertainty`), KID's standard deviation over
        its subsets, precision and recall.
    estimates: Frechet distance and KID by the same names, with replicates, to be compared in pairs
        with those of other samples from the same noise.
    """

    metrics: dict[str, float]
    estimates: dict[str, Estimate]


class _Images(Dataset[Tensor]):
    """uint8 images (N, C, H, W) as torch-fidelity wants them: one (3, H, W) tensor each."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InputError(
                f"images: {images.dtype} of shape {images.shape}; uint8 (N, 1 or 3, H, W) needed"
            )
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.images[index])).expand(3, -1, -1)


def image_hash(images: NDArray[np.uint8]) -> str:
    """SHA-256 of the pixels and the shape."""
    digest = hashlib.sha256(str(images.shape).encode())
    for image in images:
        digest.update(image.tobytes())
    return digest.hexdigest()


# Its many arguments are what one call differs by from the next; all but the first few have names.
def evaluate_images(
    images: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    extractor: Extractor,
    *,
    cache: Path,
    kid_subset_size: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    precision_recall: bool = True,
) -> dict[str, float]:
    """Frechet distance, KID (mean and standard deviation), precision and recall of samples, and the
    standard errors of the first two.

    The metrics of `measure_images` alone, with its arguments and errors."""
    return measure_images(
        images, reference, extractor,
        cache=cache, kid_subset_size=kid_subset_size, batch_size=batch_size, seed=seed,
        device=device, precision_recall=precision_recall,
    ).metrics  # fmt: skip


# As `evaluate_images`.
def measure_images(
    images: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    extractor: Extractor,
    *,
    cache: Path,
    kid_subset_size: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    precision_recall: bool = True,
) -> Measured:
    """What `Measured` holds, of samples.

    images: (N, C, H, W) uint8 samples; reference: the real ones. All of both are used.
    cache: a folder for the features of the reference, keyed by the hashes of the extractor and
        of the reference images, so that changed data or weights are never taken for the old.
    kid_subset_size: at most the smaller of the two counts.
    precision_recall: these compare all images with all, and so take most of the time.

    Raises InputError when there are fewer images than a KID subset or than four, and for weights
    or a cache that hold anything but numbers.
    """
    for name, array in (("samples", images), ("reference", reference)):
        if len(array) < kid_subset_size:
            raise InputError(
                f"kid_subset_size: {kid_subset_size}, but the {name} are {len(array)} images;"
                " at most that many needed"
            )
    key = f"{extractor.hash[:16]}-{image_hash(reference)[:16]}"
    extractor.check()
    _check_cache(cache, key)
    asked: dict[str, Any] = {
        "input1": _Images(images),
        "input2": _Images(reference),
        "input2_cache_name": key,
        "cache_root": str(cache),
        "kid_subset_size": kid_subset_size,
        "batch_size": batch_size,
        "rng_seed": seed,
        "cuda": device.type == "cuda",
        "save_cpu_ram": True,
        "verbose": False,
    }
    with arrays_only(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # torch's own deprecations, inside torch-fidelity
        return _measure(extractor, key, asked, device, precision_recall)


def _measure(
    extractor: Extractor, key: str, asked: dict[str, Any], device: torch.device, prc: bool
) -> Measured:
    """By the parts of `torch_fidelity.calculate_metrics`, which keeps the features to itself: the
    standard errors are of the same ones, which take the time.

    key: of the reference in the cache. asked: the arguments of torch-fidelity."""
    layer, frechet, kid = extractor.layer, extractor.frechet_name, f"kid_{extractor.name}"
    network = create_feature_extractor(
        extractor.library_name,
        [layer],
        feature_extractor_weights_path=str(extractor.weights),
        **asked,
    )
    of_samples = extract_featuresdict_from_input_id_cached(1, network, **asked)
    of_reference = extract_featuresdict_from_input_id_cached(2, network, **asked)
    statistics = [
        fid_featuresdict_to_statistics_cached(features, name, network, layer, **asked)
        for features, name in ((of_samples, None), (of_reference, key))
    ]
    distance = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    generated, reference = of_samples[layer], of_reference[layer]
    kids = kid_features_to_metric(generated, reference, **asked)

    on = device if device.type == "cuda" else torch.device("cpu")  # others lack float64
    x, y, blocks = generated.to(on), reference.to(on), blocks_of(len(generated))
    estimates = {
        frechet: Estimate(distance, frechet_with_error(x, y, blocks).replicates),
        kid: kid_with_error(kids[KEY_METRIC_KID_MEAN], x, y, blocks),
    }
    metrics = {
        frechet: distance,
        f"{frechet}_se": estimates[frechet].standard_error,
        kid: kids[KEY_METRIC_KID_MEAN],
        f"{kid}_se": estimates[kid].standard_error,
        f"{kid}_std": kids[KEY_METRIC_KID_STD],
    }
    if prc:
        found = prc_features_to_metric(generated, reference, **asked)
        metrics[f"precision_{extractor.name}"] = found[KEY_METRIC_PRECISION]
        metrics[f"recall_{extractor.name}"] = found[KEY_METRIC_RECALL]
    return Measured(metrics, estimates)


def _check_cache(cache: Path, key: str) -> None:
    """InputError naming the file of cached features that would not be read."""
    for path in sorted(cache.glob(f"{key}*.pt")):
        try:
            with arrays_only():
                torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path))
        except Exception as error:  # a broken pickle raises whatever its bytes happen to ask for
            if is_of_the_disk(error):
                raise
            raise InputError(
                f"{path}: truncated, or not features only ({type(error).__name__}; nothing of it"
                " was executed); remove it, and what made it makes it anew"
            ) from error
