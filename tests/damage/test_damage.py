"""Whatever lies in a file's place, it is read or refused in one line, in bounded time and memory."""

from pathlib import Path

import pytest

from tests.damage.prompt_files import BOMBS
from tests.damage.running import run
from tests.projects import Project

HEADERS = 1000
PARAMS = 320
PROMPT_FILES = 200
OURS = 280


@pytest.mark.nightly
def test_no_header_is_accepted_that_safetensors_refuses(tmp_path: Path) -> None:
    run("headers", range(HEADERS), tmp_path).check(HEADERS)


def test_a_tenth_of_the_damaged_headers_is_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    run("headers", range(0, HEADERS, 10), tmp_path).check(HEADERS // 10)


@pytest.mark.nightly
def test_every_damaged_parameter_file_is_valid_or_one_line(tmp_path: Path) -> None:
    run("params", range(PARAMS), tmp_path).check(PARAMS)


def test_a_tenth_of_the_damaged_parameter_files_is_valid_or_one_line(tmp_path: Path) -> None:
    # Not every tenth: of eight, one is a resolved section.
    run("params", range(0, PARAMS, 9), tmp_path).check(-(-PARAMS // 9))


@pytest.mark.nightly
def test_every_damaged_or_enormous_prompt_file_is_read_or_one_line(tmp_path: Path) -> None:
    run("prompt_files", range(PROMPT_FILES), tmp_path).check(PROMPT_FILES)


def test_a_tenth_of_the_damaged_prompt_files_is_read_or_one_line(tmp_path: Path) -> None:
    run("prompt_files", range(0, PROMPT_FILES, 10), tmp_path).check(PROMPT_FILES // 10)
    assert len(BOMBS) > 20  # three of them are among these


@pytest.mark.nightly
def test_every_damaged_file_of_ours_is_read_or_one_line(project: Project) -> None:
    run("internal", range(OURS), project.folder).check(OURS)


@pytest.mark.slow
def test_a_tenth_of_the_damaged_files_of_ours_is_read_or_one_line(project: Project) -> None:
    # Each of the twenty-eight files once.
    run("internal", range(OURS // 2, OURS // 2 + OURS // 10), project.folder).check(OURS // 10)
