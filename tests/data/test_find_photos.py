"""Which files are photos, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from apiece.data.images import find_photos
from apiece.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def ids(*paths: Path, leave_out: Path | None = None) -> list[str]:
    return [photo.id for photo in find_photos(paths, leave_out=leave_out)]


def test_folder_is_searched_at_any_depth_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "sub/deep/c.webp", "sub/a.png", "phone.heic")
    touch(tmp_path, "notes.txt", "jpg", ".hidden.jpg", ".cache/d.jpg", "._b.JPG")
    assert ids(tmp_path) == ["a.png", "b.JPG", "phone.heic", "sub/a.png", "sub/deep/c.webp"]


def test_same_names_in_two_folders_get_ids_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg", "y/1.jpg", "y/2.jpg")
    assert ids(tmp_path / "x", tmp_path / "y") == ["x/1.jpg", "y/1.jpg", "y/2.jpg"]
    assert ids(tmp_path / "x" / "1.jpg", tmp_path / "y" / "1.jpg") == ["x/1.jpg", "y/1.jpg"]
    assert ids(tmp_path / "y") == ["1.jpg", "2.jpg"]


def test_photo_met_twice_is_taken_once(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg")
    photo = tmp_path / "x" / "1.jpg"
    assert ids(photo, photo, tmp_path / "x", tmp_path / "x" / ".." / "x") == ["1.jpg"]


def test_named_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "photo.dat")
    assert ids(tmp_path / "photo.dat") == ["photo.dat"]


def test_paths_stay_as_the_user_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "x/1.jpg")
    monkeypatch.chdir(tmp_path)
    (photo,) = find_photos([Path("x")])
    assert (photo.id, photo.path) == ("1.jpg", Path("x/1.jpg"))


def test_results_inside_the_folder_are_not_photos(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "out/overlays/1.jpg.png")
    assert ids(tmp_path, leave_out=tmp_path / "out") == ["1.jpg"]


def test_links_to_folders_are_not_followed_but_may_be_named(tmp_path: Path) -> None:
    touch(tmp_path, "real/1.jpg")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert ids(tmp_path / "link") == ["1.jpg"]


@pytest.mark.parametrize("name", ["nothing", "nothing.jpg"])
def test_missing_path_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: expected a photo or a folder, found nothing"):
        find_photos([tmp_path / name])


def test_folder_without_photos_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "full/1.jpg", "empty/notes.txt")
    with pytest.raises(UserError, match=r"empty: expected photos, found none in this folder\n.*avif, bmp, gif"):
        find_photos([tmp_path / "full", tmp_path / "empty"])


def test_no_path_at_all() -> None:
    with pytest.raises(UserError, match="no photo named"):
        find_photos([])
