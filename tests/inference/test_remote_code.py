"""Code that lies beside a model runs where the machine's environment says so, and by no parameter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from excise.inference.loading.models import remote_code_is_trusted
from excise.plumbing.errors import StageError
from schemas.params.document import parse
from schemas.wording import ParamsError
from tests.projects import ROOT, environment

LOAD = """
import os, sys
from pathlib import Path
from excise.inference.loading.models import without_weights
from excise.inference.loading.tokenizer import load_tokenizer
from excise.plumbing.errors import StageError

folder = Path("model")
for setting in sys.argv[1:]:
    os.environ["EXCISE_TRUST_REMOTE_CODE"] = setting
    for load in (
        lambda: without_weights(folder, "float32"),
        lambda: load_tokenizer(folder, "2025-01-01"),
    ):
        try:
            load()
        except (StageError, AttributeError):
            pass
    print(repr(setting), Path("ran").exists())
"""


@pytest.mark.slow
def test_only_the_machine_lets_a_models_own_code_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "made_up", "auto_map": classes}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}))
    (folder / "own.py").write_text("open('ran', 'w').close()\n")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "", "0", "true", "yes", "1"],
        cwd=tmp_path,
        env=environment(HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["'' False", "'0' False", "'true' False", "'yes' False", "'1' True"], done.stderr


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_another_repository_is_refused_also_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    (tmp_path / file).write_text(json.dumps({"auto_map": {"AutoModelForCausalLM": "other/one--own.Model"}}))
    assert not remote_code_is_trusted(tmp_path)
    monkeypatch.setenv("EXCISE_TRUST_REMOTE_CODE", "1")
    with pytest.raises(StageError, match=r'names code of another repository, "other/one--own.Model", which is not pin'):
        remote_code_is_trusted(tmp_path)
    (tmp_path / file).write_text(json.dumps({"auto_map": {"AutoModelForCausalLM": "own.Model"}, "pad": "--"}))
    assert remote_code_is_trusted(tmp_path)


@pytest.mark.parametrize("key", ["trust_remote_code", "remote_code", "EXCISE_TRUST_REMOTE_CODE"])
@pytest.mark.parametrize("section", ["model", "measure", "evaluate", "prompts"])
def test_no_parameter_does(section: str, key: str) -> None:
    with pytest.raises(ParamsError, match="is not a key"):
        parse(f"{section}: {{{key}: true}}")
