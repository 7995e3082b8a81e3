"""A model of a type that no file describes goes through the whole pipeline: GPT-2, whose weights are stored the other
way round, whose layers have names of their own, and which adds embeddings of positions."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from excise.organism.model import make_tokenizer
from excise.organism.world import make_world
from tests.projects import copy_project, quicken

pytestmark = pytest.mark.slow


def save_model(folder: Path) -> None:
    """A small GPT-2 with random weights that reads the built-in world's words."""
    tokenizer = make_tokenizer(make_world(0))
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=6, n_head=4, n_positions=128)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_an_unknown_type_is_measured_edited_and_judged(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    project = copy_project(tmp_path / "project")
    quicken(project)
    project.replace("source: organism          #", f"source: {tmp_path / 'model'} #")
    done = project.run("dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no file describes the model type gpt2, so its layout is measured" in done.stderr

    layout = json.loads((project.folder / "artifacts/layout.json").read_text())
    assert layout["measured"] is True
    proof = json.loads((project.folder / "artifacts/layout_proof.json").read_text())["proof"]
    assert proof["component"] <= 1e-6 < 1e-3 < min(proof["left_out"].values())
    edit = json.loads((project.folder / "models/ablated/edit.json").read_text())
    assert {"attn.c_proj.weight", "mlp.c_proj.weight"} <= {
        row["tensor"].partition(".h.")[2].partition(".")[2] for row in edit["plan"]
    }
    for text in ("report/report.md", "models/ablated/README.md"):
        assert "No file describes" in (project.folder / text).read_text()
    assert project.excise("verify").returncode == 0
