"""A small text-to-image pipeline of diffusers' own Stable Diffusion 3 classes."""

import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from flows.search.pipeline_loading import dtype_argument
from studies.text_to_image.autoencoder import PixelAutoencoder
from studies.text_to_image.captions import SIDE, every_caption

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 10  # of the longest caption, with its start and end
# Of the place of the third text encoder, which is left out: zeros that the pipeline appends.
EMPTY_TOKENS = 1
# What every call of the pipeline has.
CALL = {"height": SIDE, "width": SIDE, "max_sequence_length": EMPTY_TOKENS}


@dataclass(frozen=True)
class Size:
    """Of the transformer: width = heads x head."""

    layers: int = 10
    heads: int = 4
    head: int = 64

    @property
    def width(self) -> int:
        return self.heads * self.head


def make_pipeline(size: Size, seed: int = 0) -> StableDiffusion3Pipeline:
    """The pipeline with a transformer that has learned nothing yet."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(every_caption())
    encoders = [_make_encoder(len(tokenizer), size.width // 2) for _ in range(2)]
    transformer = SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=3,
        out_channels=3,
        num_layers=size.layers,
        attention_head_dim=size.head,
        num_attention_heads=size.heads,
        joint_attention_dim=size.width,
        caption_projection_dim=size.width,
        pooled_projection_dim=size.width,
        pos_embed_max_size=SIDE // 2,
        qk_norm="rms_norm",
    )
    _initialise(transformer)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=PixelAutoencoder(),
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """What `teacher.py` saved, on its device."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        str(folder), **{dtype_argument(): dtype}, text_encoder_3=None, tokenizer_3=None
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """CLIP's kind of tokenizer, which knows the words of these texts: the most frequent pair of
    neighbours is merged, again and again, until each word is one token."""
    words = sorted({word for text in texts for word in text.split()})
    pieces = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    vocabulary = [START, END, *sorted({piece for word in pieces for piece in word})]
    merges = []
    while pairs := Counter(pair for word in pieces for pair in itertools.pairwise(word)):
        pair = min(pairs, key=lambda of: (-pairs[of], of))
        merges.append(" ".join(pair))
        vocabulary.append("".join(pair))
        pieces = [_merged(word, pair) for word in pieces]
    with tempfile.TemporaryDirectory() as folder:
        numbers, rules = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        numbers.write_text(json.dumps({token: k for k, token in enumerate(vocabulary)}))
        rules.write_text("\n".join(["#version: 0.2", *merges, ""]))
        kinds = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS, **kinds)


def _merged(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for piece in word:
        if found and (found[-1], piece) == pair:
            found[-1] += piece
        else:
            found.append(piece)
    return found


def _make_encoder(vocabulary: int, width: int) -> CLIPTextModelWithProjection:
    """One layer with random weights of a size by which tokens stay apart: pipelines take what
    comes before the last layer, so the embeddings of the tokens themselves, and for the pooled
    embedding what the layer gathers at the last token."""
    encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=max(1, width // 32),
            max_position_embeddings=TOKENS,
            projection_dim=width,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3 if "position" in name else 1.0)
        elif isinstance(module, nn.Linear):
            # What other tokens add at the last one is a mean over all: made larger for that.
            gain = 3.0 if name.endswith(("v_proj", "out_proj")) else 1.0
            nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)
    return encoder.eval().requires_grad_(False)


def _initialise(transformer: nn.Module) -> None:
    """As diffusion transformers are (Peebles and Xie 2023): blocks begin as the identity and the
    output as zero, which diffusers leaves to whoever trains."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patches: Any = transformer.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    nn.init.zeros_(patches.bias)
    embedding: Any = transformer.time_text_embed
    for layer in (embedding.timestep_embedder, embedding.text_embedder):
        nn.init.normal_(layer.linear_1.weight, std=0.02)
        nn.init.normal_(layer.linear_2.weight, std=0.02)
    zero = [transformer.proj_out, transformer.norm_out.linear]
    blocks: Any = transformer.transformer_blocks
    for block in blocks:
        zero += [block.norm1.linear, block.norm1_context.linear]
    for layer in zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def describe(size: Size, transformer: nn.Module) -> dict[str, Any]:
    """The size in numbers."""
    count = sum(parameter.numel() for parameter in transformer.parameters())
    return {**asdict(size), "width": size.width, "parameters": count}
