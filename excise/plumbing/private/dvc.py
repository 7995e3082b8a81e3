"""What DVC 3.67 does not document: `dvc.api` does not tell what the cache lacks, whether a commit's stages had run, or
what is queued; its commands link where a copy is wanted, and see no past commit."""

import contextlib
import json
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.config import Config, merge
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo

from excise.plumbing.errors import StageError
from excise.plumbing.files import md5_of_file
from schemas.basis.text import shorten

_DVC = Path(".dvc")


@dataclass(frozen=True)
class Output:
    """A cached output that dvc.lock names."""

    path: Path
    """Where it lies, or would."""
    name: str
    """As in dvc.yaml."""
    stage: str
    """As DVC's commands take it."""
    pushed: bool
    """Whether it goes to the remote."""
    lacking: list[Path]
    """Of the cache's objects those that are not there, or not whole; of a folder whose list is missing, only that."""
    listed: dict[str, Path] | None
    """The files of a folder, each with its object in the cache; None for a file, or where the list is missing."""
    size: int | None

    def is_here(self) -> bool:
        """Whether all of it lies where it belongs, as far as names and sizes tell."""
        if self.listed is None:
            return self.path.is_file() and self.size in (None, self.path.stat().st_size)
        files = [path for path in self.path.rglob("*") if path.is_file()]
        found = {file.relative_to(self.path).as_posix(): file.stat().st_size for file in files}
        return self.path.is_dir() and found.keys() == {*self.listed} and self.size in (None, sum(found.values()))


@contextlib.contextmanager
def opened(
    folder: Path, settings: dict[str, Any] | None = None, wrong: str = "DVC cannot read this project"
) -> Iterator[Repo]:
    """A project as DVC knows it, with settings over its own. DVC's errors are a `StageError` that says `wrong`."""
    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    try:
        with Repo(str(folder), config=settings) as repo:
            yield repo
    except DvcException as error:
        raise StageError(f"{wrong}: {shorten(str(error), 200)}") from None


@contextlib.contextmanager
def at_commit(clone: Path, commit: str, with_remote: bool) -> Iterator[Repo]:
    """The same at a commit, with today's settings; without the remote where it may not be asked, as DVC fails on one
    that it cannot use. Its files are copies, whose blocks are shared where the file system can."""
    settings = _settings_of(clone, with_remote)
    settings["cache"]["type"] = ["reflink", "copy"]
    with opened(clone, settings) as repo:
        for _ in repo.brancher(revs=[commit], workspace=False):
            yield repo


def lend_settings(clone: Path, tree: Path, site: Path, with_remote: bool) -> None:
    """Lay a clone's settings, which may be secret, over a working tree's; `site` is the tree's site cache."""
    with Config(str(tree / _DVC), validate=False).edit("local", validate=False) as local:
        merge(local, _settings_of(clone, with_remote))
        local["core"]["site_cache_dir"] = str(site)


def _settings_of(clone: Path, with_remote: bool) -> dict[str, Any]:
    """The committed settings, and over them the user's own, with absolute paths."""
    config = Config(str((clone / _DVC).resolve()), validate=False)
    settings: dict[str, Any] = {"core": {}, "cache": {}}
    for level in ("repo", "local"):
        merge(settings, config.read(level))
    settings["cache"]["dir"] = config.get("cache", {}).get("dir") or str((clone / _DVC / "cache").resolve())
    if not with_remote:
        settings["core"]["remote"] = ""
    return settings


def outputs(repo: Repo) -> Iterator[Output]:
    """Every cached output of a project, or of the commit that it is at."""
    for out in repo.index.outs:
        if out.use_cache and out.hash_info and out.hash_info.value:
            entry = Path(out.cache.oid_to_path(out.hash_info.value))
            lacking, listed = _lacking(entry, Path(out.cache.path), out.meta.size)
            file, stage = out.stage.path_in_repo, out.stage.name
            stage = stage if file == "dvc.yaml" else f"{file}:{stage}"
            yield Output(Path(out.fs_path), out.def_path, stage, out.can_push, lacking, listed, out.meta.size)


def output(repo: Repo, name: str) -> Output:
    """One of them. Raises `StageError` where there is no such output."""
    if (found := next((each for each in outputs(repo) if each.name == name), None)) is None:
        raise StageError(f"dvc.yaml has no output {name} that dvc.lock records")
    return found


