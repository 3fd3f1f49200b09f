"""Train the embedded checkpoint's tokenizer again: `python tools/tiny_tokenizer.py FOLDER`.

`src/apiece/assets/tiny/tokenizer.json` was written by this; a test compares the two.
"""

from __future__ import annotations

import random
import re
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from apiece.codec import NUM_BINS, coord_token, render_text
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
# Syntax is cut into the runs that `render` writes, so each is one token and "continue" or "stop" is one decision.
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


if __name__ == "__main__":
    train_tiny_tokenizer().save_pretrained(sys.argv[1])
