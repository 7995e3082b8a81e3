"""What nothing names any more on this machine's disk: found from git's references and from the files that lie here,
listed, and removed on request. `dvc gc` counts neither remote-tracking branches nor stashes nor other working trees."""

import contextlib
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from excise.gitops.git import answer, contents, git
from excise.gitops.lock import LOCK, LockError, read_lock
from excise.gitops.trees import PLACE_LOCK, WITHIN, remove_place
from excise.plumbing.errors import StageError
from excise.plumbing.files import SCRATCH, md5_of_file
from excise.plumbing.private.dvc import Cache, idle_cache
from excise.plumbing.unfinished import UNFINISHED
from schemas.basis.plain_yaml import parse_mapping
from schemas.wording import ParamsError

VERDICTS = SCRATCH / "judge"

_DAY = 24 * 60 * 60  # seconds
_MD5 = re.compile(r"[0-9a-f]{32}(?:\.dir)?")
_OBJECT = re.compile(r"[0-9a-f]{30}(?:\.dir)?")
_TEMPORARY = re.compile(r".*\.[\w-]{22}\.tmp", re.ASCII)
_OUTPUTS = re.compile(r"^outs:$", re.MULTILINE)
_UNFINISHED_STATES = ("MERGE_HEAD", "ORIG_HEAD", "FETCH_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "REBASE_HEAD")
"""Where git, beside its references, keeps commits that a person may return to."""


@dataclass(frozen=True)
class Unused:
    """Files and folders of one kind, in the order in which they are removed."""

    kind: str
    paths: list[Path]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.lstat().st_size for path in self.paths for file in _files(path))


@dataclass(frozen=True)
class DvcFile:
    """A dvc.lock, or a .dvc file."""

    path: str
    where: str
    data: bytes

    def md5s(self) -> set[str]:
        """All that it names. Raises `StageError` where it cannot be read as what it is."""
        name = f"{self.path} {self.where}"
        try:
            text = self.data.decode()
            if PurePosixPath(self.path).name == LOCK:
                read_lock(text, name)
            else:
                parse_mapping(text, name)
        except (LockError, ParamsError, UnicodeDecodeError) as error:
            what = f"{name} cannot be read, so it is not known what it needs, and nothing was removed"
            raise StageError(f"{what}: correct it, or delete what refers to it ({error})") from None
        return set(_MD5.findall(text))


def clean(project: Path, remove: bool, all_commits: bool, projects: Sequence[Path], shared: bool, days: int) -> None:
    """Print what nothing names any more, and remove it if told so. A cache that clones share is left alone, except
    where `projects` are the others, or with `shared`, which also drops what only others name. `all_commits`: keep what
    any commit names, and not only the newest one of each reference. Raises `StageError`, before anything is removed,
    where something is at work, or where it cannot be known what is named."""
    clones = list(dict.fromkeys(path.resolve() for path in (project, *projects)))
    for clone in clones:
        _check_has_history(clone)
    with contextlib.ExitStack() as stack:
        left, *_ = [stack.enter_context(_left_trees(clone)) for clone in clones]
        cache, *others = [stack.enter_context(idle_cache(clone)) for clone in clones]
        for clone, other in zip(clones[1:], others, strict=True):
            if other.folder != cache.folder:
                raise StageError(f"{clone} uses another cache, {other.folder}; name the clones that use {cache.folder}")
        alone = cache.shared and not projects and not shared
        unused = [
            *([] if alone else _of_cache(cache, _kept(cache, clones, all_commits))),
            Unused(f"verdicts of judges, not used for {days} days", _old([*(project / VERDICTS).glob("*")], days)),
            Unused(f"unfinished work, left for {days} days", _old([*(project / UNFINISHED).glob("*/*")], days)),
            Unused("working trees that a killed `make model` left", left),
        ]
        _print(unused)
        if alone:
            print(f"{cache.folder} is shared, so it is left alone; --projects names all other clones that use it")
        if not any(each.paths for each in unused):
            print("There is nothing to remove")
        elif not remove:
            print("Nothing was removed; `make clean YES=1` (--yes) removes this")
        else:
            for path in (path for each in unused for path in each.paths):
                _remove(clones[0], path)
            print("Removed")


