"""Sets of damaged input, each trial with a number of its own: run in one process apart, whose time and memory count.

`python -m tests.damage.running KIND FIRST STOP STEP FOLDER` prints what became of them as JSON.
"""

import importlib
import json
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from excise.plumbing.errors import StageError
from schemas.wording import ParamsError
from tests.projects import ROOT, environment

MOST_SECONDS = 20.0
MOST_MEMORY = 2**30
LONGEST_LINE = 400


class Outcome(BaseModel):
    """What became of the trials of a set."""

    inputs: int = 0
    answers: dict[str, int] = {}
    """How many were read, and how many refused in one line."""
    failures: list[str] = []
    """Numbers of trials that ended otherwise, and how."""
    slowest: float = 0.0
    peak: int = 0
    """Bytes of memory at most."""

    def check(self, inputs: int) -> None:
        """Whether so many trials ended well, in time and memory. Both answers came up, or they tested nothing."""
        assert not self.failures, self.failures[:5]
        assert self.inputs == inputs and self.answers.keys() == {"read", "refused"}, self.answers
        assert self.slowest < MOST_SECONDS and self.peak < MOST_MEMORY, self


def run(kind: str, numbers: range, folder: Path) -> Outcome:
    """Try these numbers of a set, in an empty folder or in a project that may be spoiled."""
    ends = map(str, (numbers.start, numbers.stop, numbers.step))
    done = subprocess.run(
        [sys.executable, "-m", "tests.damage.running", kind, *ends, str(folder)],
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = Outcome.model_validate_json(done.stdout.splitlines()[-1])
    print(kind, outcome)
    return outcome


def try_all(module: Any, numbers: range, folder: Path) -> Outcome:
    """Try each, in this process."""
    outcome, answers = Outcome(), Counter[str]()
    for number in numbers:
        began = time.monotonic()
        try:
            with module.trial(number, folder) as read:
                began = time.monotonic()  # what made the file does not count
                read()
            answers["read"] += 1
        except (StageError, ParamsError) as error:
            line = " ".join(str(error).split())
            if len(line) > LONGEST_LINE or not line:
                outcome.failures.append(f"{number}: a line of {len(line)} characters: {line[:200]}")
            answers["refused"] += 1
        except BaseException as error:
            places = [
                f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
            ]
            outcome.failures.append(f"{number}: {type(error).__name__}: {str(error)[:200]} ({' '.join(places[-4:])})")
        outcome.slowest = max(outcome.slowest, time.monotonic() - began)
        outcome.inputs += 1
    outcome.answers = dict(answers)
    outcome.peak = peak()
    return outcome


def peak() -> int:
    """Bytes of memory that this process took at most. What `getrusage` tells begins with what its parent had."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    kind, first, stop, step, folder = sys.argv[1:]
    sys.set_int_max_str_digits(4300)
    tried = try_all(
        importlib.import_module(f"tests.damage.{kind}"), range(int(first), int(stop), int(step)), Path(folder)
    )
    print(json.dumps(tried.model_dump()))
