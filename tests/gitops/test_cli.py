"""The command line: what it says of itself, what it refuses, and that no command waits for what it does not use."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from excise.cli import COMMANDS, PARSER
from tests.projects import ROOT, environment

TORCHLESS = {
    "gate": "excise.gitops.sides, excise.gitops.terminal",
    "verify": "excise.gitops.models",
    "use": "excise.gitops.parameters",
    "pin": "excise.gitops.hub",
    "schema": "schemas.documentation",
    "comment": "excise.gitops.comment",
    "publish": "excise.gitops.handover",
    "hand-over": "excise.gitops.handover",
    "report": "excise.gitops.difference, excise.report.reading",
    "model": "excise.gitops.models",
    "merge": "excise.gitops.merging",
    "clean": "excise.gitops.cleaning",
    "release": "excise.gitops.releases",
    "restore": "excise.gitops.storage",
    "fetch": "excise.gitops.keeping",
    "keep": "excise.gitops.keeping",
    "doctor": "excise.gitops.doctor",
    "experiments": "excise.gitops.experiments.runs",
    "experiment": "excise.gitops.experiments.runs",
}
"""By command, what it imports of ours."""

BLOCKER = """
import sys
class Light:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Light())
import {modules}
"""
HEAVY = (
    *("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "dvc", "lm_eval", "numpy", "scipy"),
    *("matplotlib", "datasets", "rich", "psutil", "yaml", "requests", "markdown_it", "pyarrow", "packaging"),
)
"""What requirements-publish.lock does not install."""


def excise(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command, started in any folder."""
    return subprocess.run(
        [sys.executable, "-m", "excise", *arguments],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", COMMANDS.choices)
def test_a_command_says_what_it_does_and_what_each_argument_is(name: str) -> None:
    one = COMMANDS.choices[name]
    assert one.description and one.description.count(". ") == 0 and one.description.endswith(".")
    assert "\n" not in one.description
    assert all(action.help for action in one._actions), [action.dest for action in one._actions if not action.help]


def test_help_names_every_command_and_every_exit_code_and_is_quick() -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = excise(ROOT, "--help")
        seconds.append(time.perf_counter() - began)
    assert done.returncode == 0
    assert all(f"    {name}" in done.stdout for name in COMMANDS.choices)
    assert all(f"  {code} " in done.stdout for code in ("0", "1", "2", "128+N"))
    assert min(seconds) <= 0.3


def test_help_imports_nothing_that_is_slow() -> None:
    code = "import sys, excise.cli; excise.cli.PARSER.format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    ours = {name for name in done.stdout.split() if name.split(".")[0] in ("excise", "schemas", "stages", "pydantic")}
    assert {name for name in ours if not name.startswith("excise.commands")} == {"excise", "excise.cli"}


@pytest.mark.parametrize("name", COMMANDS.choices)
def test_help_does_nothing_else(name: str, tmp_path: Path) -> None:
    """It once made a folder called --help."""
    done = excise(tmp_path, name, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nothing",),
        *((name, "--unknown") for name in COMMANDS.choices),
        ("verify", "my", "model"),
        ("gate", "--sho"),
        ("hand-over",),
        ("release", "tag", "out"),
        ("experiments", "--jobs", "0"),
        ("experiments", "--jobs", "two"),
        ("experiment", "mine.yaml"),
        ("experiment", "mine.yaml", "1", "--count"),
        ("comment", "--base", "HEAD", "--samples", "11"),
        ("restore", "folder"),
    ],
)
def test_wrong_arguments_are_one_line_and_code_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        PARSER.parse_args(arguments)
    line = capsys.readouterr().err
    assert caught.value.code == 2
    assert line.startswith("ERROR: ") and line.count("\n") == 1 and "--help` lists" in line


def test_a_value_that_looks_like_an_option_is_taken_behind_two_dashes() -> None:
    """The Makefile gives values so: strangers choose some of them."""
    given = vars(PARSER.parse_args(["attach", "--", "--help", "-x"]))
    assert (given["tag"], given["folder"]) == ("--help", Path("-x"))
    assert vars(PARSER.parse_args(["repro", "--", "--quiet", "measure"]))["arguments"] == ["--quiet", "measure"]


@pytest.mark.parametrize("name", TORCHLESS)
def test_a_command_without_tensors_imports_no_torch(name: str) -> None:
    code = f"import sys, {TORCHLESS[name]}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("modules", ["excise.cli, excise.gitops.handover", "excise.cli, excise.gitops.comment"])
def test_publishing_needs_no_more_than_its_own_lock_installs(modules: str) -> None:
    code = BLOCKER.format(heavy=HEAVY, modules=f"{modules}, excise.plumbing.errors")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
