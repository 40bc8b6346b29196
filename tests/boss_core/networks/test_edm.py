"""EDM's networks against outputs and libraries that this project did not make.

No published EDM weights are here. But SongUNet is the network of Rectified Flow's checkpoints
under other names, of which the reference results have two with outputs, and ADM is in diffusers.
"""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from boss_core.checkpoints.edm import PUBLISHED_DEFAULTS, from_published
from boss_core.errors import InputError
from boss_core.networks.edm import (
    EDM,
    Block,
    DhariwalUNet,
    EDMConfig,
    Resample,
    SongUNet,
    StridedConv2d,
)
from boss_core.straightening.loss import straightening_loss
from tests.helpers.checkout import SHARED, needs_shared
from tests.helpers.edm import NCSNPP, SONG, build

ADM = {**SONG, "model_type": "DhariwalUNet", "model_channels": 64, "attn_resolutions": (8, 4)}


# The parts of a residual block and of an attention block, theirs and ours.
BLOCK = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}


def from_rectified_flow(network: SongUNet, theirs: dict[str, Tensor]) -> None:
    """Load the weights of Rectified Flow's network, whose modules are numbered in the order in
    which they run, into ours."""
    numbered: dict[int, dict[str, Tensor]] = {}
    for name, tensor in theirs.items():
        if match := re.fullmatch(r"module\.all_modules\.(\d+)\.(.+)", name):
            numbered.setdefault(int(match[1]), {})[match[2]] = tensor
    modules = iter([numbered[i] for i in sorted(numbered)])
    ours: dict[str, Tensor] = {}
    if "freqs" in network.map_noise.state_dict():
        ours["map_noise.freqs"] = next(modules)["W"]

    def keep(prefix: str, module: dict[str, Tensor]) -> None:
        ours.update({f"{prefix}.{name}": tensor for name, tensor in module.items()})

    keep("map_layer0", next(modules))
    keep("map_layer1", next(modules))
    for side, blocks in (("enc", network.enc), ("dec", network.dec)):
        for name, layer in blocks.items():
            prefix = f"{side}.{name}"
            if isinstance(layer, Resample):
                continue
            module = next(modules)
            if name.endswith("aux_skip"):
                module = {k.removeprefix("Conv_0."): v for k, v in module.items()}
            elif isinstance(layer, Block):
                module = {
                    f"{BLOCK[part]}.{kind}": tensor
                    for (part, kind), tensor in ((k.split("."), v) for k, v in module.items())
                }
            keep(prefix, module)
            if isinstance(layer, Block) and layer.heads:
                attention = next(modules)
                keep(f"{prefix}.norm2", {k: attention[f"GroupNorm_0.{k}"] for k in KINDS})
                keep(f"{prefix}.proj", nin([attention], ["NIN_3"]))
                keep(f"{prefix}.qkv", nin([attention], ["NIN_0", "NIN_1", "NIN_2"]))
    assert next(modules, None) is None
    ours |= {k: v for k, v in network.state_dict().items() if k.endswith("resample_filter")}
    network.load_state_dict(ours)


KINDS = ("weight", "bias")


def nin(attention: list[dict[str, Tensor]], names: list[str]) -> dict[str, Tensor]:
    """Matrices (in, out) as one 1x1 convolution whose outputs alternate between them."""
    weight = torch.stack([attention[0][f"{name}.W"].T for name in names], dim=1)
    bias = torch.stack([attention[0][f"{name}.b"] for name in names], dim=1)
    return {"weight": weight.flatten(0, 1)[:, :, None, None], "bias": bias.flatten()}


