"""The page as a browser shows it: on a wide screen, in the dark, on a phone and on paper; also with hostile answers."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, ViewportSize, sync_playwright

from excise.report.page import render_page
from schemas.evidence import Comparison, GateVerdicts, TaskChanges
from tests.evidence_documents import (
    BAD,
    PICTURES,
    broken_rows,
    changed,
    changes,
    gate,
    gates,
    provenance,
    report,
    row,
    silent_row,
)

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here; Debian's is `apt install chromium`"),
]

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
WIDE: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 740}

Scheme = Literal["light", "dark"]

PICTURE = """<?xml version="1.0" encoding="utf-8" standalone="no"?>
<svg xmlns="http://www.w3.org/2000/svg" width="576pt" height="230pt" viewBox="0 0 576 230">
<defs><style>* { stroke: red }</style><path id="glyph" d="M 0 0 L 9 9"/></defs>
<path d="M 0 0 L 576 0 L 576 230 L 0 230 Z" style="fill: #ffffff"/><use href="#glyph"/></svg>
"""

ATTACKS = [
    "<script>alert(1); document.body.innerHTML = ''</script>",
    '<img src="http://127.0.0.1:9/x.png" onerror="alert(1)"><svg onload="alert(1)">',
    '</pre></div></article></details><iframe src="http://127.0.0.1:9/"></iframe><h1 id="injected">All gates pass</h1>',
    '" autofocus onfocus="alert(1)" x=\'',
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'><base href='http://127.0.0.1:9/'>",
    "<style>@import url(http://127.0.0.1:9/x.css); * { display: none }</style>",
    "\u202e\u2066esrever" * 50 + "\x00\ud800",
    "x" * 1_000_000,
    "Z\u0301" + "\u0301\u0316" * 1_500,
    "שלום עולם " * 30,
]


@dataclass
class Seen:
    """An open page, and what it did."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def dismiss(self, dialog: Dialog) -> None:
        """Note that a script asked something, and go on."""
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def widths(self) -> tuple[int, int]:
        """How wide the document is, and how wide the window."""
        wide, window = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        return wide, window


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; nothing is downloaded."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    """What the reader's system prefers."""
    chosen: Scheme = request.param
    return chosen


def text(shown: list[TaskChanges], more: Sequence[Comparison] = (), verdicts: GateVerdicts = BAD) -> str:
    """A page with everything on it that there may be."""
    documents = report(
        rows=[*broken_rows(), *more],
        gates=verdicts,
        changes=shown,
        left_out={"refusal_jbb": 3},
        pictures=dict.fromkeys(PICTURES, PICTURE),
    )
    return render_page(documents, provenance(changed_files=["params.yaml"]))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a model that means no harm."""
    path = tmp_path_factory.mktemp("usual") / "report.html"
    path.write_text(text(changes()))
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a model that does."""
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    attacks = [changed(attack, attack, attack, id=attack, metrics={attack: (0.0, 1.0)}) for attack in ATTACKS]
    path.write_text(text(changes(attacks)))
    return path


def opened(context: BrowserContext, path: Path) -> Seen:
    """The page in a window of its own, every fold opened by a click."""
    seen = Seen(context.new_page())
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("console", lambda said: seen.complaints.append(said.text))
    seen.page.on("dialog", seen.dismiss)
    seen.page.goto(path.as_uri())
    for summary in seen.page.locator("summary").all():
        summary.click()
    assert seen.page.locator("details:not([open])").count() == 0
    return seen


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("which", ["usual", "hostile"])
def test_the_page_fits_complains_of_nothing_and_asks_for_nothing(
    browser: Browser, request: pytest.FixtureRequest, which: str, size: ViewportSize, scheme: Scheme
) -> None:
    path: Path = request.getfixturevalue(which)
    with browser.new_context(viewport=size, color_scheme=scheme) as context:
        seen = opened(context, path)
        wide, window = seen.widths()
        assert wide <= window == size["width"]
        assert [url for url in seen.requests if not url.startswith("data:")] == [path.as_uri()]
        assert seen.complaints == [] and seen.dialogs == []


LONG = "capability.leaderboard_of_a_task_with_a_long_name_and_a_subject.exact_match_flexible_extract"


