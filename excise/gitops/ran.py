"""Whether the stages ran for what lies in a folder or a commit, so that nothing is shown as evidence of another model.

dvc.lock records the MD5 of all that each stage read and wrote. It is read without DVC, which takes seconds and is not
installed everywhere.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from excise.gitops.lock import LOCK, Entry, File, LockError, md5_of, md5_of_folder, read_lock
from excise.gitops.sides import Side
from excise.plumbing.errors import StageError
from excise.plumbing.files import has_conflict
from excise.plumbing.foreach import filled, variables
from schemas.basis import plain_yaml
from schemas.basis.text import shorten
from schemas.params.document import parse, settings_of_stages
from schemas.wording import ParamsError

PARAMS = "params.yaml"
STAGES = "dvc.yaml"
RESOLVED = "artifacts/params/"
MOST_READ = 64 * 2**20
"""Bytes of an output that are read to compare its MD5; of a larger one, such as a model, its size is compared."""


@dataclass(frozen=True)
class _Defined:
    """A stage as dvc.yaml has it."""

    command: str
    reads: list[str]
    writes: list[str]
    committed: list[str]
    """What of that is no part of DVC's cache, and so is committed."""


def check_ran(side: Side) -> None:
    """Whether dvc.lock is of this side's parameters, code, data and results. What DVC's cache would hold need not be
    there.

    Raises:
        StageError: a stage would run again, or what it wrote was changed since.
    """
    if (lock := side.text(LOCK)) is None:
        raise _not_run(side, f"there is no {LOCK}")
    _refuse_conflict(side, LOCK, lock)
    defined = _defined(side)
    try:
        stages = {name: entry for name, entry in read_lock(lock).stages.items() if name in defined}
        wrote = {file.path: file for entry in stages.values() for file in entry.outs}
        for name, stage in defined.items():
            if name not in stages:
                raise _not_run(side, f"{name} is in {STAGES} and not in {LOCK}")
            _check_stage(side, name, stages[name], stage, wrote)
    except LockError as error:
        raise _not_run(side, f"{LOCK} is not what DVC writes ({shorten(str(error), 80)})") from None


def _check_stage(side: Side, name: str, entry: Entry, stage: _Defined, wrote: Mapping[str, File]) -> None:
    same = {file.path for file in entry.deps} == {*stage.reads} and {file.path for file in entry.outs} == {
        *stage.writes
    }
    if not same or entry.cmd != stage.command:
        raise _not_run(side, f"{name} is another stage in {STAGES} than in {LOCK}")
    for file in entry.deps:
        if file.path in wrote:
            if wrote[file.path].md5 != file.md5:
                raise _not_run(side, f"{file.path} was made again after {name} ran")
        elif not _is_as_recorded(side, file) and not (file.path == PARAMS and _resolves_alike(side, entry)):
            raise _not_run(side, f"{file.path} changed since {name} ran")
    for file in entry.outs:
        as_recorded = _is_as_recorded(side, file)
        if as_recorded is None and file.path in stage.committed:
            raise _not_run(side, f"{file.path} is missing")
        if as_recorded is False:
            if file.path in stage.committed and (text := side.text(file.path)) is not None:
                _refuse_conflict(side, file.path, text)
            raise _not_run(side, f"{file.path} is not what {name} wrote")


def _is_as_recorded(side: Side, file: File) -> bool | None:
    """None where there is nothing."""
    if file.md5 is None:
        raise LockError(f"{file.path} has no md5")
    sizes = side.sizes(file.path)
    if sizes is None:
        return None
    if not file.md5.endswith(".dir"):
        return (
            list(sizes) == [""]
            and file.size in (None, sizes[""])
            and (sizes[""] > MOST_READ or side.md5s(file.path, [""]) == [file.md5])
        )
    ignored = [line for line in (side.text(".dvcignore") or "").split() if not line.startswith("#")]
    names = [name for name in sizes if name and not _is_ignored(name, ignored)]
    total = sum(sizes[name] for name in names)
    if "" in sizes or file.size not in (None, total) or file.nfiles not in (None, len(names)):
        return False
    return total > MOST_READ or md5_of_folder(dict(zip(names, side.md5s(file.path, names), strict=True))) == file.md5


def _is_ignored(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(part, pattern) for part in name.split("/") for pattern in patterns)


def _resolves_alike(side: Side, entry: Entry) -> bool:
    """Whether params.yaml, though its bytes are others, means what it meant: as where a comment was changed."""
    resolved = settings_of_stages(parse(side.text(PARAMS) or ""))
    return {f"{RESOLVED}{name}.json": md5_of(io.BytesIO(text.encode())) for name, text in resolved.items()} == {
        file.path: file.md5 for file in entry.outs
    }


def _defined(side: Side) -> dict[str, _Defined]:
    """The stages of dvc.yaml, its templates filled in."""
    text = side.text(STAGES)
    if text is None:
        raise _not_run(side, f"there is no {STAGES}")
    try:
        stages = plain_yaml.parse_mapping(text, STAGES)["stages"]
        found = {}
        for name, stage in stages.items():
            if "foreach" in stage:
                for key, item in stage["foreach"].items():
                    found[f"{name}@{key}"] = _stage(stage["do"], variables(key, item))
            else:
                found[name] = _stage(stage, {})
        return found
    except ParamsError as error:
        raise _not_run(side, shorten(str(error), 160)) from None
    except (KeyError, TypeError, AttributeError):
        raise _not_run(side, f"{STAGES} does not define stages as this project does") from None


def _stage(stage: Mapping[str, Any], values: Mapping[str, Any]) -> _Defined:
    outputs = {
        filled(path, values): options or {}
        for kind in ("outs", "metrics", "plots")
        for given in stage.get(kind, ())
        for path, options in (given.items() if isinstance(given, dict) else [(given, {})])
    }
    committed = [path for path, options in outputs.items() if not options.get("cache", True)]
    return _Defined(
        filled(stage["cmd"], values), [filled(path, values) for path in stage.get("deps", ())], [*outputs], committed
    )


def _refuse_conflict(side: Side, path: str, text: str) -> None:
    if has_conflict(text.encode()):
        raise StageError(
            f"{path}{side.where} holds conflict markers of a merge: mend params.yaml, `git checkout --ours -- dvc.lock "
            "metrics.json gates.json report`, then `make repro` and commit"
        )


def _not_run(side: Side, what: str) -> StageError:
    return StageError(f"the stages have not run for what lies here{side.where}: {what}; run `make repro`")
