"""Small random pipelines of as many classes of diffusers as there are components for here."""

from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.families import FAMILIES, Family
from tests.helpers.further_pipelines import FURTHER
from tests.helpers.image_pipelines import IMAGES
from tests.helpers.last_pipelines import LAST
from tests.helpers.single_pipelines import SINGLE
from tests.helpers.text_pipelines import TEXTS
from tests.helpers.video_pipelines import VIDEOS

SMALL = (
    {
        "StableDiffusion3Pipeline": FAMILIES["sd3"],
        "FluxPipeline": FAMILIES["flux"],
        "WanPipeline": FAMILIES["wan"],
        "WanPipeline (2.2, two networks)": FAMILIES["wan 2.2"],
        "QwenImagePipeline": FAMILIES["qwen-image"],
        "LTXPipeline": FAMILIES["ltx"],
        "SanaPipeline": Family(tiny.sana, tiny.sana_prompts),
        "MochiPipeline": Family(tiny.mochi, tiny.video_prompts),
        "CogView4Pipeline": Family(odd.cogview4, odd.cogview4_prompts),
        "Ideogram4Pipeline": Family(odd.ideogram4, odd.ideogram4_prompts),
        "StableDiffusion3ControlNetPipeline": Family(
            odd.sd3_controlnet, odd.sd3_controlnet_prompts
        ),
        "StableDiffusion3ControlNetPipeline (two)": Family(
            lambda: odd.sd3_controlnet(True), lambda rows: odd.sd3_controlnet_prompts(rows, True)
        ),
        "ZImagePipeline": Family(odd.z_image, odd.z_image_prompts),
        "Lumina2Pipeline": Family(odd.lumina2, odd.lumina2_prompts),
        "HunyuanImagePipeline": Family(odd.hunyuan_image, odd.hunyuan_image_prompts),
        "WanImageToVideoPipeline (2.2 5B)": Family(odd.wan_i2v, odd.wan_i2v_prompts),
        "BriaPipeline": Family(odd.bria, odd.bria_prompts),
        "SkyReelsV2DiffusionForcingPipeline": Family(odd.skyreels, odd.skyreels_prompts),
        "VisualClozePipeline": Family(odd.visualcloze, tiny.flux_prompts),
        "HunyuanVideoFramepackPipeline": Family(
            odd.framepack, lambda rows: odd.framepack_prompts(rows, 1)
        ),
        "LTX2Pipeline": Family(odd.ltx2, odd.ltx2_prompts),
    }
    | IMAGES
    | VIDEOS
    | SINGLE
    | TEXTS
    | FURTHER
    | LAST
)
