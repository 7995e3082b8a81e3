"""DVC's cache, what killed runs left, and the DVC remote."""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from excise.gitops.checks.findings import (
    SECONDS_TO_ANSWER,
    Clone,
    Finding,
    good,
    left_behind,
    note,
    unless_wrong,
    wrong,
)
from excise.gitops.programs import environment
from excise.gitops.trees import WITHIN
from excise.plumbing.errors import StageError
from excise.plumbing.private.dvc import Storage, is_right, opened, outputs, storage
from excise.plumbing.private.dvc_remote import remote_sizes
from schemas.basis.text import listed, shorten

_FICLONE = 0x40049409
_ASK = "from excise.gitops.checks.data import answer_for_remote; answer_for_remote()"


def cache(clone: Clone) -> Iterator[Finding]:
    cache = clone.storage.cache
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    what = f"{cache} {'is there' if there == cache else 'will be made when it is needed'}, and can be written to"
    yield from unless_wrong(_cache_state(clone, there), what)


def _cache_state(clone: Clone, there: Path) -> Iterator[Finding]:
    cache, links = clone.storage.cache, clone.storage.links
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        yield wrong(f"{cache} cannot be written to", f"make its user or group yours: `ls -ld {there}`")
        return
    temporary = clone.folder / ".dvc/tmp"
    within = temporary if temporary.is_dir() else clone.folder
    with tempfile.TemporaryDirectory(dir=within) as here, _beside(there) as other:
        source = Path(here) / "file"
        source.write_bytes(b"linked")
        if "hardlink" in links and (error := _link(source, other)):
            yield wrong(f"{cache} cannot be linked from this clone ({error}), so each model is copied", _SAME_DISK)
        if links[:1] == ["reflink"] and not _can_reflink(source, other):
            what = "cache.type begins with reflink, which this file system does not have: DVC then copies whole folders"
            yield wrong(what, "`dvc config --local cache.type hardlink,copy`")
    if not cache.resolve().is_relative_to(clone.folder.resolve()):
        yield from _shared(clone.storage)


_SAME_DISK = "put it on the clone's file system: `CACHE=/folder make restore`"


def _shared(data: Storage) -> Iterator[Finding]:
    if not data.group:
        yield wrong("others may share this cache, and could not write to it", "`dvc config --local cache.shared group`")
    elif data.cache.is_dir() and data.cache.stat().st_mode & 0o2020 != 0o2020:
        what = f"{data.cache} is shared, and its group cannot write to it, or new files get another group"
        yield wrong(what, f"`chmod g+ws {data.cache}`, as its owner")


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A file's name in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as within:
        yield Path(within) / "file"


def _link(source: Path, target: Path) -> str | None:
    """Why a file cannot be linked there, or None."""
    try:
        os.link(source, target)
    except OSError as error:
        return "it is another file system" if error.errno == errno.EXDEV else error.strerror
    target.unlink()
    return None


def _can_reflink(source: Path, target: Path) -> bool:
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            return False
    return True


def objects(clone: Clone) -> Iterator[Finding]:
    whole = 0
    for output in clone.outputs:
        spoiled = [path for path in output.lacking if path.is_file()]
        if clone.deep and not spoiled:
            spoiled = [path for path in output.objects if path.is_file() and not is_right(path)]
        if spoiled:
            remedy = f"delete it, then `make restore`, or `make rerun` makes {output.name} again"
            yield wrong(f"{spoiled[0]}, of {output.name}, has other bytes than its name stands for", remedy)
        elif output.lacking and output.path.exists():
            remedy = f"`dvc commit {output.stage}`, if the disk has room"
            yield wrong(f"the cache lacks {output.lacking[0]}, of {output.name}, which is here", remedy)
        elif output.lacking and output.pushed:
            remedy = "`make restore` fetches it from the remote, `make rerun` makes it again"
            yield wrong(f"the cache lacks {output.lacking[0]}, of {output.name}", remedy)
        elif output.lacking:
            yield note(f"{output.name}, which is not pushed, is not here; `make rerun` makes it again")
        else:
            whole += 1
    how = "by their digests" if clone.deep else "by their sizes; --deep reads them"
    yield good(f"{whole} of {len(clone.outputs)} outputs are whole ({how})")


def leftovers(clone: Clone) -> Iterator[Finding]:
    yield from unless_wrong(_left(clone), "killed runs have left nothing")


