"""A damaged checkpoint is one line; or what is measured and edited is that very model, as transformers loads it."""

import contextlib
import json
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging

from excise.checkpoint.weights import read_checkpoint
from excise.inference.loading.models import load_model
from excise.plumbing.errors import StageError
from schemas.model import ModelManifest
from schemas.params.document import parse, settings_of_stages
from stages import ablate, directions, measure, prepare
from tests import damaged
from tests.damaged import EXPERTS, INDEX, LAYERS, LINEAR, SINGLE, Tensors, build, configure, read_tensors, rewrite, save
from tests.projects import Project, copy_project

PARAMS = """
model: {{source: {folder}}}
prompts:
  harmful: {{source: data/one.jsonl, column: prompt}}
  harmless: {{source: data/two.jsonl, column: prompt}}
ablate: {{orthogonalize: none, rules: [{{layers: 1-2, measurement: 2}}]}}
"""
WRITER = re.compile(
    r"(?:^|\.)layers\.([12])\.(?:self_attn\.o_proj|linear_attn\.out_proj|mlp\.down_proj|mlp\.experts\.\d+\.down_proj)"
    r"\.weight$|(?:^|\.)layers\.([12])\.mlp\.experts\.down_proj$"
)
"""The oracle's own idea of what layers 1 and 2 write with."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the stages run, in this process."""
    (tmp_path / "project/data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(sys, "argv", ["stage"])
    for name, word in (("one", "make"), ("two", "see")):
        lines = [json.dumps({"prompt": f"how do I {word} a thing of kind {number}"}) for number in range(10)]
        Path(f"data/{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(folder: Path) -> None:
    """Prepare, measure and edit the model in a folder. Raises `StageError`."""
    for name, text in settings_of_stages(parse(PARAMS.format(folder=folder))).items():
        path = Path(f"artifacts/params/{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for stage in (prepare, measure, directions, ablate):
        stage.main()


def refused_in_prepare(folder: Path) -> str:
    """The one line by which a model is refused, before anything is measured."""
    shutil.rmtree("artifacts", ignore_errors=True)
    with pytest.raises(StageError) as caught:
        run(folder)
    assert not Path("artifacts/activations.safetensors").exists() and not Path("artifacts/model.json").exists()
    return one_line(caught.value)


def one_line(error: StageError) -> str:
    line = str(error)
    assert line.isprintable() and len(line) <= 400, f"{len(line)} characters: {line}"
    return line


def check_edited(folder: Path) -> None:
    """What was measured, and what was edited, is the model of the pinned files."""
    pinned = folder.parent / "pinned"
    shutil.rmtree(pinned, ignore_errors=True)
    manifest = ModelManifest.model_validate_json(Path("artifacts/model.json").read_text())
    for file in manifest.files:
        (pinned / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file.path, pinned / file.path)
    check_measured(pinned, manifest.dtype)

    before, after = read_tensors(pinned), read_tensors(Path("models/ablated"))
    assert before.keys() == after.keys()
    direction = load_file("artifacts/directions.safetensors")["directions"][2].numpy()
    edited = [name for name in before if WRITER.search(name) and "vision" not in name]
    assert len(edited) >= 4
    for name, tensor in before.items():
        expected = oracle(tensor, direction) if name in edited else tensor
        assert expected.dtype == after[name].dtype and torch.equal(expected, after[name]), name


def check_measured(pinned: Path, dtype: str) -> None:
    logging.disable_progress_bar()
    wrapped = AutoConfig.from_pretrained(pinned).model_type == "mistral3"
    auto: Any = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
    model, report = auto.from_pretrained(pinned, dtype=getattr(torch, dtype), output_loading_info=True)
    assert not any(report.values()), report
    prompt = json.loads(Path("artifacts/prompts/harmful.jsonl").read_text().splitlines()[0])["prompt"]
    encoded: Any = AutoTokenizer.from_pretrained(pinned).apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        states = model(**encoded, output_hidden_states=True, use_cache=False).hidden_states
    measured = load_file("artifacts/activations.safetensors")["harmful"]
    expected = states[2][0, -1].float()
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    assert torch.allclose(measured[0, 2].float(), expected, rtol=0, atol=tolerance * float(expected.norm()))


def oracle(tensor: torch.Tensor, direction: "np.ndarray[Any, Any]") -> torch.Tensor:
    """W - r (rᵀ W) in plain float64, of each matrix ``[out, in]``."""
    weight = tensor.double().numpy()
    written = np.einsum("o,...oi->...i", direction, weight)
    exact = torch.from_numpy(weight - direction[:, None] * written[..., None, :])
    return exact if tensor.dtype == torch.float64 else exact.float().to(tensor.dtype)


# Small inputs that failed once, and what is right for each.


def no_head(folder: Path) -> None:
    rewrite(save(build("llama"), folder), damaged.without("lm_head.weight"))


def no_writer(folder: Path) -> None:
    rewrite(save(build("llama"), folder), damaged.without("model.layers.0.self_attn.o_proj.weight"))


def no_final_norm(folder: Path) -> None:
    rewrite(save(build("llama"), folder), damaged.without("model.norm.weight"))


def no_bias_of_a_reader(folder: Path) -> None:
    rewrite(save(build("qwen2"), folder), damaged.without("model.layers.3.self_attn.k_proj.bias"))


def one_layer_too_many_in_config(folder: Path) -> None:
    configure(save(build("llama"), folder), num_hidden_layers=LAYERS + 1)


def one_layer_too_few_in_config(folder: Path) -> None:
    configure(save(build("llama"), folder), num_hidden_layers=LAYERS - 1)


def two_sets_of_names(folder: Path) -> None:
    def twice(tensors: Tensors) -> Tensors:
        bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        return tensors | {name: tensor for name, tensor in bare.items() if name.startswith("layers.")}

    rewrite(save(build("llama"), folder), twice)


def names_of_a_wrapper_beside(folder: Path) -> None:
    again = "language_model.model.layers.1.mlp.down_proj.weight"
    rewrite(save(build("llama"), folder), lambda tensors: tensors | {again: torch.ones(64, 64)})


def experts_fused_and_single(folder: Path) -> None:
    rewrite(save(build("qwen3_moe", **EXPERTS), folder), lambda tensors: tensors | damaged.fused(tensors))


def an_expert_short(folder: Path) -> None:
    name = "model.layers.3.mlp.experts.2.up_proj.weight"
    rewrite(save(build("qwen3_moe", **EXPERTS), folder), damaged.without(name))


def float8_without_scales(folder: Path) -> None:
    rewrite(
        save(build("llama"), folder),
        lambda tensors: {
            name: tensor.to(torch.float8_e4m3fn) if name.endswith("down_proj.weight") else tensor
            for name, tensor in tensors.items()
        },
    )


def int8_without_scales(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(save(build("llama"), folder), lambda tensors: tensors | {name: (tensors[name] * 100).to(torch.int8)})


def other_weights_by_config(folder: Path) -> None:
    configure(save(build("llama"), folder), transformers_weights="other.safetensors")


def another_config_by_version(folder: Path) -> None:
    configure(save(build("llama"), folder), configuration_files=["config.4.0.0.json"])


def an_adapter(folder: Path) -> None:
    save(build("llama"), folder)
    (folder / "adapter_config.json").write_text("{}")


def kernels_from_elsewhere(folder: Path) -> None:
    configure(save(build("llama"), folder), attn_implementation="kernels-community/flash-attn")


def one_expert_of_which_two_are_chosen(folder: Path) -> None:
    save(build("qwen3_moe", **{**EXPERTS, "num_experts": 1}), folder)


def a_billion_layers(folder: Path) -> None:
    configure(save(build("llama"), folder), num_hidden_layers=10**9)


def a_vocabulary_of_nothing(folder: Path) -> None:
    configure(save(build("llama"), folder), vocab_size=0)


def a_wrong_type(folder: Path) -> None:
    configure(save(build("llama"), folder), rms_norm_eps="small")


def a_tensor_that_has_no_place(folder: Path) -> None:
    rewrite(save(build("llama"), folder), lambda tensors: tensors | {"model.extra.weight": torch.ones(3)})


def quantised_under_a_name_of_its_own(folder: Path) -> None:
    configure(save(build("llama"), folder), quantization_config={"quant_method": "nvfp4"})


def tied_in_two_types(folder: Path) -> None:
    def twice(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].bfloat16()}

    rewrite(save(build("llama", tie_word_embeddings=True), folder), twice)


def an_encoder(folder: Path) -> None:
    configure(save(build("llama"), folder), is_encoder_decoder=True)


def an_end_that_is_a_text(folder: Path) -> None:
    save(build("llama"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": "</s>"}))


def a_folder_in_the_place_of_the_card(folder: Path) -> None:
    save(build("llama"), folder)
    (folder / "README.md").mkdir()
    (folder / "README.md/notes").write_text("notes")


def a_multiplier_that_is_no_number(folder: Path) -> None:
    save(build("granitemoe", num_local_experts=4, num_experts_per_tok=2), folder)
    configure(folder, residual_multiplier=float("nan"))


REFUSED: dict[Callable[[Path], None], str] = {
    no_head: "does not hold lm_head.weight",
    no_writer: "does not hold model.layers.0.self_attn.o_proj.weight",
    no_final_norm: "does not hold model.norm.weight",
    no_bias_of_a_reader: "does not hold model.layers.3.self_attn.k_proj.bias",
    one_layer_too_many_in_config: "does not hold model.layers.4.input_layernorm.weight",
    one_layer_too_few_in_config: "does not use model.layers.3.",
    two_sets_of_names: "two names of one tensor",
    names_of_a_wrapper_beside: "language_model.model.layers.1.mlp.down_proj.weight",
    experts_fused_and_single: "two names of one tensor",
    an_expert_short: "model.layers.3.mlp.experts.gate_up_proj",
    float8_without_scales: "model.layers.0.mlp.down_proj.weight is stored as F8_E4M3",
    int8_without_scales: "model.layers.0.mlp.up_proj.weight is stored as I8",
    other_weights_by_config: "transformers_weights",
    another_config_by_version: "configuration_files",
    an_adapter: "merge_and_unload",
    kernels_from_elsewhere: "kernels-community/flash-attn",
    one_expert_of_which_two_are_chosen: "num_experts_per_tok is 2 of 1 experts",
    a_billion_layers: "num_hidden_layers is 1000000000",
    a_vocabulary_of_nothing: "vocab_size is 0",
    a_wrong_type: "rms_norm_eps",
    a_tensor_that_has_no_place: "does not use model.extra.weight",
    quantised_under_a_name_of_its_own: "is quantized (nvfp4)",
    tied_in_two_types: "are tied and stored in two types",
    an_encoder: "has an encoder",
    an_end_that_is_a_text: "eos_token_id is '</s>'",
    a_folder_in_the_place_of_the_card: "rename the folder",
    a_multiplier_that_is_no_number: "residual_multiplier",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_cannot_be_edited_is_one_line_in_prepare(make: Callable[[Path], None], project: Path) -> None:
    make(project / "model")
    assert REFUSED[make] in refused_in_prepare(project / "model")


def test_a_model_that_is_refused_costs_nobody_the_organism(project: Path) -> None:
    Path("models/base").mkdir(parents=True)
    Path("models/base/model.safetensors").write_text("trained")
    no_head(project / "model")
    refused_in_prepare(project / "model")
    assert Path("models/base/model.safetensors").read_text() == "trained"


def test_answers_are_greedy_whatever_the_model_s_own_settings_say(project: Path) -> None:
    folder = save(build("llama"), project / "model")
    said = {"eos_token_id": [2, 3], "num_beams": 2, "num_return_sequences": 2, "repetition_penalty": 1.5}
    (folder / "generation_config.json").write_text(json.dumps(said))
    config = load_model(read_checkpoint(folder), "float32", torch.device("cpu")).generation_config
    assert config is not None and config.eos_token_id == [2, 3]
    assert (config.num_beams or 1, config.num_return_sequences or 1, config.repetition_penalty or 1.0) == (1, 1, 1.0)


def names_without_model(folder: Path) -> None:
    def bare(tensors: Tensors) -> Tensors:
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}

    rewrite(save(build("llama"), folder), bare)


def experts_fused(folder: Path) -> None:
    rewrite(save(build("qwen3_moe", **EXPERTS), folder), damaged.fused)


def tied_by_its_class(folder: Path) -> None:
    """Gemma ties embeddings and head where config.json does not say so."""
    save(build("gemma2"), folder)
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "tie_word_embeddings"}))


def mtp_beside(folder: Path) -> None:
    save(build("llama"), folder)
    save_file({"mtp.layers.0.weight": torch.ones(4, 4)}, folder / "mtp.safetensors")


def shards_beside_one_file(folder: Path) -> None:
    damaged.beside_shards(folder)


def dense_qwen3_5(folder: Path) -> None:
    save(build("qwen3_5_text", **LINEAR), folder)


def wrapper_of_mistral(folder: Path) -> None:
    save(damaged.build_wrapper(), folder)


@pytest.mark.parametrize(
    "make",
    [
        names_without_model,
        experts_fused,
        tied_by_its_class,
        mtp_beside,
        shards_beside_one_file,
        dense_qwen3_5,
        wrapper_of_mistral,
    ],
    ids=lambda make: make.__name__,
)
def test_an_unusual_checkpoint_is_measured_and_edited_as_transformers_loads_it(
    make: Callable[[Path], None], project: Path
) -> None:
    make(project / "model")
    run(project / "model")
    check_edited(project / "model")


def test_weights_beside_those_of_the_index_are_named_where_they_are_left_out(project: Path) -> None:
    mtp_beside(project / "model")
    run(project / "model")
    assert "mtp.safetensors" in Path("models/ablated/README.md").read_text()
    assert not Path("models/ablated/mtp.safetensors").exists()


def test_two_tied_tensors_are_edited_as_one_only_where_they_are_equal(project: Path) -> None:
    """transformers ties them only then."""
    folder = save(build("llama", tie_word_embeddings=True), project / "model")
    for head, tied in ((1.0, True), (2.0, False)):
        rewrite(
            folder,
            lambda tensors, head=head: (
                tensors
                | {  # type: ignore[misc]
                    "lm_head.weight": head * tensors["model.embed_tokens.weight"]
                }
            ),
        )
        run(folder)
        assert json.loads(Path("artifacts/layout.json").read_text())["tied"] is tied


# Damage at random.

KINDS = ("llama", "tied", "shards", "mixture", "wrapper")


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model of each kind."""
    folder: Path = tmp_path_factory.mktemp("sound")
    save(build("llama"), folder / "llama")
    save(build("llama", tie_word_embeddings=True), folder / "tied")
    save(build("llama"), folder / "shards", max_shard_size="100KB")
    save(build("qwen3_moe", **EXPERTS), folder / "mixture")
    save(damaged.build_wrapper(), folder / "wrapper")
    return folder


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Of one shard of the model, which the index follows."""
    index = folder / INDEX
    if not index.is_file():
        return rewrite(folder, change)
    named = json.loads(index.read_text())
    shard = sorted(set(named["weight_map"].values()))[1]
    tensors = change(load_file(folder / shard))
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / shard, {"format": "pt"})
    kept = {name: file for name, file in named["weight_map"].items() if file != shard}
    index.write_text(json.dumps({**named, "weight_map": kept | dict.fromkeys(tensors, shard)}))
    return None


def chosen(tensors: Tensors, number: int) -> str:
    return sorted(tensors)[number % len(tensors)]


def drop(folder: Path, one: int, _other: int) -> None:
    change_tensors(folder, lambda tensors: {name: t for name, t in tensors.items() if name != chosen(tensors, one)})


def duplicate(folder: Path, one: int, other: int) -> None:
    def change(tensors: Tensors) -> Tensors:
        name = chosen(tensors, one)
        names = (
            name.removeprefix("model."),
            f"model.{name}",
            f"language_model.{name}",
            f"{name}.copy",
            chosen(tensors, other),
        )
        return tensors | {names[other % len(names)]: tensors[name]}

    change_tensors(folder, change)


def rename(folder: Path, one: int, other: int) -> None:
    def change(tensors: Tensors) -> Tensors:
        name, twin = chosen(tensors, one), chosen(tensors, other)
        swaps = ({name: twin, twin: name}, {name: f"{name}_"}, {each: each.removeprefix("model.") for each in tensors})
        swap = swaps[other % len(swaps)]
        return {swap.get(each, each): tensor for each, tensor in tensors.items()}

    change_tensors(folder, change)


def reshape(folder: Path, one: int, other: int) -> None:
    def change(tensors: Tensors) -> Tensors:
        name = chosen(tensors, one)
        tensor = tensors[name]
        shapes = (
            tensor.reshape(-1),
            tensor[:-1],
            tensor.t() if tensor.ndim == 2 else tensor[None],
            tensor[:0],
            tensor[None],
        )
        return tensors | {name: shapes[other % len(shapes)]}

    change_tensors(folder, change)


def retype(folder: Path, one: int, other: int) -> None:
    types = (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.float8_e4m3fn, torch.bool, torch.int64)
    change_tensors(
        folder, lambda tensors: tensors | {(name := chosen(tensors, one)): tensors[name].to(types[other % len(types)])}
    )


def add_weights(folder: Path, one: int, other: int) -> None:
    tensors = {name: tensor + 1 for name, tensor in list(read_tensors(folder).items())[: one % 5 + 1]}
    names = (SINGLE, "mtp.safetensors", "consolidated.safetensors", "pytorch_model.bin", "adapter_model.safetensors")
    name = names[other % len(names)]
    if not (folder / name).exists():
        save_file(tensors, folder / name, {"format": "pt"})


def set_config(folder: Path, one: int, other: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    part = config["text_config"] if "text_config" in config and one % 2 else config
    key = sorted(part)[one // 2 % len(part)]
    value = part[key]
    values: list[Any] = [None, 0, -1, 1, 3, 10**12, "text", [], {}, True, 0.5]
    if isinstance(value, bool):
        values += [not value] * 3
    elif isinstance(value, int):
        values += [value + 1, value * 2, value - 1, value // 2]
    part[key] = values[other % len(values)]
    if other % 7 == 0:
        del part[key]
    (folder / "config.json").write_text(json.dumps(config))


DAMAGES = (drop, duplicate, rename, reshape, retype, add_weights, set_config, set_config)
NUMBER = st.integers(0, 10_000)
CHANGES = st.lists(st.tuples(st.sampled_from(DAMAGES), NUMBER, NUMBER), min_size=1, max_size=2)
DAMAGE = st.tuples(st.sampled_from(KINDS), CHANGES)

Damage = tuple[str, list[tuple[Callable[[Path, int, int], None], int, int]]]


def damage(sound: Path, folder: Path, drawn: Damage) -> None:
    """A damaged copy of a sound model."""
    kind, changes = drawn
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound / kind, folder)
    for change, one, other in changes:
        with contextlib.suppress(KeyError, ValueError, RuntimeError, IndexError):  # nothing more is there to be damaged
            change(folder, one, other)


def damages(project: Path, sound: Path, examples: int) -> Counter[str]:
    """Run so many damaged models through the stages; how many were refused, and how many edited."""
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGE)
    def property(drawn: Damage) -> None:
        damage(sound, project / "model", drawn)
        shutil.rmtree("artifacts", ignore_errors=True)
        shutil.rmtree("models/ablated", ignore_errors=True)
        try:
            run(project / "model")
        except StageError as error:
            one_line(error)
            assert not Path("models/ablated").exists()
            outcomes["refused"] += 1
        else:
            check_edited(project / "model")
            outcomes["edited"] += 1

    property()
    return outcomes


@pytest.mark.slow
def test_a_damaged_model_is_one_line_or_edited_exactly(project: Path, sound: Path) -> None:
    outcomes = damages(project, sound, 25)
    assert outcomes["refused"] >= 5 and outcomes["edited"] >= 3, outcomes


@pytest.mark.nightly
def test_two_hundred_damaged_models_are_one_line_or_edited_exactly(project: Path, sound: Path) -> None:
    outcomes = damages(project, sound, 250)
    print(outcomes)
    assert outcomes["refused"] >= 50 and outcomes["edited"] >= 30, outcomes


def through_dvc(project: Project, sound: Path, seed: int) -> str:
    """What came of a damaged model through `dvc repro`, up to its edit."""
    folder = project.folder.parent / f"model-{seed}"
    (project.folder / "params.yaml").write_text(PARAMS.format(folder=folder))
    draw = random.Random(seed)
    change = draw.choice(DAMAGES)
    damage(sound, folder, (draw.choice(KINDS), [(change, draw.randrange(10_000), draw.randrange(10_000))]))
    done = project.run("dvc", "repro", "ablate")
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    if done.returncode == 0:
        check_edited(folder)
        return "edited"
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("ERROR: ") and "failed to" not in line)
    assert len(line) <= 400 + len("ERROR: ")
    return "refused"


@pytest.mark.nightly
def test_ten_damaged_models_are_so_through_dvc(
    project: Path, sound: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = copy_project(tmp_path_factory.mktemp("dvc") / "project")
    made.check("dvc", "config", "--local", "cache.dir", str(made.folder.parent / "cache"))
    shutil.copytree("data", made.folder / "data", dirs_exist_ok=True)
    monkeypatch.chdir(made.folder)
    outcomes = Counter(through_dvc(made, sound, seed) for seed in range(10))
    assert outcomes["refused"] >= 2 and outcomes["edited"] >= 2, outcomes
