"""Where a stage keeps what it has done before it is finished."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from excise.plumbing.files import SCRATCH, sha256_of
from excise.plumbing.graph import GRAPH, read_stages
from schemas.basis.plain_yaml import read_text

UNFINISHED = SCRATCH / "unfinished"
LIBRARIES = ("lm-eval", "torch", "transformers")
PINNED_BY = {"models/base": "artifacts/model.json", "models/ablated": "models/ablated/edit.json"}
"""Files with the digests of a model's files, which are too large to be read for this."""


def unfinished_work(stage: str, machine: Mapping[str, str]) -> Path:
    """The folder of what an interrupted stage, such as `answer@base`, finished, named by the SHA-256 of what it depends
    on: files that dvc.yaml lists, library versions, and facts about the `machine`, such as its device. Others are
    deleted. Raises `ParamsError`: dvc.yaml cannot be read."""
    reads = read_stages(read_text(GRAPH, GRAPH.name))[stage].reads
    paths = [Path(PINNED_BY.get(name, name)) for name in reads]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    inputs = {
        "files": {str(file): sha256_of(file) for file in files if file.is_file() and file.suffix != ".pyc"},
        "libraries": {name: version(name) for name in LIBRARIES},
        "machine": dict(machine),
    }
    of_stage = UNFINISHED / stage
    folder = of_stage / hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    for other in of_stage.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    return folder
