"""Run a file of experiments through DVC's queue, and write what they found into a document as tables.

`python -m experiments.run [FILE] [--jobs N]`, or `make experiments FILE=… JOBS=…`. Every experiment's parameters are
checked before the first one is queued. Of each group one experiment runs first; the others find what it made, be it a
trained model or the base's answers. A failure is one line; the rest is tabulated all the same.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import queue
from experiments.table import Row, empty_document, render, written_into
from schemas.experiments import Column, Experiments, Planned, load
from schemas.params import parse
from schemas.plain_yaml import read_text
from schemas.wording import printable
from stages.base.files import write_text
from stages.base.stage import run_stage

PARAMS = Path("params.yaml")


def main() -> None:
    """Plan, queue, wait, and write; fails at the end if an experiment did."""
    parser = argparse.ArgumentParser(description="Run a file of experiments and tabulate what they found.")
    parser.add_argument("file", type=Path, nargs="?", default=Path("experiments/moe.yaml"))
    parser.add_argument("--jobs", type=int, default=1, help="how many experiments run at once")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {given.jobs}")
    file, groups = load(given.file, PARAMS)
    write(file, given.file, ["" for _ in groups], dry=True)

    # As Ctrl-C: what was changed for the queue's sake is put back.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    baseline = queue.head()
    run(groups, baseline, given.jobs)
    failures: list[str] = []
    rows = [[result(each, file.columns, baseline, failures) for each in group] for group in groups]
    failures += blank(file.columns, [row for group in rows for row in group])
    tables = [render(file.columns, group) for group in rows]
    write(file, given.file, tables)
    print(f"{file.output}: {sum(map(len, groups))} experiments")
    for failure in failures:
        print("ERROR: " + printable(failure), file=sys.stderr)
    if failures:
        sys.exit(1)


def run(groups: Sequence[Sequence[Planned]], baseline: str, jobs: int) -> None:
    """Run the first experiment of each group, then all others."""
    names = [each.name for group in groups for each in group]
    queue.make_room(names, baseline)
    done = 0

    def finished(name: str) -> None:
        nonlocal done
        done += 1
        print(f"{done} of {len(names)}: {name}", flush=True)

    try:
        for first, *_ in groups:
            queue.queue(first.name, first.arguments)
        queue.wait([first.name for first, *_ in groups], jobs, finished)
        for first, *others in groups:
            with queue.starting_from(queue.reference(baseline, first.name)):
                for each in others:
                    queue.queue(each.name, each.arguments)
        queue.wait([each.name for _, *others in groups for each in others], jobs, finished)
    except BaseException:
        queue.withdraw(names)
        raise


def result(planned: Planned, columns: Sequence[Column], baseline: str, failures: list[str]) -> Row:
    """An experiment's row; why it has no numbers is added to the failures."""
    revision = queue.reference(baseline, planned.name)
    metrics, params = (queue.read_file(revision, path) for path in ("metrics.json", str(PARAMS)))
    if metrics is None or params is None:
        failures.append(f"{planned.name}: {queue.failure(planned.name)}")
        return Row(planned.title, planned.arguments, None)
    if parse(params) != planned.params:
        failures.append(f"{planned.name}: ran with other parameters; was {PARAMS} changed meanwhile?")
        return Row(planned.title, planned.arguments, None)
    values = tuple(value_of(json.loads(metrics), column.metric) for column in columns)
    return Row(planned.title, planned.arguments, values)


def blank(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """What is wrong with columns that no experiment fills, although some succeeded."""
    ran = [row.values for row in rows if row.values is not None]
    return [
        f"no experiment has the metric {column.metric}; metrics.json holds those that there are"
        for place, column in enumerate(columns)
        if ran and all(values[place] is None for values in ran)
    ]


def value_of(metrics: Any, name: str) -> float | None:
    """A metric by its dotted name; None where it was not measured."""
    for part in name.split("."):
        metrics = metrics.get(part, {})
    return metrics if isinstance(metrics, float | int) else None


def write(file: Experiments, path: Path, tables: Sequence[str], dry: bool = False) -> None:
    """Write the tables into their document; `dry` only finds out whether that can be done."""
    output = Path(file.output)
    document = read_text(output, file.output) if output.exists() else empty_document(file.name, path)
    headings = {group.name: group.title or group.name for group in file.groups}
    document = written_into(document, dict(zip(headings, tables, strict=True)), headings, file.output)
    if not dry:
        write_text(output, document)


if __name__ == "__main__":
    run_stage(main)
