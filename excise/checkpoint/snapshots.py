"""A model at one commit of the Hub: its files in the Hub's own cache, fetched where they are not there, never copied.

First what describes the model, then, once the stage has looked at that, the weights; nothing where all are there.
"""

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError, SafetensorsParsingError
from huggingface_hub.utils.tqdm import tqdm

from excise.checkpoint.weights import INDEX, SINGLE, Tensor, describes, no_weights, read_checkpoint, read_index
from excise.plumbing.errors import StageError
from excise.plumbing.files import digests
from excise.plumbing.hub import hub_errors
from excise.plumbing.progress import Advance, progress
from schemas.basis.document import FileDigest

WHERE = "params.yaml: model.source"


def fetch_description(name: str, revision: str) -> Path:
    """Fetch everything of a model but its weights, to the folder of the snapshot. Raises `StageError`: it cannot be
    had, or has no weights in safetensors."""
    listed = _listed(name, revision)
    if SINGLE not in listed and INDEX not in listed:
        raise StageError(f"{WHERE}: {no_weights(name, listed)}")
    return fetch(name, revision, list(filter(describes, listed)))


def fetch_weights(name: str, revision: str, folder: Path) -> list[str]:
    """Fetch the weights of a model whose description lies in `folder`; the paths of all its files. Raises `StageError`:
    they cannot be had, or the disk has no room for them."""
    _, files = _files(name, revision, folder)
    fetch(name, revision, files)
    return files


def read_headers(name: str, revision: str, folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a model whose description lies in `folder`, and the paths of all its files; of weights that are
    not there yet nothing but the headers is fetched. Raises `StageError`: they cannot be had, or are no safetensors."""
    weights, files = _files(name, revision, folder)
    if _cached(name, revision, files) is not None:
        return read_checkpoint(folder, files).tensors, files
    tensors: dict[str, Tensor] = {}
    for path in sorted(weights):
        with hub_errors(WHERE, name):
            try:
                found = HfApi().parse_safetensors_file_metadata(name, path, revision=revision).tensors
            except SafetensorsParsingError:
                raise StageError(f"{WHERE}: {path} of {name} is no safetensors file; name another model") from None
        tensors |= {one: Tensor(path, at.dtype, tuple(at.shape), *at.data_offsets) for one, at in found.items()}
    return tensors, files


def _files(name: str, revision: str, folder: Path) -> tuple[set[str], list[str]]:
    """The paths of a model's weights, and of all its files."""
    listed = _listed(name, revision)
    weights = set(read_index(folder / INDEX).values()) if INDEX in listed else {SINGLE}
    if missing := sorted(weights - set(listed)):
        raise StageError(
            f"{WHERE}: {name} lacks {missing[0]}, which its index names, at {revision[:12]}; name a whole model"
        )
    return weights, sorted({*filter(describes, listed), *weights})


def fetch(name: str, revision: str, files: Collection[str]) -> Path:
    """Have these files of a model in the Hub's cache: the folder of the snapshot, which may hold other files, too.
    Raises `StageError`: they cannot be had, or the disk has no room for them."""
    for path in map(PurePosixPath, files):
        if path.is_absolute() or ".." in path.parts:
            raise StageError(f"{path} leads outside the model's folder; run `dvc repro --force prepare` to pin it anew")
    if (folder := _cached(name, revision, files)) is not None:
        return folder
    asked: dict[str, Any] = {"revision": revision, "allow_patterns": [glob.escape(path) for path in files]}
    with hub_errors(WHERE, name):
        missing = snapshot_download(name, dry_run=True, **asked)
        size = sum(file.file_size or 0 for file in missing if file.will_download)
        _require_space(name, size)
        with progress(f"Fetch {name}", size, "B") as advance:
            snapshot_download(name, tqdm_class=_bar(advance), **asked)
    if (folder := _cached(name, revision, files)) is None:
        raise StageError(f"{WHERE}: {name} lacks a file that it needs at {revision[:12]}; name a whole model")
    refuse_spoiled(folder, digests(folder, files, remembered=True))
    return folder


def refuse_spoiled(folder: Path, found: Iterable[FileDigest]) -> None:
    """Compare files of a snapshot with the digests that the Hub gave, by which its cache names them. Raises
    `StageError`: one has other bytes. Such are gone from the cache then, so that the next run fetches them anew."""
    spoiled = [folder / file.path for file in found if not _is_as_named(folder / file.path, file)]
    for link in spoiled:
        blob = link.parent / os.readlink(link)
        for path in (blob.resolve(), blob, link):
            path.unlink(missing_ok=True)
    if spoiled:
        raise StageError(
            f"{WHERE}: {spoiled[0]} was not what the Hub says that it is, and was removed; run again to fetch it anew"
        )


def _listed(name: str, revision: str) -> list[str]:
    """The path of every file of the repository, from the cache where it has been asked for before."""
    with hub_errors(WHERE, name):
        try:
            return [file.path for file in get_cached_repo_tree(name, revision=revision)]
        except CachedRepoTreeNotFoundError:
            return HfApi().list_repo_files(name, revision=revision)


def _cached(name: str, revision: str, files: Collection[str]) -> Path | None:
    """The snapshot's folder, if all these files are there."""
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[], local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if all((folder / path).is_file() for path in files) else None


def _require_space(name: str, size: int) -> None:
    cache = Path(constants.HF_HUB_CACHE).absolute()
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise StageError(
            f"{WHERE}: {size / 1e9:,.1f} GB of {name} are still to be fetched, and {place} has {free / 1e9:,.1f} GB "
            "free; free some space, or set HF_HOME to a larger disk"
        )


def _bar(advance: Advance) -> type[tqdm]:
    """The library's progress bars, which show nothing and tell `advance` the bytes written since."""

    class Bar(tqdm):
        def __init__(self, *arguments: Any, name: str | None = None, **settings: Any) -> None:
            super().__init__(*arguments, **{**settings, "disable": True})
            self.counts = name == "huggingface_hub.snapshot_download"

        def update(self, n: float | None = 1) -> None:
            if self.counts:
                advance(int(n or 0))

    return Bar


def _is_as_named(link: Path, file: FileDigest) -> bool:
    """Whether a snapshot's file has the digest that is the name of what it links to: SHA-256 for large files, git's own
    for the others. In a cache without links there is no such name."""
    if not link.is_symlink() or not link.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
        return True
    named = os.path.basename(os.readlink(link))
    if re.fullmatch(r"[0-9a-f]{64}", named):
        return named == file.sha256
    if re.fullmatch(r"[0-9a-f]{40}", named):
        data = link.read_bytes()
        return named == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return True