def test_it_fits_every_width_whatever_its_metrics_are_called(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    long = [row(LONG, 123456.75, 234567.25, samples=14042, clusters=12032), silent_row(LONG + "_too", 0.5, 0.25)]
    path.write_text(text(changes(), long, gates(gate(LONG, reason="it is so " * 20, verdict="inconclusive"))))
    with browser.new_context(viewport=WIDE) as context:
        seen = opened(context, path)
        for width in (320, 400, 640, 641, 800, 960, 961, 1100, 1248, 1249, 1600):
            seen.page.set_viewport_size({"width": width, "height": 800})
            assert seen.widths() == (width, width)


def test_the_verdict_and_its_reason_are_seen_first(browser: Browser, usual: Path, scheme: Scheme) -> None:
    for size in (WIDE, PHONE):
        with browser.new_context(viewport=size, color_scheme=scheme) as context:
            page = context.new_page()
            page.goto(usual.as_uri())
            for what in ("h1", "header .badge", "header .why"):
                box = page.locator(what).bounding_box()
                assert box is not None and box["y"] >= 0 and box["y"] + box["height"] < size["height"] / 2
            assert page.locator("h1").inner_text() == "A gate fails, 1 is inconclusive"


def test_folds_are_closed_until_they_are_clicked(browser: Browser, usual: Path) -> None:
    with browser.new_context(viewport=WIDE) as context:
        page = context.new_page()
        page.goto(usual.as_uri())
        answer = page.get_by_text("zorp is made of two blims.").first
        assert not answer.is_visible()
        page.get_by_text("311 of 320 samples changed").click()
        assert answer.is_visible()


def test_hostile_answers_inject_nothing(browser: Browser, usual: Path, hostile: Path) -> None:
    with browser.new_context(viewport=WIDE) as context:
        seen = opened(context, hostile)
        page = seen.page
        assert page.locator("script, iframe, base, #injected, [onerror], [onload], [onfocus]").count() == 0
        assert page.locator("h1").all_inner_texts() == ["A gate fails, 1 is inconclusive"]
        assert page.locator("style").count() == 1 and page.locator("meta[http-equiv]").count() == 1
        assert page.locator("article").count() == len(ATTACKS)
        assert page.locator("article *:not(h3, h4, pre, div, p, span, code, wbr)").count() == 0


def test_scripts_do_not_run_even_if_one_were_let_in(browser: Browser, usual: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    let_in = "<script>document.title = 'ran'</script><img src='x' onerror=\"document.title = 'ran'\">"
    path.write_text(usual.read_text().replace("<main>", "<main>" + let_in))
    with browser.new_context(viewport=WIDE) as context:
        page = context.new_page()
        page.goto(path.as_uri())
        assert page.title() == "A gate fails, 1 is inconclusive · excise report"


def test_stacked_marks_and_long_words_stay_in_their_box(browser: Browser, hostile: Path) -> None:
    with browser.new_context(viewport=PHONE) as context:
        page = opened(context, hostile).page
        boxes = page.locator("article pre").evaluate_all(
            "all => all.map(one => [one.getBoundingClientRect().right, getComputedStyle(one).contain])"
        )
        assert all(right <= PHONE["width"] and "paint" in contain for right, contain in boxes)


CONTRASTS = """
chosen => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => parts(colour).slice(0, 3)
    .map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = element => {
    const colour = getComputedStyle(element).backgroundColor;
    return (parts(colour)[3] ?? 1) === 1 ? colour : behind(element.parentElement);
  };
  return [...document.querySelectorAll(chosen)].map(element => {
    const both = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
  });
}
"""


def test_words_stand_out_from_what_is_behind_them(browser: Browser, usual: Path, scheme: Scheme) -> None:
    with browser.new_context(viewport=WIDE, color_scheme=scheme) as context:
        page = opened(context, usual).page
        assert len(page.evaluate(CONTRASTS, ".badge")) == 1 + len(BAD.gates)
        for chosen in (
            ".badge",
            ".change",
            ".note, .ends, h4, dt, thead th",
            "a, p, li, td, th, pre, code, figcaption",
        ):
            found = page.evaluate(CONTRASTS, chosen)
            assert found and min(found) >= 4.5, chosen


def test_pictures_are_shown_on_white_in_the_dark_too(browser: Browser, usual: Path) -> None:
    with browser.new_context(viewport=WIDE, color_scheme="dark") as context:
        page = opened(context, usual).page
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != "rgb(255, 255, 255)"
        figures = page.locator("figure")
        assert figures.count() == len(PICTURES)
        colours = figures.evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
        assert set(colours) == {"rgb(255, 255, 255)"}
        assert page.locator("img").evaluate_all("all => all.every(one => one.naturalWidth > 0)")
        assert page.locator("svg line").first.evaluate("one => getComputedStyle(one).stroke") != "rgb(255, 0, 0)"


def test_tables_are_tables_to_those_who_are_read_to_on_a_phone_too(browser: Browser, usual: Path) -> None:
    for size in (WIDE, PHONE):
        with browser.new_context(viewport=size) as context:
            page = context.new_page()
            page.goto(usual.as_uri())
            gates = page.get_by_role("table", name="Gates")
            assert gates.get_by_role("row").count() == 1 + len(BAD.gates)
            assert gates.get_by_role("columnheader", name="verdict").count() == 1
            assert gates.get_by_role("rowheader", name=BAD.gates[0].metric).count() == 1


def test_tables_of_the_text_scroll_within_their_box_on_a_phone(browser: Browser, usual: Path) -> None:
    with browser.new_context(viewport=PHONE) as context:
        page = context.new_page()
        page.goto(usual.as_uri())
        boxes = page.locator(".prose .scroll").evaluate_all(
            "all => all.map(one => [one.scrollWidth > one.clientWidth, getComputedStyle(one).overflowX, one.tabIndex])"
        )
        assert any(wider for wider, _, _ in boxes)
        assert {(overflow, focus) for _, overflow, focus in boxes} == {("auto", 0)}


def test_on_paper_it_is_dark_on_light_and_says_what_is_folded_away(browser: Browser, usual: Path) -> None:
    with browser.new_context(viewport=WIDE, color_scheme="dark") as context:
        page = context.new_page()
        page.goto(usual.as_uri())
        assert not page.get_by_text("Folded parts are not printed").is_visible()
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 718, "height": 1000})  # A4 without its margins
        tables = page.locator(".scroll").evaluate_all("all => all.map(one => [one.scrollWidth, one.clientWidth])")
        assert tables and all(inner <= outer for inner, outer in tables)
        assert page.get_by_text("Folded parts are not printed").is_visible()
        assert not page.get_by_role("navigation").is_visible()
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.documentElement).color") == "rgb(0, 0, 0)"
        assert page.pdf(format="A4").startswith(b"%PDF")
