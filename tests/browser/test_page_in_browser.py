"""The page in a real browser, opened from disk: real clicks and keys, wide and narrow, and nothing on the console."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from apiece.report.page import build_report
from made_runs import HOSTILE, Made, make_run

pytestmark = pytest.mark.browser
SAMPLE = "#/sample?id=000000"
WIDTHS = pytest.mark.parametrize("width", [1280, 390])


def paths(page: Any, layer: str, side: int = 0) -> str:
    """What is drawn of a layer, as the path's data; empty if nothing is."""
    found = page.locator(".scene").nth(side).locator(f'g.boxes path[data-layer="{layer}"]')
    return "".join(found.nth(i).get_attribute("d") or "" for i in range(found.count()))


def drawn(page: Any, side: int = 0) -> str:
    return page.locator(".scene").nth(side).locator("g.boxes").evaluate("g => g.innerHTML")


def layer(page: Any, name: str) -> Any:
    return page.locator(f'[data-layer-key="{name}"]')


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
@pytest.mark.parametrize("view", ["#/overview", "#/panel", SAMPLE, "#/compare"])
def test_every_view_fits_the_window(open_page: Any, report: Path, width: int, view: str, dark: bool) -> None:
    page = open_page(report, view, width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(21, 23, 26)" if dark else "rgb(250, 250, 248)")


def test_the_overview_has_the_curves_of_both_runs(open_page: Any, report: Path) -> None:
    page = open_page(report)
    f1 = page.locator(".chart", has_text="F1, panel")
    assert f1.locator(".plot path").count() == 2
    assert page.locator(".chart figcaption", has_text="total").count() == 1
    f1.locator(".plot").hover(position={"x": 60, "y": 40})
    assert "step" in f1.locator(".readout").inner_text()
    page.get_by_role("button", name="a_only_anchor").click()
    assert f1.locator(".plot [data-run='1']").is_hidden()
    assert f1.locator(".plot [data-run='0']").is_visible()
    # A loss that was not a number once leaves a hole in its line.
    broken = page.locator(".chart", has_text="soft_ce").locator(".plot path").first.get_attribute("d")
    assert broken.count("M") == 2


def test_a_curve_leads_to_its_images(open_page: Any, report: Path) -> None:
    page = open_page(report)
    chart = page.locator(".chart", has=page.locator("figcaption", has_text=re.compile("^group$")))
    chart.locator(".plot").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.wait_for_selector(".filters")
    assert "outcome=p.group" in page.url
    assert "step=100" in page.url


@WIDTHS
def test_the_slider_scrubs_both_runs(open_page: Any, report: Path, width: int) -> None:
    page = open_page(report, f"{SAMPLE}&step=300", width=width)
    first = drawn(page, 0), drawn(page, 1)
    slider = page.get_by_role("slider", name="Training step")
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)
    page.wait_for_url(re.compile("step=100"))
    assert drawn(page, 0) != first[0]
    assert drawn(page, 1) != first[1]
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile("step=300"))
    assert (drawn(page, 0), drawn(page, 1)) == first
    assert page.evaluate("document.activeElement.id") == "step"
    page.keyboard.press("End")
    page.wait_for_url(re.compile("step=400"))
    # The first run ended before: its last dump stays, and says so.
    assert page.locator(".late").all_inner_texts() == ["dump of step 300"]


def test_keys_move_through_steps_and_images(open_page: Any, report: Path) -> None:
    page = open_page(report, SAMPLE)
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(re.compile("step=300"))
    page.keyboard.press("ArrowDown")
    page.wait_for_url(re.compile("id=000001"))
    page.wait_for_selector("h1:has-text('000001')")
    page.keyboard.press("k")
    page.wait_for_url(re.compile("id=000000"))
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("d")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.keyboard.press("c")
    page.wait_for_selector(".comparison")


