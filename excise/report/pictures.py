"""The report's pictures as SVG, always the same bytes. Colors suit color-blind readers; white suits dark pages."""

from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import groupby
from pathlib import Path as FilePath
from typing import TypeVar

import numpy as np
from matplotlib import colormaps, get_data_path, style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from schemas.diagnosis import Diagnosis
from schemas.directions import DirectionStatistics
from schemas.simulation import Simulation

Numbers = Sequence[float | None]
Name = TypeVar("Name", int, str)

HARMFUL, HARMLESS, GREEN, PINK = "#D55E00", "#0072B2", "#009E73", "#CC79A7"
NO_NUMBER = "#DDDDDD"

SHADES = 17
"""Colors of a heat map: neighbors of one color are drawn as one, which keeps files small."""
MOST_NUMBERS = 128
"""Heat maps with more cells show no numbers."""
MOST_NAMES = 16
"""Heat maps with more rows or columns name only some; with more columns, cells are too narrow for numbers."""
FONT = "DejaVu Sans of matplotlib"
"""Not the font's own name: a font of that name installed on a machine may have other outlines."""
_FILE = str(FilePath(get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
fontManager.ttflist.append(FontEntry(fname=_FILE, name=FONT, weight=400, size="scalable"))

STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.5,
    "figure.constrained_layout.use": True,
    "font.family": FONT,
    "font.size": 9.0,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "excise",
    "text.parse_math": False,
}

MEASUREMENT = "measurement (the stream entering this layer)"
PROJECTION = "projection (units of the stream)"


def draw(
    diagnosis: Diagnosis, simulation: Simulation, directions: DirectionStatistics, explained: bool = True
) -> dict[str, str]:
    """The SVG of each picture by name, without those that would be empty; where refusal is not `explained`, without
    those that explain it. No matplotlibrc and no time changes it."""
    with style.context(["default", STYLE]):
        figures = {
            "directions": _directions(directions),
            "writers": _writers(diagnosis) if explained else None,
            "stream": _stream(diagnosis) if explained else None,
            "projections": _projections(simulation),
            "experts": _experts(diagnosis) if explained else None,
            "coverage": _coverage(diagnosis) if explained else None,
            "scales": _scales(simulation),
        }
        return {name: _svg(figure) for name, figure in figures.items() if figure is not None}


def _svg(figure: Figure) -> str:
    text = StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _directions(statistics: DirectionStatistics) -> Figure:
    rows = statistics.measurements
    measurements = [row.measurement for row in rows]
    figure, (quality, length) = _figure(1, 2, (8.0, 3.0))
    qualities = {"AUROC": [row.auroc for row in rows], "stability": [row.stability for row in rows]}
    _lines(quality, measurements, qualities, GREEN, PINK)
    _lines(length, measurements, {"length": [row.relative_norm for row in rows]}, "#555555")
    quality.set(title="Separation of unseen prompts (AUROC); stability", xlabel=MEASUREMENT, ylim=(None, 1.05))
    length.set(title="Length of the direction, over the stream's", xlabel=MEASUREMENT)
    return figure


def _writers(diagnosis: Diagnosis) -> Figure | None:
    rows = diagnosis.writers
    if not rows:
        return None
    layers, kinds = sorted({row.layer for row in rows}), list(dict.fromkeys(row.role for row in rows))
    figure, (added, caused) = _figure(2, 1, (8.0, 1.6 + 0.64 * len(kinds)))
    _heat_map(added, {(row.role, row.layer): row.difference for row in rows}, kinds, layers, "PuOr_r", signed=True)
    _heat_map(caused, {(row.role, row.layer): row.effect for row in rows}, kinds, layers, "PuOr", signed=True)
    added.set(title="Added along the direction, harmful − harmless (units of the stream)", ylabel="writer")
    caused.set(title="Change of refusal log-odds without it (nats; below 0: it causes refusal)", ylabel="writer")
    caused.set_xlabel("layer (gray: it has no such writer)")
    return figure


def _experts(diagnosis: Diagnosis) -> Figure | None:
    cells = {
        (row.layer, expert): harmful / diagnosis.harmful_prompts - harmless / diagnosis.harmless_prompts
        for row in diagnosis.routers
        for expert, (harmful, harmless) in enumerate(zip(row.harmful_use, row.harmless_use, strict=True))
    }
    if not cells:
        return None
    layers, experts = sorted({row.layer for row in diagnosis.routers}), sorted({expert for _, expert in cells})
    figure, (axes,) = _figure(1, 1, (8.0, min(8.0, 1.4 + 0.3 * len(layers))))
    _heat_map(axes, cells, layers, experts, "PuOr_r", signed=True)
    title = "Use of routed experts: share of harmful − share of harmless prompts"
    axes.set(title=title, xlabel="expert", ylabel="layer")
    return figure


def _coverage(diagnosis: Diagnosis) -> Figure | None:
    ranges = {(row.first, row.last): row.answers for row in diagnosis.ranges if row.answers is not None}
    if not ranges:
        return None
    first, last = sorted({first for first, _ in ranges}), sorted({last for _, last in ranges})
    figure, (refusal, kl) = _figure(1, 2, (8.0, 3.6))
    refusals = {cell: answers.remaining for cell, answers in ranges.items()}
    _heat_map(refusal, refusals, first, last, "viridis_r", most=1.0, blank="white")
    drifts = {cell: answers.kl_without_refusal for cell, answers in ranges.items()}
    _heat_map(kl, drifts, first, last, "viridis_r", blank="white")
    names = {"xlabel": "last edited layer", "ylabel": "first edited layer"}
    refusal.set(title="Refusal (the larger of share and mean probability)", **names)
    kl.set(title="KL* on harmless prompts (nats)", **names)
    return figure


def _stream(diagnosis: Diagnosis) -> Figure | None:
    if not diagnosis.stream:
        return None
    figure, (axes,) = _figure(1, 1, (6.4, 3.2))
    points = diagnosis.stream
    lines = {"harmful": [point.harmful for point in points], "harmless": [point.harmless for point in points]}
    _lines(axes, [point.measurement for point in points], lines, HARMFUL, HARMLESS)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set(title="The stream along the direction, mean over prompts", xlabel=MEASUREMENT, ylabel=PROJECTION)
    return figure


def _scales(simulation: Simulation) -> Figure:
    figure, (axes,) = _figure(1, 1, (6.4, 3.2))
    trials = simulation.scales
    simulated: Numbers = [trial.simulated for trial in trials]
    lines = {"direct": [trial.direct for trial in trials], "simulated": simulated}
    _lines(axes, [trial.scale for trial in trials], lines, PINK, GREEN)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set(title="What the current rules leave of the difference, at other scales")
    unit = "difference left in the last\nmeasurement (units of the stream)"
    axes.set(xlabel="times the scale of each rule (1: as it is)", ylabel=unit)
    return figure


def _projections(simulation: Simulation) -> Figure:
    figure, panels = _figure(1, 2, (8.0, 3.0), share=True)
    models = [
        [_finite(model.harmful), _finite(model.harmless)]
        for model in (simulation.projections_before, simulation.projections_after)
    ]
    edges = np.histogram_bin_edges(np.concatenate([values for model in models for values in model]), bins=24)
    for axes, model, title in zip(panels, models, ("Base model", "With the current rules"), strict=True):
        axes.hist(model, bins=edges.tolist(), color=[HARMFUL, HARMLESS], label=["harmful", "harmless"], rwidth=1.0)
        axes.set(title=title, xlabel=PROJECTION)
    panels[0].set_ylabel("prompts")
    panels[0].legend(title="prompts", loc="best")  # named, as the default warns where it takes long
    return figure


def _lines(axes: Axes, x: Sequence[float], lines: Mapping[str, Numbers], *colors: str) -> None:
    """Lines with gaps for missing numbers; marks and dashes differ, so that color is not needed."""
    for (name, numbers), color, marks in zip(lines.items(), colors, ("o-", "s--"), strict=False):
        values = [np.nan if value is None or not np.isfinite(value) else value for value in numbers]
        axes.plot(x, values, marks, color=color, markersize=4, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=all(isinstance(value, int) for value in x)))
    axes.legend(loc="best")


