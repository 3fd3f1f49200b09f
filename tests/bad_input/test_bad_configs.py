"""Bad configs: every mistake with its file, line and setting, what was expected, what was found."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from cases import Bad, CommandLine, Pins, Said, mkdir, rows, write


def yaml(text: str) -> list[Any]:
    return [write("c.yaml", text)]


ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n" for before, after in pairwise("abcdefg")
)

# fmt: off
CASES = [
    Bad("unknown key", "config c.yaml", yaml("seed: 1\ntrian: {steps: 3}\n")),
    Bad("unknown key in a section", "config c.yaml", yaml("train:\n  stpes: 3\n")),
    Bad("key of another section", "config c.yaml", yaml("train: {lr: 0.1}\n")),
    Bad("dotted key in a file", "config c.yaml", yaml("optim.lr: 0.1\n")),
    Bad("text for a number", "config c.yaml", yaml("optim: {lr: fast}\n")),
    Bad("number for a text", "config c.yaml", yaml("run: {name: 12}\n")),
    Bad("fraction for a count", "config c.yaml", yaml("train: {steps: 2.5}\n")),
    Bad("whole number with a point", "config c.yaml", yaml("train: {steps: 3.0}\n")),
    Bad("number with a leading zero", "config c.yaml", yaml("train: {steps: 012}\n")),
    Bad("yes for true", "config c.yaml", yaml("data: {flip: yes}\n")),
    Bad("list for a section", "config c.yaml", yaml("optim: [1, 2]\n")),
    Bad("nothing for a section", "config c.yaml", yaml("optim:\n")),
    Bad("section for a number", "config c.yaml", yaml("seed: {a: 1}\n")),
    Bad("list too short", "config c.yaml", yaml("optim: {betas: [0.9]}\n")),
    Bad("nan", "config c.yaml", yaml("optim: {lr: .nan}\n")),
    Bad("infinity", "config c.yaml", yaml("optim: {lr: .inf}\n")),
    Bad("beyond a float", "config c.yaml", yaml("optim: {lr: 1e999}\n")),
    Bad("beyond 64 bits", "config c.yaml", yaml("seed: 99999999999999999999999\n")),
    Bad("negative", "config c.yaml", yaml("optim: {lr: -0.1}\n")),
    Bad("zero steps", "config c.yaml", yaml("train: {steps: 0}\n")),
    Bad("share above one", "config c.yaml", yaml("data: {scale_jitter: 1.5}\n")),
    Bad("unknown word", "config c.yaml", yaml("optim: {name: adamv}\n")),
    Bad("setting without effect", "config c.yaml", yaml("prompt: {text: Find it.}\n")),
    Bad("mistakes told together", "config c.yaml", yaml("seed: x\ntrain: {steps: 0, stpes: 1}\n")),
    Bad("duplicate key", "config c.yaml", yaml("seed: 1\ntrain: {steps: 3}\nseed: 2\n")),
    Bad("merge key", "config c.yaml", yaml("a: &a {x: 1}\ntrain:\n  <<: *a\n")),
    Bad("alias of itself", "config c.yaml", yaml("train: &a [*a]\n")),
    Bad("aliases of aliases", "config c.yaml", yaml(ALIASES)),
    Bad("unknown anchor", "config c.yaml", yaml("train: *nobody\n")),
    Bad("tag", "config c.yaml", yaml("seed: !!python/object/apply:os.system [ls]\n")),
    Bad("deeper than any config", "config c.yaml", yaml("[" * 2000)),
    Bad("tabs", "config c.yaml", yaml("train:\n\tsteps: 3\n")),
    Bad("open bracket", "config c.yaml", yaml("optim: {betas: [0.9, 0.95}\n")),
    Bad("colon forgotten", "config c.yaml", yaml("train\n  steps: 3\n")),
    Bad("two documents", "config c.yaml", yaml("seed: 1\n---\nseed: 2\n")),
    Bad("a list", "config c.yaml", yaml("- seed\n")),
    Bad("a word", "config c.yaml", yaml("seed\n")),
    Bad("json of a list", "config c.json", [write("c.json", "[1, 2]")]),
    Bad("empty", "config c.yaml", yaml("")),
    Bad("only comments", "config c.yaml", yaml("# nothing\n")),
    Bad("binary", "config c.yaml", [write("c.yaml", bytes(range(256)))]),
    Bad("control characters", "config c.yaml", [write("c.yaml", "seed: 1\nrun: {name: a\x07b}\n")]),
    Bad("utf-16", "config c.yaml", [write("c.yaml", "seed: 1\n".encode("utf-16"))]),
    Bad("latin-1", "config c.yaml", [write("c.yaml", "run: {name: caf\xe9}\n".encode("latin-1"))]),
    Bad("an image", "config c.yaml", [write("c.yaml", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")]),
    Bad("broken escape", "config c.yaml", yaml('run: {name: "\\UFFFFFFFF"}\n')),
    Bad("half a surrogate pair", "config c.yaml", yaml('run: {name: "\\ud800"}\n')),
    Bad("a list as key", "config c.yaml", yaml("? [a, b]\n: 1\n")),
    Bad("huge", "config c.yaml", yaml("run: {name: " + "x" * 3_000_000 + "}\n")),
    Bad("a hundred thousand keys", "config c.yaml", yaml("data:\n" + "".join(f"  k{i}: 1\n" for i in range(100_001)))),
    Bad("not there", "config configs/c.yml", [write("configs/c.yaml", "seed: 1\n")]),
    Bad("a folder", "config configs", [mkdir("configs")]),
    Bad("a name too long", "config " + "x" * 300 + ".yaml"),
    Bad("below a file", "config c.yaml/d.yaml", yaml("seed: 1\n")),
    Bad("extends itself", "config c.yaml", yaml("seed: 1\nextends: c.yaml\n")),
    Bad("extends in a circle", "config c.yaml", [write("c.yaml", "extends: d.yaml\n"), write("d.yaml",
        "extends: c.yaml\n")]),
    Bad("extends what is not there", "config c.yaml", [write("c.yaml", "extends: baes.yaml\n"), write("base.yaml",
        "seed: 1\n")]),
    Bad("extends a folder", "config c.yaml", [write("c.yaml", "extends: base\n"), mkdir("base")]),
    Bad("extends a list", "config c.yaml", yaml("extends: [a.yaml, b.yaml]\n")),
    Bad("extends a broken file", "config c.yaml", [write("c.yaml", "extends: base.yaml\n"), write("base.yaml",
        "seed: [1\n")]),
    Bad("extends inside a section", "config c.yaml", yaml("train: {extends: base.yaml}\n")),
    Bad("mistake in the base", "config c.yaml", [write("c.yaml", "extends: base.yaml\nseed: 1\n"), write("base.yaml",
        "train:\n  steps: many\n")]),
    Bad("override without value", "config c.yaml optim.lr", yaml("seed: 1\n")),
    Bad("override with blank", "config c.yaml optim.lr = 3", yaml("seed: 1\n")),
    Bad("override of nothing", "config c.yaml =3", yaml("seed: 1\n")),
    Bad("override with two dots", "config c.yaml optim..lr=3", yaml("seed: 1\n")),
    Bad("override of an unknown key", "config c.yaml optim.rl=3", yaml("seed: 1\n")),
    Bad("override out of range", "config c.yaml train.steps=0", yaml("seed: 1\n")),
    Bad("override beyond a list", "config c.yaml 'optim.betas[2]=0.9'", yaml("seed: 1\n")),
    Bad("override of broken yaml", "config c.yaml 'optim.betas=[0.9'", yaml("seed: 1\n")),
    Bad("override below a value", "config c.yaml seed.x=1", yaml("seed: 1\n")),
    Bad("override of nan", "config c.yaml optim.lr=.nan", yaml("seed: 1\n")),
    Bad("override with a dash", "config c.yaml --optim.lr=3", yaml("seed: 1\n")),
    Bad("schema and file", "config c.yaml --schema", yaml("seed: 1\n")),
    Bad("two views", "config c.yaml --changed --against c.yaml", yaml("seed: 1\n")),
    Bad("against what is not there", "config c.yaml --against d.yaml", yaml("seed: 1\n")),
    Bad("out is a folder", "config c.yaml --out out", [*yaml("seed: 1\n"), mkdir("out")]),
    Bad("out is below a file", "config c.yaml --out c.yaml/x", yaml("seed: 1\n")),
    Bad("out is the file itself", "config c.yaml --out c.yaml", yaml("seed: 1\n")),
]
# fmt: on


@rows("configs", CASES)
def test_bad_config(apiece: CommandLine, pins: Pins, area: str, case: Bad, said: Said) -> None:
    apiece.refuses(case, said, pins[area])
