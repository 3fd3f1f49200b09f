"""Dumps of the panel during training: asked on the training thread, written on another one.

A dump never stops the training: where it cannot be written, one warning says so and there are no more. At most one is
being written while the next is asked for, so memory is bounded by two.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from apiece.config.schema import Config
from apiece.data.images import open_image
from apiece.errors import UserError
from apiece.evaluate.answers import Answer
from apiece.evaluate.forms import GroundTruth
from apiece.evaluate.predict import Predictor
from apiece.evaluate.scores import common_policy
from apiece.files import write_json, write_text
from apiece.model.encode import SampleEncoder
from apiece.monitor.build import Beliefs, build_records, failures
from apiece.monitor.panel import ChosenPanel, image_problem
from apiece.monitor.probing import Prober, ProbeSettings
from apiece.probes.labels import LabelProbes
from apiece.records.folder import (
    DUMPS,
    ELSEWHERE_FILE,
    PROTOCOL_FILE,
    RECORDS_FILE,
    dump_folder,
    dumped_steps,
    picture_name,
)
from apiece.records.record import SCHEMA, Protocol, Record, json_line
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
    beliefs: Sequence[Beliefs] | None
    elsewhere: Sequence[Answer]
    complete: GroundTruth | None


class Monitor:
    """Dumps the panel of a run. Use it as a context: its end waits for what is being written.

    Args:
        run: The run's folder.
        start: Step that the run goes on from; dumps after it are of a past that is redone, and removed.
        config: Of the run.
        panel: What is dumped.
        encoder: Tokenizer, prompt and images.
        complete: Complete truth of the evaluation split, where it is known.
    """

    def __init__(
        self,
        run: Path,
        start: int,
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

    def dump(self, step: int, model: Any, evaluated: Sequence[Answer] = ()) -> None:
        """Ask the panel, and hand what comes back to the writing thread.

        Args:
            step: Optimizer steps done.
            model: Not wrapped, whole; it is left in the mode that it was in.
            evaluated: Answers of the evaluation at this step, for the failures outside the panel.
        """
        self.wait()
        if self._stopped:
            return
        was_training = model.training
        model.eval()
        try:
            material = self._ask(step, model, evaluated)
        finally:
            model.train(was_training)
        if material is not None:
            self._writing = self._worker.submit(
                write_dump, dump_folder(self._run, step), material, pictures=self._config.monitor.pictures
            )

    def _ask(self, step: int, model: Any, evaluated: Sequence[Answer]) -> _Material | None:
        config, encoder = self._config, self._encoder
        numbers, samples = self._present()
        if not samples:
            return None
        engine = LocalEngine(model, encoder.side, config.generate, config.seed)
        predictor = Predictor(encoder, engine, config.generate.batch_size)
        answers = list(predictor.answers(samples))
        labels, beliefs, settings = None, None, None
        if config.monitor.probes:
            prober = Prober(model, encoder, ProbeSettings.of(config))
            labels, beliefs = prober.labels(samples), prober.answers(answers)
            settings = prober.settings.protocol()
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
            "score_policy": common_policy([answer.scores for answer in answers], predictor.policy),
            "generate": config.generate.model_dump(mode="json"),
            "seed": config.seed,
            "probes": settings,
        }
        others = failures(evaluated, entry["ids"], config.monitor.elsewhere)
        return _Material(protocol, answers, numbers, labels, beliefs, others, self._complete)

    def _present(self) -> tuple[list[int], list[Sample]]:
        """The samples whose images are still there, with their places; a loss is said once."""
        kept: list[tuple[int, Sample]] = []
        for number, sample in enumerate(self._panel.samples):
            problem = image_problem(sample)
            if problem is None:
                kept.append((number, sample))
            elif sample.id not in self._gone:
                self._gone.add(sample.id)
                log.warning("the panel's sample '%s' is left out of dumps: %s", sample.id, problem)
        return [number for number, _ in kept], [sample for _, sample in kept]

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
