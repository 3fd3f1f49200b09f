"""Models and engines that write what is dictated to them, and a narrow random model with Qwen3's real tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from apiece.codec import NUM_BINS, CoordVocab, Renderer, coord_token
from apiece.data.collate import EncodedSample, collate_prefix
from apiece.model.find import resolve_checkpoint
from apiece.model.load import TextSide, read_image_processor, read_tokenizer
from apiece.model.prompt import ImageEncoder
from apiece.model.tiny import tiny_config
from apiece.rollout.choose import Ask, Chooser, Ledger
from apiece.rollout.generate import LocalEngine
from apiece.rollout.grammar import Grammar
from apiece.rollout.plain import PlainModel, RowCache, norm
from apiece.rollout.rows import Feed

T = TypeVar("T")
RAISE = 60.0
"""Above all other logits, and not so far that their exponentials vanish: the processor is ten times slower then."""


class ScriptedChooser(Chooser):
    """Decides as it always does, once the logit of a dictated token is raised.

    Attributes:
        targets: By row of what the head reads.
    """

    targets: Mapping[int, int] = MappingProxyType({})

    def _pick(self, scores_NK: Tensor, asks: Sequence[Ask], ids_K: Tensor | None, first: int) -> Tensor:
        wanted = torch.tensor([self.targets[ask.row] for ask in asks], device=scores_NK.device)
        columns = wanted - first if ids_K is None else (ids_K == wanted[:, None]).int().argmax(1)
        # Behind a wrong guess nothing that is dictated can be chosen, and nothing that is chosen counts.
        columns = columns.masked_fill((columns < 0) | (columns >= scores_NK.shape[1]), 0)
        scores_NK[torch.arange(len(columns), device=scores_NK.device), columns] += RAISE
        return super()._pick(scores_NK, asks, ids_K, first)


@dataclass(frozen=True)
class ScriptedEngine(LocalEngine):
    """Writes given answers, by raising one logit of each decision.

    Attributes:
        answers: One for each question.
        timed: Reads tokens in place of the engine's own, where time is measured.
    """

    answers: Sequence[Sequence[int]] = ()
    timed: PlainModel | None = None

    def text_model(self) -> PlainModel:
        """The language model after the prefix, and its head."""
        return super().text_model() if self.timed is None else self.timed

    def chooser(self, grammar: Grammar | None, text: PlainModel) -> ScriptedChooser:
        """One that is dictated to."""
        device = next(self.model.parameters()).device
        return ScriptedChooser(grammar, self.side.vocab, self.settings.temperature, text, device)

    def decide(
        self, chooser: Chooser, ledger: Ledger, feeds: Sequence[Feed], starts: Sequence[int], hidden_ND: Tensor
    ) -> list[int]:
        """As always, once it is set what comes next."""
        assert isinstance(chooser, ScriptedChooser), "made by this engine"
        targets = {}
        for feed, start in zip(feeds, starts, strict=True):
            answer, done = self.answers[feed.row.index], len(feed.row.draft.ids)
            for i in range(feed.num_fed):
                targets[start + i] = answer[min(done + i, len(answer) - 1)]
        chooser.targets = targets
        return super().decide(chooser, ledger, feeds, starts, hidden_ND)


def hugging_face(model: Any, side: TextSide, questions: Sequence[EncodedSample], longest: int) -> list[list[int]]:
    """`model.generate`."""
    device = next(model.parameters()).device
    pad, end = side.tokenizer.pad_token_id, side.tokenizer.eos_token_id
    prefix = collate_prefix(questions, pad, side.image_token_id).to(device)
    out = model.generate(
        input_ids=prefix.ids,
        attention_mask=prefix.mask.long(),
        pixel_values=prefix.pixel_values,
        image_grid_thw=prefix.grid_thw,
        mm_token_type_ids=prefix.image_mask.int(),
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=pad,
    )
    answers = out[:, prefix.ids.shape[1] :].tolist()
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in answers]


class TimedModel(PlainModel):
    """A model between laps: `answer` for its layers, `head` for its head."""

    def __init__(self, text: PlainModel, lap: Callable[[str], None]) -> None:
        super().__init__(text.model)
        self._text, self._lap = text, lap

    def read(self, ids_RW: NDArray[np.int64], positions_RW: NDArray[np.int64], cache: RowCache) -> Tensor:
        """Through the layers."""
        return self._timed("answer", self._text.read, ids_RW, positions_RW, cache)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """All logits."""
        return self._timed("head", self._text.logits, hidden_ND)

    def logits_between(self, hidden_ND: Tensor, first: int, end: int) -> Tensor:
        """Logits of the ids from `first` to before `end`."""
        return self._timed("head", self._text.logits_between, hidden_ND, first, end)

    def logits_of(self, hidden_ND: Tensor, ids_K: Tensor) -> Tensor:
        """Logits of some ids."""
        return self._timed("head", self._text.logits_of, hidden_ND, ids_K)

    def norm_and_own(self, hidden_ND: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """What log-probabilities are made of."""
        return self._timed("head", self._text.norm_and_own, hidden_ND, ids_N)

    def _timed(self, name: str, work: Callable[..., T], *args: Any) -> T:
        self._lap("other")
        out = work(*args)
        self._lap(name)
        return out


@dataclass
class Script:
    """Makes Hugging Face's `generate` write given answers, by raising one logit of each row.

    Rows stay in the batch when their answer has ended.

    Attributes:
        answers: One a row.
        norms: Where the logarithms of the sums over the vocabulary are to be kept: what `generate` would have to work
            out to give log-probabilities. `None` where it need not.
    """

    answers: Sequence[Sequence[int]]
    norms: list[Tensor] | None = None
    step: int = 0

    def write(self, _: nn.Module, __: object, logits: Tensor) -> None:
        """Forward hook of the head."""
        last_BV = logits[:, -1]
        tokens = [ids[min(self.step, len(ids) - 1)] for ids in self.answers]
        if self.norms is not None:
            self.norms.append(norm(last_BV))
        last_BV[torch.arange(len(last_BV), device=logits.device), tokens] += RAISE
        self.step += 1


@contextmanager
def scripted(model: Any, answers: Sequence[Sequence[int]], *, logprobs: bool = False) -> Iterator[None]:
    """The model writes `answers`, one row each, while the block runs."""
    handle = model.lm_head.register_forward_hook(Script(answers, [] if logprobs else None).write)
    try:
        yield
    finally:
        handle.remove()


def narrow_qwen(tokenizer: Path) -> tuple[TextSide, Any]:
    """The real tokenizer of Qwen3, with coordinate tokens, and a random model.

    A quarter of the 2B model's depth and an eighth of its width; patches as in the tiny model. Its head has all 152,669
    rows, so it is five times as large a part of the work as in the 2B model.
    """
    own = AutoTokenizer.from_pretrained(tokenizer)
    coords = [AddedToken(coord_token(k), special=True, normalized=False) for k in range(NUM_BINS)]
    own.add_tokens(coords, special_tokens=True)
    tiny = resolve_checkpoint("tiny")
    own.chat_template = read_tokenizer(tiny).chat_template
    vocab, ids = CoordVocab.of(own), own.get_vocab()
    config = tiny_config(len(own), ids)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 256, 768, 7
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 4, 2, 48
    text.layer_types = ["full_attention"] * 7
    config.vision_config.out_hidden_size = 256
    config = Qwen3VLConfig(**config.to_dict())
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    images = ImageEncoder(read_image_processor(tiny))
    side = TextSide(own, images, vocab, Renderer(own, vocab), config.image_token_id, {}, tokenizer)
    return side, model
