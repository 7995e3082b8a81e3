"""Damaged files of ours, each read by every command and every stage's own reader that reads it."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from excise import cli
from excise.checkpoint.base_model import base_folder, read_layout, read_manifest
from excise.comparison.comparison import read_side
from excise.edit.planning.projectors import read_use
from excise.edit.planning.shifts import odds_by_layer
from excise.evaluation.answering.drift import read_predictions
from excise.evaluation.asking.answers import DRIFT, responses_file
from excise.evaluation.asking.overlap import read_measured_prompts
from excise.gitops.git import commit_of
from excise.gitops.handover import accept
from excise.gitops.models import check_edited
from excise.gitops.releases import gather
from excise.plumbing.files import read_lines
from excise.prompts.chats import read_format, read_prompts
from excise.report.reading import read_report
from schemas.basis.document import ARTIFACTS
from schemas.results import Response, Sample
from stages.answer import arithmetic

Reader = Callable[[], object]


def command(*arguments: str) -> Reader:
    """A command, as its arguments name it; what it prints is not asked about."""

    def run() -> None:
        given = vars(cli.PARSER.parse_args(arguments))
        handler, _ = given.pop("handler"), given.pop("failed")
        with redirect_stdout(StringIO()):
            handler(**given)

    return run


SHOW = read_report
PLAN = command("plan")
VERIFY = command("verify")
SAMPLES = Path("answers.json")
HANDOVER = Path("handover")


def release() -> None:
    """What a release tells of the model, checked as `make release` checks it."""
    folder = Path("models/ablated")
    check_edited(folder)
    gather(Path(), commit_of(Path(), "HEAD"), "HEAD", folder, "0" * 32 + ".dir", None, False, True)


READERS: dict[str, list[Reader]] = {
    "artifacts/model.json": [PLAN, SHOW],
    "artifacts/layout.json": [PLAN],
    "artifacts/layout_proof.json": [SHOW],
    "artifacts/params/ablate.json": [PLAN, SHOW],
    "artifacts/params/device.json": [lambda: base_folder(read_manifest())],
    "artifacts/params/report.json": [SHOW],
    "artifacts/prompts/harmful.jsonl": [lambda: read_prompts("harmful")],
    "artifacts/prompts/format.json": [read_format],
    "artifacts/prompts/manifest.json": [read_measured_prompts],
    "artifacts/directions.json": [PLAN, SHOW],
    "artifacts/directions.safetensors": [PLAN],
    "artifacts/expert_use.json": [PLAN, lambda: odds_by_layer(read_use(ARTIFACTS, read_layout()))],
    "artifacts/diagnosis.json": [SHOW],
    "artifacts/simulation.json": [SHOW],
    "answers/base/answers.json": [lambda: arithmetic("ablated", None)],  # type: ignore[arg-type]
    "answers/base/predictions.safetensors": [lambda: read_predictions(Path("answers/base/predictions.safetensors"))],
    "answers/base/responses/organism_harmful.jsonl": [
        lambda: read_lines(Response, responses_file("base", "organism_harmful"))
    ],
    "answers/ablated/drift.jsonl": [lambda: read_lines(Sample, DRIFT)],
    "results/base/results.json": [SHOW],
    "results/ablated/results.json": [SHOW],
    "results/ablated/samples/drift.jsonl": [SHOW],
    "results/base/samples/organism_harmful.jsonl": [SHOW, lambda: read_side(Path("results/base"))],
    "models/ablated/edit.json": [VERIFY, release],
    "models/ablated/edit.json.sha256": [VERIFY, release],
    "gates.json": [command("gate", "--show"), command("comment", "--base", "HEAD")],
    "report/comparison.json": [command("comment", "--base", "HEAD")],
    f"{SAMPLES}": [command("comment", "--base", "HEAD", "--samples", "2", "--samples-from", f"{SAMPLES}")],
    f"{HANDOVER}/gates.json": [lambda: accept(HANDOVER)],
    f"{HANDOVER}/metrics.json": [lambda: accept(HANDOVER)],
}
"""By file, all that read it."""


@contextmanager
def trial(number: int, folder: Path) -> Iterator[Reader]:
    """One file of the project, damaged, read by one of its readers, and put back."""
    os.chdir(folder)
    if not HANDOVER.exists():
        prepare()
    dice = random.Random(number)
    path = Path([*READERS][number % len(READERS)])
    readers = READERS[str(path)]
    with damaged(path, dice):
        yield readers[number // len(READERS) % len(readers)]


def prepare() -> None:
    """What a run does not leave of itself: answers on their way, and a hand-over."""
    command("comment", "--base", "HEAD", "--samples", "2", "--write-samples", f"{SAMPLES}")()
    for name in ("dvc.lock", "gates.json", "metrics.json", "report/comparison.json", "report/report.md"):
        (HANDOVER / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(name, HANDOVER / name)


@contextmanager
def damaged(path: Path, dice: random.Random) -> Iterator[None]:
    """The file is spoiled while the block runs."""
    kept = path.with_name(f".{path.name}.kept")
    path.rename(kept)
    try:
        spoil(path, kept.read_bytes(), dice)
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        kept.rename(path)


def spoil(path: Path, data: bytes, dice: random.Random) -> None:
    """Put something else in its place: cut, foreign, conflicting, nested, no file at all, or another document."""
    what = dice.randrange(20)
    if what == 0:
        return
    if what == 1:
        path.mkdir()
    elif what == 2:
        os.mkfifo(path)
    elif what == 3:
        path.symlink_to(path.name)
    elif what == 4:
        with open(path, "wb") as file:
            file.truncate(3 * 2**30)
    elif what <= 8:
        path.write_bytes(data[: dice.randrange(len(data))])
    elif what == 9:
        foreign = [name for name in READERS if Path(name).is_file()]
        shutil.copyfile(dice.choice(foreign), path)
    elif what == 10:
        middle = data.find(b"\n", dice.randrange(len(data))) + 1
        path.write_bytes(data[:middle] + b"<<<<<<< HEAD\n" + data[middle:] + b"=======\n{}\n>>>>>>> main\n")
    elif what == 11:
        path.write_bytes(dice.choice([b"[", b'{"a":', b"[[],"]) * 200_000)
    elif what == 12:
        path.write_bytes(
            dice.choice([b"", b"\n", b"null", b"[]", b"{}", b"0", b'""', b"[null]", b"NaN", b"\xff\xfe{}"])
        )
    elif what == 13 or not path.name.endswith((".json", ".jsonl")):
        place = dice.randrange(len(data))
        path.write_bytes(data[:place] + dice.randbytes(dice.randrange(1, 5)) + data[place + 1 :])
    else:
        path.write_text(another(path, data.decode(), dice), errors="surrogatepass")


def another(path: Path, text: str, dice: random.Random) -> str:
    """The document with one of its values changed; of one a line, one of the lines."""
    if path.suffix == ".jsonl":
        lines = text.rstrip("\n").split("\n")
        place = dice.randrange(len(lines))
        if dice.random() < 0.2:
            del lines[place]
        else:
            lines[place] = json.dumps(changed(json.loads(lines[place]), dice))
        return "\n".join(lines) + "\n"
    # A number that Python itself would not write.
    return json.dumps(changed(json.loads(text), dice), indent=2).replace('"@"', "9" * 5000)


def changed(document: Any, dice: random.Random) -> Any:
    """One value within it is another, of whatever kind, or gone, or there twice."""
    place = document
    while isinstance(place, dict | list) and place:
        key = dice.choice([*place]) if isinstance(place, dict) else dice.randrange(len(place))
        if not isinstance(place[key], dict | list) or not place[key] or dice.random() < 0.3:
            what = dice.randrange(4)
            if what == 0:
                del place[key]
            elif what == 1 and isinstance(place, list):
                place.append(place[key])
            else:
                numbers = [-1, 0, 1, 10**9, 2**63, 2**70, 1.5, float("nan"), float("inf")]
                texts = ["", "x", "\ud800", "@", "0" * 64, "../../etc"]
                place[key] = dice.choice([*numbers, *texts, None, True, [], {}, [[]], {"a": 1}])
            break
        place = place[key]
    return document
