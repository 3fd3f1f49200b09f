"""`transformers serve` for Qwen3-VL without torchvision: the command as it is, the processor without videos."""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor, Qwen3VLConfig
from transformers.cli.transformers import main
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin


class ImagesOnly(Qwen3VLProcessor):
    """The model's processor without its video half, whose only implementation needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


AutoProcessor.register(Qwen3VLConfig, ImagesOnly, exist_ok=True)

if __name__ == "__main__":
    main()
