"""What DVC 3.67 does not document of its remotes. Its own commands take what a remote sends as it is, take a folder for
pushed where its list is, and copy in a way that leaves parts behind where they fail: none of that is used here."""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dvc.fs.callbacks import TqdmCallback
from dvc_data.hashfile.db import HashFileDB
from dvc_objects.fs.generic import copy
from dvc_objects.fs.local import LocalFileSystem
from dvc_objects.fs.utils import copyfile, tmp_fname

from excise.plumbing.errors import StageError
from excise.plumbing.private.dvc import Output, Repo, at_commit, digits, is_right, outputs
from schemas.basis.text import shorten


class WrongObject(StageError):
    """The remote has other bytes under a name than those that it stands for. Its text is one line."""


def require_remote(repo: Repo) -> None:
    """Raises `DvcException` where no default remote is set, or it cannot be used."""
    repo.cloud.get_remote()


def has_remote(repo: Repo) -> bool:
    """Whether a default remote is set."""
    return bool(repo.config["core"].get("remote"))


def forget_remote(repo: Repo) -> None:
    """Drop what DVC remembers of the remote, which after a run that was killed is not all of it."""
    repo.drop_data_index()


def in_remote(repo: Repo, output: Output) -> bool:
    """Whether the default remote has all that the cache lacks of an output."""
    if not output.pushed or not has_remote(repo):
        return False
    with _remote_errors():
        remote = repo.cloud.get_remote_odb()
        return all(remote.exists(digits(path)) for path in output.lacking)


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


def remote_sizes(repo: Repo, objects: Collection[Path]) -> dict[Path, int]:
    """Of the cache's objects those that the default remote has, with their size there. Raises `StageError`."""
    paths = [*objects]
    if not paths:
        return {}
    with _remote_errors():
        remote = repo.cloud.get_remote_odb()
        found = remote.fs.info([remote.oid_to_path(digits(path)) for path in paths], return_exceptions=True)
        if error := next((each for each in found if _is_failure(each)), None):
            raise error
    return {path: info["size"] for path, info in zip(paths, found, strict=True) if isinstance(info, dict)}


def upload(repo: Repo, objects: Collection[Path]) -> None:
    """Give the default remote objects of the cache, in place of what it has under their names. Lists of folders come
    last: one that is there stands for a whole folder. Raises `StageError` where the remote fails."""
    # Not `repo.push`, which takes a folder's files for pushed where its list is.
    lists = {path for path in objects if path.name.endswith(".dir")}
    with _remote_errors(), TqdmCallback(desc="Pushing", unit="file", size=len(objects)) as callback:
        remote, cache = repo.cloud.get_remote_odb(), repo.cache.local
        for group in ([path for path in objects if path not in lists], [*lists]):
            for batch in _batches(remote, group):
                paths, names = [str(path) for path in batch], [digits(path) for path in batch]
                if isinstance(remote.fs, LocalFileSystem):
                    _copy_into_folder(remote, *batch)
                else:
                    # `verify` would read again what was just written.
                    remote.add(paths, cache.fs, names, check_exists=False, verify=False, batch_size=remote.fs.jobs)
                callback.relative_update(len(batch))


def _copy_into_folder(remote: HashFileDB, path: Path) -> None:
    """Give an object to a remote that is a folder, where `add` leaves a part of it if it fails or is interrupted."""
    target = Path(remote.oid_to_path(digits(path)))
    remote.makedirs(str(target.parent))
    partial = target.with_name(tmp_fname())
    try:
        copyfile(str(path), str(partial))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    remote.protect(str(target))


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
                sources = [remote.oid_to_path(digits(path)) for path in batch]
                targets = [str(partial[path]) for path in batch]
                # Of one file DVC would keep what it got before an error that is handled so.
                handler = (lambda _from, _to, error: errors.append(error)) if len(batch) > 1 else None
                try:
                    if isinstance(remote.fs, LocalFileSystem):
                        copyfile(*sources, *targets)  # `copy` would leave a part of it where it fails
                    else:
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
        place = remote.fs.unstrip_protocol(remote.oid_to_path(digits(wrong[0])))
        more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
        what = f"the DVC remote has other bytes at {place}, of {wanted[wrong[0]]}, than the name stands for{more}"
        raise WrongObject(f"{what}; delete it there, then `make push` on a machine that has it")
    return fetched


def _batches(remote: HashFileDB, objects: list[Path]) -> Iterator[list[Path]]:
    """Objects that are copied at once. From and to a folder it is one, which this thread copies, so that it can be
    interrupted; DVC would not copy them side by side either."""
    size = 1 if isinstance(remote.fs, LocalFileSystem) else 8 * remote.fs.jobs
    yield from (objects[start : start + size] for start in range(0, len(objects), size))


def _read_cached(clone: Path, commit: str, name: str) -> bytes | None:
    """The same out of the cache, without the remote, whose bytes DVC would give unchecked."""
    with contextlib.suppress(StageError), _remote_errors(), at_commit(clone, commit, with_remote=False) as repo:
        return bytes(repo.dvcfs.read_bytes(name))
    return None
