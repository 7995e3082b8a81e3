"""Models that nobody has seen: what writes to the stream is found by what it does, or the model is refused."""

import sys
from pathlib import Path

import pytest
import torch

from excise.checkpoint.weights import read_checkpoint
from excise.discovery.examination import Examined, examine, example
from excise.discovery.proof import EXACT, base_of, edits_of, random_direction
from excise.discovery.twin import randomize
from excise.edit.planning.plan import CannotEdit
from excise.inference.loading.models import register_packages
from excise.plumbing.errors import StageError
from schemas.model import Writer
from tests.discovery.designs import MadeUpConfig, MadeUpForCausalLM

ATTENTION, MLP = "mixer.q_proj.weight", "rest.up_proj.weight"
PLAIN = {ATTENTION: "attention", MLP: "mlp"}
ROUTED = {ATTENTION: "attention", "rest.experts.down_proj": "routed_experts"}

EXACT_DESIGNS: dict[str, dict[str, str]] = {
    "plain": PLAIN,
    "sandwich": PLAIN,
    "chain": PLAIN,
    "one_plus": PLAIN,
    "turned": PLAIN,
    "parallel": PLAIN,
    "gated": PLAIN,
    "biases": PLAIN,
    "multiplied": PLAIN,
    "scalar": PLAIN,
    "layer_norms": PLAIN,
    "plain_layer_norms": PLAIN,
    "low_rank": PLAIN,
    "decoy": PLAIN,
    "adding": PLAIN,
    "scaled_embedding": PLAIN,
    "positions": PLAIN,
    "normed_embedding": PLAIN,
    "normed_positions": PLAIN,
    "hybrid": {**PLAIN, "mixer.up_proj.weight": "attention"},
    "experts": ROUTED,
    "turned_experts": ROUTED,
    "deep": PLAIN,
    "counted": PLAIN,
    "held_scalar": PLAIN,
    "scaled_before_norm": PLAIN,
    "twice_normed": PLAIN,
    "halves": PLAIN,
    "groups": PLAIN,
    "far_branch": PLAIN,
    "later_parallel": PLAIN,
    "routed_first": {**PLAIN, "first.experts.down_proj": "routed_experts"},
    "scaled_scores": ROUTED,
    "shared_expert": {**ROUTED, "rest.always.up_proj.weight": "shared_experts"},
}
"""By design, the writers of its layers and their roles."""

REFUSED = {
    "post_norm": "multiplies the channels",
    "channel_gain": "multiplies the channels",
    "bent": "something else writes",
    "fixed_positions": "no weight is added there",
    "looped": "run more than once",
    "tail": "used behind the last layer",
    "last_vector": "added to the stream behind the last layer",
    "numbered": "something else writes",
    "between": "something stands between blocks 4 and 5",
    "one_token": "no weight is added there",
    "long": "something else writes",
    "rezero": "multiplied by a parameter",
    "groups_behind": "differs by|something else writes|none of the tensors",
    "buffer_gain": "something else writes|multiplied by",
    "bare_gain": "is not what is added to the stream",
    "layer_norm_behind": "through a LayerNorm",
    "stacked_experts": "not one tensor of three axes",
    "listed_experts": "not one tensor of three axes",
}
"""By design, the measured reason."""


def examined(design: str, folder: Path, **sizes: int) -> Examined:
    config = MadeUpConfig(design, num_hidden_layers=6)
    for name, size in sizes.items():
        setattr(config, name, size)
    model = MadeUpForCausalLM(config)
    randomize(model, 5)
    model.save_pretrained(folder)
    checkpoint = read_checkpoint(folder)
    return examine(folder, checkpoint.tensors, checkpoint.files, design)


def writers(found: Examined) -> list[Writer]:
    variants = [variant for variants in found.layout.family.sublayers.values() for variant in variants]
    return [writer for variant in variants for writer in variant.writers]


@pytest.mark.parametrize("design", EXACT_DESIGNS)
def test_a_made_up_design_is_measured_and_proven(design: str, tmp_path: Path) -> None:
    found = examined(design, tmp_path)
    assert {writer.weight: writer.role for writer in writers(found)} == EXACT_DESIGNS[design]
    assert found.proof.component <= EXACT < 1e-3 < found.proof.before


def test_a_model_that_is_small_itself_is_measured(tmp_path: Path) -> None:
    found = examined("plain", tmp_path, hidden_size=32, intermediate_size=24, vocab_size=40, num_hidden_layers=2)
    assert {writer.weight: writer.role for writer in writers(found)} == PLAIN


@pytest.mark.parametrize("design", REFUSED)
def test_what_no_edit_of_weights_can_clear_is_refused_with_the_measured_reason(design: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=REFUSED[design]):
        examined(design, tmp_path)


