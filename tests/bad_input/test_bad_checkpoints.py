"""Bad checkpoints: what is missing or damaged is told before anything is written, with how to mend it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases import Bad, CommandLine, Make, Pins, Said, mkdir, rows, write, write_lines
from dirt import photo, record
from safetensors import safe_open

import apiece

TINY = Path(apiece.__file__).parent / "assets" / "tiny"
LOOK = "predict model photos --out out"
NORM = "model.language_model.norm.weight"


def model(*spoil: Make, name: str = "model") -> list[Make]:
    """The embedded checkpoint in a folder, then spoilt; and a photo."""

    def copy(folder: Path) -> None:
        shutil.copytree(TINY, folder / name, copy_function=os.link)

    return [copy, photo("photos/a.png"), *spoil]


def without(name: str) -> Make:
    return lambda folder: (folder / "model" / name).unlink()


def put(name: str, content: str | bytes) -> Make:
    """Other content for a file; the original, which is a hard link, stays as it is."""

    def make(folder: Path) -> None:
        (folder / "model" / name).unlink(missing_ok=True)
        write(f"model/{name}", content)(folder)

    return make


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> Make:
    """A JSON file with something in it changed."""

    def make(folder: Path) -> None:
        value = json.loads((folder / "model" / name).read_text())
        change(value)
        put(name, json.dumps(value))(folder)

    return make


def cut(name: str, keep: float) -> Make:
    def make(folder: Path) -> None:
        content = (folder / "model" / name).read_bytes()
        put(name, content[: int(len(content) * keep)])(folder)

    return make


def weights(change: Callable[[dict[str, Any]], object]) -> Make:
    """Weights of which some are changed."""

    def make(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        from safetensors.torch import load_file as load
        from safetensors.torch import save_file as save

        tensors = load(path)
        change(tensors)
        path.unlink()
        save(tensors, path, metadata={"format": "pt"})

    return make


def no_coords(value: dict[str, Any]) -> None:
    value["added_tokens"] = [t for t in value["added_tokens"] if not t["content"].startswith("<|coord_")]


def one_coord_gone(value: dict[str, Any]) -> None:
    value["added_tokens"] = [t for t in value["added_tokens"] if t["content"] != "<|coord_500|>"]


def first_shard_alone(folder: Path) -> None:
    """Weights said to be in two files, of which the second was not copied."""
    first = "model-00001-of-00002.safetensors"
    whole = folder / "model" / "model.safetensors"
    with safe_open(whole, framework="numpy") as file:
        names = list(file.keys())
    whole.rename(whole.with_name(first))
    where = dict.fromkeys(names, first) | {names[-1]: first.replace("00001", "00002", 1)}
    put("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": where}))(folder)


# fmt: off
CASES = [
    Bad("not there", "predict modle photos --out out", [mkdir("model"), photo("photos/a.png")]),
    Bad("not there, in a folder", "predict models/tinny photos --out out", [mkdir("models/tiny"),
        photo("photos/a.png")]),
    Bad("not downloaded", "predict Nobody/No-Such-Model photos --out out", [photo("photos/a.png")]),
    Bad("an impossible name", "predict 'a b/c?' photos --out out", [photo("photos/a.png")]),
    Bad("a name too long", f"predict {'x' * 300} photos --out out", [photo("photos/a.png")]),
    Bad("empty name", "predict '' photos --out out", [photo("photos/a.png")]),
    Bad("a file", "predict model.safetensors photos --out out", [write("model.safetensors"), photo("photos/a.png")]),
    Bad("an empty folder", LOOK, [mkdir("model"), photo("photos/a.png")]),
    Bad("a run without checkpoint", "predict runs/mine photos --out out", [write("runs/mine/config.yaml", "seed: 1\n"),
        photo("photos/a.png")]),
    Bad("a run with half a checkpoint", "predict runs/mine photos --out out",
        [write("runs/mine/checkpoints/.step_000001.77.tmp/model/config.json", "{}"), photo("photos/a.png")]),
    Bad("config: broken json", LOOK, model(put("config.json", "{"))),
    Bad("config: empty", LOOK, model(put("config.json", ""))),
    Bad("config: a list", LOOK, model(put("config.json", "[]"))),
    Bad("config: binary", LOOK, model(put("config.json", b"\xff\xfe\x00"))),
    Bad("config: deep nesting", LOOK, model(put("config.json", "[" * 100_000))),
    Bad("config: an empty object", LOOK, model(put("config.json", "{}"))),
    Bad("config: a folder", LOOK, model(without("config.json"), mkdir("model/config.json"))),
    Bad("config: another architecture", LOOK, model(changed("config.json", lambda v: v.update(model_type="llama")))),
    Bad("config: an unknown architecture", LOOK, model(changed("config.json",
        lambda v: v.update(model_type="detr9000")))),
    Bad("config: an architecture that is no text", LOOK, model(changed("config.json",
        lambda v: v.update(model_type={"llama": 1})))),
    Bad("config: no text part", LOOK, model(changed("config.json", lambda v: v.update(text_config="none")))),
    Bad("config: hidden size as text", LOOK, model(changed("config.json",
        lambda v: v["text_config"].update(hidden_size="wide")))),
    Bad("config: another hidden size", LOOK, model(changed("config.json",
        lambda v: v["text_config"].update(hidden_size=64)))),
    Bad("config: another vocabulary size", LOOK, model(changed("config.json",
        lambda v: v["text_config"].update(vocab_size=1500)))),
    Bad("config: more layers than weights", LOOK, model(changed("config.json",
        lambda v: v["text_config"].update(num_hidden_layers=v["text_config"]["num_hidden_layers"] + 1)))),
    Bad("config: an image token beyond the vocabulary", LOOK, model(changed("config.json",
        lambda v: v.update(image_token_id=10**6)))),
    Bad("tokenizer: missing", LOOK, model(without("tokenizer.json"))),
    Bad("tokenizer: broken json", LOOK, model(put("tokenizer.json", "{"))),
    Bad("tokenizer: another json", LOOK, model(put("tokenizer.json", '{"hello": 1}'))),
    Bad("tokenizer: settings broken", LOOK, model(put("tokenizer_config.json", "{"))),
    Bad("tokenizer: no coordinate tokens", LOOK, model(changed("tokenizer.json", no_coords))),
    Bad("tokenizer: one coordinate token missing", LOOK, model(changed("tokenizer.json", one_coord_gone))),
    Bad("template: missing", LOOK, model(without("chat_template.jinja"))),
    Bad("template: no image in it", LOOK, model(put("chat_template.jinja", "hello"))),
    Bad("template: broken", LOOK, model(put("chat_template.jinja", "{% for x in %}"))),
    Bad("template: runs code", LOOK, model(put("chat_template.jinja", "{{''.__class__.__mro__[1].__subclasses__()}}"))),
    Bad("images: missing", LOOK, model(without("preprocessor_config.json"))),
    Bad("images: broken json", LOOK, model(put("preprocessor_config.json", "{"))),
    Bad("images: a list", LOOK, model(put("preprocessor_config.json", "[]"))),
    Bad("images: no patch size", LOOK, model(changed("preprocessor_config.json", lambda v: v.update(patch_size=0)))),
    Bad("card: broken json", LOOK, model(put("apiece.json", "{"))),
    Bad("card: a list", LOOK, model(put("apiece.json", "[]"))),
    Bad("card: binary", LOOK, model(put("apiece.json", b"\xff"))),
    Bad("card: deep nesting", LOOK, model(put("apiece.json", "[" * 100_000))),
    Bad("card: pixels as text", LOOK, model(put("apiece.json", '{"max_pixels": "many"}'))),
    Bad("card: no pixels", LOOK, model(put("apiece.json", '{"max_pixels": 0}'))),
    Bad("card: nan as pixels", LOOK, model(put("apiece.json", '{"max_pixels": NaN}'))),
    Bad("card: a word as prompt", LOOK, model(put("apiece.json", '{"prompt": "plain"}'))),
    Bad("card: an unknown prompt", LOOK, model(put("apiece.json", '{"prompt": {"name": "poem"}}'))),
    Bad("card: a prompt without text", LOOK, model(put("apiece.json", '{"prompt": {"name": "text"}}'))),
    Bad("card: an unknown order", "diagnose model --data x.jsonl --out out", model(put("apiece.json",
        '{"object_order": "upwards"}'), write_lines("x.jsonl", record(image="photos/a.png")))),
    Bad("weights: missing", LOOK, model(without("model.safetensors"))),
    Bad("weights: pickled", LOOK, model(without("model.safetensors"), put("pytorch_model.bin", b"\x80\x04."))),
    Bad("weights: empty", LOOK, model(put("model.safetensors", b""))),
    Bad("weights: cut in the header", LOOK, model(cut("model.safetensors", 0.0005))),
    Bad("weights: cut", LOOK, model(cut("model.safetensors", 0.6))),
    Bad("weights: text", LOOK, model(put("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"))),
    Bad("weights: a folder", LOOK, model(without("model.safetensors"), mkdir("model/model.safetensors"))),
    Bad("weights: some missing", LOOK,
        model(weights(lambda t: t.pop("model.language_model.layers.0.mlp.up_proj.weight")))),
    Bad("weights: of another shape", LOOK,
        model(weights(lambda t: t.update({NORM: t[NORM][:-1].clone()})))),

    Bad("weights: nan", LOOK, model(weights(lambda t: t[NORM].fill_(float("nan"))))),
    Bad("weights: a shard that is not there", LOOK, model(without("model.safetensors"),
        put("model.safetensors.index.json",
        '{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}'))),
    Bad("weights: the second shard is not there", LOOK, model(first_shard_alone)),
    Bad("weights: an index of broken json", LOOK, model(without("model.safetensors"),
        put("model.safetensors.index.json", "{"))),
    Bad("trained from", "train c.yaml model.checkpoint=model", [*model(cut("model.safetensors", 0.6)),
        write_lines("x.jsonl", record(image="photos/a.png")), write("c.yaml", "data: {train: x.jsonl}\n")]),
    Bad("trained from nothing", "train c.yaml model.checkpoint=modle", [*model(), write_lines("x.jsonl",
        record(image="photos/a.png")), write("c.yaml", "data: {train: x.jsonl}\n")]),
    Bad("trained from nan", "train c.yaml model.checkpoint=model",
        [*model(weights(lambda t: t[NORM].fill_(float("nan")))), write_lines("x.jsonl",
        record(image="photos/a.png")), write("c.yaml",
        "data: {train: x.jsonl, workers: 0}\ntrain: {steps: 2, batch_size: 1}\noptim: {warmup_steps: 0}\n")]),
    Bad("resumed: no manifest", "train --resume runs/mine", [write("runs/mine/config.yaml", "seed: [\n")]),
    Bad("extended: not there", "model extend --from modle --out new", model()),
    Bad("extended: twice", "model extend --from model --out new", model()),
    Bad("extended: out is there", "model extend --from model --out old", model(write("old/notes.txt", "precious"))),
    Bad("exported: out is there", "model export tiny --out old", [write("old", "precious")]),
    Bad("exported: an unknown type", "model export tiny --out new --dtype float16"),
    Bad("exported: a cut checkpoint", "model export model --out new", model(cut("model.safetensors", 0.6))),
    Bad("made: out is there", "model tiny --out old", [write("old/notes.txt", "precious")]),
    Bad("made: out is below a file", "model tiny --out old/new", [write("old", "precious")]),
]
# fmt: on


@rows("checkpoints", CASES)
def test_bad_checkpoints(apiece: CommandLine, pins: Pins, area: str, case: Bad, said: Said) -> None:
    apiece.refuses(case, said, pins[area])
