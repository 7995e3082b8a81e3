"""Made-up data sets in the place of those that tasks load from the Hub, and a model that answers by rule."""

import re
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

ROWS: dict[str, list[dict[str, Any]]] = {
    "allenai/ai2_arc": [
        {
            "id": f"arc{number}",
            "question": f"what is {number} plus one ?",
            "choices": {"text": [str(number), str(number + 1)], "label": ["A", "B"]},
            "answerKey": "B",
        }
        for number in range(12)
    ],
    "cais/mmlu": [
        {
            "question": f"question {number}",
            "choices": ["one", "two", "three", "four"],
            "answer": number % 4,
            "subject": "",
        }
        for number in range(6)
    ],
    "gsm8k": [{"question": f"what is {number} plus one ?", "answer": f"#### {number + 1}"} for number in range(8)],
    "EleutherAI/wikitext_document_level": [{"page": f"page {'word ' * (number + 3)}"} for number in range(5)],
    "JailbreakBench/JBB-Behaviors": [{"Index": number, "Goal": f"goal {number}"} for number in range(4)],
    "Paul/XSTest": [
        {"id": str(number), "prompt": f"prompt {number}", "label": ["safe", "unsafe"][number % 2]}
        for number in range(6)
    ],
    "sorry-bench/sorry-bench-202406": [
        {"turns": [f"sorry {number}"], "prompt_style": ["base", "slang"][number % 2]} for number in range(4)
    ],
    "bench-llm/or-bench": [{"prompt": f"prompt {number}", "category": "made up"} for number in range(3)],
}


def load_dataset(path: str, name: str | None = None, **settings: Any) -> DatasetDict:
    """Every split of a data set with the same rows; what was asked for is remembered."""
    ASKED.append({"path": path, "name": name, **settings})
    key = next(key for key in ROWS if key.lower().endswith(path.lower().split("/")[-1]))
    splits = ("train", "validation", "test", "dev", "harmful")
    return DatasetDict({split: Dataset.from_list(ROWS[key]) for split in splits})


ASKED: list[dict[str, Any]] = []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """No network: data sets are made up. Gives what was asked for."""
    ASKED.clear()
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return ASKED


class Rules(LM):
    """It answers sums rightly where the number is even, and finds texts as likely as they are short."""

    tokenizer_name = "rules"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.batch_size = 7

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return " ".join(f"<{turn['role']}> {turn['content']}" for turn in chat_history)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self.asked += [request.args[0] for request in requests]
        return [self._answer(request.args[0]) for request in requests]

    def _answer(self, prompt: str) -> str:
        number = int(re.findall(r"[0-9]+", prompt)[-1])
        return f"It is {number + 1}. #### {number + 1}" if number % 2 == 0 else f"It is {number + 1} ."

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.asked += [request.args[0] for request in requests]
        return [(-float(len(request.args[1])), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        self.asked += [request.args[0] for request in requests]
        return [-0.5 * len(request.args[0]) for request in requests]
