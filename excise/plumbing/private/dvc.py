"""What DVC 3.67 does not document: `dvc.api` does not tell what the cache lacks, whether a commit's stages had run, or
what is queued; its commands link where a copy is wanted, and see no past commit."""

import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from dvc.config import Config, merge
from dvc.exceptions import DvcException
from dvc.fs.callbacks import TqdmCallback
from dvc.repo import Repo as Repo  # rooms name it in types
from dvc_data.hashfile.db import HashFileDB
from dvc_objects.fs.generic import copy
from dvc_objects.fs.local import LocalFileSystem
from dvc_objects.fs.utils import tmp_fname

from excise.plumbing.errors import StageError
from excise.plumbing.files import md5_of_file
from schemas.basis.text import shorten

_DVC = Path(".dvc")


class WrongObject(StageError):
    """The remote has other bytes under a name than those that it stands for. Its text is one line."""


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
            entry = Path(out.cache.oid_to_path(out.hash_info.value))
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
    with _remote_errors():
        remote = repo.cloud.get_remote_odb()
        return all(remote.exists(_digits(path)) for path in output.lacking)


def fetch(repo: Repo, names: Collection[str]) -> int:
    """Fetch what the cache lacks of outputs, or of files in them, and the remote has: how many objects. The remote is
    not trusted: only what has the bytes that its name stands for gets into the cache. Raises `WrongObject` where
    something has not, after it fetched the rest, and `StageError` where the remote fails."""
    fetched = 0
    for _ in ("the lists of folders", "their files"):
        # Not `repo.fetch`, which would lock the project, take bytes as they are and remember them as right.
        wanted = {path: each.name for each in outputs(repo) for path in _wanted(each, names)}
        if wanted:
            with _remote_errors():
                fetched += _fetch(repo.cloud.get_remote_odb(), repo.cache.local, wanted)
    return fetched


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


def remote_sizes(repo: Repo, objects: Collection[Path]) -> dict[Path, int]:
    """Of the cache's objects those that the default remote has, with their size there. Raises `StageError`."""
    paths = [*objects]
    if not paths:
        return {}
    with _remote_errors():
        remote = repo.cloud.get_remote_odb()
        found = remote.fs.info([remote.oid_to_path(_digits(path)) for path in paths], return_exceptions=True)
        if error := next((each for each in found if _is_failure(each)), None):
            raise error
    return {path: info["size"] for path, info in zip(paths, found, strict=True) if isinstance(info, dict)}


def is_right(path: Path, copy: Path | None = None) -> bool:
    """Whether an object of the cache, or a copy of it, has the bytes that its name stands for."""
    return md5_of_file(copy or path) == _digits(path).removesuffix(".dir")


def upload(repo: Repo, objects: Collection[Path]) -> None:
    """Give the default remote objects of the cache, in place of what it has under their names. Lists of folders come
    last: one that is there stands for a whole folder. Raises `StageError` where the remote fails."""
    # Not `repo.push`, which takes a folder's files for pushed where its list is.
    lists = {path for path in objects if path.name.endswith(".dir")}
    with _remote_errors(), TqdmCallback(desc="Pushing", unit="file", size=len(objects)) as callback:
        remote, cache = repo.cloud.get_remote_odb(), repo.cache.local
        for group in ([path for path in objects if path not in lists], [*lists]):
            for batch in _batches(remote, group):
                paths, names = [str(path) for path in batch], [_digits(path) for path in batch]
                # `verify` would read again what was just written.
                remote.add(paths, cache.fs, names, check_exists=False, verify=False, batch_size=remote.fs.jobs)
                callback.relative_update(len(batch))


@contextlib.contextmanager
def _remote_errors() -> Iterator[None]:
    """Within the block, any error is a `StageError`: each kind of remote has a library, and errors, of its own."""
    try:
        yield
    except WrongObject:
        raise
    except Exception as error:
        raise StageError(shorten(" ".join(str(error).split()) or type(error).__name__, 200)) from None


