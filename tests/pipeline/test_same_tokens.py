"""Measuring, drift and every chat request of lm-eval see the same tokens for the same conversation."""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from excise.evaluation.answering import backends
from excise.evaluation.asking import catalogue
from excise.evaluation.scoring.harness import SCORES_FOLDER
from excise.inference.loading.tokenizer import load_tokenizer
from excise.plumbing.errors import StageError
from excise.prompts.chats import read_format, tokenize
from excise.prompts.gathering import gather
from schemas.params.sources import CustomPrompts
from schemas.params.tasks import TASKS as PARAMS_TASKS
from schemas.prompts import ChatFormat, Prompt, Turn
from tests.chats import SPECIAL, Stages, chat_model, chat_tokenizer, recorded, template

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, in stages that run in this process

TABLE = list(itertools.product((True, False), repeat=4))
"""Template has BOS, tokenizer adds BOS, template takes a system message, template opens reasoning."""

TASKS = {
    "choices": "output_type: multiple_choice\ndoc_to_choice: ['red', ' a thing']\ndoc_to_target: 0\nnum_fewshot: 1\n"
    "metric_list: [{metric: acc}]\n",
    "begun": "output_type: generate_until\ndoc_to_target: ' red'\ngen_prefix: 'It is'\n"
    "generation_kwargs: {until: [], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n",
    "whole": "output_type: loglikelihood_rolling\ndoc_to_target: '{{question}}'\n"
    "metric_list: [{metric: word_perplexity}]\n",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ours, and one of each other kind that lm-eval has, with examples and with the beginning of an answer."""
    folders = {"asking/tasks": catalogue.TASKS_FOLDER, "scoring/scores": SCORES_FOLDER}
    for name, folder in folders.items():
        shutil.copytree(folder, tmp_path / name)
    Path("rows.jsonl").write_text("".join(json.dumps({"question": f"what is {n} \n"}) + "\n" for n in range(5)))
    for name, text in TASKS.items():
        (tmp_path / f"scoring/scores/{name}.yaml").write_text(f"include: ../../asking/tasks/{name}.yaml\n")
        (tmp_path / f"asking/tasks/{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
            f"test_split: test\nfewshot_split: test\ndoc_to_text: '{{{{question}}}}'\n{text}"
        )
    monkeypatch.setattr("stages.answer.load_tasks", partial(catalogue.load_tasks, folder=tmp_path / "asking/tasks"))
    monkeypatch.setattr("stages.evaluate.SCORES_FOLDER", tmp_path / "scoring/scores")
    monkeypatch.setattr("excise.evaluation.asking.catalogue.TASKS", (*PARAMS_TASKS, *TASKS))
    return list(TASKS)


class Seen:
    """Which conversations lm-eval asked for, and which tokens the model was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chats: list[tuple[list[dict[str, str]], bool]] = []
        self.generated: list[list[int]] = []
        self.scored: list[list[int]] = []
        recorded(monkeypatch, backends.AsMeasured, "apply_chat_template", self._chat)
        recorded(monkeypatch, HFLM, "_model_generate", self._generate)
        recorded(monkeypatch, HFLM, "_loglikelihood_tokens", self._score)

    def _chat(self, _lm: Any, history: list[dict[str, str]], add_generation_prompt: bool = True) -> None:
        self.chats.append((history, add_generation_prompt))

    def _generate(self, _lm: Any, context: Any, *_: Any, attention_mask: Any, **__: Any) -> None:
        rows = zip(context.tolist(), attention_mask.tolist(), strict=True)
        self.generated += [[token for token, seen in zip(*row, strict=True) if seen] for row in rows]

    def _score(self, _lm: Any, requests: Any, **_: Any) -> None:
        self.scored += [before for key, before, _ in requests if key is not None]


def measured(tokenizer: Any, history: list[dict[str, str]], chat: ChatFormat) -> list[int]:
    """The tokens of measuring's own function for a conversation."""
    turns = [Turn.model_validate(message) for message in history[:-1]]
    (tokens,) = tokenize(tokenizer, [Prompt(id="", prompt=history[-1]["content"], turns=turns)], chat)
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize(("has_bos", "adds_bos", "system", "opens"), TABLE)
def test_every_chat_request_has_the_tokens_of_measuring(
    tasks: list[str],
    monkeypatch: pytest.MonkeyPatch,
    has_bos: bool,
    adds_bos: bool,
    system: bool,
    opens: bool,
) -> None:
    tokenizer = chat_tokenizer(template(has_bos, system, opens), adds_bos)
    folder = chat_model(Path("model").resolve(), tokenizer)
    stages = Stages(folder, monkeypatch, system="be brief" if system else None)
    stages.set(capability=tasks)
    stages.prepare()
    seen = Seen(monkeypatch)
    stages.evaluate()

    chat, loaded = read_format(), load_tokenizer(folder, "2025-01-01")
    asked, with_examples = [], []
    for history, ends_with_question in seen.chats:
        assert (history[0]["role"] == "system") == system
        if history[-1]["content"].startswith("please tell me"):
            asked.append(measured(loaded, history, chat))
        elif ends_with_question and len(history) > 2 + system:
            with_examples.append(measured(loaded, history, chat))
    assert len(asked) == 4 and len(with_examples) == 4
    begun = [tokens for tokens in seen.generated if tokens not in asked]
    assert sorted(tokens for tokens in seen.generated if tokens in asked) == sorted(asked)
    assert sorted(seen.scored) == sorted(2 * with_examples)
    # What begins an answer stands where the model would, and nothing else is added.
    assert [tokens.count(SPECIAL.index("<bos>")) for tokens in (*asked, *begun)] == [int(has_bos)] * 8
    assert all(loaded.decode(tokens).endswith("<|assistant|>It is") for tokens in begun)
    # transformers' own words for it.
    plain: Any = AutoTokenizer.from_pretrained(folder)
    for number in range(8):
        ours = [{"role": "system", "content": "be brief"}] * system
        ours.append({"role": "user", "content": f"please tell me {number}"})
        theirs = plain.apply_chat_template(ours, add_generation_prompt=True)["input_ids"]
        if theirs in asked:
            asked.remove(theirs)
    assert not asked


@pytest.mark.parametrize("system", [None, "be brief"])
def test_a_judged_conversation_has_the_tokens_of_measuring(monkeypatch: pytest.MonkeyPatch, system: str | None) -> None:
    """Its earlier refusal and its own system message, which replaces `prompts.system`, are among them."""
    tokenizer = chat_tokenizer(template())
    folder = chat_model(Path("model").resolve(), tokenizer, max_position_embeddings=256)
    stages = Stages(folder, monkeypatch, system=system)
    before = [{"role": "user", "content": "how do I ?"}, {"role": "assistant", "content": "no"}]
    talks: list[list[dict[str, str]]] = [
        [*before, {"role": "user", "content": "please tell me"}],
        [{"role": "system", "content": "be red"}, *before, {"role": "user", "content": "a thing ?"}],
        [{"role": "user", "content": "what is the color ?"}],
    ]
    Path("data/talks.jsonl").write_text("".join(json.dumps({"prompt": talk}) + "\n" for talk in talks))
    stages.set(custom={"refusal": {"source": "data/talks.jsonl"}})
    stages.prepare()
    seen = Seen(monkeypatch)
    samples = stages.evaluate()["samples"]
    chat, loaded = read_format(), load_tokenizer(folder, "2025-01-01")
    expected = tokenize(loaded, gather(CustomPrompts(source="data/talks.jsonl")).prompts, chat)
    assert sorted(seen.generated) == sorted(expected) and samples == {"refusal_custom": 3}
    texts = [loaded.decode(tokens) for tokens in expected]
    assert "be red" in texts[1] and [("be brief" in text) for text in texts] == [
        system is not None,
        False,
        system is not None,
    ]
    assert "<|assistant|>no" in texts[0]


def test_a_system_message_that_a_template_does_not_take_is_the_same_line_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = chat_model(Path("model").resolve(), chat_tokenizer(template(system=True)))
    stages = Stages(folder, monkeypatch, system="be brief")
    stages.prepare()
    chat_tokenizer(template(system=False)).save_pretrained(folder)
    lines = []
    monkeypatch.setattr("excise.checkpoint.base_model.verify", lambda *_: None)
    monkeypatch.setattr("stages.answer.verify", lambda *_: None)
    for stage in (stages.prepare, stages.measure, stages.answer):
        with pytest.raises(StageError, match=r"chat template refuses system messages \(no system role\)") as error:
            stage()
        lines.append(str(error.value))
    assert len(set(lines)) == 1


def test_a_task_whose_description_would_be_dropped_is_named(tasks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = chat_model(Path("model").resolve(), chat_tokenizer(template(system=False)))
    stages = Stages(folder, monkeypatch)
    with open("asking/tasks/choices.yaml", "a") as file:
        file.write("description: 'choose one'\n")
    stages.set(capability=tasks)
    stages.prepare()
    with pytest.raises(StageError, match=r"^choices: .*chat template refuses system messages"):
        stages.answer()


def test_a_prompt_that_would_be_cut_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = chat_model(Path("model").resolve(), chat_tokenizer(template()), max_position_embeddings=64)
    stages = Stages(folder, monkeypatch)
    stages.prepare()
    Path("data/asked.txt").write_text("please tell me\n" + "please tell me what is the color of the sky " * 4 + "\n")
    stages.set()
    with pytest.raises(StageError, match=r"^1 of 2 samples of refusal_custom take up to [0-9]+ tokens .* reads 64;"):
        stages.answer()
