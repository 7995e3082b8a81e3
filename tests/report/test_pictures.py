"""Pictures are drawn from `artifacts/plots/` and `artifacts/simulation/` alone: the same bytes each time, whatever is
in there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from excise.diagnosis.plots import plots_of_diagnosis, plots_of_simulation
from excise.report.pictures import PICTURES, Records, draw, render, short
from schemas.diagnosis import PLOTS, Diagnosis
from tests.diagnoses import diagnosis, simulation

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = torch.linspace(-3, 5, 16, dtype=torch.float64)
PROJECTIONS = [(NUMBERS, NUMBERS - 4), (NUMBERS / 8, NUMBERS / 9)]


def records(shown: Diagnosis) -> dict[str, Records]:
    return {**plots_of_diagnosis(shown), **plots_of_simulation(simulation(), PROJECTIONS)}


RECORDS = records(diagnosis())

IN_A_PROCESS = (
    "import json, sys; from excise.report.pictures import draw; print(json.dumps(draw(json.load(sys.stdin))))"
)


def test_every_list_of_records_has_a_picture_and_a_plot_of_dvc() -> None:
    assert set(PICTURES) == set(RECORDS) == set(draw(RECORDS))
    graph = (ROOT / "dvc.yaml").read_text()
    folders = {name: "plots" if name in PLOTS else "simulation" for name in PICTURES}
    assert all(f"artifacts/{folder}/{name}.json" in graph for name, folder in folders.items())


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_an_svg_on_white_with_no_date_and_no_version(name: str) -> None:
    svg = render(PICTURES[name], RECORDS[name])
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    background = next(element for element in root.iter() if element.tag.endswith("path"))
    assert "fill: #ffffff" in background.get("style", "")
    assert not [word for word in ("<metadata", "<dc:", "Matplotlib v", "<image", "<script") if word in svg]


def test_fonts_of_the_machine_change_nothing() -> None:
    install = (
        "from matplotlib import get_data_path; from matplotlib.font_manager import FontEntry, fontManager; "
        "serif = get_data_path() + '/fonts/ttf/DejaVuSerif.ttf'; "
        "fontManager.ttflist.insert(0, FontEntry(fname=serif, name='DejaVu Sans', weight=400, size='scalable')); "
    )
    done = subprocess.run(
        [sys.executable, "-c", install + IN_A_PROCESS],
        input=json.dumps(RECORDS),
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == draw(RECORDS)


@pytest.mark.slow
def test_pictures_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    expected = draw(RECORDS)
    assert draw(RECORDS) == expected
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.grid: True\nsvg.fonttype: none\n")
    for seed in ("1", "2"):
        settings = {"PYTHONHASHSEED": seed, "MATPLOTLIBRC": str(tmp_path), "SOURCE_DATE_EPOCH": seed}
        done = subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS],
            input=json.dumps(RECORDS),
            cwd=ROOT,
            env={**os.environ, **settings},
            check=True,
            capture_output=True,
            text=True,
        )
        assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_its_numbers(name: str) -> None:
    column = {"writers": "effect", "experts": "share", "coverage": "kl", "scales": "remainder"}.get(name, "projection")
    changed = [{**row, column: 2 * row[column] + number} for number, row in enumerate(RECORDS[name])]
    assert render(PICTURES[name], changed) != render(PICTURES[name], RECORDS[name])


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_leave_a_picture(name: str, bad: float) -> None:
    floats = {"difference", "effect", "share", "refusal", "kl", "projection", "remainder"}
    some = [{**RECORDS[name][0], **{key: bad for key in floats & set(RECORDS[name][0])}}, *RECORDS[name][1:]]
    every = [{**row, **{key: bad for key in floats & set(row)}} for row in RECORDS[name]]
    for records in (some, every):
        ElementTree.fromstring(render(PICTURES[name], records))


def test_there_is_no_picture_of_nothing() -> None:
    dense = records(diagnosis(experts=0))
    assert set(draw(dense)) == set(PICTURES) - {"experts"}
    assert draw({name: [] for name in PICTURES}) == {}


def test_an_unknown_list_of_records_is_left_alone() -> None:
    assert draw({"later": [{"x": 1}]}) == {}


def test_pictures_of_a_large_model_stay_below_a_megabyte() -> None:
    large = records(diagnosis(layers=60, experts=128))
    large["experts"] = [{**row, "share": hash((n, n * n)) % 997 / 997} for n, row in enumerate(large["experts"])]
    assert max(len(svg) for svg in draw(large).values()) < 1_000_000


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