def _check_has_history(clone: Path) -> None:
    if not clone.is_dir():
        raise StageError(f"{clone} is not a folder; name the folder of each clone")
    if git(clone, "rev-parse", "--is-shallow-repository").strip() != "false":
        what = f"{clone} is a shallow clone, which does not know what other commits name"
        raise StageError(f"{what}; `git fetch --unshallow` there, then run again")


def _print(unused: Sequence[Unused]) -> None:
    width = max(len(each.kind) for each in unused)
    print(f"{'what nothing needs':{width}}  {'number':>8}  {'MiB':>10}")
    for each in unused:
        print(f"{each.kind:{width}}  {len(each.paths):>8,}  {each.size / 2**20:>10,.1f}")


# What is named


def _kept(cache: Cache, clones: Sequence[Path], all_commits: bool) -> set[str]:
    """The MD5 of every object that is kept: that of a folder's list, and those that a list names."""
    named: set[str] = set()
    for clone in clones:
        for file in _files_of_dvc(clone, all_commits):
            named |= file.md5s()
    kept = set(named)
    for md5 in named:
        for path in (folder / md5[:2] / md5[2:] for folder in cache.objects if md5.endswith(".dir")):
            if path.is_file():
                if f"{md5_of_file(path)}.dir" != md5:
                    what = f"{path} should list a folder's files and was changed, so it cannot be known what is needed"
                    raise StageError(f"{what}; delete it, `make restore` brings it back, and run again")
                kept.update(_MD5.findall(path.read_text()))
    return kept


