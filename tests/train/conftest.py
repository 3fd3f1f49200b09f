"""Training is tested on a model of two narrow layers: what is tested is the loop, and its steps take milliseconds.

The finished runs are made once a session, and read only: a test that changes one copies its folder.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import BOTH, LORA, small_config, small_scenes
from mini import write_mini

from apiece.train.loop import train


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In place of the fixture of all tests: a smaller one. Read only."""
    return write_mini(tmp_path_factory.mktemp("mini") / "mini")


@pytest.fixture(scope="session")
def finished_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the finished runs were trained on, and evaluate."""
    return small_scenes(tmp_path_factory.mktemp("finished") / "s", 6)


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, finished_data: Path) -> Path:
    """Four steps, the last two of which left checkpoints."""
    quick = {"train__steps": 4, "train__batch_size": 2, "train__save_every": 1, "generate__max_new_tokens": 12}
    changes = quick | {"train__micro_batch_size": 1, "data__eval": finished_data, "eval__samples": 3}
    return train(small_config(tmp_path_factory.mktemp("plain"), tiny_checkpoint, finished_data, **changes), "run").run


@pytest.fixture(scope="session")
def two_channel_run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, finished_data: Path) -> Path:
    """Four steps, every other one of Channel-B; two in a line of metrics, two micro-batches in a step."""
    changes = BOTH | {"train__steps": 4, "train__log_every": 2, "train__micro_batch_size": 2}
    root = tmp_path_factory.mktemp("two_channels")
    return train(small_config(root, tiny_checkpoint, finished_data, **changes), "run").run


@pytest.fixture(scope="session", params=["tied", "untied"])
def lora_run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    narrow_checkpoint: Path,
    finished_data: Path,
) -> Path:
    """Four steps of both channels with DoRA, on one table for embedding and head, and on two."""
    base = tiny_checkpoint if request.param == "tied" else narrow_checkpoint
    more = {"model__lora__dora": True, "stage2_ab__n_softctx_iter": 2, "optim__lr": 3e-3, "data__max_pixels": 9216}
    changes = LORA | BOTH | more | {"data__eval": finished_data, "eval__samples": 2}
    return train(small_config(tmp_path_factory.mktemp("lora"), base, finished_data, **changes), "run").run