@WIDTHS
def test_layers_are_switched_by_click_and_key_and_kept_in_the_link(open_page: Any, report: Path, width: int) -> None:
    page = open_page(report, f"{SAMPLE}&step=300", width=width)
    assert paths(page, "p.tp")
    assert not paths(page, "l.matched")
    layer(page, "p.tp").click()
    assert layer(page, "p.tp").get_attribute("aria-pressed") == "false"
    assert not paths(page, "p.tp")
    layer(page, "l.matched").click()
    assert paths(page, "l.matched")
    page.keyboard.press("1")
    assert paths(page, "p.tp")
    page.keyboard.press("h")
    kept = page.url.split("#")[1]
    assert layer(page, "hidden").get_attribute("aria-pressed") == "true"
    again = open_page(report, f"#{kept}", width=width)
    assert paths(again, "l.matched")
    assert layer(again, "hidden").get_attribute("aria-pressed") == "true"
    again.keyboard.press("Shift+1")
    assert paths(again, "p.tp")
    assert not paths(again, "l.missed")


@WIDTHS
def test_a_sample_is_opened_by_filter(open_page: Any, report: Path, width: int) -> None:
    page = open_page(report, "#/panel?step=100", width=width)
    everything = page.locator(".tile").count()
    page.locator("[data-filter=outcome]").select_option("p.group")
    page.locator("[data-filter=class]").select_option("book")
    page.locator("[data-filter=crowding]").select_option("16+")
    tiles = page.locator(".tile")
    assert 0 < tiles.count() < everything
    assert all(text.startswith("×") for text in page.locator(".hit").all_inner_texts())
    page.wait_for_selector(".tile path[data-layer='p.group']")
    assert page.locator(".tile path[data-layer='p.tp']").count() == 0
    id_ = tiles.first.get_attribute("data-id")
    tiles.first.click()
    page.wait_for_selector(f".sample h1:has-text('{id_}')")
    assert layer(page, "p.group").locator(".n").first.inner_text() not in ("", "·")
    page.go_back()
    page.wait_for_selector(".tile")
    assert page.locator("[data-filter=outcome]").input_value() == "p.group"


def test_a_box_shows_what_it_is_and_is_held_through_the_steps(open_page: Any, report: Path) -> None:
    page = open_page(report, f"{SAMPLE}&step=300&off=,")
    scene = page.locator(".scene").first
    box = scene.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.55 * box["height"])
    page.wait_for_selector(".detail h3")
    assert page.locator(".tip").first.is_visible()
    scene.focus()
    page.keyboard.press("n")
    page.wait_for_selector(".detail .slot")
    assert page.locator(".detail .slot").count() == 4
    assert page.locator(".detail .slot path.mass").count() == 4
    assert "coord logprob" in page.locator(".scores").inner_text()
    assert page.locator(".focus path").count() >= 2
    # A label has the beliefs of both passes, and stays itself from step to step.
    page.locator(".more summary", has_text="Beliefs").first.click()
    page.locator(".more td button.link").first.click()
    page.wait_for_selector(".detail .slot path.mass2")
    assert page.locator(".detail .slot path.mass2").count() == 4
    title = page.locator(".what").inner_text().split(" · ", 1)[1]
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(re.compile("step=200"))
    assert page.locator(".what").inner_text().split(" · ", 1)[1] == title
    page.locator(".detail .slot").first.hover()
    assert page.locator(".scene .guide").count() == 2
    page.keyboard.press("Escape")
    assert page.locator(".detail h3").count() == 0


def test_a_tap_on_a_phone_brings_the_box_up(open_page: Any, report: Path) -> None:
    page = open_page(report, f"{SAMPLE}&step=300", width=390, touch=True)
    box = page.locator(".scene").first.bounding_box()
    page.touchscreen.tap(box["x"] + 0.3 * box["width"], box["y"] + 0.55 * box["height"])
    page.wait_for_selector(".sample.held .detail .slot")
    sheet = page.locator(".detail").bounding_box()
    assert sheet["y"] + sheet["height"] <= page.locator("#dock").bounding_box()["y"] + 1
    page.get_by_role("button", name="Let go of the box").click()
    assert page.locator(".sample.held").count() == 0


