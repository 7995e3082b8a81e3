"""Where models run and edits are computed. Apart from loading them, because transformers is slow to import."""

from typing import Literal

import torch

from excise.plumbing.errors import StageError
from schemas.params.device import PLACE, Place
from schemas.params.section import read_settings


def chosen_device() -> torch.device:
    """Where params.yaml says that one model's worth of arithmetic runs; of several GPUs, the first.

    Raises:
        StageError: it names a GPU that is not there.
    """
    name = read_settings(Place, PLACE).device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cuda" if name == "balanced" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StageError(f"params.yaml: model.device: {name} is not there ({torch.cuda.device_count()} GPUs are)")
    return device


def placement() -> torch.device | Literal["balanced"]:
    """Where a model is loaded: on one device, or spread over all GPUs.

    Raises:
        StageError: params.yaml names a GPU that is not there.
    """
    device = chosen_device()
    return "balanced" if read_settings(Place, PLACE).device == "balanced" else device


def streaming() -> Literal["auto", "on", "off"]:
    """Whether params.yaml has a model measured layer by layer."""
    return read_settings(Place, PLACE).stream