@needs_shared
@pytest.mark.parametrize("name", ["rf_cifar", "rf_256"])
def test_song_unet_gives_the_outputs_of_rectified_flows_networks(name: str) -> None:
    folder = SHARED / "reference" / name
    settings = json.loads((folder / "config.json").read_text())
    data, model = settings["data"], settings["model"]
    fir = model["fir"]
    config = EDMConfig(
        model_type="SongUNet",
        img_resolution=data["image_size"],
        img_channels=data["num_channels"],
        model_channels=model["nf"],
        channel_mult=model["ch_mult"],
        num_blocks=model["num_res_blocks"],
        attn_resolutions=model["attn_resolutions"],
        embedding_type=model["embedding_type"],
        channel_mult_noise=2 if fir else 1,
        encoder_type="skip" if fir else "standard",
        decoder_type="skip" if fir else "standard",
        resample_filter=model["fir_kernel"] if fir else (1, 1),
    )
    network = SongUNet(config)
    checkpoint = torch.load(folder / "checkpoint_0.pth", weights_only=True)
    trained = [k for k in checkpoint["model"] if k != "module.sigmas" and not k.endswith(".0.W")]
    averaged = dict(zip(trained, checkpoint["ema"]["shadow_params"], strict=True))
    from_rectified_flow(network, checkpoint["model"] | averaged)

    expected = np.load(folder / "expected.npz")
    x, t, v = (torch.from_numpy(expected[key]) for key in ("x", "t", "v"))
    label = (t * (1 - 1e-3) + 1e-3) * 999
    with torch.no_grad():
        found = network(x, label.log() if fir else label, None)
    if model["scale_by_sigma"]:
        found = found / label.view(-1, 1, 1, 1)
    assert float((found - v).abs().max() / v.abs().max()) < 1e-5


def test_adm_gives_the_outputs_of_diffusers() -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel

    # diffusers has 32 groups at any width, so widths here are multiples of 128.
    ours = build(**{**ADM, "model_channels": 128, "attn_resolutions": (4,), "label_dim": 5}).model
    assert isinstance(ours, DhariwalUNet)
    torch.manual_seed(1)
    theirs = UNet2DModel(
        sample_size=8,
        block_out_channels=(128, 256),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=64,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        flip_sin_to_cos=True,
        freq_shift=0,
        num_class_embeds=5,
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    weights = {
        "map_layer0": theirs.time_embedding.linear_1,
        "map_layer1": theirs.time_embedding.linear_2,
        "enc.8x8_conv": theirs.conv_in,
        "out_norm": theirs.conv_norm_out,
        "out_conv": theirs.conv_out,
    }
    loaded = {"map_label.weight": theirs.class_embedding.weight.T}
    down, middle, up = theirs.down_blocks, theirs.mid_block, theirs.up_blocks
    blocks = {
        "enc.8x8_block0": (down[0].resnets[0], None),
        "enc.4x4_down": (down[0].downsamplers[0], None),
        "enc.4x4_block0": (down[1].resnets[0], down[1].attentions[0]),
        "dec.4x4_in0": (middle.resnets[0], middle.attentions[0]),
        "dec.4x4_in1": (middle.resnets[1], None),
        "dec.4x4_block0": (up[0].resnets[0], up[0].attentions[0]),
        "dec.4x4_block1": (up[0].resnets[1], up[0].attentions[1]),
        "dec.8x8_up": (up[0].upsamplers[0], None),
        "dec.8x8_block0": (up[1].resnets[0], None),
        "dec.8x8_block1": (up[1].resnets[1], None),
    }
    for prefix, (residual, attention) in blocks.items():
        weights |= {
            f"{prefix}.norm0": residual.norm1,
            f"{prefix}.conv0": residual.conv1,
            f"{prefix}.affine": residual.time_emb_proj,
            f"{prefix}.norm1": residual.norm2,
            f"{prefix}.conv1": residual.conv2,
        }
        if residual.conv_shortcut is not None:
            weights[f"{prefix}.skip"] = residual.conv_shortcut
        if attention is not None:
            weights[f"{prefix}.norm2"] = attention.group_norm
            projections = (attention.to_q, attention.to_k, attention.to_v)
            for kind in KINDS:
                # Per head and channel: q, k, v.
                parts = [getattr(p, kind) for p in projections]
                stacked = torch.stack(parts, dim=1).flatten(0, 1)
                output = getattr(attention.to_out[0], kind)
                if kind == "weight":
                    stacked, output = stacked[..., None, None], output[..., None, None]
                loaded |= {f"{prefix}.qkv.{kind}": stacked, f"{prefix}.proj.{kind}": output}
    for prefix, module in weights.items():
        loaded |= {f"{prefix}.{kind}": getattr(module, kind) for kind in KINDS}
    loaded |= {k: v for k, v in ours.state_dict().items() if k.endswith("resample_filter")}
    ours.load_state_dict(loaded)

    x, c_noise, labels = torch.randn(3, 3, 8, 8), torch.tensor([-1.5, 0.2, 1.1]), torch.arange(3)
    with torch.no_grad():
        expected = theirs(x, c_noise, class_labels=labels).sample
        found = ours(x, c_noise, torch.nn.functional.one_hot(labels, 5).float())
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_the_residual_branch_filters_as_diffusers_does() -> None:
    from diffusers.models.downsampling import FirDownsample2D

    torch.manual_seed(0)
    theirs = FirDownsample2D(3, 16, use_conv=True)
    ours = StridedConv2d(3, 16, (1, 3, 3, 1))
    ours.load_state_dict({**theirs.Conv2d_0.state_dict(), "resample_filter": ours.resample_filter})
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        # CIFAR-10's DDPM++ and ImageNet-64's ADM have 55.7 and 295.9 million parameters.
        ({"model_type": "SongUNet", "img_resolution": 32, "channel_mult": (2, 2, 2)}, 55.7),
        ({"model_type": "DhariwalUNet", "img_resolution": 64, "label_dim": 1000}, 295.9),
    ],
)
def test_published_sizes(settings, millions: float) -> None:
    defaults = PUBLISHED_DEFAULTS[settings["model_type"]]
    with torch.device("meta"):
        network = EDM(EDMConfig.model_validate({**defaults, "img_channels": 3, **settings}))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("settings", [SONG, NCSNPP, ADM], ids=["ddpm++", "ncsn++", "adm"])
