"""Photos without labels: files, streaming, what cannot be read, interruption and resumption."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from written import WrittenEngine, save_photo, written_predictor

from apiece.data import images
from apiece.data.collate import EncodedSample
from apiece.data.images import Photo, find_photos
from apiece.errors import UserError
from apiece.evaluate import predict as photos_module
from apiece.evaluate.answers import check_out
from apiece.evaluate.detections import load_coco_ground_truth, load_coco_results
from apiece.evaluate.predict import PhotosDone, Predictor, overlay_name, predict_photos
from apiece.types import Rollout

TWO = [("cup", (0, 0, 500, 999)), ("ant", (500, 0, 999, 999))]


def photo_folder(folder: Path, count: int = 5) -> list[Photo]:
    for number in range(count):
        save_photo(folder / f"{number}.png")
    return find_photos([folder])


def lines(out: Path, name: str = "predictions.jsonl") -> list[str]:
    return [json.loads(line)["id"] for line in (out / name).read_text().splitlines()]


def test_folder_of_photos(tmp_path: Path, tiny_checkpoint: Path) -> None:
    found = photo_folder(tmp_path / "in", 3)
    predictor, _ = written_predictor(tiny_checkpoint, {"1.png": TWO})
    done = predict_photos(predictor, found, tmp_path / "out")
    assert done == PhotosDone(images=3, resumed=0, objects=2, dropped=0, skipped=())
    assert lines(tmp_path / "out") == ["0.png", "1.png", "2.png"]
    overlays = sorted(p.name for p in (tmp_path / "out" / "overlays").iterdir())
    assert overlays == ["0.png.png", "1.png.png", "2.png.png"]
    assert json.loads((tmp_path / "out" / "protocol.json").read_text()) == predictor.protocol
    assert not list((tmp_path / "out").glob("*.part"))


def test_coco_files_belong_together(tmp_path: Path, tiny_checkpoint: Path) -> None:
    found = photo_folder(tmp_path / "in", 3)
    predictor, _ = written_predictor(tiny_checkpoint, {"0.png": TWO, "2.png": TWO[:1]})
    predict_photos(predictor, found, tmp_path / "out")
    truth = load_coco_ground_truth(tmp_path / "out" / "coco.json")
    assert [(image.id, image.name, image.size_wh) for image in truth.images][2] == (3, "2.png", (64, 48))
    assert truth.names == ("ant", "cup")
    detections = load_coco_results(tmp_path / "out" / "results.json", truth)
    assert (detections.image.tolist(), detections.category.tolist()) == ([0, 0, 2], [1, 0, 1])
    assert detections.bbox_xyxy[1].tolist() == pytest.approx([64 * 500 / 999, 0, 64, 48], abs=0.002)


def test_scores_without_log_probabilities_are_constant_and_the_result_says_so(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """From one answer on: scores of two kinds in one file would rank nothing."""
    found = photo_folder(tmp_path / "in", 4)
    predictor, engine = written_predictor(tiny_checkpoint, {"0.png": TWO, "3.png": TWO[:1]}, batch_size=2)
    real = engine.generate

    def partly_blind(questions: Sequence[EncodedSample]) -> list[Rollout]:
        engine.logprob = math.nan if engine.batches else -0.5
        return real(questions)

    engine.generate = partly_blind  # type: ignore[method-assign]
    out = tmp_path / "out"
    assert predict_photos(predictor, found, out).policy == "constant"
    records = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [r["score_policy"] for r in records] == ["coord_logprob", "coord_logprob", "coord_logprob", "constant"]
    assert [o["score"] for r in records for o in r["objects"]] == pytest.approx([math.exp(-0.5)] * 2 + [1], abs=1e-6)
    assert [row["score"] for row in json.loads((out / "results.json").read_text())] == [1, 1, 1]


def test_no_objects_at_all_give_an_empty_list(tmp_path: Path, tiny_checkpoint: Path) -> None:
    predictor, _ = written_predictor(tiny_checkpoint)
    predict_photos(predictor, photo_folder(tmp_path / "in", 1), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    assert json.loads((tmp_path / "out" / "coco.json").read_text())["categories"] == []


def test_same_names_in_two_folders_keep_their_pictures_apart(tmp_path: Path, tiny_checkpoint: Path) -> None:
    for folder in "xy":
        save_photo(tmp_path / folder / "1.png")
    predictor, _ = written_predictor(tiny_checkpoint, {"y/1.png": TWO})
    found = find_photos([tmp_path / "x", tmp_path / "y"])
    predict_photos(predictor, found, tmp_path / "out")
    assert lines(tmp_path / "out") == ["x/1.png", "y/1.png"]
    first, second = ((tmp_path / "out" / "overlays" / f / "1.png.png").read_bytes() for f in "xy")
    assert first != second


def test_photos_that_cannot_be_read_are_named_and_the_rest_is_done(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = tmp_path / "in"
    photo_folder(folder, 3)
    whole = save_photo(folder / "cut.jpg", (300, 300)).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "phone.heic").write_bytes(b"ftypheic")
    found = find_photos([folder])
    (folder / "1.png").unlink()  # vanishes after it was listed
    predictor, _ = written_predictor(tiny_checkpoint)
    done = predict_photos(predictor, found, tmp_path / "out")
    assert lines(tmp_path / "out") == ["0.png", "2.png"]
    for message, expected in zip(
        done.skipped,
        [
            "1.png: image file not found",
            "cut.jpg: image is truncated",
            "empty.png: image file is empty",
            "phone.heic: not an",
        ],
        strict=True,
    ):
        assert expected in message
    assert done.images == 2


@pytest.mark.parametrize(
    ("mode", "size_wh"), [("RGB", (1, 1)), ("L", (2000, 2)), ("CMYK", (2, 2000)), ("RGBA", (7, 5)), ("I;16", (50, 50))]
)
def test_odd_photos_are_answered(tmp_path: Path, tiny_checkpoint: Path, mode: str, size_wh: tuple[int, int]) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, size_wh).save(path)
    predictor, _ = written_predictor(tiny_checkpoint, {path.name: TWO})
    done = predict_photos(predictor, find_photos([path]), tmp_path / "out")
    assert (done.objects, done.skipped) == (2, ())
    record = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    assert (record["width"], record["height"]) == size_wh


def test_photo_whose_name_is_not_text_is_skipped(tmp_path: Path, tiny_checkpoint: Path) -> None:
    photo_folder(tmp_path / "in", 1)
    bad = os.fsencode(tmp_path / "in") + b"/\xff.png"
    try:
        with open(bad, "wb") as file:
            file.write((tmp_path / "in" / "0.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    predictor, _ = written_predictor(tiny_checkpoint)
    done = predict_photos(predictor, find_photos([tmp_path / "in"]), tmp_path / "out")
    assert done.images == 1
    assert done.skipped[0].endswith(r"\xff.png: the file's name is not UTF-8 text")


def test_photos_stream_a_batch_at_a_time(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = photo_folder(tmp_path / "in", 6)
    predictor, engine = written_predictor(tiny_checkpoint, batch_size=2)
    opened: list[str] = []
    ahead: list[int] = []
    real_open, real_generate = images.open_image, engine.generate

    def counting(path: Path) -> Image.Image:
        opened.append(path.name)
        return real_open(path)

    def measuring(questions: object) -> object:
        ahead.append(len(opened) - 2 * len(ahead))
        return real_generate(questions)  # type: ignore[arg-type]

    monkeypatch.setattr(photos_module, "open_image", counting)
    engine.generate = measuring  # type: ignore[assignment,method-assign]
    predict_photos(predictor, found, tmp_path / "out", overlays=False)
    assert ahead == [2, 2, 2]
    assert not (tmp_path / "out" / "overlays").exists()


def interrupted(tmp_path: Path, tiny_checkpoint: Path) -> tuple[Predictor, WrittenEngine, list[Photo], Path]:
    """A run over 5 photos that was stopped after two batches of 2."""
    found, out = photo_folder(tmp_path / "in"), tmp_path / "out"
    predictor, engine = written_predictor(tiny_checkpoint, {"3.png": TWO})
    engine.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        predict_photos(predictor, found, out)
    engine.stop_after = None
    engine.batches.clear()
    return predictor, engine, found, out


def test_interrupted_run_keeps_what_is_done_and_goes_on(tmp_path: Path, tiny_checkpoint: Path) -> None:
    predictor, engine, found, out = interrupted(tmp_path, tiny_checkpoint)
    assert lines(out, "predictions.jsonl.part") == ["0.png", "1.png", "2.png", "3.png"]
    assert not (out / "predictions.jsonl").exists()
    done = predict_photos(predictor, found, out, resume=True)
    assert engine.batches == [["4.png"]]
    assert done == PhotosDone(images=5, resumed=4, objects=2, dropped=0, skipped=())
    assert lines(out) == [photo.id for photo in found]
    # The same bytes as without the interruption.
    predict_photos(predictor, found, tmp_path / "whole")
    for name in ("predictions.jsonl", "coco.json", "results.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_line_that_was_cut_off_is_done_again(tmp_path: Path, tiny_checkpoint: Path) -> None:
    predictor, engine, found, out = interrupted(tmp_path, tiny_checkpoint)
    part = out / "predictions.jsonl.part"
    part.write_bytes(part.read_bytes()[:-20])
    predict_photos(predictor, found, out, resume=True)
    assert engine.batches == [["3.png", "4.png"]]
    assert lines(out) == [photo.id for photo in found]


def test_complete_run_is_gone_on_with_where_photos_were_added(tmp_path: Path, tiny_checkpoint: Path) -> None:
    predictor, engine = written_predictor(tiny_checkpoint, {"new.png": TWO})
    predict_photos(predictor, photo_folder(tmp_path / "in", 2), tmp_path / "out")
    save_photo(tmp_path / "in" / "new.png")
    done = predict_photos(predictor, find_photos([tmp_path / "in"]), tmp_path / "out", resume=True)
    assert (done.images, done.resumed, engine.batches[1:]) == (3, 2, [["new.png"]])
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 2


def test_other_settings_do_not_mix_with_a_run(tmp_path: Path, tiny_checkpoint: Path) -> None:
    predictor, _, found, out = interrupted(tmp_path, tiny_checkpoint)
    other = Predictor(predictor.encoder, predictor.engine, 2, protocol={**predictor.protocol, "seed": 1})
    with pytest.raises(UserError, match=r"protocol\.json: .* other settings: seed was 0, is 1"):
        predict_photos(other, found, out, resume=True)
    smaller = Predictor(predictor.encoder, predictor.engine, 1, protocol={"generate": {"batch_size": 1}, "seed": 0})
    assert predict_photos(smaller, found, out, resume=True).images == 5


def test_out_folder_is_new_or_that_of_a_run(tmp_path: Path, tiny_checkpoint: Path) -> None:
    _, _, _, out = interrupted(tmp_path, tiny_checkpoint)
    check_out(tmp_path / "new", resume=False)
    check_out(tmp_path / "new", resume=True)
    check_out(out, resume=True)
    with pytest.raises(UserError, match=r"out: the folder is not empty.*\n.*or add --resume"):
        check_out(out, resume=False)
    with pytest.raises(UserError, match=r"in: the folder is not empty.*\n  fix: choose another --out$"):
        check_out(tmp_path / "in", resume=False)
    with pytest.raises(UserError, match=r"in: there is no run to resume"):
        check_out(tmp_path / "in", resume=True)
    with pytest.raises(UserError, match=r"0\.png: expected a folder, found a file"):
        check_out(tmp_path / "in" / "0.png", resume=False)


def test_overlay_names_are_the_ids_unless_too_long() -> None:
    assert overlay_name("a/b.jpg") == "a/b.jpg.png"
    long = overlay_name("a/" + "ü" * 120 + ".jpg")
    assert long.startswith("a/" + "ü" * 40 + "-") and len(long.encode()) < 120
    assert long != overlay_name("a/" + "ü" * 121 + ".jpg")
