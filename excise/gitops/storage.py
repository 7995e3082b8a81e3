"""DVC's cache and remote on a machine that runs what others pushed. Either may be missing: neither is an error."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from dvc.repo import Repo

from excise.gitops.cache import Output, check_kept, opened, outputs
from excise.gitops.processes import attend, run
from excise.plumbing.errors import StageError

_SECONDS_TO_WRITE = 0.5


def use_cache(folder: Path, cache: Path) -> None:
    """Have a clone use a cache that several clones share, which is made where it is not there yet.

    Raises:
        StageError: the cache's path is not absolute, so that it would be another one in each clone.
    """
    if not cache.is_absolute():
        raise StageError(f"the shared cache {cache} must be an absolute path")
    cache.mkdir(parents=True, exist_ok=True)
    _dvc(folder, "config", "--local", "cache.dir", str(cache))
    # Each file is writable by its group, for clones of several users.
    _dvc(folder, "config", "--local", "cache.shared", "group")


def has_remote(folder: Path) -> bool:
    """Whether there is a default remote."""
    with opened(folder) as repo:
        return bool(repo.config["core"].get("remote"))


def restore(folder: Path) -> None:
    """Put this commit's outputs where they belong, as far as the cache or the remote has them; name those that neither
    has, such as edited models, which are not pushed.

    Raises:
        StageError: something that there is did not come; whatever an earlier, killed run left is no reason.
    """
    with opened(folder) as repo:
        # What DVC remembers of the remote, which after a run that was killed is not all of it.
        repo.drop_data_index()
        only_here = {output.stage for output in outputs(repo) if output.lacking and output.path.exists()}
    for stage in only_here:
        # As where the disk was full. DVC refuses what is not as recorded, such as what a killed run left.
        run(["dvc", "commit", stage], folder, os.environ)
    # Forced: what a run that was killed left is in no cache, and DVC would ask before it removes it.
    _dvc(folder, "pull" if has_remote(folder) else "checkout", "--allow-missing", "--force")
    with opened(folder) as repo:
        nowhere = []
        for output in outputs(repo):
            if not output.lacking and output.is_here():
                continue
            if not output.lacking or _in_remote(repo, output):
                raise StageError(f"{output.name} was not restored, though it can be had; run `make restore` again")
            nowhere.append(output.name)
    if nowhere:
        print(f"Neither in the cache nor in the remote, and made again where it is needed: {', '.join(nowhere)}")


def repro(folder: Path, arguments: Sequence[str] = (), may_pull: bool = False) -> None:
    """Run what is out of date.

    Args:
        arguments: of `dvc repro`.
        may_pull: whether what is not out of date, and is not here, is taken from the remote where there is one.
    """
    _drop_broken_lock(folder)
    _dvc(folder, "repro", *(["--pull"] if may_pull and has_remote(folder) else []), *arguments)
    check_kept(folder)


def push(folder: Path) -> None:
    """Give the remote what it lacks.

    Raises:
        StageError: neither the cache nor the remote has it.
    """
    with opened(folder) as repo:
        for output in outputs(repo):
            if output.pushed and output.lacking and not _in_remote(repo, output):
                raise StageError(
                    f"{output.name} cannot be pushed: neither the cache nor the remote has {output.lacking[0]}; if it "
                    f"is still here, `dvc commit {output.stage}` keeps it; else `make rerun` makes it again"
                )
    _dvc(folder, "push")


def _drop_broken_lock(folder: Path) -> None:
    """Remove DVC's list of what running stages read and write where it is cut: DVC was killed while it wrote the list,
    and would refuse to run until somebody deleted it. Whoever still writes it gets a moment to."""
    path = folder / ".dvc/tmp/rwlock"
    for last in (False, True):
        try:
            json.loads(path.read_bytes())
            return
        except FileNotFoundError:
            return
        except ValueError:
            if last:
                path.unlink(missing_ok=True)
            else:
                time.sleep(_SECONDS_TO_WRITE)


def _in_remote(repo: Repo, output: Output) -> bool:
    """Whether the default remote has all that the cache lacks of an output."""
    if not output.pushed or not repo.config["core"].get("remote"):
        return False
    remote = repo.cloud.get_remote_odb()
    return all(remote.exists(f"{path.parent.name}{path.name}") for path in output.lacking)


def _dvc(folder: Path, *arguments: str) -> None:
    """Run DVC, which says for itself what is wrong."""
    if attend(["dvc", *arguments], folder) != 0:
        raise StageError(f"`dvc {' '.join(arguments[:2])}` failed, as DVC says above; nothing was handed on")