def _is_failure(found: Any) -> bool:
    """Whether a remote failed, rather than that it does not have something."""
    return isinstance(found, BaseException) and not isinstance(found, FileNotFoundError)


def _wanted(output: Output, names: Collection[str]) -> list[Path]:
    """Of what the cache lacks of an output, what it takes for these outputs, or files in them."""
    if output.name in names:
        return output.lacking
    if output.listed is None:
        return output.lacking if any(name.startswith(f"{output.name}/") for name in names) else []
    files = [path for file, path in output.listed.items() if f"{output.name}/{file}" in names]
    return [path for path in files if path in output.lacking]


def _fetch(remote: HashFileDB, cache: HashFileDB, wanted: Mapping[Path, str]) -> int:
    """Fetch objects, by their paths in the cache, each with its output: how many the remote had. They lie beside their
    places until their bytes proved right: a run that is killed, or another one, takes none for right before."""
    errors: list[BaseException] = []
    wrong: list[Path] = []
    fetched = 0
    partial = {path: path.with_name(tmp_fname(path.name)) for path in wanted}
    for folder in {path.parent for path in wanted}:
        cache.makedirs(str(folder))  # with the mode of a cache that several users share
    try:
        with TqdmCallback(desc="Fetching", unit="file", size=len(wanted)) as callback:
            for batch in _batches(remote, [*wanted]):
                sources = [remote.oid_to_path(_digits(path)) for path in batch]
                targets = [str(partial[path]) for path in batch]
                # Of one file DVC would keep what it got before an error that is handled so.
                handler = (lambda _from, _to, error: errors.append(error)) if len(batch) > 1 else None
                try:
                    copy(remote.fs, sources, cache.fs, targets, callback, remote.fs.jobs, handler)
                except Exception as error:  # of any library
                    errors.append(error)
                for path in filter(lambda path: partial[path].is_file(), batch):
                    if is_right(path, partial[path]):
                        cache.move(str(partial[path]), str(path))
                        cache.protect(str(path))
                        fetched += 1
                    else:
                        wrong.append(path)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    if failure := next(filter(_is_failure, errors), None):
        raise failure  # first, as it may be why what came is not right
    if wrong:
        place = remote.fs.unstrip_protocol(remote.oid_to_path(_digits(wrong[0])))
        more = f", and so have {len(wrong) - 1} others" if wrong[1:] else ""
        what = f"the DVC remote has other bytes at {place}, of {wanted[wrong[0]]}, than the name stands for{more}"
        raise WrongObject(f"{what}; delete it there, then `make push` on a machine that has it")
    return fetched


def _batches(remote: HashFileDB, objects: list[Path]) -> Iterator[list[Path]]:
    """Objects that are copied at once. From and to a folder it is one, which this thread copies, so that it can be
    interrupted; DVC would not copy them side by side either."""
    size = 1 if isinstance(remote.fs, LocalFileSystem) else 8 * remote.fs.jobs
    yield from (objects[start : start + size] for start in range(0, len(objects), size))


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
    """Copy an output that is a folder into one that is there, out of the cache."""
    repo.dvcfs.get(f"{name}/", f"{folder}/", recursive=True)


def read(clone: Path, commit: str, name: str) -> bytes | None:
    """An output, or a file in one, as a commit recorded it; None where neither the cache nor the remote has it. Raises
    `WrongObject`."""
    if (data := _read_cached(clone, commit, name)) is not None:
        return data
    try:
        with at_commit(clone, commit, with_remote=True) as repo:
            fetch(repo, {name})
    except WrongObject:
        raise
    except StageError:
        return None
    return _read_cached(clone, commit, name)


def _read_cached(clone: Path, commit: str, name: str) -> bytes | None:
    """The same out of the cache, without the remote, whose bytes DVC would give unchecked."""
    with contextlib.suppress(StageError), _remote_errors(), at_commit(clone, commit, with_remote=False) as repo:
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
