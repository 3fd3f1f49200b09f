"""The instruction beside the image: named templates, applied by the model's own chat template."""

from __future__ import annotations

import hashlib
from typing import Any

COCO_80 = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
).split(", ")

PROMPTS = {
    "plain": "Detect every object. Answer in JSON.",
    "coco_80": f"Detect every object of these classes: {', '.join(COCO_80)}. Answer in JSON.",
    "atomic": (
        "Detect every object. Answer in JSON. One box for each single instance: never one box around a row, a stack or "
        "a group, however crowded the scene."
    ),
}


def prompt_text(name: str, text: str | None) -> str:
    """The instruction of a named template, or the user's own `text` where `name` is `text`."""
    if name == "text":
        assert text is not None, "the config checks that `text` comes with `name: text`"
        return text
    return PROMPTS[name]


def chat_prompt(tokenizer: Any, instruction: str) -> str:
    """The prompt as the model's chat template writes it, up to where the answer begins; one image placeholder.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template that knows image parts (every Qwen-VL's does).
        instruction: From `prompt_text`.
    """
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}
    return str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))


def prompt_hash(prompt: str) -> str:
    """Twelve hex digits that identify a prompt; kept with a checkpoint."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]
