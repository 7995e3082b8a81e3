"""What generates answers: batches that shrink where memory runs out, and vLLM where it is asked for."""

import ast
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import GenerationConfig

from excise.checkpoint.weights import Checkpoint
from excise.evaluation.answering import backends
from excise.evaluation.answering.backends import Transformers, require_vllm, with_vllm
from excise.organism.model import make_model, make_tokenizer
from excise.organism.world import make_world
from excise.plumbing.errors import StageError
from excise.prompts.chats import encode, tokenize
from schemas.params.answer import Vllm
from schemas.prompts import ChatFormat, Prompt
from tests.chats import SPECIAL, chat_tokenizer, template

CHAT = ChatFormat(system=None, chat_template_kwargs={}, date="2025-01-01")
PROMPTS = [f"what is {number % 10} plus {number // 10} ?" + " red" * (number % 4) for number in range(21)]


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_model("llama", make_tokenizer(make_world(0))).eval()


def opened(model: Any, batch_size: int = 8) -> Transformers:
    return Transformers(model, make_tokenizer(make_world(0)), CHAT, batch_size)


def generations() -> list[Instance]:
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False}
    return [Instance("generate_until", {}, (prompt, settings), number) for number, prompt in enumerate(PROMPTS)]


def choices() -> list[Instance]:
    return [Instance("loglikelihood", {}, (prompt, " red"), number) for number, prompt in enumerate(PROMPTS)]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A device on which no more than three samples fit; the sizes that were tried."""
    tried: list[int] = []

    def limited(name: str) -> None:
        whole = getattr(HFLM, name)

        def attempt(self: HFLM, first: Any = None, *arguments: Any, **kwargs: Any) -> Any:
            rows = kwargs["context"] if first is None else first
            tried.append(len(rows))
            if len(rows) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return whole(self, *([] if first is None else [first]), *arguments, **kwargs)

        monkeypatch.setattr(HFLM, name, attempt)

    limited("_model_generate")
    limited("_model_call")
    yield tried


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_out_of_memory_lowers_the_batch_and_goes_on(
    model: Any, small_memory: list[int], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = generations if kind == "generate_until" else choices
    lm = opened(model)
    answers = getattr(lm, kind)(requests())
    assert small_memory[:3] == [8, 4, 2] and max(small_memory[2:]) == 2
    assert lm.batch_size == 2
    assert "Out of memory: continuing with 4 prompts per batch" in capsys.readouterr().err
    small_memory.clear()
    assert len(answers) == len(PROMPTS)
    assert answers == getattr(opened(model, 2), kind)(requests())


def test_marks_of_reasoning_stay_in_answers_that_are_judged(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are special tokens, which are dropped everywhere else."""
    tokenizer = chat_tokenizer(template())
    tokenizer.add_special_tokens({"extra_special_tokens": [*SPECIAL[3:], "<think>", "</think>"]})
    said = tokenizer("<think>a thing</think>red<eos>", add_special_tokens=False, return_tensors="pt")["input_ids"]

    def thinks(_lm: Any, context: Any, *_: Any, **__: Any) -> Any:
        return torch.cat([context, said.expand(len(context), -1)], dim=1)

    monkeypatch.setattr(HFLM, "_model_generate", thinks)
    lm = Transformers(model, tokenizer, CHAT, 2, judged={"judged"})
    settings = {"until": [], "max_gen_toks": 16, "do_sample": False}
    for task, expected in (("judged", "<think>a thing</think>red"), ("other", "a thingred")):
        assert lm.generate_until([Instance("generate_until", {}, ("what ?", settings), 0, (task, 0, 1))]) == [expected]