def test_preconditioning_is_that_of_table_1(settings) -> None:
    """With F = 0 the denoiser is c_skip x; with F = 1 it adds c_out; and F sees c_in x and
    c_noise. sigma_data = 0.5."""
    network = build(**settings)
    x, sigma = torch.randn(4, 3, 8, 8).double(), torch.tensor([0.002, 0.5, 3.0, 80.0]).double()
    seen = {}

    def constant(value: float):
        def model(x, c_noise, one_hot):
            seen.update(x=x, c_noise=c_noise)
            return torch.full_like(x, value)

        return model

    s = sigma.view(-1, 1, 1, 1)
    network.double()
    for value in (0.0, 1.0):
        network.model.forward = constant(value)  # type: ignore[method-assign]
        expected = 0.25 / (s**2 + 0.25) * x + value * s * 0.5 / (s**2 + 0.25).sqrt()
        torch.testing.assert_close(network.denoise(x, sigma), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen["x"], x / (s**2 + 0.25).sqrt(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen["c_noise"], sigma.log() / 4, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [SONG, NCSNPP, ADM], ids=["ddpm++", "ncsn++", "adm"])
def test_velocity_is_finite_everywhere_and_of_its_sample_alone(settings) -> None:
    network = build(**settings)
    assert network.config.sample_shape == (3, 8, 8)
    x, t = torch.randn(5, 3, 8, 8), torch.tensor([0.0, 0.01, 0.5, 0.9999, 1.0])
    whole = network(x, t)
    assert whole.shape == x.shape
    assert whole.isfinite().all()
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)
    # In the middle it is (D - x) / (1 - t).
    middle = (network.denoise(2 * x[2:3], torch.ones(1)) - x[2:3]) / 0.5
    torch.testing.assert_close(whole[2:3], middle, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [SONG, ADM], ids=["ddpm++", "adm"])
