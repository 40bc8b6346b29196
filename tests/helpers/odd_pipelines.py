"""diffusers pipelines whose velocity is of more than state and time, or that step otherwise than
most; with small random networks and prompts that are embedded already."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLWan,
    BriaPipeline,
    BriaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    SD3ControlNetModel,
    SD3MultiControlNetModel,
    SD3Transformer2DModel,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    StableDiffusion3ControlNetPipeline,
    VisualClozePipeline,
    WanImageToVideoPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors

from tests.helpers import tiny_pipelines as tiny
from tests.helpers.tiny_pipelines import embeds, quiet, wan_network


def cogview4(**scheduler: Any) -> CogView4Pipeline:
    """It gives its scheduler timesteps and sigmas; with the published scheduler's settings."""
    torch.manual_seed(0)
    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
    ).eval()
    settings = {
        "base_shift": 0.25,
        "max_shift": 0.75,
        "use_dynamic_shifting": True,
        "time_shift_type": "linear",
    }
    return quiet(
        CogView4Pipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(**settings | scheduler),
        )
    )


def cogview4_prompts(samples: range) -> dict[str, Any]:
    return {
        "prompt_embeds": embeds(samples, 16, 32),
        "negative_prompt_embeds": torch.zeros(len(samples), 16, 32),
        "guidance_scale": 4.0,
        "height": 384,
        "width": 384,
    }


class _Ideogram4(Ideogram4Pipeline):
    def encode_prompt(self, prompt, grid_h, grid_w, max_sequence_length, device):  # type: ignore[no-untyped-def]
        from diffusers.pipelines.ideogram4.pipeline_ideogram4 import (
            LLM_TOKEN_INDICATOR,
            OUTPUT_IMAGE_INDICATOR,
        )

        n, length = len(prompt), max_sequence_length + grid_h * grid_w
        kinds = torch.full((n, length), OUTPUT_IMAGE_INDICATOR)
        kinds[:, :max_sequence_length] = LLM_TOKEN_INDICATOR
        positions = torch.arange(length).view(1, length, 1).expand(n, length, 3).contiguous()
        ones = torch.ones(n, length, dtype=torch.long)
        return embeds(range(n), length, 16), positions, ones, kinds


def ideogram4() -> Ideogram4Pipeline:
    """Its guidance evaluates a second network."""

    def network(seed: int) -> Ideogram4Transformer2DModel:
        torch.manual_seed(seed)
        return Ideogram4Transformer2DModel(
            in_channels=4,
            num_layers=1,
            attention_head_dim=12,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=8,
            llm_features_dim=16,
            mrope_section=(2, 2, 2),
        ).eval()

    return quiet(
        _Ideogram4(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            transformer=network(0),
            unconditional_transformer=network(1),
        )
    )


def ideogram4_prompts(samples: range) -> dict[str, Any]:
    return {
        "prompt": ["a"] * len(samples),
        "height": 64,
        "width": 64,
        "guidance_scale": 7.0,
        "guidance_schedule": None,
        "max_sequence_length": 4,
    }


def sd3_controlnet(several: bool = False) -> StableDiffusion3ControlNetPipeline:
    parts = tiny.sd3().components

    def control(seed: int) -> SD3ControlNetModel:
        torch.manual_seed(seed)
        return SD3ControlNetModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=tiny.WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
        ).eval()

    def nonzero(net: SD3ControlNetModel) -> SD3ControlNetModel:
        """What it adds is zero before training."""
        for block in net.controlnet_blocks:
            torch.nn.init.normal_(block.weight, std=0.1)
        return net

    net = (
        SD3MultiControlNetModel([nonzero(control(1)), nonzero(control(2))])
        if several
        else nonzero(control(1))
    )
    parts = {k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    # A ControlNet acts on all blocks but the last.
    torch.manual_seed(0)
    settings = {**parts["transformer"].config, "num_layers": 2}
    parts["transformer"] = SD3Transformer2DModel.from_config(settings).eval()
    return quiet(StableDiffusion3ControlNetPipeline(**parts, controlnet=net))


def sd3_controlnet_prompts(samples: range, several: bool = False) -> dict[str, Any]:
    image = torch.zeros(len(samples), 3, tiny.SIZE, tiny.SIZE)
    scale = [1.0, 1.0] if several else 1.0
    return tiny.sd3_prompts(samples, 4.0) | {
        "control_image": [image, image] if several else image,
        "controlnet_conditioning_scale": scale,
    }


def z_image() -> ZImagePipeline:
    """Its guidance can end at a time."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[64, 32, 32],
    ).eval()
    for weight in transformer.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return quiet(
        ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            transformer=transformer,
        )
    )


def z_image_prompts(samples: range) -> dict[str, Any]:
    return {
        "prompt_embeds": list(embeds(samples, 5, 16)),
        "negative_prompt_embeds": [torch.zeros(5, 16) for _ in samples],
        "guidance_scale": 3.0,
        "height": 64,
        "width": 64,
    }


def lumina2() -> Lumina2Pipeline:
    """Its guidance can end at a share of the steps."""
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=8,
    ).eval()
    return quiet(
        Lumina2Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=None,
            text_encoder=None,
            tokenizer=None,
        )
    )


def lumina2_prompts(samples: range) -> dict[str, Any]:
    mask = torch.ones(len(samples), 5, dtype=torch.bool)
    return {
        "prompt_embeds": embeds(samples, 5, 8),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": torch.zeros(len(samples), 5, 8),
        "negative_prompt_attention_mask": mask,
        "height": 64,
        "width": 64,
    }


def hunyuan_image(use_meanflow: bool = False, guider: Any = None) -> HunyuanImagePipeline:
    """With ``use_meanflow`` its network is told where the step ends."""
    torch.manual_seed(0)
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
        use_meanflow=use_meanflow,
    ).eval()
    return quiet(
        HunyuanImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=transformer,
            guider=guider,
        )
    )


def hunyuan_image_prompts(samples: range) -> dict[str, Any]:
    found: dict[str, Any] = {"height": 128, "width": 128}
    mask = torch.ones(len(samples), 5, dtype=torch.long)
    for prefix in ("", "negative_"):
        for suffix in ("", "_2"):
            text = embeds(samples, 5, 16)
            found[f"{prefix}prompt_embeds{suffix}"] = 0.5 * text if prefix else text
            found[f"{prefix}prompt_embeds_mask{suffix}"] = mask
    return found


def _wan_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()


def wan_i2v(expand_timesteps: bool = True) -> WanImageToVideoPipeline:
    """As Wan 2.2 5B: the first frame is given, and put in the place of that of the state."""
    transformer = wan_network(channels=16)
    return quiet(
        WanImageToVideoPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=_wan_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
            transformer=transformer,
            expand_timesteps=expand_timesteps,
        )
    )


def wan_i2v_prompts(samples: range) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return tiny.wan_prompts(samples, 1.0) | {"image": torch.rand(1, 3, 32, 32, generator=generator)}


def bria() -> BriaPipeline:
    """It asks any class but diffusers' own for `scale_model_input`."""
    torch.manual_seed(0)
    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=tiny.WIDTH,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    return quiet(
        BriaPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=tiny.sd3().vae,
            text_encoder=None,
            tokenizer=None,
        )
    )


