"""Finished tasks, kept until the stage is done: an interrupted run goes on with what is missing.

They lie under `.excise/`, which git ignores, because DVC empties `results/` before it runs a stage again. A task is
found again only for the same model, task, settings, code and libraries.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from excise.evaluation.catalogue import Asked
from excise.evaluation.harness import Answered
from excise.plumbing.artifacts import Unreadable, read_document
from excise.plumbing.files import write_json

FOLDER = Path(".excise/evaluate")
LARGEST = 2**30
"""Bytes of a task's answers."""
LIBRARIES = ("lm-eval", "torch", "transformers")


class Finished:
    """The finished tasks of one model."""

    def __init__(self, side: str, settings: dict[str, Any]) -> None:
        """`settings`: everything that answers depend on, but the task; the model's digest among it."""
        code = sorted(path for path in Path("excise/evaluation").rglob("*") if path.suffix in (".py", ".yaml"))
        self._folder = FOLDER / side
        self._settings = {
            **settings,
            "libraries": {name: version(name) for name in LIBRARIES},
            "code": [_digest(path.read_bytes()) for path in code],
        }

    def get(self, asked: Asked) -> Answered | None:
        """What the task gave, if it was finished before; a file that is not whole counts as none."""
        try:
            return read_document(Answered, self._path(asked), largest=LARGEST)
        except Unreadable:
            return None

    def put(self, asked: Asked, answered: Answered) -> None:
        """Keep what a task gave."""
        write_json(self._path(asked), answered)

    def sweep(self, kept: list[Asked]) -> None:
        """Forget what this run had no use for: other models, settings and tasks."""
        paths = {self._path(asked) for asked in kept}
        for path in self._folder.glob("*.json"):
            if path not in paths:
                path.unlink()

    def _path(self, asked: Asked) -> Path:
        configs = {name: task.dump_config() for name, task in asked.tasks.items()}
        samples = {name: list(task.eval_docs) for name, task in asked.tasks.items()}
        key = {"task": asked.name, "configs": configs, "samples": samples, **self._settings}
        digest = _digest(json.dumps(key, sort_keys=True, default=_name).encode())
        return self._folder / f"{asked.name}-{digest[:32]}.json"


def _name(value: object) -> str:
    """Of a function in a task's settings, which lies elsewhere in memory each time."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
