"""Copies that share nothing but blocks with what they were made from."""

import os
import shutil
import sys
from pathlib import Path


def copy_folder(source: Path, target: Path) -> None:
    """Copy all of a folder into another one, as files of their own that may be changed; their blocks are shared where
    the file system can do that, and no link leads back."""
    shutil.copytree(source, target, copy_function=_copy_file, dirs_exist_ok=True)


def _copy_file(source: str, target: str) -> None:
    try:
        _share_blocks(source, target)
    except OSError:  # not on this file system, or not between these two
        shutil.copyfile(source, target)


def _share_blocks(source: str, target: str) -> None:
    if sys.platform != "linux":
        raise OSError
    with open(source, "rb") as old, open(target, "wb") as new:
        left = os.fstat(old.fileno()).st_size
        while left:
            copied = os.copy_file_range(old.fileno(), new.fileno(), left)
            if not copied:  # some file systems answer 0 where they mean that they cannot
                raise OSError
            left -= copied
