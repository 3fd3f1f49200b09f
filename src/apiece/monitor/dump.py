"""Dumps of the panel during training: asked on the training thread, written on another one.

A dump never stops the training: where it cannot be written, one warning says so and there are no more. At most one is
being written while the next is asked for, so memory is bounded by two.
"""

from __future__ import annotations

import logging
import shutil
import typing
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from apiece.config.schema import Config
from apiece.data.images import open_image
from apiece.dumps.folder import (
    DUMPS,
    ELSEWHERE_FILE,
    PROTOCOL_FILE,
    RECORDS_FILE,
    dump_folder,
    dumped_steps,
    picture_name,
)
from apiece.dumps.form import SCHEMA, Protocol, Record, json_line
from apiece.errors import UserError
from apiece.evaluate.answers import DEFAULT_POLICY, Answer, common_policy
from apiece.evaluate.forms import GroundTruth
from apiece.evaluate.predict import Predictor, answer_split
from apiece.files import write_json, write_text
from apiece.model.encode import SampleEncoder
from apiece.monitor.entry import Beliefs, build_records, failures
from apiece.monitor.panel import ChosenPanel, image_problem
from apiece.monitor.probing import Prober, ProbeSettings
from apiece.probes.labels import LabelProbes
from apiece.report.draw import draw_record, save_png
from apiece.rollout.generate import LocalEngine
from apiece.types import Sample

log = logging.getLogger("apiece")


@dataclass(frozen=True, slots=True, eq=False)
class _Material:
    """All that a dump is made of; nothing of it is shared with the training.

    Attributes:
        protocol: What the records depend on.
        answers: Of the panel, in its order.
        numbers: Place in the panel of each answer's sample.
        labels: Probes at each sample's labels.
        beliefs: Distributions at each answer's boxes.
        elsewhere: Broken answers outside the panel.
        complete: Complete truth, where it is known.
    """

    protocol: Protocol
    answers: Sequence[Answer]
    numbers: Sequence[int]
    labels: Sequence[LabelProbes | None] | None
    beliefs: Sequence[Beliefs | None] | None
    elsewhere: Sequence[Answer]
    complete: GroundTruth | None


class Together(typing.Protocol):
    """The processes that dump together: each asks about its share of the panel, the first one writes."""

    @property
    def rank(self) -> int:
        """Place of this process."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all, on the first one."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        """Its own value."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Its own flag."""
        return flag


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """One sample of the panel, asked.

    Attributes:
        number: Its place in the panel.
        answer: What the model said.
        labels: Probes at its labels.
        beliefs: Distributions at the answer's boxes.
    """

    number: int
    answer: Answer
    labels: LabelProbes | None
    beliefs: Beliefs | None