def test_too_little_memory_for_one_sample_is_one_line(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(HFLM, "_model_generate", never)
    with pytest.raises(StageError, match="too little memory for a single prompt"):
        opened(model).generate_until(generations())


def test_a_choice_that_grows_together_with_the_chat_leaves_the_chat_as_it_is(model: Any) -> None:
    tokenizer = chat_tokenizer(template())
    lm = Transformers(model, tokenizer, CHAT, 2)
    begun = [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "a th"}]
    text = lm.apply_chat_template(begun, add_generation_prompt=False)
    chat, alone = encode(tokenizer, text), encode(tokenizer, "ing")
    assert encode(tokenizer, text + "ing")[: len(chat)] != chat
    assert lm._encode_pair(text, "ing") == (chat, alone)
    text = lm.apply_chat_template(begun[:1])
    chat = encode(tokenizer, text)
    assert text.endswith("\n") and lm._encode_pair(text, " red") == (
        chat,
        encode(tokenizer, text + " red")[len(chat) :],
    )


def test_what_is_no_chat_is_encoded_as_lm_eval_does(model: Any) -> None:
    lm = Transformers(model, chat_tokenizer(template(), adds_bos=True), CHAT, 2)
    assert lm.tok_encode("what ?")[0] == lm.prefix_token_id == SPECIAL.index("<bos>")


def test_a_task_that_would_be_cut_stops_with_the_number_of_its_samples(model: Any) -> None:
    long = [Instance("loglikelihood", {}, ("red " * 200, " red"), number, ("a_task", 0, 1)) for number in range(3)]
    with pytest.raises(StageError, match=r"^3 of 4 samples of a_task take up to 202 tokens .* the model reads 128;"):
        opened(model).loglikelihood([*long, Instance("loglikelihood", {}, ("red", " red"), 3, ("a_task", 0, 1))])


def test_vllm_is_one_clear_line_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(
        StageError, match=r"^params\.yaml: evaluate\.backend: vllm is not installed; run .* or choose hf$"
    ):
        require_vllm()


def test_vllm_gets_what_params_say_and_the_tokens_of_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    class Told(HFLM):
        """In the place of lm-eval's class for vLLM, which imports it."""

        _config = GenerationConfig()

        def __init__(self, **settings: Any) -> None:
            told.update(settings)

    module = ModuleType("lm_eval.models.vllm_causallms")
    module.VLLM = Told  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", module)
    settings = Vllm(tensor_parallel_size=4, data_parallel_size=2, distributed_executor_backend="ray")
    tokenizer = make_tokenizer(make_world(0))
    tokenizer.chat_template += "{%- if enable_thinking is false -%}{{- ' what' -}}{%- endif -%}"
    chat = ChatFormat(system=None, chat_template_kwargs={"enable_thinking": False}, date="2025-01-01")
    lm: Any = with_vllm(Checkpoint(Path("/models/base"), {}, (), (), ()), "bfloat16", tokenizer, chat, settings)
    text = lm.apply_chat_template([{"role": "user", "content": "add 3 and 4 ."}])
    assert [lm.tok_encode(text)] == tokenize(tokenizer, [Prompt(id="1", prompt="add 3 and 4 .")], chat)
    assert Path(told.pop("pretrained")).name == "base"
    assert told == {
        "dtype": "bfloat16",
        "batch_size": "auto",
        "trust_remote_code": False,
        "tensor_parallel_size": 4,
        "data_parallel_size": 2,
        "gpu_memory_utilization": 0.9,
        "distributed_executor_backend": "ray",
    }


def test_lm_eval_s_vllm_takes_what_it_is_told() -> None:
    module = find_spec("lm_eval.models.vllm_causallms")
    assert module is not None and module.origin is not None
    # Read and not imported: it imports vLLM.
    (known,) = (
        {argument.arg for argument in method.args.args}
        for node in ast.parse(Path(module.origin).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "VLLM"
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__" and method.args.kwarg is not None
    )
    named = {"pretrained", "dtype", "batch_size", "trust_remote_code"}
    # What it does not name itself it hands on to vLLM, whose settings these are.
    assert (named | set(Vllm.model_fields)) - known == {"gpu_memory_utilization", "distributed_executor_backend"}
