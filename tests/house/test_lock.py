"""requirements.lock serves every machine."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip() and line.strip()[0] != "#"
]


def test_every_version_is_pinned() -> None:
    assert len(LINES) > 100
    for line in LINES:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z0-9,_-]+\])?==[^ +]+( ; .+)?$", line), line


def test_no_index_and_no_local_build_is_named() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"--index|--extra-index|--find-links|https?://|\+cpu|\+cu\d", text)
    assert "torch==2.13.0" in LINES


def test_cuda_is_left_to_torch() -> None:
    assert not [line for line in LINES if line.startswith(("nvidia-", "cuda-", "triton"))]


@pytest.mark.parametrize("group", ["publish", "remote"])
def test_a_job_that_holds_a_token_installs_the_same_versions_by_hash(group: str) -> None:
    text = (ROOT / f"requirements-{group}.lock").read_text()
    pins = re.findall(r"^([A-Za-z0-9].*?) \\((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+)$", text, flags=re.MULTILINE)
    light = {pin for pin, _ in pins if "win32" not in pin}  # which no runner of ours is
    assert {"httpx2", "jinja2", "pydantic", "ruamel-yaml"} <= {pin.partition("==")[0] for pin in light}
    assert light <= set(LINES)
    assert len(pins) == len(re.findall(r"^\S+==", text, flags=re.MULTILINE))


def test_what_computes_is_pinned_as_it_is_installed_and_no_tool_is_among_it() -> None:
    compute = [line for line in (ROOT / "requirements-compute.lock").read_text().splitlines() if line]
    assert set(compute) <= set(LINES)
    names = {line.partition("==")[0] for line in compute}
    assert {"torch", "transformers", "lm-eval", "numpy", "safetensors"} <= names
    assert not {"dvc", "pytest", "ruff", "pydantic"} & names
