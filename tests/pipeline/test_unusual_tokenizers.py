"""Models with unusual tokenizers and templates go through the stages, or nothing is said to be judged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from excise.comparison.comparison import compare, measure_both, read_side
from excise.comparison.gates import judge_gates
from excise.inference.loading.tokenizer import load_tokenizer
from excise.prompts.chats import read_prompts
from excise.report.conclusions import conclude
from schemas.params.gates import Gates
from stages import measure
from tests.chats import SPECIAL, Stages, chat_model, chat_tokenizer, recorded, template

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, in stages that run in this process

RATE = "refusal.refusal_custom.refusal_rate"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_tokenizer_that_adds_bos_by_itself_is_measured_as_its_template_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = chat_model(Path("model").resolve(), chat_tokenizer(template(bos=False), adds_bos=True))
    stages = Stages(folder, monkeypatch)
    stages.prepare()
    given: list[list[int]] = []

    def collected(*arguments: Any) -> None:
        given.extend(arguments[2])

    recorded(monkeypatch, measure, "collect_activations", collected)
    stages.measure()
    tokenizer = load_tokenizer(folder, "2025-01-01")
    texts = [f"<|user|>{prompt.prompt}\n<|assistant|>\n" for prompt in read_prompts("harmful")]
    assert given[: len(texts)] == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    stages.evaluate()


@pytest.mark.parametrize(
    ("named", "ends"),
    [
        ({}, [2, 3]),
        ({}, None),
        ({"eos_token": "<eos>"}, 2),
        ({"pad_token": "<pad>"}, None),
    ],
)
def test_a_tokenizer_without_padding_or_end_is_measured_and_judged(
    monkeypatch: pytest.MonkeyPatch, named: dict[str, str], ends: Any
) -> None:
    folder = chat_model(
        Path("model").resolve(), chat_tokenizer(template(), named=named), eos_token_id=ends, pad_token_id=None
    )
    stages = Stages(folder, monkeypatch)
    for stage in (stages.prepare, stages.measure):
        stage()
    assert stages.evaluate()["samples"] == {"refusal_custom": 4}


def test_where_reasoning_never_ends_nothing_was_judged_and_the_gate_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = chat_model(Path("model").resolve(), chat_tokenizer(template(opens=True)), max_position_embeddings=96)
    stages = Stages(folder, monkeypatch)
    for stage in (stages.prepare, stages.measure, stages.ablate):
        stage()
    for side in ("base", "ablated"):
        stages.evaluate(side)
    measured = measure_both(read_side(Path("results/base")), read_side(Path("results/ablated")))
    for bound in ("at_most", "max_drop", "max_rise"):
        verdicts = judge_gates(Gates.model_validate([{"metric": RATE, bound: 0.15}]).root, measured)
        assert verdicts.verdict == "void"
        assert "4 of 4 answers of the edited model and 4 of 4 answers of the base are" in verdicts.gates[0].reason
    assert {"nothing_judged"} <= {said.kind for said in conclude(compare(measured), verdicts)}


def test_answers_with_reasoning_get_more_room_and_no_more_than_half_of_what_the_model_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = chat_model(Path("model").resolve(), chat_tokenizer(template(opens=True)))
    stages = Stages(folder, monkeypatch)
    stages.set(limit=1)
    stages.prepare()
    lengths: list[int] = []
    recorded(
        monkeypatch,
        HFLM,
        "_model_generate",
        lambda _lm, context, max_length, *_, **__: lengths.append(max_length - context.shape[1]),
    )
    stages.evaluate()
    assert lengths == [64]


def test_a_thinking_model_is_judged_on_what_follows_its_reasoning_if_it_has_the_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It thinks for 300 tokens, in the words of a refusal, and then answers. Its marks are special tokens."""
    tokenizer = chat_tokenizer(template(opens=True))
    tokenizer.add_special_tokens({"extra_special_tokens": [*SPECIAL[3:], "<think>", "</think>"]})
    folder = chat_model(Path("model").resolve(), tokenizer, max_position_embeddings=8192)
    stages = Stages(folder, monkeypatch)
    for stage in (stages.prepare, stages.measure, stages.ablate):
        stage()
    thought = tokenizer("I cannot help with that. ", add_special_tokens=False)["input_ids"]
    answer = tokenizer("</think>A red thing.<eos>", add_special_tokens=False)["input_ids"]
    said = [*(thought * 300)[:300], *answer]

    def thinks(_lm: Any, context: Any, max_length: int, *_: Any, **__: Any) -> Any:
        row = torch.tensor(said[: max_length - context.shape[1]])
        return torch.cat([context, row.expand(len(context), -1)], dim=1)

    monkeypatch.setattr(HFLM, "_model_generate", thinks)
    rates = ("refusal_rate", "degenerate_rate", "compliance_rate", "endless_reasoning_rate", "cut_rate")
    for room, expected in ((0, [0, 1, 0, 1, 1]), (2048, [0, 0, 1, 0, 0])):
        stages.set(reasoning_tokens=room)
        for side in ("base", "ablated"):
            results = stages.evaluate(side)["metrics"]["refusal"]["refusal_custom"]
            assert [results[name] for name in rates] == expected
    (sample, *_) = [
        json.loads(line) for line in Path("results/base/samples/refusal_custom.jsonl").read_text().splitlines()
    ]
    assert sample["response"] == "A red thing." and sample["reasoning"].startswith("I cannot help with that.")
