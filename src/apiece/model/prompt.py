"""What a model is shown: a photo as patches, and the instruction, written by the model's own chat template."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


# A photo as the patches that the vision tower reads.
#
# The size is chosen here: multiples of patch x merge under a pixel budget, never enlarged beyond rounding. Values and
# patch order are the library's.


def target_size(size_wh: tuple[int, int], factor: int, max_pixels: int) -> tuple[int, int]:
    """Width and height that an image is resized to: multiples of `factor`, at most `max_pixels`, not enlarged
    needlessly.

    Each side is rounded to the nearest multiple (at least one factor); above the budget both are scaled down together
    and rounded down. The aspect ratio is kept as nearly as the multiples allow.
    """
    width, height = map(float, size_wh)
    if width * height > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        width, height = width / shrink, height / shrink
    w = max(factor, round(width / factor) * factor)
    h = max(factor, round(height / factor) * factor)
    while w * h > max_pixels and max(w, h) > factor:
        # Rounding up can overshoot the budget: take one step off the side that was rounded up most.
        if w > factor and (h == factor or w / width >= h / height):
            w -= factor
        else:
            h -= factor
    return w, h


@dataclass(frozen=True)
class ImageEncoder:
    """Resizes, normalises and cuts photos into patches with the checkpoint's own image processor."""

    processor: Any  # a `Qwen2VLImageProcessorPil`, which needs no torchvision
    max_pixels: int | None = None  # pixel budget; the processor's own `longest_edge` if `None`

    def with_max_pixels(self, max_pixels: int) -> ImageEncoder:
        """Never above the processor's own."""
        return replace(self, max_pixels=min(max_pixels, int(self.processor.size["longest_edge"])))

    @property
    def factor(self) -> int:
        """Sides are multiples of this: patch size times merge size, in pixels."""
        return int(self.processor.patch_size * self.processor.merge_size)

    def size_for(self, size_wh: tuple[int, int]) -> tuple[int, int]:
        """Width and height in pixels that an image of `size_wh` is resized to."""
        budget = int(self.processor.size["longest_edge"]) if self.max_pixels is None else self.max_pixels
        return target_size(size_wh, self.factor, budget)

    def num_tokens(self, size_wh: tuple[int, int]) -> int:
        """Image tokens that the language model sees for an image of `size_wh`."""
        width, height = self.size_for(size_wh)
        return (width // self.factor) * (height // self.factor)

    def resized(self, image: Image.Image) -> Image.Image:
        target = self.size_for(image.size)
        return image if image.size == target else image.resize(target, Image.Resampling.BICUBIC)

    def encode(self, image: Image.Image) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
        """Patches of an RGB image, `[P, 3 * 2 * patch^2]` float32, and the grid `(1, rows, columns)` in patches."""
        out = self.processor(images=[self.resized(image)], do_resize=False, return_tensors="np")
        t, h, w = (int(v) for v in out["image_grid_thw"][0])
        return np.asarray(out["pixel_values"], dtype=np.float32), (t, h, w)


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
    """The instruction of a named template, or the user's own `text` if `name` is `text`."""
    if name == "text":
        assert text is not None, "the config checks that `text` comes with `name: text`"
        return text
    return PROMPTS[name]


def chat_prompt(tokenizer: Any, instruction: str) -> str:
    """The prompt as the model's chat template writes it, up to where the answer begins; one image placeholder."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}
    return str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))


def prompt_hash(prompt: str) -> str:
    """Twelve hex digits that identify a prompt; kept with a checkpoint."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]
