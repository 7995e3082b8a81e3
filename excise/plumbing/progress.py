"""Progress that suits where it is shown: a bar in a terminal, a plain line now and then in a log."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]
SECONDS_BETWEEN_LINES = 5.0


@contextlib.contextmanager
def progress(what: str, total: int, unit: str = "") -> Iterator[Advance]:
    """Show how far a task of `total` steps is; yields a function, for any thread, that takes the number of steps done
    since. `unit="B"` counts bytes and shows their rate. Without a terminal, lines go to standard error."""
    if sys.stderr.isatty():
        from rich import console  # a machine that only publishes has no rich, and no terminal
        from rich import progress as bars

        counts: list[bars.ProgressColumn] = [bars.MofNCompleteColumn()]
        if unit == "B":
            counts = [bars.DownloadColumn(binary_units=True), bars.TransferSpeedColumn()]
        columns = [bars.TextColumn("{task.description}"), bars.BarColumn(), *counts, bars.TimeRemainingColumn()]
        with bars.Progress(*columns, console=console.Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda steps: bar.advance(task, steps)
        return

    done, lock = 0, threading.Lock()
    began = shown = time.monotonic()

    def advance(steps: int) -> None:
        nonlocal done, shown
        with lock:
            done += steps
            now = time.monotonic()
            if now - shown >= SECONDS_BETWEEN_LINES or (done == total and shown != began):
                shown = now
                seconds = now - began
                rate = f", {_amount(int(done / seconds), unit)}/s" if unit == "B" and seconds else ""
                left = f", about {seconds / done * (total - done):.0f} s left" if 0 < done < total else ""
                line = f"{what}: {_amount(done, unit)} of {_amount(total, unit)}, {seconds:.0f} s{rate}{left}"
                print(line, file=sys.stderr)

    yield advance


def _amount(count: int, unit: str) -> str:
    return f"{count / 2**20:,.0f} MiB" if unit == "B" else f"{count:,}{f' {unit}' if unit else ''}"
