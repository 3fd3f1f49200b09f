"""The embedded default: the real `Qwen3VLForConditionalGeneration` at about 4 M parameters.

Same class, same files, same loading code as a full-size model; only the numbers differ. It is meant for images of about
192 x 192 pixels: 12 x 12 patches of 16 pixels, each an image token.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from apiece.codec import NUM_BINS, coord_token, render_text
from apiece.codec.vocab import CoordVocab
from apiece.model.coord_modules import ordinal_rows
from apiece.model.load import save_pretrained
from apiece.model.prompt import COCO_80, PROMPTS

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
]
# Class names that get a token of their own, besides COCO's.
EXTRA_WORDS = "player spectator plant box tree sign lamp ball RBC WBC Platelets object".split()
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{ message['content'] }}{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'text' %}{{ part['text'] }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{ '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Syntax is cut into the runs that `render` writes, so each is one token and "go on" or "stop" is one decision.
PIECES = (
    r'\{"objects": \[',
    r'\{"desc": "',
    r'", "bbox_2d": \[',
    r'\]\}, \{"desc": "',
    r"\]\}\]\}",
    r", ",
    r"\]\}",
    r" ?\p{L}+",
    r" ?\p{N}",
    r"[^\p{L}\p{N}]",
)
PATCH, MERGE, GRID = 16, 1, 12
TINY_PIXELS = 192 * 192
POSITION_SCALE = 0.3
"""About the size of an untrained patch embedding, so that position and content start with equal weight."""


def tiny_config(vocab_size: int, ids: dict[str, int]) -> Qwen3VLConfig:
    """The architecture, with token ids by special token."""
    hidden, head_dim = 192, 48
    text = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 480,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [8, 8, 8],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 3,
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 1,
        "out_hidden_size": hidden,
        "num_position_embeddings": GRID**2,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def train_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on answers and prompts: an object costs about ten tokens."""
    words = [*COCO_80, *EXTRA_WORDS]
    rng = random.Random(0)
    answers = [render_text([(desc, (1, 2, 3, 4)) for desc in rng.sample(words, 5)]) for _ in range(10 * len(words))]
    corpus = [*answers, *[render_text([])] * 50, *list(PROMPTS.values()) * 50]
    coords = [coord_token(k) for k in range(NUM_BINS)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(PIECES)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    # Coordinate tokens are special: the trainer must see only the text between them.
    between = [piece for text in corpus for piece in re.split(r"<\|coord_\d+\|>", text)]
    tokenizer.train_from_iterator(between, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in [*SPECIAL_TOKENS, *coords]])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_image_processor() -> Qwen2VLImageProcessorPil:
    """Patches of 16 pixels, values scaled to -1..1; larger images are shrunk to the area of 192 x 192 pixels."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=1,
        merge_size=MERGE,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": TINY_PIXELS},
    )


def build_tiny(out: Path, seed: int = 0) -> int:
    """Write a freshly initialised tiny model, its tokenizer and image processor to a new folder.

    Returns:
        The number of parameters.
    """
    tokenizer = train_tiny_tokenizer()
    ids = tokenizer.get_vocab()
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(tiny_config(len(tokenizer), ids))
    first = CoordVocab.of(tokenizer).first_id
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[first : first + NUM_BINS] = ordinal_rows(NUM_BINS, table.shape[1], scale=float(table.std()))
        # Without pretraining, attention finds a place in the image sooner when places start out smooth and distinct.
        places = model.model.visual.pos_embed.weight
        axis = ordinal_rows(GRID, places.shape[1] // 2, scale=POSITION_SCALE)
        places.copy_(torch.cat([axis.repeat_interleave(GRID, 0), axis.repeat(GRID, 1)], dim=1))
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    save_pretrained(model, tokenizer, tiny_image_processor(), out)
    return sum(p.numel() for p in model.parameters())
