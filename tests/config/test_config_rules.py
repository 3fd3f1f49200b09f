"""Rules about pairs hold for configs made in Python and from files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from apiece.config.describe import RULES, changed
from apiece.config.reference import dump_config
from apiece.config.resolve import load_config
from apiece.config.schema import Config, DataSection, EvalSection, OptimSection, PromptSection, TrainSection
from apiece.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompt.name=text"], "prompt.text goes with `prompt.name: text` and only with it: set both or neither"),
        (["prompt.text=Find all"], "prompt.text goes with `prompt.name: text` and only with it: set both or neither"),
        (["train.micro_batch_size=3"], r"train.batch_size \(8\) must be a multiple of train.micro_batch_size \(3\)"),
        (["eval.every_steps=3"], "eval.every_steps is set but data.eval is not: name the JSONL to evaluate on"),
        (["optim.warmup_steps=1000"], r"optim.warmup_steps \(1000\) must be below train.steps \(1000\)"),
        (
            ["optim.lr_muon=0.1"],
            r"optim.lr_muon: has no effect with `optim.name: adamw`: set `optim.name: muon`, "
            r"or set it back to its default \(0.02\)",
        ),
        (
            ["eval.samples=3"],
            "eval.samples: has no effect without data.eval: name the JSONL to evaluate on, or set it back",
        ),
        (["data.complete=x"], "data.complete: has no effect without data.eval, whose images it completes"),
        (["monitor.every_steps=3"], "monitor.every_steps is set but data.eval is not: name the JSONL that the panel"),
        (
            ["monitor.pictures=false"],
            "monitor.pictures: has no effect without monitor.every_steps: set it to the steps",
        ),
        (["monitor.panel.from=runs/a"], "monitor.panel.from: has no effect without monitor.every_steps"),
        (
            ["data.eval=x", "monitor.every_steps=3", "monitor.panel.from=runs/a", "monitor.panel.size=3"],
            r"monitor.panel.size: has no effect with monitor.panel.from, which names the samples: leave that out, or "
            r"set it back to its default \(16\)",
        ),
        (
            ["data.eval=x", "monitor.every_steps=3", "monitor.panel.size=0"],
            r"the panel is empty: raise monitor.panel.size, or name samples in monitor.panel.ids",
        ),
        (["train.keep_best=f1/f1"], "train.keep_best is set but data.eval is not: name the JSONL to evaluate on"),
        (["data.eval=x", "train.keep_best=f1/true"], r"f1/true, which needs data.complete: (?s:.*)or take f1/f1"),
        (
            ["data.eval=x", "train.keep_best=f1/f1", "train.save_every=300", "eval.every_steps=400"],
            r"nothing to choose from: of 1000 steps, none but the last is both saved \(train.save_every: 300\)",
        ),
        (["monitor.panel.from_run=a"], r"monitor.panel.from_run: unknown key \(did you mean 'from'\?\)"),
        (["monitor.panel.from=3"], "monitor.panel.from: expected text or null, found 3"),
    ],
)
def test_a_pair_that_makes_no_sense(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["prompt.name=text", "prompt.text=Find all"],
        ["train.micro_batch_size=4"],
        ["eval.every_steps=3", "eval.samples=3", "data.eval=x.jsonl"],
        ["optim.lr_muon=0.1", "optim.name=muon"],
        ["optim.lr_muon=0.02"],
        ["data.eval=x", "data.complete=y", "monitor.every_steps=3", "monitor.panel={size: 0, ids: ['1']}"],
        ["data.eval=x", "monitor.every_steps=3", "monitor.panel.from=runs/a", "monitor.elsewhere=0"],
    ],
)
def test_a_pair_that_does(overrides: list[str]) -> None:
    load_config(None, overrides)


def test_a_config_made_in_python_is_held_against_the_rules() -> None:
    with pytest.raises(ValidationError, match=r"prompt.text goes with(.|\n)*must be a multiple of"):
        Config(prompt=PromptSection(name="text"), train=TrainSection(micro_batch_size=3))


def test_importing_the_models_alone_brings_the_rules() -> None:
    code = "import apiece.config.schema; from apiece.config.describe import RULES; print(len(RULES))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(RULES) > 0


def test_changed_is_about_the_value_not_about_who_wrote_it() -> None:
    config = Config(optim=OptimSection(lr=1e-5, betas=(0.9, 0.9)))
    assert not changed(config, "optim.lr")
    assert changed(config, "optim.betas")
    assert not changed(config, "seed")


def test_every_rule_reads_settings_that_exist() -> None:
    config = Config(data=DataSection(eval="x"), eval=EvalSection(every_steps=1))
    for rule in RULES:
        for path in rule.reads:
            changed(config, path)


def test_a_written_config_breaks_no_rule_that_its_source_kept(tmp_path: Path) -> None:
    """It spells out every default, which a rule about settings without effect must not mistake for a choice."""
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(Config()))
    assert load_config(path).config == Config()
