"""The command line as a whole: its pages, its exit codes, and what it must not import."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from apiece import __version__
from apiece.cli import app, main
from apiece.errors import UserError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command as the entry point does: exit code, stdout, stderr."""
    monkeypatch.setenv("APIECE_DEBUG", "")
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["apiece", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BaseException], None]]:
    """Makes `apiece scenes` raise an error instead of drawing."""
    from apiece_scenes import write

    def plant(error: BaseException) -> None:
        def raise_it(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(write, "write_scenes", raise_it)

    yield plant


def commands() -> dict[tuple[str, ...], Any]:
    """Every command and group by its words, without `apiece` itself."""
    from apiece.cli import commands as _  # noqa: F401  registers them

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, child in getattr(command, "commands", {}).items():
            yield (*words, name), child
            yield from walk(child, (*words, name))

    return dict(walk(typer.main.get_command(app), ()))


LEAVES = {words: command for words, command in commands().items() if not hasattr(command, "commands")}
GROUPS = [words for words in commands() if words not in LEAVES]


def examples(command: Any) -> list[str]:
    """The commands in a help text that stand in backticks."""
    return re.findall(r"`((?:apiece|torchrun)[^`]*)`", command.help or "")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_first_page_names_every_command_in_one_line(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, err) == (2 if not words else 0, "")
    assert "one box apiece" in out
    assert "The usual order" in out
    listed = [name for name, *_ in re.findall(r"^│ ([a-z]+)  +\S(.*)│$", out, re.MULTILINE)]
    shown = "demo scenes data model config plan train evaluate diagnose compare ladder report view export"
    assert listed == [*shown.split(), "predict", "env"]
    assert set(listed) == {words[0] for words in commands()}


def test_the_first_page_fits_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("--help")
    listed = [line for line in out[out.index("─ Commands ─") :].splitlines() if line.startswith("│")]
    assert len(listed) == len({words[0] for words in commands()}), "a command's line is broken in two: give short_help"
    usual = out[out.index("The usual order") : out.index("COMMAND --help")]
    assert all(line.startswith(("  apiece ", "The usual")) or not line.strip() for line in usual.splitlines()[:-1])


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_a_group_alone_lists_its_commands(run: Run, words: tuple[str, ...]) -> None:
    for page in (words, (*words, "--help")):
        _, out, _ = run(*page)
        for child in (w for w in commands() if w[:-1] == words):
            assert re.search(rf"^│ {child[-1]} +\S", out, re.MULTILINE)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_the_help_of_a_command_has_an_example(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "")
    assert re.search(r"Examples?:", out)
    assert any(example.startswith(f"apiece {' '.join(words)} ") for example in examples(LEAVES[words]))


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_the_options_in_examples_exist(words: tuple[str, ...]) -> None:
    for example in examples(LEAVES[words]):
        said = shlex.split(example.split("apiece ", 1)[1])
        named = tuple(said[: len(words)])
        assert named in LEAVES, f"`{example}` is no command"
        known = {option for parameter in LEAVES[named].params for option in parameter.opts} | {"--help"}
        assert {word for word in said if word.startswith("-")} <= known, f"`{example}` has an unknown option"


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_option_says_what_it_is(words: tuple[str, ...]) -> None:
    missing = [p.name for p in LEAVES[words].params if not getattr(p, "help", None)]
    assert not missing, f"apiece {' '.join(words)}: no help for {missing}"


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"apiece {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sceness"], "No such command 'sceness'. Did you mean 'scenes'?"),
        (["data", "chekc"], "No such command 'chekc'. Did you mean 'check'?"),
        (["scenes", "out", "--familes", "shelf"], "No such option: --familes (Possible options: --families)"),
        (["scenes"], "Missing argument 'OUT'"),
        (["scenes", "out", "--n", "many"], "Invalid value for '--n': expected a whole number, found many"),
        (["evaluate", "--out", "y", "--pictures", "-1"], "'--pictures': expected 0 or more, found -1"),
        (["train", "c.yaml", "--optim.lr=3"], "fix: settings are written without dashes: optim.lr=3"),
        (["train"], "error: name a CONFIG, or a run to --resume"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, words: list[str], message: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in re.sub(r"[\s│]+", " ", err)
    assert "Traceback" not in err


def test_bad_input_is_one_message(run: Run, failing: Callable[[BaseException], None]) -> None:
    failing(UserError("expected a moon, found a star", where="sky.jsonl:3", fix="look again"))
    code, out, err = run("scenes", "out")
    assert (code, out) == (1, "")
    assert err == "error: sky.jsonl:3: expected a moon, found a star\n  fix: look again\n"


def test_an_error_may_choose_its_exit_code(run: Run, failing: Callable[[BaseException], None]) -> None:
    failing(UserError("no such thing", exit_code=2))
    assert run("scenes", "out") == (2, "", "error: no such thing\n")


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, run: Run, failing: Callable[[BaseException], None]
) -> None:
    failing(UserError("expected a moon, found a star"))
    monkeypatch.setattr(sys, "argv", ["apiece", "--debug", "scenes", "out"])
    with pytest.raises(UserError, match="expected a moon"):
        main()


def test_a_mistake_of_our_own_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, failing: Callable[[BaseException], None]
) -> None:
    failing(ZeroDivisionError("ours"))
    monkeypatch.setattr(sys, "argv", ["apiece", "scenes", "out"])
    with pytest.raises(ZeroDivisionError, match="ours"):
        main()


def test_ctrl_c_exits_with_130(run: Run, failing: Callable[[BaseException], None]) -> None:
    failing(KeyboardInterrupt())
    code, out, err = run("scenes", "out")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def process(*words: str) -> list[str]:
    """The command as a process."""
    return [sys.executable, "-m", "apiece", *words]


@pytest.mark.slow
def test_a_real_ctrl_c_leaves_no_traceback_and_no_half_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = process("scenes", str(out), "--n", "100000", "--workers", "1")
    # A suite that was started in the background has Ctrl-C switched off, and processes inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and not any(tmp_path.rglob("*.png")):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_real_error_is_one_message_without_traceback(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.jsonl")
    done = subprocess.run(process("data", "check", missing), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {missing}: ")
    assert "Traceback" not in done.stderr
    done = subprocess.run(process("--debug", "data", "check", missing), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert missing in done.stderr


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    """As in `apiece --help | head -0`."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(process("--help"), stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(write)
    assert "Traceback" not in done.stderr


def test_the_command_line_starts_without_heavy_imports() -> None:
    script = (
        "import sys, apiece.cli.commands\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'scipy', 'hotcoco', 'PIL', 'pydantic', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
