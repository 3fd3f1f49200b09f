"""What the benchmarks share: workloads, timers on the real modules, floors by count, tables and JSON.

Times of one run can be compared with each other; machines and days cannot. So everything is reported beside a floor
from the same run: the arithmetic that the result needs (FLOPs by count, padding left out), at the speed that this
machine reaches in a plain matrix product at that moment, or the bytes that must move, at the speed of a plain copy.

Shapes: B rows, P prefix tokens, T answer tokens, S slots, V vocabulary, D width.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from apiece.errors import UserError
from apiece.files import write_json
from apiece.model.find import resolve_checkpoint
from apiece.model.tiny import build_tiny
from apiece.planning.flops import ForwardFlops
from apiece.planning.shapes import ModelShape
from apiece.types import Sample
from apiece_scenes.layouts import Family
from apiece_scenes.scene import ALL, SceneSettings, generate_scene

Row = dict[str, Any]
_CONSOLE = Console(width=None if Console().is_terminal else 140)


# ---------------------------------------------------------------- command line


def parser(description: str, cases: Sequence[str], arms: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cases", nargs="+", choices=cases, default=list(cases), help="workloads (all by default)")
    p.add_argument("--arms", nargs="+", choices=arms, default=list(arms), help="ways to do the work (all by default)")
    p.add_argument("--repeats", type=int, default=5, help="measurements of each; medians are reported (5)")
    p.add_argument("--quick", action="store_true", help="one small case once: does it run?")
    p.add_argument("--json", type=Path, metavar="OUT", help="also write the figures here")
    p.add_argument("--checkpoint", default="tiny", help="what is run; an untrained tiny model if there is no `tiny`")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--seed", type=int, default=0, help="of the scenes")
    return p


# ---------------------------------------------------------------- workloads


def checkpoint_or_fresh(name: str, folder: Path) -> str:
    """The checkpoint, or a fresh tiny model where the embedded one is not there: speed does not depend on weights."""
    if name != "tiny":
        return name
    try:
        resolve_checkpoint(name)
    except UserError:
        fresh = folder / "tiny"
        build_tiny(fresh)
        return str(fresh)
    return name


def scene_samples(
    folder: Path, count: int, families: Sequence[Family] = ALL, *, seed: int = 0, most: int = 60
) -> list[Sample]:
    """Generated scenes with all their objects, as samples; scenes with more than `most` objects are passed over."""
    folder.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    index = 0
    while len(samples) < count:
        scene = generate_scene(seed, index, SceneSettings(families=tuple(families)))
        index += 1
        if len(scene.complete) > most:
            continue
        path = folder / f"{index}.png"
        scene.image.save(path)
        samples.append(Sample(str(index), path, scene.image.size, scene.complete))
    return samples


# ---------------------------------------------------------------- where the time goes


class PartTimer:
    """Cuts the time of a run into parts: whatever has passed since the last lap belongs to the part that just ended.

    On a GPU every lap waits for the device, so parts are honest and the sum is slower than a run without laps:
    throughput is always measured without them.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._last = 0.0
        self._loss_ended = False

    def start(self) -> None:
        """Begin to count; what came before belongs to nothing."""
        self._loss_ended = False
        self._last = now(self._device)

    def lap(self, part: str) -> None:
        """Count the time since the last lap for `part`."""
        instant = now(self._device)
        self.seconds[part] += instant - self._last
        self._last = instant

    def lap_logits(self) -> None:
        """The gradient of some logits is there: the first of a pass ends its losses, the next ones the head's rows."""
        self.lap("head" if self._loss_ended else "loss")
        self._loss_ended = True

    def lap_pass(self, part: str) -> None:
        """The gradient of a pass's input is there: what follows is the losses of the pass before, if there is one."""
        self.lap(part)
        self._loss_ended = False


