"""Where and how models run on this machine, which is no part of any result."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from schemas.fields import Matches
from schemas.params.section import Section

DeviceName = Annotated[
    str,
    Matches(
        r"auto|cpu|cuda(?::[0-9]{1,3})?|balanced", "auto, cpu, cuda, cuda:N or balanced", ("auto", "cuda", "balanced")
    ),
]


PLACE = Path("artifacts/params/device.json")


class Device(Section):
    """Where it runs, which is no part of what it is: no stage depends on it."""

    device: DeviceName = Field(
        default="auto",
        description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:N`, or `balanced`: spread over all GPUs, for "
        "models that are too big for one. Where it runs is no part of the result: changing it reruns nothing.",
    )


class Stream(Section):
    """How much of the model is in memory while it is measured, which is no part of the result either."""

    stream: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether one decoder layer at a time is read from the files, for models larger than memory; "
        "`auto`: where the model does not fit. The result is the same: changing it reruns nothing. Of several GPUs it "
        "takes the first.",
    )


class Place(Stream, Device):
    """`artifacts/params/device.json`: where and how it runs, on which no stage depends."""

    folder: str | None = Field(default=None, description="of a base model that is a local folder")
