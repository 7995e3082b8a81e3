"""DVC's cache and remote, of which either may be missing, on a machine that runs what others pushed. DVC exits with 0
where it could not put an output into its cache, so the cache is compared with dvc.lock here."""

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from excise.gitops.git import answer, git
from excise.gitops.lock import LOCK
from excise.gitops.programs import attend, run
from excise.plumbing.errors import StageError
from excise.plumbing.files import has_conflict
from excise.plumbing.private.dvc import Output, Repo, is_right, is_shared, opened, outputs, read_record
from excise.plumbing.private.dvc_remote import (
    WrongObject,
    fetch,
    forget_remote,
    has_remote,
    in_remote,
    remote_sizes,
    upload,
)

_NO_REMOTE = "No DVC remote is set (docs/runner.md): results stay in this machine's cache"


def check_kept(folder: Path) -> None:
    """Raises `StageError` where the cache lacks an output in a project's folder: the only copy could be overwritten."""
    with opened(folder) as repo:
        for output in outputs(repo):
            if output.lacking and output.path.exists():
                what = f"DVC did not keep {output.name} in its cache, which lacks {output.lacking[0]}"
                remedy = f"Free some space (docs/runner.md, Disk), then run `dvc commit {output.stage}`"
                raise StageError(f"{what}: is the disk full? {remedy}")


def use_cache(folder: Path, cache: Path, copies: bool = False) -> None:
    """Let a clone use a cache from now on, which several clones may share, and which is made if missing; `copies`: no
    file of the clone is a link into it, through which a job could write there. Raises `StageError`."""
    if not cache.is_absolute():  # it would be another one in each clone
        raise StageError(f"the shared cache {cache} must be an absolute path")
    cache.mkdir(parents=True, exist_ok=True)
    _dvc(folder, "config", "--local", "cache.dir", str(cache))
    # Each file is writable by its group, for clones of several users.
    _dvc(folder, "config", "--local", "cache.shared", "group")
    if copies:
        _dvc(folder, "config", "--local", "cache.type", "copy")


def restore(folder: Path, cache: Path | None = None, asks: bool = True, copies: bool = False) -> None:
    """Put this commit's outputs where they belong, and name those that neither cache nor remote has, such as edited
    models; `cache` and `copies` are those of `use_cache`, and the remote is only asked if it `asks`. Raises
    `StageError` where an output that can be had was not restored."""
    if cache is not None:
        use_cache(folder, cache, copies)
    with opened(folder) as repo:
        shared = asks and has_remote(repo)
        forget_remote(repo)
        only_here = {output.stage for output in outputs(repo) if output.lacking and output.path.exists()}
    for stage in only_here:
        # As where the disk was full. DVC refuses what is not as recorded, such as what a killed run left.
        run(["dvc", "commit", stage], folder)
    if shared:
        with opened(folder) as repo:
            fetch_outputs(repo)
    elif asks:
        print(_NO_REMOTE, flush=True)
    # Forced: what a run that was killed left is in no cache, and DVC would ask before it removes it.
    _dvc(folder, "checkout", "--allow-missing", "--force")
    with opened(folder) as repo:
        nowhere = []
        for output in outputs(repo):
            if output.lacking and not (asks and in_remote(repo, output)):
                nowhere.append(output.name)
            elif output.lacking or not output.is_here():
                raise StageError(f"{output.name} was not restored, though it can be had; run `make restore` again")
    if nowhere:
        print(f"Neither in the cache nor in the remote, and made again where it is needed: {', '.join(nowhere)}")


def repro(folder: Path, arguments: Sequence[str] = (), may_pull: bool = False) -> None:
    """Run what is out of date, by `dvc repro` with these arguments; if `may_pull`, the remote's outputs are used."""
    _drop_broken_lock(folder)
    _drop_broken_record(folder)
    absent = []
    with opened(folder) as repo:
        # Its memory of runs may be of another branch's code, which nobody has read.
        arguments = [*(["--no-run-cache"] if is_shared(repo) else []), *arguments]
        if may_pull:
            # Not `dvc repro --pull`: it also takes from the remote, unchecked, which results which stage would have.
            if has_remote(repo):
                fetch_outputs(repo)
            absent = [output.name for output in outputs(repo) if not (output.lacking or output.path.exists())]
    if absent:
        _dvc(folder, "checkout", *absent)
    _dvc(folder, "repro", *arguments)
    check_kept(folder)


