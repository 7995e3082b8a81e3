"""What trials have answered so far, on disk, so that a killed run goes on where it was."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Numbers = Mapping[str, Sequence[Sequence[float]]]
"""By what they are, numbers of each trial and each prompt."""


class Journal:
    """Numbers by what they depend on, in a file to which lines are added."""

    def __init__(self, path: Path) -> None:
        """What the file holds is known; a last line that was cut off is not."""
        self._path = path
        self._known: dict[str, Numbers] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        for line in lines:
            if line.endswith("\n"):
                entry = json.loads(line)
                self._known[entry["of"]] = entry["numbers"]
        if lines and not lines[-1].endswith("\n"):
            path.write_text("".join(lines[:-1]), encoding="utf-8")

    def known(self, of: str) -> Numbers | None:
        """The numbers that depend on what has this digest."""
        return self._known.get(of)

    def add(self, of: str, numbers: Numbers) -> None:
        """Keep numbers."""
        self._known[of] = numbers
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"of": of, "numbers": numbers}) + "\n")
