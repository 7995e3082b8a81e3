"""What tests of trained organisms share."""

from pathlib import Path

import pytest

from benchmarks import organisms


@pytest.fixture
def trained_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks' organisms are trained for this test alone, not taken from those that are kept."""
    monkeypatch.setattr(organisms, "KEPT", tmp_path)