def _heat_map(
    axes: Axes,
    cells: Mapping[tuple[Name, int], float],
    rows: Sequence[Name],
    columns: Sequence[int],
    colors: str,
    signed: bool = False,
    most: float | None = None,
    blank: str = NO_NUMBER,
) -> None:
    """`signed`: 0 is the middle color, and numbers have signs. `most`: the value of the last color (the largest)."""
    numbers = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])
    largest = most or float(np.abs(_finite(numbers)).max(initial=0.0)) or 1.0
    scale, palette = Normalize(-largest if signed else 0.0, largest), colormaps[colors].resampled(SHADES)
    shades = np.where(np.isfinite(numbers), np.rint(scale(numbers) * (SHADES - 1)), -1).astype(int)
    for shade in np.unique(shades):
        color = palette(int(shade)) if shade >= 0 else blank
        axes.add_patch(PathPatch(_boxes(shades == shade), facecolor=color, edgecolor="none", antialiased=False))
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    for set_ticks, names in ((axes.set_xticks, columns), (axes.set_yticks, rows)):
        shown = range(0, len(names), -(-len(names) // MOST_NAMES))
        set_ticks([index + 0.5 for index in shown], [str(names[index]) for index in shown])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if numbers.size <= MOST_NUMBERS and len(columns) <= MOST_NAMES:
        for (row, column), value in np.ndenumerate(numbers):
            if np.isfinite(value):
                red, green, blue, _ = palette(int(shades[row, column]))
                color = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
                text = short(float(value), signed)
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=7, color=color)
    assert axes.figure is not None
    bar = axes.figure.colorbar(ScalarMappable(scale, palette), ax=axes, pad=0.02, aspect=10 + len(rows) / 2)
    bar.outline.set_linewidth(0)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))


def _boxes(inside: NDArray[np.bool_]) -> Path:
    """One path around all cells that are inside, with neighbors in a row joined."""
    corners: list[tuple[float, float]] = []
    for row, line in enumerate(inside.tolist()):
        column = 0
        for is_inside, run in groupby(line):
            end = column + len(list(run))
            if is_inside:
                corners += [(column, row), (end, row), (end, row + 1), (column, row + 1), (column, row)]
            column = end
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(corners, codes * (len(corners) // len(codes)))


def short(value: float, signed: bool) -> str:
    """A number of at most three digits, which fits into a cell."""
    digits = 0 if abs(value) >= 99.5 else 1 if abs(value) >= 9.95 else 2
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else text[-4:]


def _figure(rows: int, columns: int, size: tuple[float, float], share: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size)
    return figure, list(figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False).flat)


def _finite(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64).ravel()
    return numbers[np.isfinite(numbers)]
