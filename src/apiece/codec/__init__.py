"""Objects to answers and back: bins, coordinate vocabulary, render, parse."""

from apiece.codec.bins import COORDINATE_NAMES, NUM_BINS, Bins
from apiece.codec.parse import parse, parse_ids
from apiece.codec.render import Renderer, answer_order, objects_to_bins, render_text
from apiece.codec.vocab import CoordVocab, Tokenizer, coord_token

__all__ = [
    "COORDINATE_NAMES",
    "NUM_BINS",
    "Bins",
    "CoordVocab",
    "Renderer",
    "Tokenizer",
    "answer_order",
    "coord_token",
    "objects_to_bins",
    "parse",
    "parse_ids",
    "render_text",
]
