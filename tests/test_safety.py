"""What docs/dev/safety.md promises: nothing that is read can run code, read other files, or speak as part of a page."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from apiece.errors import UserError
from apiece.report.page import build_report
from made_runs import Made, hostile_run, make_run

REPOSITORY = Path(__file__).parents[1]
MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy", "code", "imp")
"""What unpickles or runs whatever it is given."""
CALLS = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.hub.load", "np.load")
UNSAFE_YAML = ("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all")
UNPACKS = ("extract", "extractall", "unpack_archive")


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything in a file that could run or unpack what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
            if called(name, node, given):
                yield node.lineno, name
            elif given.get("trust_remote_code", "False") != "False":
                yield node.lineno, f"{name}(trust_remote_code)"
            elif re.match(r"(Auto|Qwen)\w*\.from_pretrained$", name) and "trust_remote_code" not in given:
                yield node.lineno, f"{name} without trust_remote_code=False, which asks the user"


def called(name: str, node: ast.Call, given: dict[str | None, str]) -> bool:
    """Whether a call runs or unpacks what it is given."""
    safe_yaml = given.get("Loader") in ("yaml.BaseLoader", "yaml.SafeLoader")
    by_name = name.endswith("import_module") and not isinstance(node.args[0], ast.Constant)
    switched_on = any(given.get(key, "False") != "False" for key in ("shell", "allow_pickle"))
    listed = name in CALLS or (name in UNSAFE_YAML and not safe_yaml) or name.split(".")[-1] in UNPACKS
    return listed or by_name or switched_on


def test_no_code_loads_pickles_or_runs_what_it_reads() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {what}"
        for path in sorted((REPOSITORY / "src" / "apiece").rglob("*.py"))
        for line, what in dangers(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from pickle import load", ["pickle"]),
        ("def f():\n    import dill", ["dill"]),
        ("torch.load(path)", ["torch.load"]),
        ("np.load(path, allow_pickle=True)", ["np.load"]),
        ("numpy.fromfile(f, allow_pickle=x)", ["numpy.fromfile"]),
        ("yaml.load(text)", ["yaml.load"]),
        ("yaml.load(text, Loader=yaml.Loader)", ["yaml.load"]),
        ("yaml.load(text, Loader=yaml.BaseLoader)", []),
        ("yaml.safe_load(text)", []),
        ("eval(text)", ["eval"]),
        ("model.eval()", []),
        ("re.compile(text)", []),
        ("archive.extractall(path)", ["archive.extractall"]),
        ("subprocess.run(words, shell=True)", ["subprocess.run"]),
        ("subprocess.run(words)", []),
        ("importlib.import_module(name)", ["importlib.import_module"]),
        ("importlib.import_module('json')", []),
        ("X.from_pretrained(folder, trust_remote_code=True)", ["X.from_pretrained(trust_remote_code)"]),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=False)", []),
        (
            "AutoConfig.from_pretrained(folder)",
            ["AutoConfig.from_pretrained without trust_remote_code=False, which asks the user"],
        ),
    ],
)
def test_planted_dangers_are_found(source: str, found: list[str]) -> None:
    assert [what for _, what in dangers(ast.parse(source))] == found


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("known", [True, False], ids=["a known model", "an unknown model"])
def test_code_in_a_model_folder_never_runs(tmp_path: Path, tiny_checkpoint: Path, file: str, known: bool) -> None:
    from apiece.model.load import load_model, load_text_side

    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoModelForImageTextToText")
    settings = json.loads((folder / file).read_text())
    settings["auto_map"] = {name: ["evil.Evil", "evil.Evil"] if "Token" in name else "evil.Evil" for name in names}
    if not known:
        settings |= {
            "config.json": {"model_type": "evil", "architectures": ["Evil"]},
            "tokenizer_config.json": {"tokenizer_class": "Evil"},
            "preprocessor_config.json": {"image_processor_type": "Evil", "processor_class": "Evil"},
        }[file]
    (folder / file).write_text(json.dumps(settings))
    if known:
        load_text_side(str(folder))
        load_model(str(folder))
    else:
        # transformers says in many ways that it does not know a class
        try:
            load_text_side(str(folder))
            load_model(str(folder))
        except (UserError, ValueError, AttributeError, ImportError, TypeError, KeyError, OSError):
            pass
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from apiece.model.load import load_model

    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    for weights in folder.glob("*.safetensors"):
        weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are never loaded"):
        load_model(str(folder))


def test_names_of_runs_settings_and_files_are_text_in_the_page(tmp_path: Path) -> None:
    runs = [hostile_run(tmp_path), make_run(tmp_path / "other", Made("b", samples=2, steps=(100,)))]
    page = build_report(runs, tmp_path / "report").page
    for file in [page, *(tmp_path / "report").rglob("*.js")]:
        text = file.read_text(encoding="utf-8")
        assert "<img src=x" not in text, file
    html = page.read_text(encoding="utf-8")
    assert "&lt;img src=x onerror=" in html, "the title names the run"
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'; script-src 'self' file:;", html)
