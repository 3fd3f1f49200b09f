"""Dumps of the panel during training: the model answers on the training thread, another one writes.

A dump never stops the training: the first that cannot be written is warned of, and there are no more. At most one is
being written while the next is made, so memory is bounded by two.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

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
from apiece.dumps.form import SCHEMA, DumpProtocol, json_line
from apiece.errors import UserError
from apiece.evaluate.answers import DEFAULT_POLICY, Answer, common_policy
from apiece.evaluate.forms import GroundTruth
from apiece.evaluate.predict import Predictor, answer_split
from apiece.files import write_json, write_text
from apiece.model.encode import SampleEncoder
from apiece.monitor.entry import Beliefs, build_entries, failures
from apiece.monitor.panel import ChosenPanel, image_problem
from apiece.monitor.probing import Prober, ProbeSettings
from apiece.probes.labels import LabelProbes
from apiece.report.draw import draw_entry, save_png
from apiece.rollout.generate import LocalEngine
from apiece.types import Sample

log = logging.getLogger("apiece")


@dataclass(frozen=True, slots=True, eq=False)
class _Answered:
    """What the model says and believes of one sample; `number` is its place in the panel."""

    number: int
    answer: Answer
    labels: LabelProbes | None
    beliefs: Beliefs | None


@dataclass(frozen=True, slots=True, eq=False)
class _Material:
    """All that a dump is made of; nothing of it is shared with the training.

    Attributes:
        panel: In the panel's order.
        elsewhere: Broken answers outside the panel.
        complete: Complete truth, where it is known.
    """

    protocol: DumpProtocol
    panel: Sequence[_Answered]
    elsewhere: Sequence[Answer]
    complete: GroundTruth | None


class Together(Protocol):
    """The processes that dump together: each answers for its share of the panel, the first one writes."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all, on the first process."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def any(self, flag: bool) -> bool:
        return flag


class Monitor:
    """Dumps the panel of a run. Use it as a context: its end waits for what is being written.

    Args:
        run: The run's folder.
        start: Step from which the run starts or resumes; dumps of later steps are removed, since these steps are
            trained again. `None` on processes that write no files.
        config: The run's config.
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
        return step in dumped_steps(self._run)

    def dump(
        self, step: int, model: Any, evaluated: Sequence[Answer] = (), *, together: Together | None = None
    ) -> None:
        """Answer the panel, and hand the answers to the writing thread.

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
            own, probes = self._answer(model, together)
        finally:
            model.train(was_training)
        shares = together.gather(own)
        if not any(shares or ()):
            return
        answered = sorted((one for share in shares or () for one in share), key=lambda one: one.number)
        material = self._material(step, answered, probes, evaluated)
        folder = dump_folder(self._run, step)
        self._writing = self._worker.submit(write_dump, folder, material, pictures=self._config.monitor.pictures)

    def _answer(self, model: Any, together: Together) -> tuple[list[_Answered], ProbeSettings | None]:
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
        return [_Answered(number, answer, label, belief) for (number, _), answer, label, belief in rows], settings

    def _material(
        self, step: int, panel: Sequence[_Answered], probes: ProbeSettings | None, evaluated: Sequence[Answer]
    ) -> _Material:
        config, encoder = self._config, self._encoder
        entry, side = self._panel.entry, encoder.side
        protocol: DumpProtocol = {
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
            "score_policy": common_policy([one.answer.scores for one in panel], DEFAULT_POLICY),
            "generate": config.generate.model_dump(mode="json"),
            "seed": config.seed,
            "probes": None if probes is None else probes.protocol(),
        }
        broken = failures(evaluated, entry["ids"], config.monitor.elsewhere)
        return _Material(protocol, panel, broken, self._complete)

    def _present(self) -> list[tuple[int, Sample]]:
        """The samples whose images are still there, with their places; a lost one is warned of once."""
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
        """Wait for what is being written; after an error there are no more dumps, and training continues."""
        writing, self._writing = self._writing, None
        if writing is None or (error := writing.exception()) is None:
            return
        self._stopped = True
        if isinstance(error, OSError | UserError):
            log.warning("no more dumps from here on, training continues: %s", error)
        else:
            log.error("no more dumps from here on, training continues: this is a bug in apiece", exc_info=error)


def write_dump(folder: Path, material: _Material, *, pictures: bool) -> None:
    """Write the folder of a dump under another name, then rename it; one that is there already is replaced.

    Raises:
        UserError: The disk is full, or a file cannot be written.
        OSError: A folder cannot be made or renamed.
    """
    part = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_json(part / PROTOCOL_FILE, material.protocol)
        step, panel, complete = material.protocol["step"], material.panel, material.complete
        labels, beliefs = [one.labels for one in panel], [one.beliefs for one in panel]
        entries = build_entries([one.answer for one in panel], step, complete=complete, labels=labels, beliefs=beliefs)
        write_text(part / RECORDS_FILE, "".join(map(json_line, entries)))
        if material.elsewhere:
            others = build_entries(material.elsewhere, step, complete=complete)
            write_text(part / ELSEWHERE_FILE, "".join(map(json_line, others)))
        if pictures:
            for one, entry in zip(panel, entries, strict=True):
                picture = draw_entry(open_image(Path(entry["image"])), entry)
                save_png(part / picture_name(one.number, entry["id"]), picture)
        if folder.exists():
            shutil.rmtree(folder)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove_after(run: Path, step: int) -> None:
    """Remove dumps of later steps, and unfinished ones."""
    for later in dumped_steps(run):
        if later > step:
            shutil.rmtree(dump_folder(run, later))
    for part in (run / DUMPS).glob("*.part"):
        shutil.rmtree(part)
