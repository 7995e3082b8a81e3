"""Tiny chat models whose tokenizers and templates differ in what they add, and a project in which stages ask them."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from schemas.params.document import load, settings_of_stages
from stages import ablate, answer, directions, evaluate, measure, prepare
from tests.projects import ROOT

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 320
NAMED = {"pad_token": "<pad>", "eos_token": "<eos>"}
REFUSES_SYSTEM = "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('no system role') -}}{%- endif -%}"
TURNS = "{%- for m in messages -%}{{- '<|' + m['role'] + '|>' + m['content'] + '\n' -}}{%- endfor -%}"
ANSWER = "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}"
"""The turn to answer ends with white space, as those of most models do."""


def template(bos: bool = True, system: bool = True, opens: bool = False) -> str:
    """A chat template: whether it begins with BOS, takes a system message, and opens a block of reasoning."""
    answer = ANSWER.replace("|>\n", "|>\n<think>\n") if opens else ANSWER
    return ("{{- bos_token -}}" if bos else "") + ("" if system else REFUSES_SYSTEM) + TURNS + answer


@functools.cache
def _words() -> str:
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(["how do I make a thing please tell me", "what is the color of the sky\n red"], trainer)
    return str(words.to_str())


def chat_tokenizer(
    chat_template: str, adds_bos: bool = False, named: dict[str, str] = NAMED
) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and a few words.

    Args:
        adds_bos: whether it puts BOS before plain text by itself.
        named: its special tokens but BOS.
    """
    words = Tokenizer.from_str(_words())
    if adds_bos:
        words.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        extra_special_tokens=SPECIAL[3:],
        clean_up_tokenization_spaces=False,
        bos_token="<bos>",
        chat_template=chat_template,
        **named,
    )


def chat_model(folder: Path, tokenizer: PreTrainedTokenizerFast, **config: Any) -> Path:
    """A random model for such a tokenizer, in a folder."""
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "max_position_embeddings": 128,
        }
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        given = {**sizes, **tokens, "vocab_size": VOCABULARY, "num_attention_heads": 2, **config}
        LlamaForCausalLM(LlamaConfig(**given)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Stages:
    """The stages of a project of one's own, in this process and the current folder, which asks 6 + 6 prompts of a
    model."""

    def __init__(self, model: Path, monkeypatch: pytest.MonkeyPatch, **prompts: Any) -> None:
        self._monkeypatch = monkeypatch
        lines = {"harmful": "how do I make thing {} ?", "harmless": "what is color {} ?", "asked": "please tell me {}"}
        for name in ("dvc.yaml", "excise", "schemas", "stages"):  # what a stage depends on
            Path(name).symlink_to(ROOT / name)
        for name, text in lines.items():
            Path("data").mkdir(exist_ok=True)
            Path(f"data/{name}.txt").write_text("".join(text.format(number) + "\n" for number in range(8)))
        self._params: dict[str, Any] = {
            "model": {"source": str(model), "dtype": "float32", "device": "cpu"},
            "prompts": {**{name: {"source": f"data/{name}.txt"} for name in ("harmful", "harmless")}, **prompts},
            "ablate": {"rules": [{"layers": "all", "measurement": 1}]},
            "evaluate": {
                "refusal": ["refusal_custom"],
                "over_refusal": [],
                "capability": [],
                "custom": {"refusal": {"source": "data/asked.txt"}},
                "limit": 4,
            },
            "gates": [],
        }
        self.set()

    def set(self, **evaluate: Any) -> None:
        """Settings of `evaluate`, and the stage that reads params.yaml."""
        self._params["evaluate"] = {**self._params["evaluate"], **evaluate}
        Path("params.yaml").write_text(json.dumps(self._params))
        Path("artifacts/params").mkdir(parents=True, exist_ok=True)
        for name, text in settings_of_stages(load(Path("params.yaml"))).items():
            Path(f"artifacts/params/{name}.json").write_text(text)

    def prepare(self) -> None:
        prepare.main()

    def measure(self) -> None:
        measure.main()
        directions.main()

    def ablate(self) -> None:
        self._monkeypatch.setattr(sys, "argv", ["ablate"])
        ablate.main()

    def answer(self, side: str = "base") -> None:
        self._monkeypatch.setattr(sys, "argv", ["answer", side])
        answer.main()

    def evaluate(self, side: str = "base") -> dict[str, Any]:
        """Its results, of answers that are generated first."""
        self.answer(side)
        self._monkeypatch.setattr(sys, "argv", ["evaluate", side])
        evaluate.main()
        return dict(json.loads(Path(f"results/{side}/results.json").read_text()))


def recorded(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, record: Callable[..., None]) -> None:
    """Let a method tell what it was given, and go on."""
    method = getattr(owner, name)

    def telling(*arguments: Any, **kwargs: Any) -> Any:
        record(*arguments, **kwargs)
        return method(*arguments, **kwargs)

    monkeypatch.setattr(owner, name, telling)
