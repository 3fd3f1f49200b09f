"""The house rules that a machine can hold: who may import whom, and how long things get. The tables are the rules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[1]

# From the bottom up. A module imports from rows below its own and from its own unit (the longest name that fits).
LAYERS = (
    ("", "errors", "boxes", "types", "progress", "printed"),
    ("files", "config", "plugins", "stats"),
    ("codec", "match", "data"),
    ("dumps", "outcomes"),
    ("data.collate",),  # the first that knows tensors
    ("losses", "model", "probes", "report"),
    ("rollout",),
    ("channels", "evaluate"),
    ("monitor",),
    ("train",),
    ("planning",),  # counts lengths and cuts batches as training does
    ("study",),
    ("cli",),
    ("__main__",),
    ("apiece_scenes",),  # a package beside: nothing imports it, and the entry points in pyproject.toml name it
)
# Which units may import a library, wherever in the file. `if TYPE_CHECKING` is free.
LIBRARIES = {
    "torch": (
        *("data.collate", "losses", "model", "probes", "rollout", "channels", "monitor", "train", "planning"),
        *("cli", "evaluate.predict", "study.compute", "study.measure", "study.jobs"),
    ),
    "torch.distributed": ("train",),
    "transformers": ("model", "rollout"),
    "hotcoco": ("evaluate.ap",),
    "httpx2": ("rollout.server",),
}
SLOW = ("torch", "transformers")  # not even by way of another module: outside torch's units above, and in the whole cli
MAX_FILE, MAX_FUNCTION = 700, 80


class Import(NamedTuple):
    """One name imported: `when` is `start` (as the module loads), `later` (in a function) or `types`."""

    target: str
    line: int
    when: str


def imports(tree: ast.AST, when: str = "start") -> Iterator[Import]:
    """Every import of a file."""
    for node in ast.iter_child_nodes(tree):
        inner = when
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = "later"
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            inner = "types"
        elif isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(f"{'.' * node.level}{node.module}.{a.name}", node.lineno, when) for a in node.names)
        yield from imports(node, inner)


def within(name: str, units: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the units or in one."""
    return any(name == unit or name.startswith(f"{unit}.") for unit in units)


def short(name: str) -> str:
    """A module's name as `LAYERS` has it: without `apiece.`; the package itself is empty."""
    return "" if name == "apiece" else name.removeprefix("apiece.")


def place(name: str) -> tuple[int, str]:
    """Layer and unit of a module (named without `apiece.`)."""
    fits = [(len(unit), i, unit) for i, row in enumerate(LAYERS) for unit in row if within(name, (unit,))]
    return max(fits)[1:] if fits else (-1, name)