class Monitor:
    """Dumps the panel of a run. Use it as a context: its end waits for what is being written.

    Args:
        run: The run's folder.
        start: Step that the run goes on from; dumps after it are of a past that is redone, and removed. `None` on
            processes that write no files.
        config: Of the run.
        panel: What is dumped.
        encoder: Tokenizer, prompt and images.
        complete: Complete truth of the evaluation split, where it is known.
    """

    def __init__(
        self,
        run: Path,
        start: int | None,
        config: Config,
        panel: ChosenPanel,
        encoder: SampleEncoder,
        complete: GroundTruth | None = None,
    ) -> None:
        self._run, self._config, self._panel = run, config, panel
        self._encoder, self._complete = encoder, complete
        self._gone: set[str] = set()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dump")
        self._writing: Future[None] | None = None
        self._stopped = False
        if start is not None:
            with suppress(OSError):  # what stays is replaced when its step comes
                _remove_after(run, start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._worker.shutdown()

    def has(self, step: int) -> bool:
        """Whether the dump of a step is there already."""
        return step in dumped_steps(self._run)

    def dump(
        self, step: int, model: Any, evaluated: Sequence[Answer] = (), *, together: Together | None = None
    ) -> None:
        """Ask the panel, and hand what comes back to the writing thread.

        Args:
            step: Optimizer steps done.
            model: Not wrapped, whole; it is left in the mode that it was in.
            evaluated: Answers of the evaluation at this step, for the failures outside the panel.
            together: The processes, all of which must call this; this one alone if `None`.
        """
        together = together or Alone()
        self.wait()
        if together.any(self._stopped):
            return
        was_training = model.training
        model.eval()
        try:
            own, probes = self._ask(model, together)
        finally:
            model.train(was_training)
        shares = together.gather(own)
        if shares is None:
            return
        asked = sorted((one for share in shares for one in share), key=lambda one: one.number)
        if asked:
            material = self._material(step, asked, probes, evaluated)
            self._writing = self._worker.submit(
                write_dump, dump_folder(self._run, step), material, pictures=self._config.monitor.pictures
            )

    def _ask(self, model: Any, together: Together) -> tuple[list[_Asked], ProbeSettings | None]:
        """This process's share of the panel, and how it was probed."""
        config, encoder = self._config, self._encoder
        own = self._present()[together.rank :: together.size]
        samples = [sample for _, sample in own]
        engine = LocalEngine(model, encoder.side, config.generate, config.seed)
        predictor = Predictor(encoder, engine, config.generate.batch_size)
        answers = answer_split(predictor, samples, title="dump")
        labels: Sequence[LabelProbes | None] = [None] * len(own)
        beliefs: Sequence[Beliefs | None] = [None] * len(own)
        settings = None
        if config.monitor.probes:
            prober = Prober(model, encoder, ProbeSettings.of(config))
            labels, beliefs, settings = prober.labels(samples), prober.answers(answers), prober.settings
        rows = zip(own, answers, labels, beliefs, strict=True)
        return [_Asked(number, answer, label, belief) for (number, _), answer, label, belief in rows], settings

    def _material(
        self, step: int, asked: Sequence[_Asked], probes: ProbeSettings | None, evaluated: Sequence[Answer]
    ) -> _Material:
        config, encoder = self._config, self._encoder
        answers = [one.answer for one in asked]
        entry, side = self._panel.entry, encoder.side
        protocol: Protocol = {
            "schema": SCHEMA,
            "step": step,
            "run": self._run.resolve().name,
            "data": entry["data"],
            "data_sha256": entry["data_sha256"],
            "complete": entry["complete"],
            "complete_sha256": entry["complete_sha256"],
            "prompt_hash": encoder.prompt.hash,
            "max_pixels": config.data.max_pixels,
            "num_bins": side.vocab.num_bins,
            "score_policy": common_policy([answer.scores for answer in answers], DEFAULT_POLICY),
            "generate": config.generate.model_dump(mode="json"),
            "seed": config.seed,
            "probes": None if probes is None else probes.protocol(),
        }
        return _Material(
            protocol,
            answers,
            [one.number for one in asked],
            None if probes is None else [one.labels for one in asked],
            None if probes is None else [one.beliefs for one in asked],
            failures(evaluated, entry["ids"], config.monitor.elsewhere),
            self._complete,
        )

    def _present(self) -> list[tuple[int, Sample]]:
        """The samples whose images are still there, with their places; a loss is said once."""
        kept: list[tuple[int, Sample]] = []
        for number, sample in enumerate(self._panel.samples):
            problem = image_problem(sample)
            if problem is None:
                kept.append((number, sample))
            elif sample.id not in self._gone:
                self._gone.add(sample.id)
                log.warning("the panel's sample '%s' is left out of dumps: %s", sample.id, problem)
        return kept

    def wait(self) -> None:
        """Wait for what is being written; after an error there are no more dumps, and the training goes on."""
        writing, self._writing = self._writing, None
        if writing is None or (error := writing.exception()) is None:
            return
        self._stopped = True
        if isinstance(error, OSError | UserError):
            log.warning("no more dumps from here on, the training goes on: %s", error)
        else:
            log.error("no more dumps from here on, the training goes on: a mistake of apiece itself", exc_info=error)


def write_dump(folder: Path, material: _Material, *, pictures: bool) -> None:
    """Write the folder of a dump under another name, then rename it; one that is there already is replaced.

    Raises:
        UserError: The disk is full, or no file can be written there.
        OSError: The same, of a folder.
    """
    part = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_json(part / PROTOCOL_FILE, material.protocol)
        step = material.protocol["step"]
        records = build_records(
            material.answers,
            step,
            complete=material.complete,
            labels=material.labels,
            beliefs=material.beliefs,
        )
        write_text(part / RECORDS_FILE, "".join(map(json_line, records)))
        if material.elsewhere:
            others = build_records(material.elsewhere, step, complete=material.complete)
            write_text(part / ELSEWHERE_FILE, "".join(map(json_line, others)))
        if pictures:
            _draw(part, records, material.numbers)
        if folder.exists():
            shutil.rmtree(folder)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _draw(folder: Path, records: Sequence[Record], numbers: Sequence[int]) -> None:
    for number, record in zip(numbers, records, strict=True):
        save_png(folder / picture_name(number, record["id"]), draw_record(open_image(Path(record["image"])), record))


def _remove_after(run: Path, step: int) -> None:
    """Remove dumps of later steps, and unfinished ones."""
    for later in dumped_steps(run):
        if later > step:
            shutil.rmtree(dump_folder(run, later))
    for part in (run / DUMPS).glob("*.part"):
        shutil.rmtree(part)
