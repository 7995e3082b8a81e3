"""DVC's cache and remote, on a machine that runs what others pushed. Either may be missing: neither is an error.

DVC exits with 0 where it could not put an output into its cache, so the cache is held against dvc.lock here.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from excise.gitops.lock import md5_of_file
from excise.gitops.programs import attend, run, say
from excise.plumbing.errors import StageError
from schemas.basis.text import shorten

_NO_REMOTE = "No DVC remote is set (docs/runner.md): results stay in this machine's cache"
_SECONDS_TO_WRITE = 0.5


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
    listed: list[str] | None
    """The files of a folder; None for a file, or where the list is missing."""
    size: int | None

    def is_here(self) -> bool:
        """Whether all of it lies where it belongs, as far as names and sizes tell."""
        if self.listed is None:
            return self.path.is_file() and self.size in (None, self.path.stat().st_size)
        files = [path for path in self.path.rglob("*") if path.is_file()]
        found = {file.relative_to(self.path).as_posix(): file.stat().st_size for file in files}
        return self.path.is_dir() and found.keys() == {*self.listed} and self.size in (None, sum(found.values()))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Repo]:
    """A project as DVC knows it. What DVC cannot read is a `StageError`."""
    try:
        with Repo(str(folder)) as repo:
            yield repo
    except DvcException as error:
        raise StageError(f"DVC cannot read this project: {shorten(str(error), 200)}") from None


def outputs(repo: Repo) -> Iterator[Output]:
    """Every cached output of a project, or of the commit that `repo.brancher` is at."""
    for out in repo.index.outs:
        if out.use_cache and out.hash_info and out.hash_info.value:
            entry = Path(out.cache.oid_to_path(out.hash_info.value))
            lacking, listed = _lacking(entry, Path(out.cache.path), out.meta.size)
            file, stage = out.stage.path_in_repo, out.stage.name
            stage = stage if file == "dvc.yaml" else f"{file}:{stage}"
            yield Output(Path(out.fs_path), out.def_path, stage, out.can_push, lacking, listed, out.meta.size)


def check_kept(folder: Path) -> None:
    """Raises `StageError` where the cache lacks an output that lies in a project's folder, so that another commit's
    results would take the only copy's place."""
    with opened(folder) as repo:
        for output in outputs(repo):
            if output.lacking and output.path.exists():
                raise StageError(
                    f"DVC did not keep {output.name} in its cache, which lacks {output.lacking[0]}: is the disk full? "
                    f"Free some space (docs/runner.md, Disk), then run `dvc commit {output.stage}`"
                )


def restore(folder: Path, cache: Path | None = None) -> None:
    """Put this commit's outputs where they belong, as far as the cache or the remote has them; name those that neither
    has, such as edited models, which are not pushed. Raises `StageError` where something that there is did not come;
    whatever an earlier, killed run left is no reason. A `cache` is one that several clones share: this clone uses it
    from now on, and it is made where it is not there yet."""
    if cache is not None:
        if not cache.is_absolute():  # it would be another one in each clone
            raise StageError(f"the shared cache {cache} must be an absolute path")
        cache.mkdir(parents=True, exist_ok=True)
        _dvc(folder, "config", "--local", "cache.dir", str(cache))
        # Each file is writable by its group, for clones of several users.
        _dvc(folder, "config", "--local", "cache.shared", "group")
    with opened(folder) as repo:
        has_remote = _has_remote(repo)
        # What DVC remembers of the remote, which after a run that was killed is not all of it.
        repo.drop_data_index()
        only_here = {output.stage for output in outputs(repo) if output.lacking and output.path.exists()}
    if not has_remote:
        say(_NO_REMOTE)
    for stage in only_here:
        # As where the disk was full. DVC refuses what is not as recorded, such as what a killed run left.
        run(["dvc", "commit", stage], folder)
    # Forced: what a run that was killed left is in no cache, and DVC would ask before it removes it.
    _dvc(folder, "pull" if has_remote else "checkout", "--allow-missing", "--force")
    with opened(folder) as repo:
        nowhere = []
        for output in outputs(repo):
            if output.lacking and not _in_remote(repo, output):
                nowhere.append(output.name)
            elif output.lacking or not output.is_here():
                raise StageError(f"{output.name} was not restored, though it can be had; run `make restore` again")
    if nowhere:
        print(f"Neither in the cache nor in the remote, and made again where it is needed: {', '.join(nowhere)}")


def repro(folder: Path, arguments: Sequence[str] = (), may_pull: bool = False) -> None:
    """Run what is out of date, by `dvc repro` with these arguments; if `may_pull`, what is not out of date, and is not
    here, is taken from the remote where there is one."""
    _drop_broken_lock(folder)
    if may_pull:
        with opened(folder) as repo:
            may_pull = _has_remote(repo)
    _dvc(folder, "repro", *(["--pull"] if may_pull else []), *arguments)
    check_kept(folder)


def push(folder: Path) -> None:
    """Give the remote, if there is one, what it lacks. Raises `StageError` where the cache lacks it as well."""
    with opened(folder) as repo:
        if not _has_remote(repo):
            say(_NO_REMOTE)
            return
        for output in outputs(repo):
            if output.pushed and output.lacking and not _in_remote(repo, output):
                raise StageError(
                    f"{output.name} cannot be pushed: neither the cache nor the remote has {output.lacking[0]}; if it "
                    f"is still here, `dvc commit {output.stage}` keeps it; else `make rerun` makes it again"
                )
    _dvc(folder, "push")


def _has_remote(repo: Repo) -> bool:
    return bool(repo.config["core"].get("remote"))


def _in_remote(repo: Repo, output: Output) -> bool:
    """Whether the default remote has all that the cache lacks of an output."""
    if not output.pushed or not _has_remote(repo):
        return False
    remote = repo.cloud.get_remote_odb()
    return all(remote.exists(_digits(path)) for path in output.lacking)


def _drop_broken_lock(folder: Path) -> None:
    """Remove DVC's list of what running stages read and write where it is cut: DVC was killed while it wrote the list,
    and would refuse to run until somebody deleted it. Whoever still writes it gets a moment to."""
    path = folder / ".dvc/tmp/rwlock"
    for seconds in (_SECONDS_TO_WRITE, 0):
        try:
            json.loads(path.read_bytes())
            return
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(seconds)
    path.unlink(missing_ok=True)


def _dvc(folder: Path, *arguments: str) -> None:
    """Run DVC, which says for itself what is wrong."""
    if attend(["dvc", *arguments], folder) != 0:
        raise StageError(f"`dvc {' '.join(arguments[:2])}` failed, as DVC says above")


def _lacking(entry: Path, cache: Path, size: int | None) -> tuple[list[Path], list[str] | None]:
    """The objects that a file's or folder's object in the cache lacks, itself perhaps, and the names of its files."""
    if not entry.name.endswith(".dir"):
        return ([] if entry.is_file() and size in (None, entry.stat().st_size) else [entry]), None
    if not entry.is_file() or _digits(entry) != f"{md5_of_file(entry)}.dir":
        return [entry], None
    files = json.loads(entry.read_bytes())
    objects = [cache / file["md5"][:2] / file["md5"][2:] for file in files]
    lacking = [path for path in objects if not path.is_file()]
    if not lacking and size not in (None, sum(path.stat().st_size for path in objects)):
        lacking = [path for path in objects if _digits(path) != md5_of_file(path)]
    return lacking, [file["relpath"] for file in files]


def _digits(entry: Path) -> str:
    """Under which digits an object lies in the cache."""
    return f"{entry.parent.name}{entry.name}"