def test_zooming_moves_both_photos(open_page: Any, report: Path) -> None:
    page = open_page(report, SAMPLE)
    whole = page.locator(".scene").first.get_attribute("viewBox")
    page.get_by_role("button", name="Zoom in").click()
    views = [page.locator(".scene").nth(i).get_attribute("viewBox") for i in range(2)]
    assert views[0] == views[1] != whole
    page.keyboard.press("0")
    assert page.locator(".scene").first.get_attribute("viewBox") == whole


def test_hostile_names_are_text(open_page: Any, report: Path) -> None:
    page = open_page(report, f"{SAMPLE}&step=300")
    page.locator(".more summary", has_text="Boxes as written").first.click()
    page.locator(".more summary", has_text="Answer").first.click()
    names = page.locator(".more td .name").all_inner_texts()
    for text in HOSTILE[:3]:
        assert any(text.startswith(name.rstrip("…")) for name in names), text
    assert "</script><img" in page.locator("pre.answer").inner_text()
    assert page.locator("img").count() == 0
    assert page.locator("main b", has_text=re.compile("^bold$")).count() == 0
    assert "owned" not in page.title()
    page.locator(".more button.link", has_text="xxxx").first.click()
    assert page.locator(".detail h3").bounding_box()["height"] < 120
    page.goto(page.url.split("#")[0] + "#/panel")
    page.wait_for_selector(".filters")
    assert page.locator("img").count() == 0


def test_the_comparison_names_verdicts_and_leads_to_images(open_page: Any, report: Path) -> None:
    page = open_page(report, "#/compare")
    assert page.locator(".verdict").all_inner_texts() == ["▲ better", "can't tell\n31 more images would tell"]
    assert "something_new" in page.locator("main").inner_html()
    page.get_by_role("link", name="000001").click()
    page.wait_for_selector(".sample h1:has-text('000001')")


def test_what_is_damaged_is_marked_and_the_rest_is_shown(open_page: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path, Made("broken", samples=3, steps=(100, 200, 300)))
    protocol = run / "dumps" / "step_000100" / "protocol.json"
    protocol.write_text(json.dumps(json.loads(protocol.read_text()) | {"schema": 0}))
    records = run / "dumps" / "step_000200" / "records.jsonl"
    lines = records.read_text(encoding="utf-8").splitlines(keepends=True)
    records.write_text("".join(lines[:2]) + lines[2][:500], encoding="utf-8")
    last = run / "dumps" / "step_000300" / "records.jsonl"
    last.write_text(re.sub(r'"score":[\d.]+', '"score":NaN', last.read_text(encoding="utf-8")), encoding="utf-8")
    (tmp_path / "images" / "000001.png").unlink()
    page = open_page(build_report([run], tmp_path / "report").page)
    gaps = page.locator(".gaps").inner_text()
    for part in ("older apiece", "half-written", "000001.png: not found"):
        assert part in gaps
    page = open_page(tmp_path / "report" / "index.html", "#/sample?id=000001&step=300")
    assert page.locator(".nophoto text").text_content() == "photo missing"
    assert paths(page, "p.tp")
    page.locator(".more summary", has_text="Boxes as written").click()
    assert page.locator(".more td.num").first.inner_text() == "–"
    page = open_page(tmp_path / "report" / "index.html", "#/sample?id=000002&step=200")
    assert page.locator(".gapnote").inner_text() == "no record of this image at step 200"
    page.keyboard.press("End")
    assert page.locator(".gapnote").inner_text() == ""


def test_a_report_may_be_moved(open_page: Any, report: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(report.parent, moved)
    page = open_page(moved / "index.html", SAMPLE)
    loaded = page.evaluate(
        "async () => { const i = new Image(); i.src = document.querySelector('image').getAttribute('href');"
        " await i.decode(); return i.naturalWidth; }"
    )
    assert loaded == 192


def test_one_run_with_one_step(open_page: Any, tmp_path: Path) -> None:
    page = open_page(build_report([make_run(tmp_path, Made("alone", steps=(4,)))], tmp_path / "page").page)
    assert page.locator("main").evaluate("m => m.children.length === m.childNodes.length"), "a word beside the sections"
    f1 = page.locator(".chart", has_text="F1, panel")
    assert f1.locator(".plot text[text-anchor=middle]").all_text_contents() == ["4"]
