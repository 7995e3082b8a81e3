"""What generates the answers: transformers or vLLM, both through lm-eval."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from schemas.artifacts import ChatFormat
from schemas.params import Vllm
from stages.base.day import all_dated
from stages.base.forward import OUT_OF_MEMORY
from stages.base.progress import progress
from stages.base.stage import StageError


class Transformers(HFLM):
    """lm-eval's own, with batches that shrink where memory runs out, and our progress in the place of its bar."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._in_smaller_batches(super().generate_until, requests)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._in_smaller_batches(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._in_smaller_batches(super().loglikelihood_rolling, requests)

    def _in_smaller_batches(self, ask: Callable[..., list[Any]], requests: list[Instance]) -> list[Any]:
        # lm-eval asks the longest first, so memory that is too small shows at once.
        while True:
            try:
                with progress("Ask", len(requests), "samples") as self._advance:
                    return ask(requests, disable_tqdm=True)
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise StageError(OUT_OF_MEMORY) from None
            self.batch_size_per_gpu = (self.batch_size + 1) // 2
            print(f"Out of memory: going on with {self.batch_size} samples a batch", file=sys.stderr)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
        generated = super()._model_generate(context, max_length, stop, **kwargs)
        self._advance(len(context))
        return generated

    def _model_call(self, inps: Any, *arguments: Any, **kwargs: Any) -> Any:
        logits = super()._model_call(inps, *arguments, **kwargs)
        self._advance(len(inps))
        return logits


def with_transformers(model: PreTrainedModel, tokenizer: Any, chat: ChatFormat, batch_size: int) -> Transformers:
    """A model that is loaded already, for lm-eval; `batch_size` is what it begins with."""
    return Transformers(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        chat_template_args=dict(chat.chat_template_kwargs),
    )


def require_vllm() -> None:
    """Check that vLLM is installed.

    Raises:
        StageError: it is not.
    """
    if find_spec("vllm") is None:
        raise StageError(
            "params.yaml: evaluate.backend: vllm is not installed; run `.venv/bin/pip install vllm`, or choose hf"
        )


def with_vllm(folder: Path, dtype: str, chat: ChatFormat, settings: Vllm) -> LM:
    """The model in `folder`, loaded by vLLM, for lm-eval; it makes its own batches.

    Raises:
        StageError: vLLM cannot load it.
    """
    from lm_eval.models.vllm_causallms import VLLM

    try:
        lm = VLLM(
            pretrained=str(folder),
            dtype=dtype,
            batch_size="auto",
            chat_template_args=dict(chat.chat_template_kwargs),
            trust_remote_code=False,
            **settings.model_dump(exclude_none=True),
        )
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        raise StageError(f"vLLM cannot load {folder}: {error}") from None
    # It has a tokenizer of its own.
    lm.hf_chat_template = all_dated(lm.hf_chat_template or lm.tokenizer.chat_template, chat.date)
    return lm