def what_runs(folder: Path, target: str) -> tuple[set[str], list[Path]]:
    """The stages that lead to one, itself among them, and what the others of dvc.yaml write into git."""
    with opened(folder) as repo:
        stages = {stage.name for stage in repo.stage.collect(target, with_deps=True)}
        own = [out for out in repo.index.outs if out.stage.path_in_repo == "dvc.yaml" and not out.use_cache]
        return stages, [Path(out.def_path) for out in own if out.stage.name not in stages]


def changed(repo: Repo, target: str) -> str | None:
    """The first file or command that differs from dvc.lock, up to a stage; missing ones are no change."""
    for stage in repo.stage.collect(target, with_deps=True):
        if stage.changed_stage():
            return f"command of {stage.name}"
        for entry in (*stage.deps, *stage.outs):
            for path, what in entry.status().items():
                if what == "modified":
                    return str(path)
    return None


def forget_remote(repo: Repo) -> None:
    """Drop what DVC remembers of the remote, which after a run that was killed is not all of it."""
    repo.drop_data_index()


def has_remote(repo: Repo) -> bool:
    """Whether a default remote is set."""
    return bool(repo.config["core"].get("remote"))


def in_remote(repo: Repo, output: Output) -> bool:
    """Whether the default remote has all that the cache lacks of an output."""
    if not output.pushed or not has_remote(repo):
        return False
    remote = repo.cloud.get_remote_odb()
    return all(remote.exists(_digits(path)) for path in output.lacking)


def fetch(repo: Repo, name: str) -> None:
    """Fetch what the cache lacks of an output and the remote has. Raises `StageError` where the remote fails."""
    with _remote_errors():
        for _ in ("the list of a folder", "its files"):
            # Not `repo.fetch`, which would lock the project.
            repo.cloud.pull([HashInfo("md5", _digits(path)) for path in output(repo, name).lacking])


@contextlib.contextmanager
def _remote_errors() -> Iterator[None]:
    """Within the block, any error is a `StageError`: each kind of remote has a library, and errors, of its own."""
    try:
        yield
    except Exception as error:
        raise StageError(shorten(" ".join(str(error).split()), 200)) from None


def require_remote(repo: Repo) -> None:
    """Raises `DvcException` where no default remote is set, or it cannot be used."""
    repo.cloud.get_remote()


def push(repo: Repo, stages: Collection[str], commit: str) -> None:
    """Give the default remote what stages made at a commit. Raises `DvcException` where it does not take that."""
    try:
        repo.push(targets=sorted(stages), revs=[commit], workspace=False)
    except OSError as error:
        raise DvcException(str(error)) from None


def get(repo: Repo, name: str, folder: Path) -> None:
    """Copy an output that is a folder into one that is there, out of cache or remote."""
    repo.dvcfs.get(f"{name}/", f"{folder}/", recursive=True)


def read(clone: Path, commit: str, name: str) -> bytes | None:
    """An output, or a file in one, as a commit recorded it; None where neither the cache nor the remote has it."""
    for with_remote in (False, True):
        with contextlib.suppress(StageError), _remote_errors(), at_commit(clone, commit, with_remote) as repo:
            return bytes(repo.dvcfs.read_bytes(name))
    return None


def queued(folder: Path) -> list[tuple[str, str]]:
    """The name of each experiment that DVC's queue knows, and its state, in the words of `dvc queue status`."""
    with opened(folder) as repo:
        return [(task["name"], task["status"]) for task in repo.experiments.celery_queue.status()]


def _lacking(entry: Path, cache: Path, size: int | None) -> tuple[list[Path], dict[str, Path] | None]:
    """The cache's objects that are missing or not whole for an output, and a folder's files, as in `Output`."""
    if not entry.name.endswith(".dir"):
        return ([] if entry.is_file() and size in (None, entry.stat().st_size) else [entry]), None
    if not entry.is_file() or _digits(entry) != f"{md5_of_file(entry)}.dir":
        return [entry], None
    listed = {file["relpath"]: cache / file["md5"][:2] / file["md5"][2:] for file in json.loads(entry.read_bytes())}
    lacking = [path for path in listed.values() if not path.is_file()]
    if not lacking and size not in (None, sum(path.stat().st_size for path in listed.values())):
        lacking = [path for path in listed.values() if _digits(path) != md5_of_file(path)]
    return lacking, listed


def _digits(entry: Path) -> str:
    """Under which digits an object lies in the cache."""
    return f"{entry.parent.name}{entry.name}"