def file_violations(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    """Rules that one file keeps alone."""
    if (count := len(source.splitlines())) > MAX_FILE:
        yield f"{path}:{MAX_FILE + 1}: {count} lines, at most {MAX_FILE}: move a part to a module of its own"
    if ast.get_docstring(tree) is None:
        yield f"{path}:1: no docstring: say in one line what the module is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if (count := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION:
                yield f"{path}:{node.lineno}: {node.name} has {count} lines, at most {MAX_FUNCTION}: name its parts"
        elif isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(e is None or ast.unparse(e) in ("Exception", "BaseException") for e in caught):
                yield f"{path}:{node.lineno}: a broad except hides mistakes: name the errors, or clean up in `finally`"
        elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            yield f"{path}:{node.lineno}: a star import hides where names come from: name them"


def violations(repository: Path) -> list[str]:
    """Every broken rule as `file:line: what, and what to do`."""
    found: list[str] = []
    modules: dict[str, tuple[str, list[Import]]] = {}
    for file in sorted(f for top in ("src", "tests", "benchmarks") for f in (repository / top).rglob("*.py")):
        path, source = str(file.relative_to(repository)), file.read_text(encoding="utf-8")
        tree = ast.parse(source)
        found += file_violations(path, source, tree)
        if path.startswith("src/"):
            name = ".".join(file.relative_to(repository / "src").with_suffix("").parts).removesuffix(".__init__")
            modules[name] = (path, list(imports(tree)))
    starts: dict[str, dict[str, int]] = {name: {} for name in modules}
    for name, (path, rows) in modules.items():
        layer, unit = place(own := short(name))
        if layer < 0:
            found.append(f"{path}:1: {unit} is in no layer: add it to LAYERS in {Path(__file__).name}")
        for target, line, when in rows:
            module = target if target in modules else target.rpartition(".")[0]
            if target.startswith("."):
                found.append(f"{path}:{line}: a relative import: write it from apiece on")
            elif module in modules:
                below, other = place(short(module))
                if other != unit and below >= layer >= 0:
                    found.append(
                        f"{path}:{line}: {unit} imports {other}, which is not below it: move what both need down"
                    )
                if when == "start" and module != name:
                    starts[name].setdefault(module, line)
            for library, units in LIBRARIES.items():
                if when != "types" and within(target, (library,)) and not within(own, units):
                    found.append(
                        f"{path}:{line}: imports {library}, which only {', '.join(units)} may: call what is there"
                    )
    return found + cycles(modules, starts) + slow_starts(modules, starts)


def cycles(modules: dict[str, tuple[str, list[Import]]], starts: dict[str, dict[str, int]]) -> list[str]:
    """The first ring of modules that import each other as they load."""
    try:
        TopologicalSorter(starts).prepare()
    except CycleError as error:
        ring = error.args[1][::-1]
        line = starts[ring[0]][ring[1]]
        return [f"{modules[ring[0]][0]}:{line}: a cycle, {' -> '.join(ring)}: move what both need to a module below"]
    return []


def slow_starts(modules: dict[str, tuple[str, list[Import]]], starts: dict[str, dict[str, int]]) -> list[str]:
    """Modules that load torch only because of what they import, where torch has no business."""
    loads = {n for n, (_, rows) in modules.items() if any(r.when == "start" and within(r.target, SLOW) for r in rows)}
    found = []
    for name, (path, _) in modules.items():
        own = short(name)
        if within(own, LIBRARIES["torch"]) and not within(own, ("cli",)):
            continue
        seen, waiting = {name}, [(name, [name])]
        while waiting:
            at, chain = waiting.pop()
            if at in loads and (len(chain) > 1 or within(own, ("cli",))):
                line = starts[name].get(chain[1], 1) if len(chain) > 1 else 1
                found.append(
                    f"{path}:{line}: loads torch, {' -> '.join(chain)}: import inside the function that needs it"
                )
                break
            parents = {at.rpartition(".")[0]} & modules.keys()
            ahead = [m for m in (*starts[at], *parents) if m not in seen]
            seen.update(ahead)
            waiting += [(m, [*chain, m]) for m in ahead]
    return found


def test_the_house_is_in_order() -> None:
    found = violations(REPOSITORY)
    assert not found, f"{len(found)} broken rules of the house:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"match.py": "import numpy"}, None),
        ({"report/draw.py": "from apiece.match import f", "match.py": ""}, None),
        ({"match.py": "from apiece.report import draw", "report/draw.py": ""}, "match.py:2: match imports report"),
        (
            {"match.py": "def f():\n    import apiece.report.draw", "report/draw.py": ""},
            "match.py:3: match imports report",
        ),
        ({"codec/bins.py": "from apiece import match", "match.py": ""}, "codec/bins.py:2: codec imports match"),
        ({"data/jsonl.py": "from apiece.data.collate import f", "data/collate.py": ""}, "data imports data.collate"),
        ({"data/collate.py": "from apiece.data.jsonl import f", "data/jsonl.py": ""}, None),
        ({"newcomer/x.py": ""}, "newcomer.x is in no layer"),
        ({"match.py": "from . import errors"}, "a relative import"),
        ({"match.py": "import torch"}, "match.py:2: imports torch"),
        ({"match.py": "def f():\n    from torch.nn import Module"}, "match.py:3: imports torch"),
        ({"match.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"}, None),
        ({"losses/box.py": "from torch import distributed"}, "box.py:2: imports torch.distributed"),
        ({"train/loop.py": "import torch.distributed as dist"}, None),
        ({"evaluate/predict.py": "from transformers import AutoModel"}, "imports transformers"),
        ({"evaluate/f1.py": "from hotcoco import COCOeval"}, "imports hotcoco"),
        ({"evaluate/ap.py": "from hotcoco import COCOeval"}, None),
        ({"cli/env.py": "def f():\n    import torch"}, None),
        ({"cli/env.py": "import torch"}, "env.py:1: loads torch, apiece.cli.env:"),
        (
            {
                "cli/x.py": "import apiece.train.loop",
                "train/loop.py": "import apiece.model.y",
                "model/y.py": "import torch",
            },
            "cli/x.py:2: loads torch, apiece.cli.x -> apiece.train.loop -> apiece.model.y:",
        ),
        (
            {"report/a.py": "from apiece.losses import x", "losses/x.py": ""},
            "report imports losses, which is not below it",
        ),
        (
            {"evaluate/f1.py": "from apiece.model.y import x", "model/y.py": "import torch"},
            "f1.py:2: loads torch, apiece.evaluate.f1 -> apiece.model.y:",
        ),
        (
            {"evaluate/f1.py": "from apiece.model.y import x", "model/__init__.py": "import torch", "model/y.py": ""},
            "loads torch, apiece.evaluate.f1 -> apiece.model.y -> apiece.model:",
        ),
        ({"codec/a.py": "import apiece.codec.b", "codec/b.py": "from apiece.codec import a"}, "a cycle, apiece.codec."),
        ({"codec/a.py": "import apiece.codec.b", "codec/b.py": "def f():\n    from apiece.codec import a"}, None),
        ({"match.py": "from math import *"}, "match.py:2: a star import"),
        ({"match.py": "try:\n    pass\nexcept Exception:\n    pass"}, "match.py:4: a broad except"),
        ({"match.py": "try:\n    pass\nexcept (OSError, BaseException):\n    pass"}, "match.py:4: a broad except"),
        ({"match.py": "try:\n    pass\nexcept:\n    pass"}, "match.py:4: a broad except"),
        ({"match.py": "try:\n    pass\nexcept (OSError, ValueError):\n    pass"}, None),
        ({"match.py": "\n" * 700}, "match.py:701: 701 lines, at most 700"),
        ({"match.py": "def f():\n" + "    pass\n" * 80}, "match.py:2: f has 81 lines, at most 80"),
        ({"match.py": "class A:\n    async def f(self):\n" + "        pass\n" * 79}, None),
        ({"../../benchmarks/x.py": "from math import *"}, "benchmarks/x.py:2: a star import"),
    ],
)
def test_planted_violations_are_found(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    for name, text in files.items():
        (path := (tmp_path / "src" / "apiece" / name).resolve()).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""Planted."""\n{text}')
    found = violations(tmp_path)
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1, found
        assert expected in found[0]


def test_a_missing_docstring_is_found(tmp_path: Path) -> None:
    (tmp_path / "src" / "apiece").mkdir(parents=True)
    (tmp_path / "src" / "apiece" / "match.py").write_text("# nothing\n")
    assert violations(tmp_path) == ["src/apiece/match.py:1: no docstring: say in one line what the module is for"]


def test_every_test_file_has_a_name_of_its_own() -> None:
    """Tests are collected by file name, without packages: two of one name and none is run."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []
