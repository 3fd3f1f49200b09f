"""The one error that users see."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from apiece.errors import UserError, nearest, require_file


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("no images"), "no images"),
        (UserError("no images", where=Path("a/b.json")), "a/b.json: no images"),
        (UserError("no images", fix="add some"), "no images\n  fix: add some"),
        (UserError("no images", where="b.json:3", fix="add some"), "b.json:3: no images\n  fix: add some"),
    ],
)
def test_message(error: UserError, text: str) -> None:
    assert str(error) == text
    assert error.args == (text,)


def test_parts_are_kept_for_other_messages() -> None:
    error = UserError("no images", where=Path("b.json"), fix="add some", exit_code=2)
    assert (error.message, error.where, error.fix, error.exit_code) == ("no images", "b.json", "add some", 2)
    assert UserError("x").exit_code == 1


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("persn", ["person", "car"], " (did you mean 'person'?)"),
        ("zebra", ["person", "car"], ""),
        ("", ["person"], ""),
        ("person", [], ""),
    ],
)
def test_nearest(name: str, known: list[str], hint: str) -> None:
    assert nearest(name, known) == hint
    assert nearest(name, iter(known)) == hint


def test_require_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert require_file(tmp_path / "x.json", "a data file") == tmp_path / "x.json"
    with pytest.raises(UserError, match=r"y\.json: a data file not found\n  fix: check the path"):
        require_file(tmp_path / "y.json", "a data file")
    with pytest.raises(UserError, match="expected a data file, found a folder"):
        require_file(tmp_path, "a data file")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(UserError, match="gone: a data file not found"):
        require_file(tmp_path / "gone", "a data file")


def test_it_survives_the_way_back_from_a_worker() -> None:
    error = UserError("no images", where="b.json:3", fix="add some", exit_code=2)
    back = pickle.loads(pickle.dumps(error))
    assert str(back) == str(error)
    assert (back.message, back.where, back.fix, back.exit_code) == ("no images", "b.json:3", "add some", 2)
