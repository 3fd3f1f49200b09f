"""The embedded default: the real `Qwen3VLForConditionalGeneration` at about 4 M parameters.

Same class, same files, same loading code as a full-size model; only the numbers differ. It is meant for images of about
192 x 192 pixels: 12 x 12 patches of 16 pixels, each an image token. Architecture, tokenizer (`tools/tiny_tokenizer.py`)
and image processor are the embedded checkpoint's; what is made here are fresh weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLForConditionalGeneration

from apiece.codec import NUM_BINS
from apiece.codec.vocab import CoordVocab
from apiece.model.extend import ordinal_rows
from apiece.model.find import resolve_checkpoint
from apiece.model.load import read_image_processor, read_model_config, read_tokenizer, save_pretrained

POSITION_SCALE = 0.3  # about that of an untrained patch embedding: position and content start with equal weight


def tiny_config(vocab_size: int, ids: dict[str, int]) -> Any:
    """The architecture, for another vocabulary with these ids of the special tokens."""
    config = read_model_config(resolve_checkpoint("tiny"))
    text = config.text_config
    config.dtype = text.dtype = config.vision_config.dtype = None  # of the embedded weights
    text.vocab_size, text.eos_token_id, text.pad_token_id = vocab_size, ids["<|im_end|>"], ids["<|endoftext|>"]
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    config.vision_start_token_id, config.vision_end_token_id = ids["<|vision_start|>"], ids["<|vision_end|>"]
    return config


def build_tiny(out: Path, seed: int = 0) -> int:
    """Write a freshly initialised tiny model to a new folder, with its text side; returns its number of parameters."""
    embedded = resolve_checkpoint("tiny")
    tokenizer = read_tokenizer(embedded)
    ids = tokenizer.get_vocab()
    config = tiny_config(len(tokenizer), ids)
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    first = CoordVocab.of(tokenizer).first_id
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[first : first + NUM_BINS] = ordinal_rows(NUM_BINS, table.shape[1], scale=float(table.std()))
        # Without pretraining, attention finds a place in the image sooner when places start out smooth and distinct.
        places = model.model.visual.pos_embed.weight
        grid = round(places.shape[0] ** 0.5)
        axis = ordinal_rows(grid, places.shape[1] // 2, scale=POSITION_SCALE)
        places.copy_(torch.cat([axis.repeat_interleave(grid, 0), axis.repeat(grid, 1)], dim=1))
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    save_pretrained(model, tokenizer, read_image_processor(embedded), out)
    return sum(p.numel() for p in model.parameters())
