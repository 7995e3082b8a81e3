"""Progress without a terminal: a plain line now and then, none for what is quick."""

import io
import sys
from types import SimpleNamespace

import pytest

from excise.plumbing import progress as module
from excise.plumbing.progress import SECONDS_BETWEEN_LINES, progress


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def run(clock: Clock, *steps: tuple[float, int], unit: str = "prompts", total: int = 1000) -> None:
    """A task that takes some seconds for some steps, again and again."""
    with progress("Measure", total, unit) as advance:
        for seconds, count in steps:
            clock.now += seconds
            advance(count)


def test_a_quick_task_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, (0.5, 400), (0.5, 600))
    assert capsys.readouterr() == ("", "")


def test_a_long_task_says_how_far_it_is_every_few_seconds_and_at_its_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run(clock, *[(1.0, 100)] * 9, (0.5, 100))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "Measure: 500 prompts of 1,000 prompts, 5 s, about 5 s left\nMeasure: 1,000 prompts of 1,000 prompts, 10 s\n"
    )


def test_lines_are_no_closer_than_they_should_be(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, *[(SECONDS_BETWEEN_LINES / 10, 1)] * 100)
    assert len(capsys.readouterr().err.splitlines()) == 10


@pytest.mark.parametrize(
    ("unit", "line"),
    [
        ("B", "Measure: 3 MiB of 2,048 MiB, 6 s, 0 MiB/s, about 4090 s left\n"),
        ("steps", "Measure: 3,145,728 steps of 2,147,483,648 steps, 6 s, about 4090 s left\n"),
        ("", "Measure: 3,145,728 of 2,147,483,648, 6 s, about 4090 s left\n"),
    ],
)
def test_amounts_have_units(clock: Clock, capsys: pytest.CaptureFixture[str], unit: str, line: str) -> None:
    run(clock, (6.0, 3 << 20), unit=unit, total=2 << 30)
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("unit", ["B", "prompts"])
def test_a_terminal_gets_a_bar_and_no_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    run(clock, (6.0, 400), (6.0, 600), unit=unit)
    assert "Measure" in terminal.getvalue() and "Measure: " not in terminal.getvalue()


@pytest.mark.parametrize("total", [0, 5])
def test_a_task_that_fails_or_has_nothing_to_do_is_no_trouble(clock: Clock, total: int) -> None:
    with pytest.raises(ZeroDivisionError), progress("Measure", total):
        raise ZeroDivisionError
