"""The perceptual costs against torch-fidelity itself, pair by pair, with random weights."""

import itertools
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from boss_core.bellman.recursion import optimal_paths
from boss_core.checkpoints.folder import save_checkpoint
from boss_core.errors import InputError
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.ode.noise import SEARCH, sample_noise
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import quadratic, uniform
from boss_core.search.lpips import (
    URLS,
    estimate_lpips_costs,
    load_lpips,
    lpips_distances,
    weights_files,
)

LINEAR, VGG16 = (url.rsplit("/", 1)[1] for url in URLS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files in their published layouts, from a fixed seed."""
    folder = tmp_path_factory.mktemp("lpips")
    draw = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        layout = torchvision.models.vgg16().state_dict()
    vgg = {}
    for name, of in layout.items():
        if name.startswith("classifier."):  # half a gigabyte that LPIPS does not use
            vgg[name] = torch.zeros(1).expand(of.shape)
        else:
            vgg[name] = torch.randn(of.shape, generator=draw) * (2 / max(9, of[0].numel())) ** 0.5
    torch.save(vgg, folder / VGG16)
    channels = (64, 128, 256, 512, 512)
    linear = {
        f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1, generator=draw)
        for k, c in enumerate(channels)
    }
    torch.save(linear, folder / LINEAR)
    return folder


@pytest.fixture(scope="module")
def library(weights: Path):
    """torch-fidelity's module, built from the parts of it that download nothing."""
    from torch_fidelity import sample_similarity_lpips as library

    with pytest.MonkeyPatch.context() as patch:
        features = torchvision.models.vgg16()
        features.load_state_dict(torch.load(weights / VGG16))
        patch.setattr(library, "torchvision_load_pretrained_vgg16", lambda: features)
        patch.setattr(
            library, "load_state_dict_from_url", lambda *_, **__: torch.load(weights / LINEAR)
        )
        return library.SampleSimilarityLPIPS("lpips")


def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    t = t.view(-1, 1, 1, 1)
    return torch.sin(3 * x.flip(-1) + 4 * t) - x * t


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_the_library_pair_by_pair(weights: Path, library, channels: int) -> None:
    times, noise = quadratic(5), sample_noise(range(3), (channels, 16, 16), seed=0)
    seen: list[int] = []
    found = estimate_lpips_costs(
        velocity, noise, times, load_lpips(weights), batch_size=2, on_distances=seen.append
    )
    assert sum(seen) == lpips_distances(5, 3) == 30

    states: list[torch.Tensor] = []
    euler(velocity, noise, times, observer=lambda k, x, v: states.append(x.clone()))
    for i, j in itertools.product(range(6), repeat=2):
        expected = 0.0
        if i < j:
            jump = states[i] + float(times[j] - times[i]) * velocity(
                states[i], torch.full((3,), float(times[i]))
            )
            a, b = (((x + 1) * 127.5).repeat(1, 3 // channels, 1, 1) for x in (jump, states[j]))
            expected = float(library(a, b).mean())
        # Of one grid step the library sees what rounding leaves.
        assert found[i, j] == pytest.approx(expected, rel=1e-3, abs=1e-7)
        assert (found[i, j] > 0) == (i + 1 < j)

    for budget, path in optimal_paths(found, range(1, 6)).items():
        every = [
            sum(found[i, j] for i, j in itertools.pairwise((0, *middle, 5)))
            for middle in itertools.combinations(range(1, 5), budget - 1)
        ]
        assert path.cost == pytest.approx(min(every))


def test_labels_stay_with_their_samples(weights: Path) -> None:
    noise, times = sample_noise(range(5), (1, 8, 8), seed=0), uniform(4)
    labels, distance = torch.tensor([0, 2, 1, 2, 0]), load_lpips(weights)

    def conditional(x, t, labels):
        return velocity(x, t) * (1 + labels.view(-1, 1, 1, 1))

    def costs(rows: list[int], batch_size: int):
        of = labels[rows]
        return estimate_lpips_costs(
            conditional, noise[rows], times, distance, batch_size=batch_size, labels=of
        )

    alone = sum(costs([row], 1) for row in range(5)) / 5
    for batch_size in (5, 2):
        np.testing.assert_allclose(costs([0, 1, 2, 3, 4], batch_size), alone, rtol=1e-4, atol=1e-8)


def test_small_images_are_enlarged_by_the_library(weights: Path, library) -> None:
    a, b = sample_noise(range(2), (1, 8, 8), seed=0).split(1)
    library.sample_similarity_resize = 16
    expected = library(*(((x + 1) * 127.5).repeat(1, 3, 1, 1) for x in (a, b)))
    library.sample_similarity_resize = None
    assert torch.allclose(load_lpips(weights)(a, b), expected)


def test_loading_leaves_the_cache_of_torch_alone(weights: Path) -> None:
    before = torch.hub.get_dir()
    load_lpips(weights)
    assert torch.hub.get_dir() == before


def test_boss_schedule_finds_the_cheapest_steps(weights: Path, boss) -> None:
    torch.manual_seed(0)
    config = UNetConfig(
        image_size=8, channels=1, base_channels=8, channel_multipliers=(1, 2), blocks=1,
        attention_sizes=(),
    )  # fmt: skip
    network = UNet(config)
    torch.nn.init.normal_(network.last.weight, std=0.3)
    save_checkpoint(Path("net"), network)
    arguments = ["schedule", "--checkpoint", "net", "--budget", 2, "--budget", 4, "--grid", 6]
    arguments += ["--samples", 4, "--noises", 20, "--objective", "lpips"]
    code, out, err = boss(*arguments, "--lpips-weights", weights)
    assert (code, err) == (0, "")
    assert "schedule: lpips on 2 noises: 30 perceptual distances" in out

    noise = sample_noise(range(2), (1, 8, 8), seed=SEARCH)
    cost = estimate_lpips_costs(
        network.eval(), noise, uniform(6), load_lpips(weights), batch_size=2
    )
    for budget, path in optimal_paths(cost, [2, 4]).items():
        found = Schedule.from_json(Path(f"schedules/{budget}.json").read_text())
        assert (found.indices, found.objective, found.solver) == (path.indices, "lpips", "euler")

    code, _, err = boss(*arguments, "--lpips-weights", "nowhere")
    assert code == 2
    assert f"nowhere/{LINEAR}: no such file; that of {URLS[0]} needed" in err
    code, _, err = boss(*arguments, "--solver", "ab2")
    assert (code, err) == (2, "error: --solver: ab2; euler needed with --objective lpips\n")


def flipped() -> bytes:
    """A file of tensors with one bit turned after it was written."""
    whole, tensor = BytesIO(), torch.rand(1, 64, 1, 1)
    torch.save({"lin0.model.1.weight": tensor}, whole)
    content = bytearray(whole.getvalue())
    content[content.index(tensor.numpy().tobytes()) + 3] ^= 0x40
    return bytes(content)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (LINEAR, None, f"{LINEAR}: no such file; that of https://"),
        (VGG16, None, f"{VGG16}: no such file; that of https://"),
        (LINEAR, b"not weights", f"{LINEAR}: truncated, or not tensors only"),
        (LINEAR, Harmful(), f"{LINEAR}: truncated, or not tensors only"),
        pytest.param(
            LINEAR, flipped(), f"{LINEAR}: altered: .* has another checksum than", id="flipped"
        ),
        (LINEAR, [torch.zeros(1)], f"{LINEAR}: no dictionary of tensors"),
        (LINEAR, {"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, "not the weights of LPIPS"),
        (VGG16, {"features.0.weight": torch.zeros(64, 3, 3, 3)}, "not the weights of LPIPS"),
    ],
)
def test_other_files_are_refused(
    weights: Path, tmp_path: Path, monkeypatch, name: str, content: object, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in weights_files(weights):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(InputError, match=says) as refused:
        load_lpips(tmp_path)
    assert "\n" not in str(refused.value)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("shape", "says"),
    [((5,), "noise: shape"), ((4, 8, 8), "images, .N, 1 or 3, H, W., needed")],
)
def test_states_that_are_no_images_are_refused(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        estimate_lpips_costs(
            velocity, torch.zeros(2, *shape), uniform(3), lambda a, b: a, batch_size=2
        )


def test_a_velocity_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="velocity: not finite"):
        estimate_lpips_costs(
            lambda x, t: x * torch.nan, torch.zeros(1, 1, 8, 8), uniform(3),
            lambda a, b: (a - b).flatten(1).sum(1), batch_size=2,
        )  # fmt: skip