def test_labels(settings) -> None:
    network = build(**settings, label_dim=4)
    assert network.config.classes == 4
    x, t = torch.randn(1, 3, 8, 8).expand(2, -1, -1, -1), torch.full((2,), 0.5)
    first, second = network(x, t, torch.tensor([1, 3]))
    assert not torch.allclose(first, second)
    with pytest.raises(InputError, match="labels: none; this network needs one of 4"):
        network(x, t)
    with pytest.raises(InputError, match="labels: given, but this network is unconditional"):
        build(**settings)(x, t, torch.tensor([1, 3]))


@pytest.mark.parametrize("settings", [SONG, NCSNPP, ADM], ids=["ddpm++", "ncsn++", "adm"])
def test_straightening_reaches_every_parameter(settings) -> None:
    network = build(**settings, label_dim=4).requires_grad_()
    x, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 3])
    states = torch.stack([x + 1, x], dim=1)  # the end of a segment and its start
    times = torch.tensor([[0.5, 0.0], [0.99, 0.5], [1.0, 0.99]])
    velocity = partial(network, labels=labels)
    straightening_loss(velocity, states, times, torch.ones(3, 1)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_weights_in_bfloat16_take_states_in_float32() -> None:
    network = build(**NCSNPP)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.0, 0.5, 0.9])
    expected = network(x, t)
    found = network.bfloat16()(x, t)
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_from_published() -> None:
    teacher = build(**NCSNPP, label_dim=4)
    # Settings as published, with what does not shape the network, and the weights of the
    # augmentation labels.
    settings = {**NCSNPP, "label_dim": 4, "dropout": 0.13, "use_fp16": True, "augment_dim": 9}
    weights = {**teacher.state_dict(), "model.map_augment.weight": torch.zeros(32, 9)}
    loaded = from_published(settings, weights)
    assert loaded.config == teacher.config
    x, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 0.9]), torch.tensor([0, 3])
    assert torch.equal(loaded(x, t, labels), teacher(x, t, labels))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())

    del weights["model.enc.4x4_down.conv0.weight"]
    with pytest.raises(InputError, match=r"4x4_down\.conv0\.weight has shape none: it is missing"):
        from_published(settings, weights)
    with pytest.raises(InputError, match="the settings ask for no such parameter"):
        from_published({**settings, "label_dim": 0}, teacher.state_dict())
    with pytest.raises(InputError, match="settings: model_type: Input should be 'SongUNet' or"):
        from_published({**settings, "model_type": "DiT"}, teacher.state_dict())


def test_an_image_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InputError, match="img_resolution: 10 cannot be halved 2 times"):
        build(**{**SONG, "img_resolution": 10, "channel_mult": (1, 2, 2)})


@pytest.mark.parametrize("settings", [NCSNPP, ADM], ids=["ncsn++", "adm"])
def test_compiles_without_a_graph_break(settings) -> None:
    network = build(**settings, label_dim=4)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    inputs = torch.randn(2, 3, 8, 8), torch.tensor([0.0, 0.7]), torch.tensor([0, 3])
    torch.testing.assert_close(compiled(*inputs), network(*inputs))


def test_published_key_names() -> None:
    names = set(build(**NCSNPP, label_dim=4).state_dict())
    for name in (
        "model.map_noise.freqs",
        "model.map_label.weight",
        "model.map_layer1.bias",
        "model.enc.8x8_conv.weight",
        "model.enc.4x4_down.conv0.resample_filter",
        "model.enc.4x4_down.skip.weight",
        "model.enc.4x4_aux_residual.resample_filter",
        "model.enc.4x4_block0.qkv.bias",
        "model.dec.4x4_in0.proj.weight",
        "model.dec.8x8_up.affine.weight",
        "model.dec.8x8_block1.norm1.weight",
        "model.dec.8x8_aux_norm.weight",
        "model.dec.8x8_aux_conv.bias",
    ):
        assert name in names
    adm = set(build(**ADM).state_dict())
    assert {"model.out_norm.weight", "model.enc.4x4_down.skip.resample_filter"} <= adm
    assert "model.enc.4x4_down.skip.weight" not in adm