def test_what_is_between_a_writer_and_the_stream_is_found(tmp_path: Path) -> None:
    norms = {
        design: [
            [(norm.weight, norm.offset) for norm in writer.norms]
            for writer in writers(examined(design, tmp_path / design))
        ]
        for design in ("chain", "one_plus")
    }
    assert norms["chain"] == [[(f"behind_{part}.{n}.weight", 0) for n in (0, 1)] for part in ("a", "b")]
    assert norms["one_plus"] == [[(f"behind_{part}.0.weight", 1)] for part in ("a", "b")]
    multiplied = writers(examined("multiplied", tmp_path / "multiplied"))
    assert [writer.multiplier for writer in multiplied] == [0.25, 0.25]
    assert {writer.axes for writer in writers(examined("turned", tmp_path / "turned"))} == {"in out"}
    gates = {writer.weight: writer.gate for writer in writers(examined("gated", tmp_path / "gated"))}
    assert gates == {ATTENTION: None, MLP: "rest.gate.weight"}
    assert examined("scalar", tmp_path / "scalar").layout.family.layer_scalar == "scalar"
    shared = examined("shared_expert", tmp_path / "shared").layout.family.sublayers["feed_forward"][0].router_bias
    assert shared is not None and (shared.weight, shared.selects_only) == ("rest.correction", True)


def test_numbers_by_which_layers_multiply_are_found(tmp_path: Path) -> None:
    assert [writer.multiplier for writer in writers(examined("deep", tmp_path / "deep"))] == pytest.approx([4 / 6] * 2)
    counted = examined("counted", tmp_path / "counted")
    assert counted.layout.family.layer_factors == pytest.approx([0.9**number for number in range(6)], rel=1e-5)
    attention, mlp = (writer.multipliers for writer in writers(counted))
    assert attention == pytest.approx([1 / (number + 1) for number in range(6)], rel=1e-5)
    assert mlp == pytest.approx([1 / (number + 1) / 0.9**number for number in range(6)], rel=1e-5)
    scaled = writers(examined("scaled_before_norm", tmp_path / "scaled"))
    assert [writer.before_norms for writer in scaled] == [2.5, 0.5]
    assert examined("held_scalar", tmp_path / "held").layout.family.layer_scalar == "holder.scalar"


@pytest.mark.parametrize("design", ["twice_normed", "halves", "far_branch", "later_parallel"])
def test_readers_are_not_edited_where_not_all_are_known(design: str, tmp_path: Path) -> None:
    layout = examined(design, tmp_path).layout
    assert layout.family.reads_elsewhere
    base, direction = base_of(tmp_path, layout), random_direction(layout.hidden_size)
    assert edits_of(base, ["mlp"], direction)
    with pytest.raises(CannotEdit, match="also read the stream"):
        edits_of(base, ["attention_inputs"], direction)


def test_norms_of_groups_of_channels_are_no_norms_that_readers_are_edited_through(tmp_path: Path) -> None:
    assert examined("groups", tmp_path).layout.family.reads_elsewhere


def test_a_scale_of_scores_is_no_router_bias(tmp_path: Path) -> None:
    variants = examined("scaled_scores", tmp_path).layout.family.sublayers["feed_forward"]
    assert all(variant.router_bias is None for variant in variants)


def test_a_type_of_an_installed_package_is_known_if_a_lock_pins_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_up_types-2.0.dist-info").mkdir()
    (tmp_path / "made_up_types-2.0.dist-info/METADATA").write_text("Name: made-up-types\nVersion: 2.0\n")
    (tmp_path / "made_up_types-2.0.dist-info/entry_points.txt").write_text("[excise.models]\nmade_up = made_up_types\n")
    (tmp_path / "made_up_types.py").write_text("imported = True\n")
    lock = tmp_path / "requirements-compute.lock"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("schemas.extensions.LOCK", lock)
    register_packages.cache_clear()
    with pytest.raises(StageError, match=r"does not pin; add made-up-types==2\.0"):
        register_packages()
    lock.write_text("made-up-types==2.0\n")
    register_packages()
    assert "made_up_types" in sys.modules
    with example("made_up") as folder:
        checkpoint = read_checkpoint(folder)
        found = examine(folder, checkpoint.tensors, checkpoint.files, "made_up")
    assert {writer.weight: writer.role for writer in writers(found)} == PLAIN
    register_packages.cache_clear()


def test_embeddings_of_positions_and_a_norm_behind_them_are_found(tmp_path: Path) -> None:
    family = examined("normed_positions", tmp_path).layout.family
    assert family.embeddings == ("table.weight",)
    assert [norm.weight for norm in family.embedding_norms] == ["table_norm.weight"]
    others = {embedding.weight: [norm.weight for norm in embedding.norms] for embedding in family.other_embeddings}
    assert others == {"places.weight": ["table_norm.weight"], "table_norm.bias": []}
    assert torch.get_default_dtype() == torch.float32  # given back
