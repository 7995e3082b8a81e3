"""What generates the answers: transformers or vLLM, both through lm-eval."""

import copy
from array import array
from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from excise.checkpoint.weights import Checkpoint
from excise.inference.forward import smaller
from excise.inference.loading.models import exactly
from excise.inference.loading.tokenizer import end_ids, padding_id
from excise.plumbing.errors import StageError
from excise.plumbing.private.lm_eval import config_of, generation_settings
from excise.plumbing.progress import progress
from excise.prompts.chats import encode, render
from excise.prompts.reasoning import decode_with_marks
from schemas.params.answer import Vllm
from schemas.prompts import ChatFormat


class AsMeasured(TemplateLM):
    """A model of lm-eval that renders and encodes chats as measuring does. lm-eval itself drops a system message that a
    template refuses, lets the tokenizer add special tokens to a rendered chat, moves white space from a chat's end to
    the continuation that is scored, and cuts the beginning of long texts."""

    max_length: int
    max_gen_toks: int
    _task: str | None = None

    def set_chats(self, tokenizer: Any, chat: ChatFormat, ends: list[int]) -> None:
        """Set the tokenizer, the format of chats, and the tokens that end answers."""
        self.tokenizer, self._format, self._ends = tokenizer, chat, ends
        self._tokens: dict[str, array[int]] = {}  # of each rendered chat, by its text

    @property
    def eot_token_id(self) -> Any:
        return next((token for token in (self.tokenizer.eos_token_id, *self._ends) if token is not None), None)

    @property
    def prefix_token_id(self) -> int:
        """The first token of texts that are not chats."""
        known = (self.tokenizer.bos_token_id, self.eot_token_id, padding_id(self.tokenizer, self._ends))
        return next(token for token in known if token is not None)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = render(self.tokenizer, chat_history, self._format, begun=not add_generation_prompt)
        self._tokens[text] = array("I", encode(self.tokenizer, text))
        return text

    def tok_encode(self, string: Any, add_special_tokens: bool | None = None, **kwargs: Any) -> Any:
        if not isinstance(string, str):
            return [self.tok_encode(each, add_special_tokens, **kwargs) for each in string]
        known = self._tokens.get(string)
        return super().tok_encode(string, add_special_tokens, **kwargs) if known is None else known.tolist()

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context not in self._tokens:
            return super()._encode_pair(context, continuation)
        before = self.tok_encode(context)
        whole = encode(self.tokenizer, context + continuation)
        # If a token would span the boundary, the chat's tokens stay unchanged.
        separable = whole[: len(before)] == before and len(whole) > len(before)
        return before, whole[len(before) :] if separable else encode(self.tokenizer, continuation)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self._task = requests[0].task_name
        asked = ((each.args[0], generation_settings(each.args[1], self.max_gen_toks)) for each in requests)
        self._refuse_long([len(self.tok_encode(text)) + settings["max_gen_toks"] for text, settings in asked])
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._task = requests[0].task_name
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        # One more, because vLLM always generates a token. Windows of a long text, which fit, have no key.
        self._refuse_long([len(before) + len(after) + 1 for key, before, after in requests if key is not None])
        return super()._loglikelihood_tokens(requests, *arguments, **kwargs)

    def _refuse_long(self, lengths: list[int]) -> None:
        """Raises `StageError`: a prompt with its answer is longer than the model's context."""
        if too_long := [length for length in lengths if length > self.max_length]:
            raise StageError(
                f"{len(too_long)} of {len(lengths)} samples of {self._task} take up to {max(too_long):,} tokens with "
                f"their answers, but the model reads {self.max_length:,}; leave out the task or these prompts, because "
                "lm-eval would cut their beginnings"
            )


class Transformers(AsMeasured, HFLM):
    """lm-eval's Hugging Face model, with batches that shrink on out-of-memory, and our own progress."""

    _judged: frozenset[str] = frozenset()

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, chat: ChatFormat, batch_size: int, judged: Collection[str] = ()
    ) -> None:
        """`judged`: the tasks in whose answers marks of reasoning stay, so that it can be cut before they are judged.
        (vLLM keeps all special tokens.)"""
        # A copy, because lm-eval adds a missing padding token, which templates could see.
        super().__init__(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
        self.set_chats(tokenizer, chat, end_ids(tokenizer, model.generation_config))
        self._judged = frozenset(judged)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> Any:
        if tokens is None:  # lm-eval decodes the token that ends answers, which not every model has
            return None
        if skip_special_tokens and self._task in self._judged:
            return decode_with_marks(self.tokenizer, tokens)
        return super().tok_decode(tokens, skip_special_tokens)

    def tok_batch_encode(
        self, strings: Any, padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, padding = self.tok_encode(strings), padding_id(self.tokenizer, self._ends)
        width = max(map(len, rows))
        ids = torch.tensor([[padding] * (width - len(row)) + row for row in rows])
        return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._in_smaller_batches(super().generate_until, requests)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._in_smaller_batches(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._in_smaller_batches(super().loglikelihood_rolling, requests)

    def _in_smaller_batches(self, ask: Callable[..., list[Any]], requests: list[Instance]) -> list[Any]:
        # lm-eval asks the longest first, so too little memory shows at once.
        while True:
            try:
                with progress("Ask", len(requests), "samples") as self._advance:
                    return ask(requests, disable_tqdm=True)
            except RuntimeError as error:
                self.batch_size_per_gpu = smaller(self.batch_size, error, "continuing")

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
        generated = super()._model_generate(context, max_length, stop, **kwargs)
        self._advance(len(context))
        return generated

    def _model_call(self, inps: Any, *arguments: Any, **kwargs: Any) -> Any:
        logits = super()._model_call(inps, *arguments, **kwargs)
        self._advance(len(inps))
        return logits


def require_vllm() -> None:
    """Raises `StageError`: vLLM is not installed."""
    if find_spec("vllm") is None:
        raise StageError(
            "params.yaml: evaluate.backend: vllm is not installed; run `.venv/bin/pip install vllm`, or choose hf"
        )


def with_vllm(checkpoint: Checkpoint, dtype: str, tokenizer: Any, chat: ChatFormat, settings: Vllm) -> LM:
    """A checkpoint for lm-eval, loaded by vLLM, which makes its own batches. Raises `StageError`: loading fails."""
    from lm_eval.models.vllm_causallms import VLLM

    class OnVllm(AsMeasured, VLLM):
        """lm-eval's vLLM model, which passes tokens and not text."""

    try:
        with exactly(checkpoint) as folder:
            lm = OnVllm(
                pretrained=str(folder),
                dtype=dtype,
                batch_size="auto",
                trust_remote_code=False,
                **settings.model_dump(exclude_none=True),
            )
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        raise StageError(f"vLLM cannot load {checkpoint.folder}: {error}") from None
    lm.set_chats(tokenizer, chat, end_ids(tokenizer, config_of(lm)))
    if lm.eot_token_id is None:
        raise StageError(
            f"{checkpoint.folder} names no token that ends answers, which lm-eval needs for vLLM; choose hf"
        )
    return lm
