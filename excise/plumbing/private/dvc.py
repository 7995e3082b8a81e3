"""What DVC 3.67 does not document: `dvc.api` does not tell what the cache lacks, whether a commit's stages had run, or
what is queued; its commands link where a copy is wanted, and see no past commit."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from dvc.config import Config, merge
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo as Repo  # rooms name it in types

from excise.plumbing.errors import StageError
from excise.plumbing.files import md5_of_file
from schemas.basis.text import printable, shorten

_DVC = Path(".dvc")
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


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
    entry: Path
    """Its object in the cache, which of a folder lists its files."""
    lacking: list[Path]
    """Of the cache's objects those that are not there, or not whole; of a folder whose list is missing, only that."""
    listed: dict[str, Path] | None
    """The files of a folder, each with its object in the cache; None for a file, or where the list is missing."""
    size: int | None

    @property
    def objects(self) -> list[Path]:
        """All of its objects, as far as they are known."""
        return [self.entry, *(self.listed or {}).values()]

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


def lend_settings(clone: Path, tree: Path, site: Path) -> None:
    """Lay a clone's settings, which may be secret, over a working tree's, but that DVC may ask no remote, whose bytes
    it would not check; `site` is the tree's site cache."""
    with Config(str(tree / _DVC), validate=False).edit("local", validate=False) as local:
        merge(local, _settings_of(clone, with_remote=False))
        local["core"]["site_cache_dir"] = str(site)


def read_record(repo: Repo, name: str) -> None:
    """Have DVC read a project's dvc.lock and nothing else. Raises `DvcException` where it cannot."""
    Lockfile(repo, str(Path(repo.root_dir) / name)).load()


def is_shared(repo: Repo) -> bool:
    """Whether its cache lies outside of the clone, where others may use it, too."""
    return not Path(repo.cache.legacy.path).is_relative_to(Path(repo.root_dir))


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
            entry = _object(Path(out.cache.path), out.hash_info.value, out.def_path)
            lacking, listed = _lacking(entry, Path(out.cache.path), out.meta.size)
            file, stage = out.stage.path_in_repo, out.stage.name
            stage = stage if file == "dvc.yaml" else f"{file}:{stage}"
            yield Output(Path(out.fs_path), out.def_path, stage, out.can_push, entry, lacking, listed, out.meta.size)


def output(repo: Repo, name: str) -> Output:
    """One of them. Raises `StageError` where there is no such output."""
    if (found := next((each for each in outputs(repo) if each.name == name), None)) is None:
        raise StageError(f"dvc.yaml has no output {name} that dvc.lock records")
    return found


def outputs_up_to(repo: Repo, target: str) -> set[str]:
    """The outputs of the stages that lead to one, and its own."""
    return {out.def_path for stage in repo.stage.collect(target, with_deps=True) for out in stage.outs}


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


@dataclass(frozen=True)
class Storage:
    """What a project's settings say of its cache and of its default remote."""

    cache: Path
    links: list[str]
    """How files get from the cache into the workspace, the first that works."""
    group: bool
    """Whether the cache's files are writable by their group."""
    remote: str | None
    """The name of the remote, if there is one."""
    address: str
    """Its own, without a name or a password."""
    verify: bool
    """Whether DVC's own commands compare what they fetch with its name, as excise always does."""


def storage(repo: Repo) -> Storage:
    """Where a project keeps its data."""
    cache, name = repo.config["cache"], repo.config["core"].get("remote")
    remote = repo.config["remote"].get(name, {})
    address = re.sub(r"://[^/]*@", "://", str(remote.get("url", "")))
    group, links = cache.get("shared") == "group", list(repo.cache.local.cache_types)
    return Storage(Path(repo.cache.legacy.path), links, group, name, address, bool(remote.get("verify")))


def is_right(path: Path, copy: Path | None = None) -> bool:
    """Whether an object of the cache, or a copy of it, has the bytes that its name stands for."""
    return md5_of_file(copy or path) == digits(path).removesuffix(".dir")


def get(repo: Repo, name: str, folder: Path) -> None:
    """Copy an output that is a folder into one that is there, out of the cache."""
    repo.dvcfs.get(f"{name}/", f"{folder}/", recursive=True)


def queued(folder: Path) -> list[tuple[str, str]]:
    """The name of each experiment that DVC's queue knows, and its state, in the words of `dvc queue status`."""
    with opened(folder) as repo:
        return [(task["name"], task["status"]) for task in repo.experiments.celery_queue.status()]