def push(folder: Path) -> None:
    """Give the remote, if there is one, what it lacks. Raises `StageError`, before anything is pushed, where the cache
    lacks it as well, or has other bytes than were recorded."""
    with opened(folder) as repo:
        push_outputs(repo)


def push_outputs(repo: Repo, stages: Collection[str] | None = None, again: str = "`make rerun`") -> None:
    """The same, of a project that is open, at any commit, and of all its stages or of some; `again` is what makes an
    output again."""
    if not has_remote(repo):
        print(_NO_REMOTE, flush=True)
        return
    pushed = [output for output in outputs(repo) if output.pushed and (stages is None or output.stage in stages)]
    with _asking():
        there = remote_sizes(repo, {path for output in pushed for path in output.objects})
    lacking = {path: output for output in pushed for path in output.objects if not _is_same(path, there.get(path))}
    for path, output in lacking.items():
        _check_can_be_pushed(path, output, again)
    with _asking():
        upload(repo, lacking)
    count = len(lacking)
    print(f"{count} file{'' if count == 1 else 's'} pushed" if lacking else "Everything is up to date.")


def _is_same(path: Path, size: int | None) -> bool:
    """Whether the remote has an object, as far as its size there tells: other bytes would take as long to find as to
    push. One that only the remote has, whole or not, is as it is."""
    return size is not None and not (path.is_file() and path.stat().st_size != size)


def _check_can_be_pushed(path: Path, output: Output, again: str) -> None:
    if not path.is_file():
        what = f"{output.name} cannot be pushed: neither the cache nor the remote has {path}"
        remedy = f"if it is still here, `dvc commit {output.stage}` keeps it; else {again} makes it again"
        raise StageError(f"{what}; {remedy}")
    if not is_right(path):
        what = f"{path} in DVC's cache, of {output.name}, has other bytes than its name stands for"
        raise StageError(f"{what}, so nothing was pushed; delete it, and {again} makes {output.name} again")


def fetch_outputs(repo: Repo) -> None:
    """Fetch what the cache lacks of a project's outputs, at any commit, and the remote has."""
    names = {output.name for output in outputs(repo) if output.pushed}
    with _asking():
        count = fetch(repo, names)
    if count:
        print(f"{count} file{'' if count == 1 else 's'} fetched", flush=True)


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Within the block, a failure of the remote is a line that says what to do."""
    try:
        yield
    except WrongObject:
        raise
    except StageError as error:
        raise StageError(f"the DVC remote failed: {error}; run again, and `make doctor` if it fails again") from None


def _drop_broken_lock(folder: Path) -> None:
    """Remove DVC's list of what running stages use if DVC was killed while it wrote it: else it would refuse to run."""
    path = folder / ".dvc/tmp/rwlock"
    for seconds in (0.5, 0):  # who still writes it gets a moment to
        try:
            json.loads(path.read_bytes())
            return
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(seconds)
    path.unlink(missing_ok=True)


def _drop_broken_record(folder: Path) -> None:
    """Have dvc.lock as git has it if DVC was killed while it wrote it: else no stage would run, or, from an empty one,
    all. What ran since that commit runs again, or is in the cache. The conflict of a merge is left to a person."""
    path = folder / LOCK
    if not path.is_file() or answer(folder, "diff", "--quiet", "HEAD", "--", LOCK) is not None:
        return  # it is the last commit's
    data = path.read_bytes()
    if not has_conflict(data) and not (data and _is_readable(folder)):
        git(folder, "checkout", "--quiet", "HEAD", "--", LOCK)
        print(f"{LOCK} was written in part by a run that was killed; it is the last commit's again", flush=True)


def _is_readable(folder: Path) -> bool:
    """Whether DVC can read dvc.lock; a part of it may be YAML, too."""
    try:
        with opened(folder) as repo:
            read_record(repo, LOCK)
    except StageError as error:
        return LOCK not in str(error)
    return True


def _dvc(folder: Path, *arguments: str) -> None:
    if attend(["dvc", *arguments], folder) != 0:
        raise StageError(f"`dvc {' '.join(arguments[:2])}` failed, as DVC says above")
