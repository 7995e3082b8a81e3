"""DVC's cache and remote, of which either may be missing, on a machine that runs what others pushed. DVC exits with 0
where it could not put an output into its cache, so the cache is compared with dvc.lock here."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from excise.gitops.programs import attend, run
from excise.plumbing.errors import StageError
from excise.plumbing.private.dvc import forget_remote, has_remote, in_remote, opened, outputs

_NO_REMOTE = "No DVC remote is set (docs/runner.md): results stay in this machine's cache"


def check_kept(folder: Path) -> None:
    """Raises `StageError` where the cache lacks an output in a project's folder: the only copy could be overwritten."""
    with opened(folder) as repo:
        for output in outputs(repo):
            if output.lacking and output.path.exists():
                what = f"DVC did not keep {output.name} in its cache, which lacks {output.lacking[0]}"
                remedy = f"Free some space (docs/runner.md, Disk), then run `dvc commit {output.stage}`"
                raise StageError(f"{what}: is the disk full? {remedy}")


def restore(folder: Path, cache: Path | None = None) -> None:
    """Put this commit's outputs where they belong, and name those that neither cache nor remote has, such as edited
    models. Several clones may share a `cache`: it is made if missing, and this clone uses it from now on. Raises
    `StageError` where an output that can be had was not restored."""
    if cache is not None:
        if not cache.is_absolute():  # it would be another one in each clone
            raise StageError(f"the shared cache {cache} must be an absolute path")
        cache.mkdir(parents=True, exist_ok=True)
        _dvc(folder, "config", "--local", "cache.dir", str(cache))
        # Each file is writable by its group, for clones of several users.
        _dvc(folder, "config", "--local", "cache.shared", "group")
    with opened(folder) as repo:
        shared = has_remote(repo)
        forget_remote(repo)
        only_here = {output.stage for output in outputs(repo) if output.lacking and output.path.exists()}
    if not shared:
        print(_NO_REMOTE, flush=True)
    for stage in only_here:
        # As where the disk was full. DVC refuses what is not as recorded, such as what a killed run left.
        run(["dvc", "commit", stage], folder)
    # Forced: what a run that was killed left is in no cache, and DVC would ask before it removes it.
    _dvc(folder, "pull" if shared else "checkout", "--allow-missing", "--force")
    with opened(folder) as repo:
        nowhere = []
        for output in outputs(repo):
            if output.lacking and not in_remote(repo, output):
                nowhere.append(output.name)
            elif output.lacking or not output.is_here():
                raise StageError(f"{output.name} was not restored, though it can be had; run `make restore` again")
    if nowhere:
        print(f"Neither in the cache nor in the remote, and made again where it is needed: {', '.join(nowhere)}")


def repro(folder: Path, arguments: Sequence[str] = (), may_pull: bool = False) -> None:
    """Run what is out of date, by `dvc repro` with these arguments; if `may_pull`, the remote's outputs are used."""
    _drop_broken_lock(folder)
    if may_pull:
        with opened(folder) as repo:
            may_pull = has_remote(repo)
    _dvc(folder, "repro", *(["--pull"] if may_pull else []), *arguments)
    check_kept(folder)


def push(folder: Path) -> None:
    """Give the remote, if there is one, what it lacks. Raises `StageError` where the cache lacks it as well."""
    with opened(folder) as repo:
        if not has_remote(repo):
            print(_NO_REMOTE, flush=True)
            return
        for output in outputs(repo):
            if output.pushed and output.lacking and not in_remote(repo, output):
                what = f"{output.name} cannot be pushed: neither the cache nor the remote has {output.lacking[0]}"
                remedy = f"if it is still here, `dvc commit {output.stage}` keeps it; else `make rerun` makes it again"
                raise StageError(f"{what}; {remedy}")
    _dvc(folder, "push")


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


def _dvc(folder: Path, *arguments: str) -> None:
    if attend(["dvc", *arguments], folder) != 0:
        raise StageError(f"`dvc {' '.join(arguments[:2])}` failed, as DVC says above")