@contextmanager
def forward_laps(timer: PartTimer, model: Any, language_part: Callable[[int], str]) -> Iterator[None]:
    """Laps at the borders of the vision tower, the language model and the head, forward and backward.

    Backward needs no hooks on modules: autograd works through the graph in reverse, so the gradient of the head's
    output ends the losses, that of the last hidden states ends the head, that of the input embeddings ends the language
    model, and that of the first weight of the vision tower ends the tower.

    Args:
        timer: Takes the times.
        model: A Qwen3-VL.
        language_part: Name of the part, from the length of the language model's input.
    """
    core, vision, language, head = model.model, model.model.visual, model.model.language_model, model.lm_head
    part = "other"

    def enter(*_: object) -> None:
        timer.lap("other")

    def enter_language(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal part
        timer.lap("other")
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        part = name = language_part(hidden.shape[1])
        if hidden.requires_grad:
            hidden.register_hook(lambda _: timer.lap_pass(name))

    def leave_language(_: nn.Module, __: object, out: Tensor) -> None:
        timer.lap(part)
        if out.requires_grad:
            out.register_hook(lambda _: timer.lap("head"))

    def leave_head(_: nn.Module, __: object, out: Tensor) -> None:
        timer.lap("head")
        if out.requires_grad:
            out.register_hook(lambda _: timer.lap_logits())

    handles = [
        vision.register_forward_pre_hook(enter),
        vision.register_forward_hook(lambda *_: timer.lap("vision")),
        # Channels run the layers by themselves, so the borders are the first layer and the norm behind the last.
        language.layers[0].register_forward_pre_hook(enter_language, with_kwargs=True),
        language.norm.register_forward_hook(leave_language),
        head.register_forward_pre_hook(enter),
        head.register_forward_hook(leave_head),
        vision.patch_embed.proj.weight.register_post_accumulate_grad_hook(lambda _: timer.lap("vision")),
        core.get_input_embeddings().weight.register_post_accumulate_grad_hook(lambda _: timer.lap("other")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def now(device: torch.device) -> float:
    """Seconds on a clock; on a GPU after all of its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median(values: Sequence[float]) -> float:
    """Median, as a float."""
    return float(statistics.median(values))


def median_parts(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median seconds of each part over the runs."""
    names = sorted({name for run in runs for name in run})
    return {name: median([run.get(name, 0.0) for run in runs]) for name in names}


# ---------------------------------------------------------------- floors


@dataclass(frozen=True)
class Speed:
    """What this machine reaches at this moment: the best of many short tries, as a floor is the least time.

    Attributes:
        flops: Per second, in a plain float32 matrix product.
        bytes: Per second, read and written by a plain copy of 64 MB.
    """

    flops: float
    bytes: float


def machine_speed(device: torch.device, tries: int = 20) -> Speed:
    """Measure a matrix product and a copy."""
    side = 4096 if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device)
    source = torch.empty(16 << 20, dtype=torch.float32, device=device)
    target = torch.empty_like(source)

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(tries):
            before = now(device)
            work()
            times.append(now(device) - before)
        return min(times)

    return Speed(2 * side**3 / seconds(lambda: a @ a), 2 * source.numel() * 4 / seconds(lambda: target.copy_(source)))


@dataclass(frozen=True, order=True)
class Floor:
    """The least time that a part can take: what must be computed, or what must be moved.

    Attributes:
        seconds: At the speed of this machine.
        work: What it was counted from.
    """

    seconds: float
    work: str

    @classmethod
    def of_flops(cls, flops: float, speed: Speed) -> Floor:
        """Arithmetic."""
        return cls(flops / speed.flops, f"{flops / 1e9:,.2f} GFLOP")

    @classmethod
    def of_bytes(cls, count: float, speed: Speed) -> Floor:
        """Memory traffic. A model that fits into the processor's cache can beat it."""
        return cls(count / speed.bytes, f"{count / 1e6:,.0f} MB moved")


def middle_floors(each: Sequence[Mapping[str, Floor]]) -> dict[str, Floor]:
    """The median floor of each part."""
    return {name: sorted(floors[name] for floors in each)[len(each) // 2] for name in each[0]}


def counts_of(model: Any) -> ForwardFlops:
    """Arithmetic of one forward pass through parts of a Qwen3-VL."""
    return ForwardFlops(ModelShape.of(model.config))


# ---------------------------------------------------------------- output


def part_rows(parts: Mapping[str, float], floors: Mapping[str, Floor]) -> list[Row]:
    """One row a part, longest first: time, share, floor, and how many times the floor it takes.

    Args:
        parts: Seconds by part.
        floors: Of the parts where one is known.
    """
    total = sum(parts.values())
    rows: list[Row] = []
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        floor = floors.get(name)
        rows.append(
            {
                "part": name,
                "ms": 1e3 * seconds,
                "share": seconds / total if total else 0.0,
                "floor_ms": 1e3 * floor.seconds if floor else None,
                "times_floor": seconds / floor.seconds if floor else None,
                "floor": floor.work if floor else "",
            }
        )
    return rows


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """Rows as a table, columns in the order of the first row."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(rows[0]):
        table.add_column(name.replace("_", " "), justify="left" if i == 0 or name in ("arm", "floor") else "right")
    for row in rows:
        table.add_row(*(_text(name, value) for name, value in row.items()))
    _CONSOLE.print(table)
    _CONSOLE.print()


def _text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if name.endswith("share"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}"


def conditions(device: torch.device, speed: Speed) -> Row:
    """Where and when this was measured."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": platform.machine(),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "nice": os.nice(0),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "speed": asdict(speed),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def print_conditions(where: Row) -> None:
    """Two lines at the head of the output."""
    speed = where["speed"]
    _CONSOLE.print(
        f"{where['processor']}, {where['threads']} of {where['cores']} cores, nice {where['nice']}, "
        f"load {where['load_average']}, torch {where['torch']}, {where['date']}"
    )
    _CONSOLE.print(f"floors at {speed['flops'] / 1e9:,.0f} GFLOP/s and {speed['bytes'] / 1e9:,.1f} GB/s\n")


def write_report(path: Path | None, benchmark: str, where: Row, results: Sequence[Row]) -> None:
    """The figures as JSON, if asked for."""
    if path is not None:
        write_json(path, {"benchmark": benchmark, "conditions": where, "results": list(results)})
        _CONSOLE.print(f"wrote {path}")
