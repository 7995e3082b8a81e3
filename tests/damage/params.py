"""Damaged parameter files, and resolved ones."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from schemas.basis.document import read_settings
from schemas.params.ablate import Ablate, EditMethod
from schemas.params.answer import Answer
from schemas.params.directions import Directions
from schemas.params.document import load, parse, settings_of_stages
from schemas.params.gates import ReportSettings
from schemas.params.judge import EvaluateSettings
from schemas.params.measure import Measure
from schemas.params.model import Place
from schemas.params.organism import OrganismSettings
from schemas.params.prompts import PrepareSettings
from tests.projects import ROOT

SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")
RESOLVED = settings_of_stages(parse(SHIPPED))
SETTINGS: dict[str, type[BaseModel]] = {
    "device": Place,
    "organism": OrganismSettings,
    "prepare": PrepareSettings,
    "measure": Measure,
    "directions": Directions,
    "diagnose": EditMethod,
    "simulate": Ablate,
    "ablate": Ablate,
    "answer": Answer,
    "evaluate": EvaluateSettings,
    "report": ReportSettings,
}

WORDS = [
    "9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "0o" + "7" * 6000, "0b" + "1" * 20_000, "1e5000",
    "1" * 4300, "1" * 4301, "0." + "0" * 5000 + "1", ".inf", ".nan", "-.inf", "1_000", "1:30:00", "2001-01-01",
    "!!int 'x'", "!!binary x", "!!set {a}", "!!python/object:os.system x", "&a [*a]", "*b", "<<: *a",
    "{<<: {a: 1}}", "? x", "!!float ''", "!!bool x", "!!timestamp x", "[" * 3000, "{a: " * 200, "- " * 2000,
    "'" + "x" * 100_000 + "'", "\ud800", '"\\ud800"', "\0", "\u2028", "\t", "%YAML 9.9", "---", "null", "~",
    "yes", "[]", "{}", "''", "|", ">-", "@", "`", "%", "!", "&", "*", "a: b: c", "#", "x" * 300_000,
    "[" + "1," * 60_000 + "1]", "{" + ",".join(f"k{n}: 1" for n in range(20_000)) + "}",
]  # fmt: skip


@contextmanager
def trial(number: int, folder: Path) -> Iterator[Callable[[], object]]:
    """One file: params.yaml, or every eighth time a resolved section."""
    dice = random.Random(number)
    if number % 8 == 7:
        name = dice.choice([*SETTINGS])
        path = folder / f"{name}.json"
        path.write_bytes(damaged(dice, RESOLVED[name]))
        yield partial(read_settings, SETTINGS[name], path)
        return
    path = folder / "params.yaml"
    path.write_bytes(damaged(dice, SHIPPED))
    yield lambda: [json.loads(text) for text in settings_of_stages(load(path)).values()]


def damaged(dice: random.Random, text: str) -> bytes:
    """A text with one to three of its lines, words or bytes changed."""
    for _ in range(dice.choice([1, 1, 2, 3])):
        lines = text.split("\n")
        at = dice.randrange(len(lines))
        what = dice.randrange(8)
        if what <= 2:  # the value of a key
            head, colon, _ = lines[at].partition(":")
            lines[at] = f"{head}{colon} {dice.choice(WORDS)}" + dice.choice(["", ","])
        elif what == 3:  # the key
            head, colon, tail = lines[at].partition(":")
            indent = head[: len(head) - len(head.lstrip())]
            lines[at] = f"{indent}{dice.choice(WORDS)}{colon}{tail}"
        elif what == 4:
            lines.insert(at, dice.choice(WORDS))
        elif what == 5:
            del lines[at]
        elif what == 6:
            lines.insert(at, dice.choice(["<<<<<<< HEAD", "=======", ">>>>>>> main", lines[at]]))
        else:
            place = dice.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + dice.choice(WORDS[-16:]) + lines[at][place + dice.randrange(3) :]
        text = "\n".join(lines)
    data = text.encode("utf-8", "surrogatepass")
    if dice.random() < 0.1:
        place = dice.randrange(len(data) + 1)
        data = data[:place] + dice.randbytes(dice.randrange(1, 9)) + data[place:]
    return data[: dice.randrange(len(data) + 1)] if dice.random() < 0.1 else data