def bria_prompts(samples: range) -> dict[str, Any]:
    return {
        "prompt_embeds": embeds(samples, tiny.WORDS, tiny.WIDTH),
        "negative_prompt_embeds": torch.zeros(len(samples), tiny.WORDS, tiny.WIDTH),
        "height": 16,
        "width": 16,
        "guidance_scale": 3.0,
    }


def skyreels() -> SkyReelsV2DiffusionForcingPipeline:
    """It steps a copy of its scheduler for each frame."""
    transformer = wan_network(SkyReelsV2Transformer3DModel, 16)
    return quiet(
        SkyReelsV2DiffusionForcingPipeline(
            tokenizer=None,
            text_encoder=None,
            transformer=transformer,
            vae=_wan_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    )


def skyreels_prompts(samples: range, **more: Any) -> dict[str, Any]:
    return tiny.wan_prompts(samples, 1.0) | {"num_frames": 9, "prompt": None} | more


def visualcloze() -> VisualClozePipeline:
    """Its steps are taken by another pipeline within it."""
    flux = tiny.flux()
    parts = {k: v for k, v in flux.components.items() if "image_encoder" not in k}
    parts.pop("feature_extractor", None)
    return quiet(VisualClozePipeline(**parts))


class _Framepack(HunyuanVideoFramepackPipeline):
    def encode_image(self, image, device=None, dtype=None):  # type: ignore[no-untyped-def]
        return torch.zeros(len(image), 2, 16)


def framepack() -> HunyuanVideoFramepackPipeline:
    """It makes a video section by section, each by a walk of its own."""
    torch.manual_seed(0)
    transformer = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
        image_condition_type=None,
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    ).eval()
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()
    return quiet(
        _Framepack(
            text_encoder=None,
            tokenizer=None,
            transformer=transformer,
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=None,
            tokenizer_2=None,
            image_encoder=None,
            feature_extractor=None,
        )
    )


def framepack_prompts(samples: range, sections: int) -> dict[str, Any]:
    return {
        "image": torch.zeros(len(samples), 3, 32, 32),
        "prompt_embeds": embeds(samples, 5, 16),
        "pooled_prompt_embeds": embeds(samples, 8),
        "prompt_attention_mask": torch.ones(len(samples), 5),
        "height": 32,
        "width": 32,
        "latent_window_size": 2,
        "num_frames": 5 * sections,
    }


def ltx2() -> LTX2Pipeline:
    """It steps the sound by a copy of its scheduler."""
    torch.manual_seed(0)
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=8,
        rope_double_precision=False,
    ).eval()
    connectors = LTX2TextConnectors(
        caption_channels=8,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=4,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=4,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        rope_double_precision=False,
    ).eval()
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
        patch_size_t=1,
    ).eval()
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        mid_block_add_attention=False,
        mel_bins=8,
    ).eval()
    return quiet(
        LTX2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=vae,
            audio_vae=audio_vae,
            text_encoder=None,
            tokenizer=None,
            connectors=connectors,
            transformer=transformer,
            vocoder=None,
        )
    )


def ltx2_prompts(samples: range) -> dict[str, Any]:
    mask = torch.ones(len(samples), 8, dtype=torch.long)
    return {
        "prompt_embeds": embeds(samples, 8, 16),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": torch.zeros(len(samples), 8, 16),
        "negative_prompt_attention_mask": mask,
        "guidance_scale": 3.0,
        "audio_guidance_scale": 3.0,
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "modality_scale": 1.0,
        "audio_modality_scale": 1.0,
        "spatio_temporal_guidance_blocks": None,
        "height": 32,
        "width": 32,
        "num_frames": 5,
    }
