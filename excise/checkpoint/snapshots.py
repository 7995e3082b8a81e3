"""A model at one commit of the Hub, in the Hub's cache, never copied: weights are fetched after the rest is checked."""

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
    """The folder of a model, fetched without weights. Raises `StageError`: as `fetch`, or it has no safetensors."""
    paths = _repository_files(name, revision)
    if SINGLE not in paths and INDEX not in paths:
        raise StageError(f"{WHERE}: {no_weights(name, paths)}")
    return fetch(name, revision, list(filter(describes, paths)))


def read_headers(name: str, revision: str, folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a model whose description is in `folder`, from headers, and the paths of all its files. Raises
    `StageError`: headers cannot be fetched, or are not safetensors."""
    paths = _repository_files(name, revision)
    weights = set(read_index(folder / INDEX).values()) if INDEX in paths else {SINGLE}
    if missing := sorted(weights - set(paths)):
        raise StageError(
            f"{WHERE}: {name} lacks {missing[0]}, which its index names, at {revision[:12]}; name a complete model"
        )
    files = sorted({*filter(describes, paths), *weights})
    if _cached(name, revision, files) is not None:
        return read_checkpoint(folder, files).tensors, files
    tensors: dict[str, Tensor] = {}
    for path in sorted(weights):
        with hub_errors(WHERE, name):
            try:
                header = HfApi().parse_safetensors_file_metadata(name, path, revision=revision).tensors
            except SafetensorsParsingError:
                raise StageError(f"{WHERE}: {path} of {name} is not a safetensors file; name another model") from None
        for tensor, info in header.items():
            tensors[tensor] = Tensor(path, info.dtype, tuple(info.shape), *info.data_offsets)
    return tensors, files


def fetch(name: str, revision: str, files: Collection[str]) -> Path:
    """The snapshot's folder, with at least these files, which are fetched if missing. Raises `StageError`: they cannot
    be fetched, or the disk has no room for them."""
    for path in map(PurePosixPath, files):
        if path.is_absolute() or ".." in path.parts:
            raise StageError(f"{path} leads outside the model's folder; run `dvc repro --force prepare`")
    if (folder := _cached(name, revision, files)) is not None:
        return folder
    selection: dict[str, Any] = {"revision": revision, "allow_patterns": [glob.escape(path) for path in files]}
    with hub_errors(WHERE, name):
        missing = snapshot_download(name, dry_run=True, **selection)
        size = sum(file.file_size or 0 for file in missing if file.will_download)
        cache = Path(constants.HF_HUB_CACHE).absolute()
        disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
        if size > (free := shutil.disk_usage(disk).free):
            raise StageError(
                f"{WHERE}: {name} needs another {size / 1e9:,.1f} GB, and {disk} has {free / 1e9:,.1f} GB free; free "
                "some space, or set HF_HOME to a larger disk"
            )
        with progress(f"Fetch {name}", size, "B") as advance:
            snapshot_download(name, tqdm_class=_bar(advance), **selection)
    if (folder := _cached(name, revision, files)) is None:
        raise StageError(f"{WHERE}: {name} lacks a file that it needs at {revision[:12]}; name a complete model")
    refuse_damaged(folder, digests(folder, files, remembered=True))
    return folder


def refuse_damaged(folder: Path, files: Iterable[FileDigest]) -> None:
    """Remove files of a snapshot that differ from the digests that the Hub gave, so that the next run fetches them
    again. Raises `StageError`: there are any."""
    damaged = [folder / file.path for file in files if not _matches_its_name(folder / file.path, file)]
    for link in damaged:
        blob = link.parent / os.readlink(link)
        for path in (blob.resolve(), blob, link):
            path.unlink(missing_ok=True)
    if damaged:
        raise StageError(f"{WHERE}: {damaged[0]} differed from the Hub, and was removed; run again to fetch it")


def _repository_files(name: str, revision: str) -> list[str]:
    """The path of every file of the repository, from the cache if it was listed before."""
    with hub_errors(WHERE, name):
        try:
            return [file.path for file in get_cached_repo_tree(name, revision=revision)]
        except CachedRepoTreeNotFoundError:
            return HfApi().list_repo_files(name, revision=revision)


def _cached(name: str, revision: str, files: Collection[str]) -> Path | None:
    """The snapshot's folder, if it holds all these files."""
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[], local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if all((folder / path).is_file() for path in files) else None


def _bar(advance: Advance) -> type[tqdm]:
    """A progress bar for the library that shows nothing and passes the bytes written to `advance`."""

    class Bar(tqdm):
        def __init__(self, *arguments: Any, name: str | None = None, **settings: Any) -> None:
            super().__init__(*arguments, **{**settings, "disable": True})
            self.counts = name == "huggingface_hub.snapshot_download"

        def update(self, n: float | None = 1) -> None:
            if self.counts:
                advance(int(n or 0))

    return Bar


def _matches_its_name(link: Path, file: FileDigest) -> bool:
    """Whether a file has the digest that is its blob's name, if that is one: SHA-256 for large files, else git's."""
    if not link.is_symlink() or not link.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
        return True
    blob = os.path.basename(os.readlink(link))
    if re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob == file.sha256
    if re.fullmatch(r"[0-9a-f]{40}", blob):
        data = link.read_bytes()
        return blob == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return True
