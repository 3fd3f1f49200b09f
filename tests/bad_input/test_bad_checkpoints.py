"""Bad checkpoints: what is missing or damaged is told before anything is written, with how to mend it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases import Bad, CommandLine, Make, mkdir, rows, write, write_lines
from dirt import photo, record
from safetensors import safe_open

import apiece

TINY = Path(apiece.__file__).parent / "assets" / "tiny"
LOOK = "predict model photos --out out"


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


CASES = [
    Bad(
        "not there",
        "predict modle photos --out out",
        (
            "error: modle: expected a checkpoint folder, a run folder, `tiny`, or a downloaded Hugging Face id; "
            "found nothing\n"
            "  fix: check the path, or download the model first: hf download modle\n"
        ),
        [mkdir("model"), photo("photos/a.png")],
    ),
    Bad(
        "not there, in a folder",
        "predict models/tinny photos --out out",
        (
            "error: models/tinny: expected a checkpoint folder or a run folder, found nothing (did you mean "
            "'tiny'?)\n"
            "  fix: in models there are: tiny\n"
        ),
        [mkdir("models/tiny"), photo("photos/a.png")],
    ),
    Bad(
        "not downloaded",
        "predict Nobody/No-Such-Model photos --out out",
        (
            "error: Nobody/No-Such-Model: expected a checkpoint folder, a run folder, `tiny`, or a downloaded "
            "Hugging Face id; found nothing\n"
            "  fix: check the path, or download the model first: hf download Nobody/No-Such-Model\n"
        ),
        [photo("photos/a.png")],
    ),
    Bad(
        "an impossible name",
        "predict 'a b/c?' photos --out out",
        (
            "error: a b/c?: expected a checkpoint folder, a run folder, `tiny`, or a downloaded Hugging Face id; "
            "found nothing\n"
            "  fix: check the path, or download the model first: hf download a b/c?\n"
        ),
        [photo("photos/a.png")],
    ),
    Bad(
        "a name too long",
        f"predict {'x' * 300} photos --out out",
        (
            "error: "
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
            ": File name too long\n"
        ),
        [photo("photos/a.png")],
    ),
    Bad(
        "empty name",
        "predict '' photos --out out",
        ("error: .: the folder holds no checkpoint (no config.json)\n  fix: name a checkpoint or a run folder\n"),
        [photo("photos/a.png")],
    ),
    Bad(
        "a file",
        "predict model.safetensors photos --out out",
        (
            "error: model.safetensors: is a file, expected a checkpoint folder or a run folder\n"
            "  fix: name the folder that holds it\n"
        ),
        [write("model.safetensors"), photo("photos/a.png")],
    ),
    Bad(
        "an empty folder",
        LOOK,
        ("error: model: the folder holds no checkpoint (no config.json)\n  fix: name a checkpoint or a run folder\n"),
        [mkdir("model"), photo("photos/a.png")],
    ),
    Bad(
        "a run without checkpoint",
        "predict runs/mine photos --out out",
        (
            "error: runs/mine: the run has no complete checkpoint yet\n"
            "  fix: go on with it until it saves one: apiece train --resume runs/mine\n"
        ),
        [write("runs/mine/config.yaml", "seed: 1\n"), photo("photos/a.png")],
    ),
    Bad(
        "a run with half a checkpoint",
        "predict runs/mine photos --out out",
        (
            "error: runs/mine: the folder holds no checkpoint (no config.json)\n"
            "  fix: name a checkpoint or a run folder\n"
        ),
        [write("runs/mine/checkpoints/.step_000001.77.tmp/model/config.json", "{}"), photo("photos/a.png")],
    ),
    Bad(
        "config: broken json",
        LOOK,
        (
            "error: model/config.json: broken JSON: Expecting property name enclosed in double quotes in line 1, "
            "column 2\n"
            "  fix: copy config.json from the original model again\n"
        ),
        model(put("config.json", "{")),
    ),
    Bad(
        "config: empty",
        LOOK,
        (
            "error: model/config.json: broken JSON: Expecting value in line 1, column 1\n"
            "  fix: copy config.json from the original model again\n"
        ),
        model(put("config.json", "")),
    ),
    Bad(
        "config: a list",
        LOOK,
        (
            "error: model/config.json: expected a model's settings (a JSON object), found a list\n"
            "  fix: copy config.json from the original model again\n"
        ),
        model(put("config.json", "[]")),
    ),
    Bad(
        "config: binary",
        LOOK,
        (
            "error: model/config.json: broken JSON: not UTF-8 text (byte 0)\n"
            "  fix: copy config.json from the original model again\n"
        ),
        model(put("config.json", b"\xff\xfe\x00")),
    ),
    Bad(
        "config: deep nesting",
        LOOK,
        (
            "error: model/config.json: broken JSON: nested too deep, or a number of thousands of digits\n"
            "  fix: copy config.json from the original model again\n"
        ),
        model(put("config.json", "[" * 100_000)),
    ),
    Bad(
        "config: an empty object",
        LOOK,
        (
            "error: model/config.json: expected a model of type qwen3_vl, found none\n"
            "  fix: start from a Qwen3-VL checkpoint\n"
        ),
        model(put("config.json", "{}")),
    ),
    Bad(
        "config: a folder",
        LOOK,
        ("error: model: the folder holds no checkpoint (no config.json)\n  fix: name a checkpoint or a run folder\n"),
        model(without("config.json"), mkdir("model/config.json")),
    ),
    Bad(
        "config: another architecture",
        LOOK,
        (
            "error: model/config.json: expected a model of type qwen3_vl, found 'llama'\n"
            "  fix: start from a Qwen3-VL checkpoint\n"
        ),
        model(changed("config.json", lambda v: v.update(model_type="llama"))),
    ),
    Bad(
        "config: an unknown architecture",
        LOOK,
        (
            "error: model/config.json: expected a model of type qwen3_vl, found 'detr9000'\n"
            "  fix: start from a Qwen3-VL checkpoint\n"
        ),
        model(changed("config.json", lambda v: v.update(model_type="detr9000"))),
    ),
    Bad(
        "config: no text part",
        LOOK,
        (
            "error: model/config.json: does not describe a model: Validation error for field 'text_config': …\n"
            "  fix: copy config.json from the original model again\n"
        ),
        model(changed("config.json", lambda v: v.update(text_config="none"))),
    ),
    Bad(
        "config: hidden size as text",
        LOOK,
        (
            "error: model/config.json: does not describe a model: Validation error for field 'hidden_size': …\n"
            "  fix: copy config.json from the original model again\n"
        ),
        model(changed("config.json", lambda v: v["text_config"].update(hidden_size="wide"))),
    ),
    Bad(
        "config: another hidden size",
        LOOK,
        (
            "error: model: weights of another shape than config.json says: "
            "model.language_model.embed_tokens.weight is [1666, 192], not [1666, 64], and 46 more\n"
            "  fix: copy config.json and the weights from one model again\n"
        ),
        model(changed("config.json", lambda v: v["text_config"].update(hidden_size=64))),
    ),
    Bad(
        "config: another vocabulary size",
        LOOK,
        (
            "error: model: tokenizer.json has 1,666 tokens, the model of config.json 1,500 rows: they are not of "
            "one checkpoint\n"
            "  fix: copy both from the same model\n"
        ),
        model(changed("config.json", lambda v: v["text_config"].update(vocab_size=1500))),
    ),
    Bad(
        "config: more layers than weights",
        LOOK,
        (
            "error: model: weights are missing: model.language_model.layers.5.input_layernorm.weight, and 10 "
            "more\n"
            "  fix: copy config.json and the weights from one model again\n"
        ),
        model(
            changed(
                "config.json",
                lambda v: v["text_config"].update(num_hidden_layers=v["text_config"]["num_hidden_layers"] + 1),
            )
        ),
    ),
    Bad(
        "config: an image token beyond the vocabulary",
        LOOK,
        (
            "error: model: expected the chat template to write one image placeholder, found 0\n"
            "  fix: use the model's own chat_template, and an instruction without special tokens\n"
        ),
        model(changed("config.json", lambda v: v.update(image_token_id=10**6))),
    ),
    Bad(
        "tokenizer: missing",
        LOOK,
        ("error: model: tokenizer.json is missing from the checkpoint\n  fix: copy it from the original model\n"),
        model(without("tokenizer.json")),
    ),
    Bad(
        "tokenizer: broken json",
        LOOK,
        (
            "error: model/tokenizer.json: broken JSON: Expecting property name enclosed in double quotes in line "
            "1, column 2\n"
            "  fix: copy tokenizer.json from the original model again\n"
        ),
        model(put("tokenizer.json", "{")),
    ),
    Bad(
        "tokenizer: another json",
        LOOK,
        (
            "error: model/tokenizer.json: expected a tokenizer, with `model` and `added_tokens`\n"
            "  fix: copy tokenizer.json from the original model again\n"
        ),
        model(put("tokenizer.json", '{"hello": 1}')),
    ),
    Bad(
        "tokenizer: settings broken",
        LOOK,
        (
            "error: model/tokenizer_config.json: broken JSON: Expecting property name enclosed in double quotes "
            "in line 1, column 2\n"
            "  fix: copy tokenizer_config.json from the original model again\n"
        ),
        model(put("tokenizer_config.json", "{")),
    ),
    Bad(
        "tokenizer: no coordinate tokens",
        LOOK,
        (
            "error: model: expected the 1000 coordinate tokens <|coord_0|> to <|coord_999|>, found 0\n"
            "  fix: add them: apiece model extend --from model --out NEW_DIR\n"
        ),
        model(changed("tokenizer.json", no_coords)),
    ),
    Bad(
        "tokenizer: one coordinate token missing",
        LOOK,
        (
            "error: model: expected the 1000 coordinate tokens <|coord_0|> to <|coord_999|>, found 999\n"
            "  fix: add them: apiece model extend --from model --out NEW_DIR\n"
        ),
        model(changed("tokenizer.json", one_coord_gone)),
    ),
    Bad(
        "template: missing",
        LOOK,
        (
            "error: model: the chat template cannot be applied: Cannot use chat template functions because "
            "tokenizer.chat_template is not set and no template argument was passed! For information about "
            "writing templates and setting the tokenizer.chat_template attribute, please see the documentation "
            "at https://huggingface.co/docs/transformers/main/en/chat_templati\n"
            "  fix: copy chat_template.jinja from the original model again\n"
        ),
        model(without("chat_template.jinja")),
    ),
    Bad(
        "template: no image in it",
        LOOK,
        (
            "error: model: expected the chat template to write one image placeholder, found 0\n"
            "  fix: use the model's own chat_template, and an instruction without special tokens\n"
        ),
        model(put("chat_template.jinja", "hello")),
    ),
    Bad(
        "template: broken",
        LOOK,
        (
            "error: model: the chat template cannot be applied: Expected an expression, got 'end of statement "
            "block'\n"
            "  fix: copy chat_template.jinja from the original model again\n"
        ),
        model(put("chat_template.jinja", "{% for x in %}")),
    ),
    Bad(
        "template: runs code",
        LOOK,
        (
            "error: model: the chat template cannot be applied: access to attribute '__class__' of 'str' object "
            "is unsafe.\n"
            "  fix: copy chat_template.jinja from the original model again\n"
        ),
        model(put("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    ),
    Bad(
        "images: missing",
        LOOK,
        (
            "error: model: preprocessor_config.json is missing from the checkpoint\n"
            "  fix: copy it from the original model\n"
        ),
        model(without("preprocessor_config.json")),
    ),
    Bad(
        "images: broken json",
        LOOK,
        (
            "error: model/preprocessor_config.json: broken JSON: Expecting property name enclosed in double "
            "quotes in line 1, column 2\n"
            "  fix: copy preprocessor_config.json from the original model again\n"
        ),
        model(put("preprocessor_config.json", "{")),
    ),
    Bad(
        "images: a list",
        LOOK,
        (
            "error: model/preprocessor_config.json: expected an image processor's settings (a JSON object), "
            "found a list\n"
            "  fix: copy preprocessor_config.json from the original model again\n"
        ),
        model(put("preprocessor_config.json", "[]")),
    ),
    Bad(
        "images: no patch size",
        LOOK,
        (
            "error: model/preprocessor_config.json: patch_size: expected a whole number from 1, found 0\n"
            "  fix: copy preprocessor_config.json from the original model again\n"
        ),
        model(changed("preprocessor_config.json", lambda v: v.update(patch_size=0))),
    ),
    Bad(
        "card: broken json",
        LOOK,
        (
            "error: model/apiece.json: broken JSON: Expecting property name enclosed in double quotes in line 1, "
            "column 2\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", "{")),
    ),
    Bad(
        "card: a list",
        LOOK,
        (
            "error: model/apiece.json: expected what the weights were trained under (a JSON object), found a "
            "list\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", "[]")),
    ),
    Bad(
        "card: binary",
        LOOK,
        (
            "error: model/apiece.json: broken JSON: not UTF-8 text (byte 0)\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", b"\xff")),
    ),
    Bad(
        "card: deep nesting",
        LOOK,
        (
            "error: model/apiece.json: broken JSON: nested too deep, or a number of thousands of digits\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", "[" * 100_000)),
    ),
    Bad(
        "card: pixels as text",
        LOOK,
        (
            "error: model/apiece.json: max_pixels: Input should be a valid integer, found 'many'\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", '{"max_pixels": "many"}')),
    ),
    Bad(
        "card: no pixels",
        LOOK,
        (
            "error: model/apiece.json: max_pixels: Input should be greater than 0, found 0\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", '{"max_pixels": 0}')),
    ),
    Bad(
        "card: nan as pixels",
        LOOK,
        (
            "error: model/apiece.json: max_pixels: Input should be a valid integer, found nan\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", '{"max_pixels": NaN}')),
    ),
    Bad(
        "card: a word as prompt",
        LOOK,
        (
            "error: model/apiece.json: prompt: Input should be an object, found 'plain'\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", '{"prompt": "plain"}')),
    ),
    Bad(
        "card: an unknown prompt",
        LOOK,
        (
            "error: model/apiece.json: prompt.name: Input should be 'plain', 'coco_80', 'atomic' or 'text', "
            "found 'poem'\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", '{"prompt": {"name": "poem"}}')),
    ),
    Bad(
        "card: a prompt without text",
        LOOK,
        (
            "error: model/apiece.json: prompt: name 'text' and text None do not fit\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", '{"prompt": {"name": "text"}}')),
    ),
    Bad(
        "card: an unknown order",
        "diagnose model --data x.jsonl --out out",
        (
            "error: model/apiece.json: object_order: Input should be 'sorted', 'left_to_right', 'reading' or "
            "'random', found 'upwards'\n"
            "  fix: delete the file to go on without it\n"
        ),
        model(put("apiece.json", '{"object_order": "upwards"}'), write_lines("x.jsonl", record(image="photos/a.png"))),
    ),
    Bad(
        "weights: missing",
        LOOK,
        (
            "error: model: the checkpoint has no safetensors weights\n"
            "  fix: convert it first; pickled weights are never loaded\n"
        ),
        model(without("model.safetensors")),
    ),
    Bad(
        "weights: pickled",
        LOOK,
        (
            "error: model: the checkpoint has no safetensors weights\n"
            "  fix: convert it first; pickled weights are never loaded\n"
        ),
        model(without("model.safetensors"), put("pytorch_model.bin", b"\x80\x04.")),
    ),
    Bad(
        "weights: empty",
        LOOK,
        (
            "error: model/model.safetensors: cut short or damaged weights: …"
            "header too small\n"
            "  fix: copy or download this file again; of a run, name an older one: RUN/checkpoints/step_N/model\n"
        ),
        model(put("model.safetensors", b"")),
    ),
    Bad(
        "weights: cut in the header",
        LOOK,
        (
            "error: model/model.safetensors: cut short or damaged weights: …"
            "invalid header length\n"
            "  fix: copy or download this file again; of a run, name an older one: RUN/checkpoints/step_N/model\n"
        ),
        model(cut("model.safetensors", 0.0005)),
    ),
    Bad(
        "weights: cut",
        LOOK,
        (
            "error: model/model.safetensors: cut short or damaged weights: …"
            "incomplete metadata, file not fully covered\n"
            "  fix: copy or download this file again; of a run, name an older one: RUN/checkpoints/step_N/model\n"
        ),
        model(cut("model.safetensors", 0.6)),
    ),
    Bad(
        "weights: text",
        LOOK,
        (
            "error: model/model.safetensors: cut short or damaged weights: …"
            "header too large\n"
            "  fix: copy or download this file again; of a run, name an older one: RUN/checkpoints/step_N/model\n"
        ),
        model(put("model.safetensors", "version https://git-lfs.github.com/spec/v1\n")),
    ),
    Bad(
        "weights: a folder",
        LOOK,
        (
            "error: model/model.safetensors: cut short or damaged weights: No such device (os error 19)\n"
            "  fix: copy or download this file again; of a run, name an older one: RUN/checkpoints/step_N/model\n"
        ),
        model(without("model.safetensors"), mkdir("model/model.safetensors")),
    ),
    Bad(
        "weights: some missing",
        LOOK,
        (
            "error: model: weights are missing: model.language_model.layers.0.mlp.up_proj.weight\n"
            "  fix: copy config.json and the weights from one model again\n"
        ),
        model(weights(lambda t: t.pop("model.language_model.layers.0.mlp.up_proj.weight"))),
    ),
    Bad(
        "weights: of another shape",
        LOOK,
        (
            "error: model: weights of another shape than config.json says: model.language_model.norm.weight is "
            "[191], not [192]\n"
            "  fix: copy config.json and the weights from one model again\n"
        ),
        model(
            weights(
                lambda t: t.update(
                    {"model.language_model.norm.weight": t["model.language_model.norm.weight"][:-1].clone()}
                )
            )
        ),
    ),
    Bad(
        "weights: nan",
        LOOK,
        (
            "error: model: weights are NaN or infinite: model.language_model.norm.weight\n"
            "  fix: the training that wrote them diverged: take an older checkpoint, "
            "RUN/checkpoints/step_N/model\n"
        ),
        model(weights(lambda t: t["model.language_model.norm.weight"].fill_(float("nan")))),
    ),
    Bad(
        "weights: a shard that is not there",
        LOOK,
        (
            "error: model: the checkpoint has no safetensors weights\n"
            "  fix: convert it first; pickled weights are never loaded\n"
        ),
        model(
            without("model.safetensors"),
            put(
                "model.safetensors.index.json",
                '{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}',
            ),
        ),
    ),
    Bad(
        "weights: the second shard is not there",
        LOOK,
        (
            "error: model: the model cannot be built: No such file or directory: "
            "model/model-00002-of-00002.safetensors\n"
            "  fix: copy config.json and the weights from the original model again\n"
        ),
        model(first_shard_alone),
    ),
    Bad(
        "weights: an index of broken json",
        LOOK,
        (
            "error: model: the checkpoint has no safetensors weights\n"
            "  fix: convert it first; pickled weights are never loaded\n"
        ),
        model(without("model.safetensors"), put("model.safetensors.index.json", "{")),
    ),
    Bad(
        "trained from",
        "train c.yaml model.checkpoint=model",
        (
            "error: model/model.safetensors: cut short or damaged weights: …"
            "incomplete metadata, file not fully covered\n"
            "  fix: copy or download this file again; of a run, name an older one: RUN/checkpoints/step_N/model\n"
        ),
        [
            *model(cut("model.safetensors", 0.6)),
            write_lines("x.jsonl", record(image="photos/a.png")),
            write("c.yaml", "data: {train: x.jsonl}\n"),
        ],
    ),
    Bad(
        "trained from nothing",
        "train c.yaml model.checkpoint=modle",
        (
            "error: modle: expected a checkpoint folder, a run folder, `tiny`, or a downloaded Hugging Face id; "
            "found nothing\n"
            "  fix: check the path, or download the model first: hf download modle\n"
        ),
        [*model(), write_lines("x.jsonl", record(image="photos/a.png")), write("c.yaml", "data: {train: x.jsonl}\n")],
    ),
    Bad(
        "trained from nan",
        "train c.yaml model.checkpoint=model",
        (
            "error: model: weights are NaN or infinite: model.language_model.norm.weight\n"
            "  fix: the training that wrote them diverged: take an older checkpoint, "
            "RUN/checkpoints/step_N/model\n"
        ),
        [
            *model(weights(lambda t: t["model.language_model.norm.weight"].fill_(float("nan")))),
            write_lines("x.jsonl", record(image="photos/a.png")),
            write(
                "c.yaml",
                "data: {train: x.jsonl, workers: 0}\ntrain: {steps: 2, batch_size: 1}\noptim: {warmup_steps: 0}\n",
            ),
        ],
    ),
    Bad(
        "resumed: no manifest",
        "train --resume runs/mine",
        (
            "error: runs/mine/config.yaml:2: broken YAML: while parsing a flow node, expected the node content, "
            "but found '<stream end>'\n"
            "  fix: mend the syntax; quote text that YAML misreads\n"
        ),
        [write("runs/mine/config.yaml", "seed: [\n")],
    ),
    Bad(
        "extended: not there",
        "model extend --from modle --out new",
        (
            "error: modle: expected a checkpoint folder, a run folder, `tiny`, or a downloaded Hugging Face id; "
            "found nothing\n"
            "  fix: check the path, or download the model first: hf download modle\n"
        ),
        model(),
    ),
    Bad(
        "extended: twice",
        "model extend --from model --out new",
        ("error: model: the checkpoint has coordinate tokens already\n  fix: use it as it is\n"),
        model(),
    ),
    Bad(
        "extended: out is there",
        "model extend --from model --out old",
        ("error: old: the output exists already and is not overwritten\n  fix: choose a new folder\n"),
        model(write("old/notes.txt", "precious")),
        code=2,
    ),
    Bad(
        "exported: out is there",
        "model export tiny --out old",
        ("error: old: the output exists already and is not overwritten\n  fix: choose a new folder\n"),
        [write("old", "precious")],
        code=2,
    ),
    Bad(
        "exported: an unknown type",
        "model export tiny --out new --dtype float16",
        "error: expected --dtype float32 or bfloat16, found 'float16'\n",
        code=2,
    ),
    Bad(
        "exported: a cut checkpoint",
        "model export model --out new",
        (
            "error: model/model.safetensors: cut short or damaged weights: …"
            "incomplete metadata, file not fully covered\n"
            "  fix: copy or download this file again; of a run, name an older one: RUN/checkpoints/step_N/model\n"
        ),
        model(cut("model.safetensors", 0.6)),
    ),
    Bad(
        "made: out is there",
        "model tiny --out old",
        ("error: old: the output exists already and is not overwritten\n  fix: choose a new folder\n"),
        [write("old/notes.txt", "precious")],
        code=2,
    ),
    Bad(
        "made: out is below a file",
        "model tiny --out old/new",
        (
            "error: old/new: cannot write here: File exists\n"
            "  fix: choose another name or folder that you can write to\n"
        ),
        [write("old", "precious")],
    ),
]


@rows(CASES)
def test_bad_checkpoints(apiece: CommandLine, case: Bad) -> None:
    apiece.refuses(case)
