"""The tiny model's shape: Qwen2.5-VL in miniature, as real vLLM runs it, and its files' settings.

Owns the configuration, the image processor's settings and what makes training quick: probes on the
visual tokens, and one attention call per batch instead of one per picture.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from tests.tiny_vlm.batches import CELL_CLASSES, CELL_PIXELS, PATCH_PIXELS, Pictures
from tests.tiny_vlm.tokenizer import SpecialIds

# transformers' models are typed too loosely to be worth naming.
Model: TypeAlias = Any

MAX_MODEL_LEN = 2048

# Heads are 64 wide in the language model and 32 in the vision tower: vLLM's attention on a CPU
# wants multiples of 32.
_WIDTH = 128
_LANGUAGE_LAYERS = 3
_VISION_WIDTH = 64
_VISION_LAYERS = 3

# Every picture is scaled to 9 to 16 visual tokens.
_MIN_PIXELS = 9 * CELL_PIXELS**2
_MAX_PIXELS = 16 * CELL_PIXELS**2
_VOCABULARY_STEP = 64


def build_model(vocabulary: int, ids: SpecialIds) -> Model:
    """A model with random weights in float32, drawn from torch's global generator."""
    config = _config(math.ceil(vocabulary / _VOCABULARY_STEP) * _VOCABULARY_STEP, ids)
    make: Model = Qwen2_5_VLForConditionalGeneration
    model = make(config).float()
    model.generation_config.eos_token_id = ids.end_of_turn
    model.generation_config.pad_token_id = ids.padding
    return model


def image_processor_options() -> dict[str, Any]:
    """What the image processor is made with."""
    return {
        "min_pixels": _MIN_PIXELS,
        "max_pixels": _MAX_PIXELS,
        "size": {"shortest_edge": _MIN_PIXELS, "longest_edge": _MAX_PIXELS},
        "patch_size": PATCH_PIXELS,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def save_image_processor(folder: Path) -> None:
    """Write ``preprocessor_config.json``."""
    classes = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    text = json.dumps(classes | image_processor_options(), indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def save_model(model: Model, folder: Path) -> None:
    """Write the weights and the configuration so that transformers 4 and 5 read the same of it."""
    model.save_pretrained(str(folder))
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    spell_positions_twice(config["text_config"])
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")


def spell_positions_twice(language: dict[str, Any]) -> None:
    """Add the names that transformers 4 knows: without them it takes another base, unasked."""
    rope = dict(language["rope_parameters"])
    language["rope_theta"] = rope.pop("rope_theta")
    language["rope_scaling"] = rope


def _config(vocabulary: int, ids: SpecialIds) -> Qwen2_5_VLConfig:
    config = Qwen2_5_VLConfig(
        text_config=_language_config(vocabulary, ids),
        vision_config=_vision_config(),
        image_token_id=ids.picture,
        video_token_id=ids.video,
        vision_start_token_id=ids.picture_start,
        vision_end_token_id=ids.picture_end,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    return config


def _language_config(vocabulary: int, ids: SpecialIds) -> dict[str, object]:
    return {
        # Where transformers 4 looks for the whole model's.
        "architectures": [Qwen2_5_VLForConditionalGeneration.__name__],
        "vocab_size": vocabulary,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": _LANGUAGE_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": MAX_MODEL_LEN,
        "rope_parameters": {
            "rope_type": "default",
            "type": "mrope",
            "mrope_section": [8, 12, 12],
            "rope_theta": 10_000.0,
        },
        "bos_token_id": ids.padding,
        "eos_token_id": ids.end_of_turn,
        "tie_word_embeddings": True,
    }


def _vision_config() -> dict[str, object]:
    return {
        "depth": _VISION_LAYERS,
        "hidden_size": _VISION_WIDTH,
        "intermediate_size": 2 * _VISION_WIDTH,
        "num_heads": 2,
        "out_hidden_size": _WIDTH,
        "patch_size": PATCH_PIXELS,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        # No attention windows: a picture is only a few tokens.
        "window_size": 4 * CELL_PIXELS,
        "fullatt_block_indexes": list(range(_VISION_LAYERS)),
    }


class Probes:
    """Reads shape, colour, background and figure off each visual token; thrown away afterwards.

    Their loss teaches the vision tower directly. Without it the language loss alone takes many
    times longer to discover that pictures matter.
    """

    def __init__(self) -> None:
        self.readers = nn.ModuleList(nn.Linear(_WIDTH, classes) for classes in CELL_CLASSES)

    def loss(self, visual_tokens: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
        """The summed cross-entropy of all readers."""
        normed = functional.rms_norm(visual_tokens, (_WIDTH,))
        losses = [
            functional.cross_entropy(reader(normed), truth)
            for reader, truth in zip(self.readers, truths, strict=True)
        ]
        return torch.stack(losses).sum()


def speed_up_equal_pictures(model: Model) -> None:
    """Let the vision tower assume that all pictures of a batch have one size.

    It then attends over the whole batch in one call, where the original makes one per picture.
    """
    for block in model.model.visual.blocks:
        block.attn.forward = partial(_attend_equal_pictures, block.attn)


def _attend_equal_pictures(
    attention: Any,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: object,
) -> torch.Tensor:
    patches, pictures = hidden_states.shape[0], cu_seqlens.numel() - 1
    qkv = attention.qkv(hidden_states).reshape(patches, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(1, 0, 2, 3).unbind(0)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    query, key, value = (
        part.reshape(pictures, -1, attention.num_heads, part.shape[-1]).transpose(1, 2)
        for part in (query, key, value)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value)
    merged: torch.Tensor = attention.proj(mixed.transpose(1, 2).reshape(patches, -1))
    return merged


def visual_tokens(model: Model, pictures: Pictures) -> torch.Tensor:
    """(pictures * cells, width): what the language model gets to see."""
    output = model.model.visual(pictures.patches, grid_thw=pictures.grids)
    tokens: torch.Tensor = output.pooler_output
    return tokens