def _files_of_dvc(clone: Path, all_commits: bool) -> Iterator[DvcFile]:
    """Every dvc.lock and .dvc file at the kept commits, in indexes, and in working trees."""
    names = {}
    for commit in _commits(clone, all_commits):
        names.update(_objects_of_git(git(clone, "ls-tree", "-r", "-z", "--full-tree", commit), f"at {commit[:12]}"))
    trees = _working_trees(clone)
    for tree in trees:
        names.update(_objects_of_git(git(tree, "ls-files", "--stage", "-z", "--full-name", ":/"), "in git's index"))
    for (path, where), data in zip(names.values(), contents(clone, [*names]), strict=True):
        yield DvcFile(path, where, data)
    for tree in trees:
        listed = git(tree, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
        for path in {name for name in listed if _is_of_dvc(name) and (tree / name).is_file()}:
            yield DvcFile(path, f"in {tree}", (tree / path).read_bytes())
    # What a running experiment made is in no commit yet; git may be told to ignore the other.
    for file in [*(clone / ".dvc/tmp/exps").rglob(LOCK), *clone.glob(LOCK)]:
        yield DvcFile(LOCK, f"in {file.parent}", file.read_bytes())


def _objects_of_git(listed: str, where: str) -> dict[str, tuple[str, str]]:
    """The files of DVC's that `git ls-tree` or `git ls-files --stage` lists, by their object."""
    entries = (line.split("\t", 1) for line in listed.split("\0") if line)
    found = ((about.split(), path) for about, path in entries if _is_of_dvc(path))
    # The former gives mode, kind and object, the latter mode, object and stage.
    return {(about[2] if about[1] == "blob" else about[1]): (path, where) for about, path in found}


def _is_of_dvc(path: str) -> bool:
    name = PurePosixPath(path).name
    return name == LOCK or (name.endswith(".dvc") and name != ".dvc")


def _commits(clone: Path, all_commits: bool) -> list[str]:
    """The newest commit of everything that refers to one, or all commits that can be reached from there."""
    form = "%(objecttype) %(*objecttype) %(refname) %(objectname)"
    refs = [line.split(" ") for line in git(clone, "for-each-ref", f"--format={form}").splitlines()]
    # A tag may also name a file or a folder, or another tag.
    found = [digits for kind, peeled, _, digits in refs if not {"blob", "tree"}.intersection((kind, peeled))]
    for state in ("HEAD", *_UNFINISHED_STATES):
        found += (answer(clone, "rev-parse", "--verify", "--quiet", f"{state}^{{commit}}") or "").split()
    trees = git(clone, "worktree", "list", "--porcelain")
    found += re.findall("^HEAD (?!0{40})([0-9a-f]{40})$", trees, re.MULTILINE)
    for _, _, name, _ in refs:
        # Stashes, and DVC's queue, which is one, are a reference and its earlier values.
        if name == "refs/stash" or name.startswith("refs/exps/"):
            found += (answer(clone, "log", "--walk-reflogs", "--format=%H %P", name, "--") or "").split()
    commits = list(dict.fromkeys(found))
    return git(clone, "rev-list", *commits).split() if all_commits and commits else commits


def _working_trees(clone: Path) -> list[Path]:
    """This working tree and others of the same repository, except those of `make model`."""
    listed = git(clone, "worktree", "list", "--porcelain").splitlines()
    trees = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
    models = (clone / WITHIN).resolve()
    return [tree for tree in trees if tree.is_dir() and not tree.is_relative_to(models) and (tree / ".git").exists()]


# What can go


def _of_cache(cache: Cache, kept: set[str]) -> list[Unused]:
    lists: list[Path] = []
    others: list[Path] = []
    for path in _objects(cache):
        if f"{path.parent.name}{path.name}" not in kept:
            (lists if path.suffix else others).append(path)
    return [
        Unused("DVC's records of runs", [path for path in cache.runs.glob("*/*/*") if not _is_named(path, kept)]),
        # Lists first: where this is interrupted, none is left whose files are gone.
        Unused("objects of DVC's cache", [*lists, *others]),
        Unused("copies into DVC's cache that were cut short", _cut_short(cache)),
    ]


def _objects(cache: Cache) -> Iterator[Path]:
    for folder in cache.objects:
        for path in folder.glob("[0-9a-f][0-9a-f]/*"):
            if _OBJECT.fullmatch(path.name) and path.is_file():
                yield path


def _is_named(record: Path, kept: set[str]) -> bool:
    """Whether everything that a run wrote is kept, so that DVC can use its record."""
    *before, outputs = _OUTPUTS.split(record.read_text(errors="replace"))
    # What does not look like a record is none of ours.
    return not before or kept.issuperset(_MD5.findall(outputs))


def _cut_short(cache: Cache) -> list[Path]:
    """Temporary files of DVC's. `make model` may be writing younger ones."""
    found = (path for path in cache.folder.rglob("*.tmp") if _TEMPORARY.fullmatch(path.name))
    return _old(found, 1)


def _old(paths: Iterable[Path], days: int) -> list[Path]:
    """Those in which every file was neither written nor, as far as the file system records it, read for some days."""
    before = time.time() - days * _DAY
    return sorted(path for path in paths if _last_used(path) <= before)


def _last_used(path: Path) -> float:
    times = (file.lstat() for file in _files(path))
    return max((max(each.st_mtime, each.st_atime) for each in times), default=path.lstat().st_mtime)


@contextlib.contextmanager
def _left_trees(project: Path) -> Iterator[list[Path]]:
    """What a `make model` that was killed left. Raises `StageError` where one is at work, as it adds to the cache what
    no reference names."""
    within = project / WITHIN
    within.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # Another `make model` waits before it begins.
        stack.enter_context(FileLock(within / PLACE_LOCK))
        left = [path for path in within.glob("*") if path.is_dir()]
        for path in left:
            try:
                # The lock is the kernel's, and ends with the process that holds it.
                stack.enter_context(FileLock(path / PLACE_LOCK, blocking=False))
            except Timeout:
                raise StageError("`make model` is at work in this clone; run again when it has ended") from None
        yield left


def _remove(project: Path, path: Path) -> None:
    if path.parent == project / WITHIN:
        remove_place(project, path)
        if not path.exists():
            return
    if path.is_dir():
        shutil.rmtree(path)
        return
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()  # DVC fails on a folder of records that is empty


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else [path]