def _left(clone: Clone) -> Iterator[Finding]:
    lists = clone.folder / ".dvc/tmp/rwlock"
    if lists.is_file() and not _is_json(lists.read_bytes()):
        yield wrong(f"DVC was killed while it wrote {lists}, and would refuse to run", f"`rm {lists}`")
    partial = [path for word in ("partial", "old") for path in clone.folder.glob(f"[!.]*/.*.{word}")]
    trees = [path for path in (clone.folder / WITHIN).glob("*") if path.is_dir()]
    objects = list((clone.storage.cache / "files/md5").glob("??/*.tmp"))
    for paths, whose in ((partial, "stage"), (trees, "`make model`"), (objects, "transfer")):
        if paths:
            remedy = f"if nothing runs here now: `rm -rf {shorten(str(paths[0]), 160)}`"
            yield wrong(f"a killed {whose} left {left_behind(paths)}", remedy)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def remote(clone: Clone) -> Iterator[Finding]:
    data = clone.storage
    if data.remote is None:
        yield note("no DVC remote is set: results stay in this machine's cache; docs/runner.md says how to set one")
        return
    if not data.verify:
        what = f"{data.remote} is not verified by DVC's own commands, such as `dvc pull`, as it is by those of excise"
        yield wrong(what, f"`dvc remote modify {data.remote} verify true`")
    if data.address.startswith("ssh://"):
        yield note("DVC does not check the host key of an SSH server: who poses as it sees what is pushed")
    where = f"{data.remote} ({data.address})"
    if Path(data.address).is_absolute() and not Path(data.address).exists():
        yield wrong(f"{where} is not there", "mount what it lies on, or `make push` makes it")
        return
    answered = _ask_remote(clone)
    if isinstance(answered, str):
        yield wrong(f"{where} {answered}", "check its address (`dvc remote list`), keys (docs/runner.md) and network")
        return
    yield good(f"{where} answers")
    yield from _in_remote(clone, answered)
    yield from _left_in_remote(data)


def _in_remote(clone: Clone, sizes: dict[str, int]) -> Iterator[Finding]:
    objects = {path: output for output in clone.outputs if output.pushed for path in output.objects}
    missing = [path for path in objects if str(path) not in sizes]
    cut = [path for path in objects if path.is_file() and sizes.get(str(path), -1) not in (-1, path.stat().st_size)]
    for paths, what in ((missing, "lacks"), (cut, "has in another size, as a killed push leaves it,")):
        if paths:
            names = listed(sorted({objects[path].name for path in paths}))
            remedy = "`make push`, on a machine that has them"
            yield wrong(
                f"it {what} {len(paths)} of the {len(objects)} objects that this commit needs ({names})", remedy
            )
    if not (missing or cut):
        yield good(f"it has all {len(objects)} objects that this commit needs")


def _left_in_remote(data: Storage) -> Iterator[Finding]:
    folder = Path(data.address)
    if folder.is_absolute() and (left := sorted((folder / "files/md5").glob("??/*.tmp"))):
        yield wrong(f"a killed push left {left_behind(left)}", f"if nobody pushes now: `rm {left[0]}`")


def _ask_remote(clone: Clone) -> dict[str, int] | str:
    """The sizes of what the remote has of this commit, by paths in the cache, or what is wrong with it. It is another
    process that asks: no library lets itself be interrupted in each of its waits."""
    command = [sys.executable, "-c", _ASK]
    try:
        done = subprocess.run(
            command,
            cwd=clone.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_ANSWER,
        )
    except subprocess.TimeoutExpired:
        return f"did not answer within {SECONDS_TO_ANSWER:.0f} seconds"
    if done.returncode != 0:
        return f"fails: {shorten((done.stderr.strip() or 'no reason given').splitlines()[-1], 200)}"
    answered: dict[str, int] = json.loads(done.stdout)
    return answered


def answer_for_remote() -> None:
    """Print the sizes of the remote's objects of the project in the current folder; leaves with why it cannot."""
    try:
        with opened(Path()) as repo:
            needed = [path for output in outputs(repo) if output.pushed for path in output.objects]
            found = remote_sizes(repo, needed or [storage(repo).cache / "files/md5/00/none"])
    except StageError as error:
        sys.exit(str(error))
    print(json.dumps({str(path): size for path, size in found.items()}))
