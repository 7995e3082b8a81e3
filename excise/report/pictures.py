"""Pictures as SVG: a function of the records in `artifacts/plots/` and `artifacts/simulation/`, always the same bytes.
Colours are told apart by colour-blind readers too (Okabe and Ito's pair, purple to orange, viridis). The background is
white, so that a picture can be read on a dark page."""

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from itertools import groupby
from pathlib import Path as FilePath
from typing import Any

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

Records = Sequence[Mapping[str, Any]]
"""One list of `artifacts/plots/` or `artifacts/simulation/`."""

Grid = NDArray[np.float64]

SIDES = {"harmful": "#D55E00", "harmless": "#0072B2"}
PREDICTIONS = {"direct": "#CC79A7", "simulated": "#009E73"}
NOTHING = "#DDDDDD"
"""Where there is no number."""

SHADES = 17
"""How many colours a heat map has: neighbours of one colour are drawn as one, which keeps files small."""

MOST_NUMBERS = 128
"""Heat maps with more cells have no numbers in them."""

MOST_NAMES = 16
"""Axes of heat maps with more rows or columns name only some; and their cells are too narrow for numbers."""

FONT = "DejaVu Sans of matplotlib"
"""A name of its own: a font of the same name that a machine has installed may draw other outlines."""

_FILE = str(FilePath(get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
fontManager.ttflist.append(FontEntry(fname=_FILE, name=FONT, weight=400, size="scalable"))

STYLE = {
    "axes.titlesize": 9.5,
    "figure.constrained_layout.use": True,
    "font.family": FONT,
    "font.size": 9.0,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "excise",
    "text.parse_math": False,
}


def draw(plots: Mapping[str, Records]) -> dict[str, str]:
    """The SVG of each picture that there is something to draw for, by the name of its records."""
    return {name: render(PICTURES[name], records) for name, records in plots.items() if name in PICTURES and records}


def render(picture: Callable[[Records], Figure], records: Records) -> str:
    """One picture as the text of an SVG file. Neither the user's matplotlibrc nor the time changes it."""
    with style.context(["default", STYLE]):
        text = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        picture(records).savefig(text, format="svg", metadata=nothing)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def writers(records: Records) -> Figure:
    """Layer × writer: what each adds to the difference, and what it causes."""
    layers, kinds = _values(records, "layer"), list(dict.fromkeys(row["writer"] for row in records))
    figure, panels = _figure(2, 1, (8.0, 1.6 + 0.64 * len(kinds)))
    for axes, column, title, colours in (
        (panels[0], "difference", "Added along the direction, harmful − harmless (units of the stream)", "PuOr_r"),
        (panels[1], "effect", "Change of refusal log-odds without it (nats; below 0: it causes refusal)", "PuOr"),
    ):
        cells = _grid(records, "writer", kinds, "layer", layers, column)
        _heat_map(axes, cells, kinds, layers, colours, signed=True)
        axes.set(title=title, ylabel="writer")
    panels[1].set_xlabel("layer (grey: it has no such writer)")
    return figure


def experts(records: Records) -> Figure:
    """Layer × expert: how much rather each is used on harmful prompts."""
    layers, numbers = _values(records, "layer"), _values(records, "expert")
    harmful, harmless = (
        _grid([row for row in records if row["prompts"] == side], "layer", layers, "expert", numbers, "share")
        for side in SIDES
    )
    figure, (axes,) = _figure(1, 1, (8.0, min(8.0, 1.4 + 0.3 * len(layers))))
    _heat_map(axes, harmful - harmless, layers, numbers, "PuOr_r", signed=True)
    title = "Use of routed experts: share of harmful − share of harmless prompts"
    axes.set(title=title, xlabel="expert", ylabel="layer")
    return figure


def coverage(records: Records) -> Figure:
    """First × last layer of a range: what is left of refusal, and at what KL."""
    first, last = _values(records, "first"), _values(records, "last")
    figure, panels = _figure(1, 2, (8.0, 3.6))
    for axes, column, title, most in (
        (panels[0], "refusal", "Refusal (share of harmful prompts)", 1.0),
        (panels[1], "kl", "KL on harmless prompts (nats)", None),
    ):
        cells = _grid(records, "first", first, "last", last, column)
        _heat_map(axes, cells, first, last, "viridis_r", signed=False, most=most, blank="white")
        axes.set(title=title, xlabel="last edited layer", ylabel="first edited layer")
    return figure


def stream(records: Records) -> Figure:
    """The stream along the direction, measurement by measurement."""
    figure, axes = _lines(records, "prompts", SIDES, "measurement", "projection")
    axes.set(
        title="The stream along the direction, mean over prompts",
        xlabel="measurement (the stream entering this layer)",
        ylabel="projection (units of the stream)",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def scales(records: Records) -> Figure:
    """What is left of the difference at each scale."""
    figure, axes = _lines(records, "prediction", PREDICTIONS, "scale", "remainder")
    axes.set(
        title="What the current rules leave of the difference, at other scales",
        xlabel="times the scale of each rule (1: as it is)",
        ylabel="difference left in the last\nmeasurement (units of the stream)",
    )
    return figure


def projections(records: Records) -> Figure:
    """Prompts along the direction, before and after the edit."""
    figure, panels = _figure(1, 2, (8.0, 3.0), share=True)
    edges = np.histogram_bin_edges(_finite([row["projection"] for row in records]), bins=24)
    for axes, model, title in ((panels[0], "base", "Base model"), (panels[1], "edited", "With the current rules")):
        sides = [
            _finite([row["projection"] for row in records if (row["model"], row["prompts"]) == (model, side)])
            for side in SIDES
        ]
        axes.hist(sides, bins=edges.tolist(), color=list(SIDES.values()), label=list(SIDES), rwidth=1.0)
        axes.set(title=title, xlabel="projection (units of the stream)")
    panels[0].set_ylabel("prompts")
    panels[0].legend(title="prompts", frameon=False)
    return figure


PICTURES = {picture.__name__: picture for picture in (writers, experts, coverage, stream, scales, projections)}
"""By the name of what each is drawn from."""


def _heat_map(
    axes: Axes,
    cells: Grid,
    rows: Sequence[object],
    columns: Sequence[object],
    colours: str,
    signed: bool,
    most: float | None = None,
    blank: str = NOTHING,
) -> None:
    """Draw a heat map.

    Args:
        cells: ``[rows, columns]``; not a number where there is none.
        signed: whether 0 is in the middle of the colours, and numbers are written with their sign.
        most: the value of the last colour; None for the largest there is.
        blank: the colour of cells without a number.
    """
    largest = most or float(np.abs(_finite(cells.ravel())).max(initial=0.0)) or 1.0
    scale, palette = Normalize(-largest if signed else 0.0, largest), colormaps[colours].resampled(SHADES)
    shades = np.where(np.isfinite(cells), np.rint(scale(cells) * (SHADES - 1)), -1).astype(int)
    for shade in np.unique(shades):
        colour = palette(int(shade)) if shade >= 0 else blank
        axes.add_patch(PathPatch(_boxes(shades == shade), facecolor=colour, edgecolor="none", antialiased=False))
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    _name(axes.set_xticks, columns)
    _name(axes.set_yticks, rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if cells.size <= MOST_NUMBERS and len(columns) <= MOST_NAMES:
        for (row, column), value in np.ndenumerate(cells):
            if np.isfinite(value):
                red, green, blue, _ = palette(int(shades[row, column]))
                colour = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
                text = short(float(value), signed)
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=7, color=colour)
    assert axes.figure is not None
    bar = axes.figure.colorbar(ScalarMappable(scale, palette), ax=axes, pad=0.02, aspect=10 + len(rows) / 2)
    bar.outline.set_linewidth(0)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))


def _boxes(there: NDArray[np.bool_]) -> Path:
    """One path around all cells that are there, neighbours in a row taken together."""
    corners: list[tuple[float, float]] = []
    for row, line in enumerate(there.tolist()):
        column = 0
        for inside, run in groupby(line):
            end = column + len(list(run))
            if inside:
                corners += [(column, row), (end, row), (end, row + 1), (column, row + 1), (column, row)]
            column = end
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(corners, codes * (len(corners) // len(codes)))


def short(value: float, signed: bool) -> str:
    """A number of three digits at most, as a cell can hold it."""
    digits = 0 if abs(value) >= 99.5 else 1 if abs(value) >= 9.95 else 2
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else text[-4:]


def _name(set_ticks: Callable[..., object], names: Sequence[object]) -> None:
    shown = range(0, len(names), -(-len(names) // MOST_NAMES))
    set_ticks([place + 0.5 for place in shown], [str(names[place]) for place in shown])


def _lines(records: Records, series: str, colours: Mapping[str, str], x: str, y: str) -> tuple[Figure, Axes]:
    """One line a series; solid and dashed, so that they differ without colours too."""
    figure, (axes,) = _figure(1, 1, (6.4, 3.2))
    axes.axhline(0, color="#888888", linewidth=0.8)
    for (name, colour), dashes, marker in zip(colours.items(), ("-", "--"), ("o", "s"), strict=True):
        rows = [row for row in records if row[series] == name]
        values = [np.nan if row[y] is None or not np.isfinite(row[y]) else row[y] for row in rows]
        axes.plot([row[x] for row in rows], values, dashes, color=colour, marker=marker, markersize=4, label=name)
    axes.legend(title=series, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _figure(rows: int, columns: int, size: tuple[float, float], share: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size)
    return figure, list(figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False).flat)


def _values(records: Records, column: str) -> list[int]:
    return sorted({row[column] for row in records})


def _grid(
    records: Records, row: str, rows: Sequence[object], column: str, columns: Sequence[object], value: str
) -> Grid:
    """``[rows, columns]`` of what records say; not a number where they say nothing."""
    cells = np.full((len(rows), len(columns)), np.nan)
    for record in records:
        cells[rows.index(record[row]), columns.index(record[column])] = record[value]
    return np.where(np.isfinite(cells), cells, np.nan)


def _finite(values: Sequence[float] | Grid) -> Grid:
    numbers = np.asarray(values, dtype=np.float64)
    return numbers[np.isfinite(numbers)]
