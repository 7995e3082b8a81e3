"""Where stage `answer` keeps finished tasks, so that an interrupted run goes on with what is missing.

They lie under `.excise/`, which git ignores, because DVC empties what a stage writes before it runs it again. They are
found again only where nothing that DVC knows the stage to depend on has changed.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from excise.plumbing.digests import sha256_of
from excise.plumbing.foreach import filled, variables
from schemas.plain_yaml import parse_mapping, read_text

UNFINISHED = Path(".excise/answer")
GRAPH = Path("dvc.yaml")
LIBRARIES = ("lm-eval", "torch", "transformers")
PINNED_BY = {"models/base": "artifacts/model.json", "models/ablated": "models/ablated/edit.json"}
"""What holds the digests of a model's files, which are too large to be read for this."""


def unfinished_work(key: str, machine: Mapping[str, str]) -> Path:
    """The folder of the tasks that an interrupted `answer@key` finished; what it left for other code, settings or
    inputs is swept.

    Args:
        machine: what of this machine answers depend on, such as its device.
    """
    folder = UNFINISHED / key / stage_digest("answer", key, machine)
    for other in (UNFINISHED / key).glob("*"):
        if other != folder:
            shutil.rmtree(other)
    return folder


def stage_digest(stage: str, key: str, machine: Mapping[str, str]) -> str:
    """SHA-256 of everything that one of a stage's `foreach` depends on: the files that dvc.yaml lists, the installed
    versions of the libraries that compute, and this machine.

    Raises:
        ParamsError: dvc.yaml cannot be read.
    """
    graph = parse_mapping(read_text(GRAPH, GRAPH.name), GRAPH.name)["stages"][stage]
    values = variables(key, graph["foreach"][key])
    named = [filled(name, values) for name in graph["do"]["deps"]]
    listed = [Path(PINNED_BY.get(name, name)) for name in named]
    files = [file for path in listed for file in (path.rglob("*") if path.is_dir() else [path])]
    known = {
        "files": {str(file): sha256_of(file) for file in files if file.is_file() and file.suffix != ".pyc"},
        "libraries": {name: version(name) for name in LIBRARIES},
        "machine": dict(machine),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
