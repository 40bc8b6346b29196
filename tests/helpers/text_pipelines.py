"""Small random pipelines with text encoders that read letters, called with prompts as text."""

import string
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers as d
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.families import Family
from tests.helpers.image_pipelines import CHROMA, ONES, Parts, adding, pipeline
from tests.helpers.tiny_pipelines import WIDTH

LETTERS = [*string.ascii_lowercase, " ", "."]


@cache
def of_sd3() -> Any:
    """Its tokenizers: one of CLIP, one of T5."""
    with tempfile.TemporaryDirectory() as folder:
        tiny.sd3_with_text(Path(folder))
        return d.StableDiffusion3Pipeline.from_pretrained(folder)


def t5(kind: Any = T5EncoderModel, config: Any = T5Config) -> Parts:
    tokenizer = of_sd3().tokenizer_3
    torch.manual_seed(0)
    settings = config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return {"text_encoder": kind(settings).eval(), "tokenizer": tokenizer}


def clip_and_t5() -> Parts:
    """As Flux has them."""
    tokenizer = of_sd3().tokenizer
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    second = {f"{name}_2": part for name, part in t5().items()}
    return {"text_encoder": CLIPTextModel(config).eval(), "tokenizer": tokenizer} | second


def gemma2(width: int) -> Parts:
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
    vocab |= {letter: len(vocab) + k for k, letter in enumerate(["\u2581", *LETTERS])}
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(vocab), hidden_size=width, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[])
    return {"text_encoder": Gemma2Model(config).eval(), "tokenizer": tokenizer}


def qwen3(width: int) -> Parts:
    vocab = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    vocab |= {letter: len(vocab) + k for k, letter in enumerate(["\u0120", "\u010a", *LETTERS])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=16, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return {"text_encoder": Qwen3ForCausalLM(config).eval(), "tokenizer": tokenizer}


def told(family: Family, parts: Callable[[], Parts], **more: Any) -> Family:
    """The same pipeline with encoders, called with texts in the place of embeddings."""

    def make() -> Any:
        made = family.make()
        old = {k: v for k, v in made.components.items() if v is not None}
        return pipeline(type(made), **old | parts())

    def prompts(samples: range) -> Parts:
        call = {k: v for k, v in family.prompts(samples).items() if "embeds" not in k}
        call = {k: v for k, v in call.items() if "mask" not in k}
        names = {"prompt": "a fox in snow", "negative_prompt": "blurred"} | more
        texts = {n: [f"{t} {'abc'[k]}" for k in samples] for n, t in names.items() if t}
        return call | texts

    return Family(make, prompts, family.samples)


TEXTS = {
    "FluxPipeline (texts)": told(
        Family(tiny.flux, tiny.flux_prompts), clip_and_t5, negative_prompt=None
    ),
    "WanPipeline (texts)": told(
        Family(tiny.wan, tiny.wan_prompts), lambda: t5(UMT5EncoderModel, UMT5Config)
    ),
    "LTXPipeline (texts)": told(Family(tiny.ltx, tiny.video_prompts), t5),
    "ChromaPipeline (texts)": told(CHROMA["ChromaPipeline"], t5),
    "AuraFlowPipeline (texts)": told(ONES["AuraFlowPipeline"], t5),
    "SanaPipeline (texts)": told(Family(tiny.sana, tiny.sana_prompts), lambda: gemma2(WIDTH)),
    "Lumina2Pipeline (texts)": told(
        Family(odd.lumina2, adding(odd.lumina2_prompts, max_sequence_length=64)),
        lambda: gemma2(8),
    ),
    "ZImagePipeline (texts)": told(Family(odd.z_image, odd.z_image_prompts), lambda: qwen3(16)),
}