def _lacking(entry: Path, cache: Path, size: int | None) -> tuple[list[Path], dict[str, Path] | None]:
    """The cache's objects that are missing or not whole for an output, and a folder's files, as in `Output`."""
    if not entry.name.endswith(".dir"):
        return ([] if entry.is_file() and size in (None, entry.stat().st_size) else [entry]), None
    if not entry.is_file() or digits(entry) != f"{md5_of_file(entry)}.dir":
        return [entry], None
    listed = _files_listed(entry, cache)
    lacking = [path for path in listed.values() if not path.is_file()]
    if not lacking and size not in (None, sum(path.stat().st_size for path in listed.values())):
        lacking = [path for path in listed.values() if digits(path) != md5_of_file(path)]
    return lacking, listed


def _files_listed(entry: Path, cache: Path) -> dict[str, Path]:
    """The files of a folder's list, each with its object in the cache. A stranger's commit may have recorded it: raises
    `StageError` for one that DVC does not write, such as one that leads out of its folder."""
    try:
        files = {str(file["relpath"]): str(file["md5"]) for file in json.loads(entry.read_bytes())}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _not_from_dvc(str(entry), "does not list a folder's files") from None
    for file in files:
        if not {"", ".", ".."}.isdisjoint(file.split("/")):
            raise _not_from_dvc(str(entry), f"lists the file {shorten(printable(file), 80)}")
    return {file: _object(cache, md5, file) for file, md5 in files.items()}


def _object(cache: Path, md5: str, name: str) -> Path:
    """Where an object lies in a cache. Raises `StageError` for a digest that leads elsewhere."""
    if not _MD5.fullmatch(md5):
        raise _not_from_dvc(shorten(printable(name), 80), f"has the MD5 {shorten(printable(md5), 80)}")
    return cache / md5[:2] / md5[2:]


def _not_from_dvc(name: str, what: str) -> StageError:
    """Of what a commit recorded that DVC has not made."""
    remedy = "nothing was taken from it. Ask whoever committed it"
    return StageError(f"{name} {what}, which DVC does not write; {remedy}")


def digits(entry: Path) -> str:
    """Under which digits an object lies in the cache."""
    return f"{entry.parent.name}{entry.name}"


def out_of_date(folder: Path) -> set[str]:
    """The stages that `dvc repro` would run as things are: their command or what they read differs from dvc.lock, or an
    output is neither in its place nor in the cache. What runs before them may make others run."""
    with opened(folder) as repo:
        lost = {output.stage for output in outputs(repo) if output.lacking and not output.path.exists()}
        stages = {stage.name: stage for stage in repo.index.stages if stage.path_in_repo == "dvc.yaml"}
        return {name for name, stage in stages.items() if name in lost or _differs_from_lock(stage)}


def _differs_from_lock(stage: Any) -> bool:
    """Whether a stage is another one, or reads or left in git something else; what DVC can restore does not count."""
    if stage.changed_stage() or not all(out.hash_info for out in stage.outs):
        return True
    read = {what for entry in stage.deps for what in entry.status().values()}
    return bool(read & {"modified", "new"}) or any(out.status() for out in stage.outs if not out.use_cache)


@dataclass(frozen=True)
class Cache:
    """A clone's cache on this machine."""

    folder: Path
    objects: list[Path]
    """Where objects lie by their digits: those of this version of DVC, and those of earlier ones."""
    runs: Path
    """Which results each run of a stage had."""
    shared: bool
    """Whether other clones may use it."""


@contextlib.contextmanager
def idle_cache(clone: Path) -> Iterator[Cache]:
    """A clone's cache, to which no DVC of this clone adds anything in the block. Raises `StageError` where one does."""
    with opened(clone, wrong=f"nothing was removed, as {clone} is in use or cannot be read") as repo, repo.lock:
        folder = Path(repo.cache.legacy.path)
        for path in Path(repo.tmp_dir).rglob("rwlock"):  # those of experiments lie in folders of theirs
            if (process := _process_at_work(path)) is not None:
                raise StageError(f"process {process} runs stages in {path.parents[2]}; run again when it has ended")
        within = folder.resolve().is_relative_to(Path(repo.root_dir).resolve())
        shared = not within or bool(repo.config["cache"].get("shared"))
        yield Cache(folder, [Path(repo.cache.local.path), folder], Path(repo.stage_cache.cache_dir), shared)


def _process_at_work(rwlock: Path) -> int | None:
    """A process that uses files, by DVC's list of those; one that was killed stays in the list."""
    try:
        listed = json.loads(rwlock.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise StageError(f"{rwlock} is being written, or DVC was killed meanwhile: run again, or delete it") from None
    readers = [user for users in listed.get("read", {}).values() for user in users]
    users = [*listed.get("write", {}).values(), *readers]
    return next((user["pid"] for user in users if psutil.pid_exists(user["pid"])), None)
