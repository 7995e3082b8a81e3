"""Pictures are functions of documents: the same bytes each time, whatever numbers are in there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from excise.report.pictures import draw, short
from schemas.diagnosis import Diagnosis
from schemas.directions import DirectionStatistics
from schemas.simulation import Simulation
from tests.diagnoses import diagnosis, directions, simulation
from tests.evidence_documents import PICTURES
from tests.projects import environment

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS: dict[str, Diagnosis | Simulation | DirectionStatistics] = {
    "diagnosis": diagnosis(),
    "simulation": simulation(),
    "directions": directions(),
}


def drawn(**given: Any) -> dict[str, str]:
    """The pictures of some documents."""
    return draw(**{**DOCUMENTS, **given})


USUAL = drawn()

IN_A_PROCESS = """
import json, sys
from excise.report.pictures import draw
from schemas.diagnosis import Diagnosis
from schemas.directions import DirectionStatistics
from schemas.simulation import Simulation
classes = {"diagnosis": Diagnosis, "simulation": Simulation, "directions": DirectionStatistics}
documents = json.load(sys.stdin)
print(json.dumps(draw(**{name: of.model_validate_json(documents[name]) for name, of in classes.items()})))
"""


def in_a_process(before: str = "", **settings: str) -> dict[str, str]:
    """The same, drawn by another process."""
    done = subprocess.run(
        [sys.executable, "-c", before + IN_A_PROCESS],
        input=json.dumps({name: document.model_dump_json() for name, document in DOCUMENTS.items()}),
        cwd=ROOT,
        env={**os.environ, **settings},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_there_are_the_pictures_that_the_report_shows() -> None:
    assert set(USUAL) == set(PICTURES)


def test_dvc_shows_them_as_they_are(tmp_path: Path) -> None:
    shown = subprocess.run(
        ["dvc", "plots", "show", "-o", str(tmp_path)], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    page = (tmp_path / "index.html").read_text()
    committed = sorted((ROOT / "report/pictures").glob("*.svg"))
    assert committed
    for picture in committed:
        copy = f"static/workspace_report_pictures_{picture.name}"
        assert f'<img src="{copy}">' in page and (tmp_path / copy).read_bytes() == picture.read_bytes()


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_an_svg_on_white_with_no_date_and_no_version(name: str) -> None:
    svg = USUAL[name]
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    background = next(element for element in root.iter() if element.tag.endswith("path"))
    assert "fill: #ffffff" in background.get("style", "")
    assert not [word for word in ("<metadata", "<dc:", "Matplotlib v", "<image", "<script") if word in svg]


def test_fonts_of_the_machine_change_nothing() -> None:
    install = (
        "from matplotlib import get_data_path; from matplotlib.font_manager import FontEntry, fontManager; "
        "serif = get_data_path() + '/fonts/ttf/DejaVuSerif.ttf'; "
        "fontManager.ttflist.insert(0, FontEntry(fname=serif, name='DejaVu Sans', weight=400, size='scalable'))"
    )
    assert in_a_process(install) == USUAL


@pytest.mark.slow
def test_pictures_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    assert drawn() == USUAL
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.grid: True\nsvg.fonttype: none\n")
    for seed in ("1", "2"):
        assert in_a_process(PYTHONHASHSEED=seed, MATPLOTLIBRC=str(tmp_path), SOURCE_DATE_EPOCH=seed) == USUAL


def changed(document: Any, name: str, number: Callable[[float], float]) -> Any:
    """The document with another number wherever a field has this name."""
    if isinstance(document, dict):
        return {
            key: [*map(number, value)]
            if key == name and isinstance(value, list)
            else number(value)
            if key == name and isinstance(value, float)
            else changed(value, name, number)
            for key, value in document.items()
        }
    return [changed(one, name, number) for one in document] if isinstance(document, list) else document


SHOWN = [
    *(("directions", "directions", field) for field in ("auroc", "stability", "relative_norm")),
    *(("writers", "diagnosis", field) for field in ("difference", "effect")),
    *(("stream", "diagnosis", field) for field in ("harmful", "harmless")),
    *(("coverage", "diagnosis", field) for field in ("remaining", "kl_without_refusal")),
    *(("scales", "simulation", field) for field in ("direct", "simulated")),
    *(("projections", "simulation", field) for field in ("harmful", "harmless")),
]


def with_field(document: str, field: str, number: Callable[[float], float]) -> dict[str, str]:
    """The pictures of documents of which one has other numbers in a field; they need not be such as JSON can hold."""
    of = DOCUMENTS[document]
    return drawn(**{document: type(of).model_validate(changed(of.model_dump(), field, number))})


@pytest.mark.slow
@pytest.mark.parametrize(("picture", "document", "field"), SHOWN)
def test_a_picture_shows_its_numbers(picture: str, document: str, field: str) -> None:
    assert with_field(document, field, lambda number: number * number + 0.5)[picture] != USUAL[picture]


def test_the_use_of_experts_is_shown() -> None:
    routers = [{**router.model_dump(), "harmful_use": [4, 3, 2, 1]} for router in diagnosis().routers]
    assert drawn(diagnosis=diagnosis(routers=routers))["experts"] != USUAL["experts"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "bad", [float("nan"), *(pytest.param(float(bad), marks=pytest.mark.nightly) for bad in ("inf", "-inf"))]
)
@pytest.mark.parametrize(("picture", "document", "field"), SHOWN)
def test_numbers_that_are_not_finite_leave_a_picture(picture: str, document: str, field: str, bad: float) -> None:
    ElementTree.fromstring(with_field(document, field, lambda _: bad)[picture])


def test_there_is_no_picture_of_nothing() -> None:
    assert set(drawn(diagnosis=diagnosis(experts=0))) == set(PICTURES) - {"experts"}
    ranges = [{"first": 0, "last": 1, "written": 1.0, "answers": None}]
    assert set(drawn(diagnosis=diagnosis(ranges=ranges))) == set(PICTURES) - {"coverage"}


def test_pictures_of_a_large_model_stay_below_a_megabyte() -> None:
    routers = [
        {**router.model_dump(), "harmful_use": [hash((router.layer, expert)) % 33 for expert in range(128)]}
        for router in diagnosis(layers=60, experts=128).routers
    ]
    large = drawn(diagnosis=diagnosis(layers=60, experts=128, routers=routers), directions=directions(61))
    assert max(len(svg) for svg in large.values()) < 1_000_000


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.126, False, "0.13"),
        (-0.126, True, "−0.13"),
        (30.3, True, "+30.3"),
        (123.4, True, "+123"),
        (0.0, True, "0.00"),
        (-0.0004, True, "0.00"),
        (9.999, False, "10.0"),
    ],
)
def test_a_number_in_a_cell_has_three_digits_at_most(value: float, signed: bool, text: str) -> None:
    assert short(value, signed) == text
