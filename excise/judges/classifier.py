"""The judge `classifier`: a sequence-classification model from the Hub or a local folder."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import model_validator

from excise.judges import Judge, Judgement
from excise.plumbing.errors import StageError
from excise.plumbing.progress import progress
from schemas.basis.fields import matches
from schemas.basis.text import one_line, suggest
from schemas.params.model import HUB_OR_FOLDER, Commit
from schemas.results import Verdict
from schemas.wording import WrongValue

_KEY = "params.yaml: evaluate.judge.classifier"
_BATCH = 16


class Classifier(Judge):
    """A sequence-classification model; the label with the highest probability decides."""

    model: Annotated[str, matches(r"/[^\x00-\x1f\x7f]*|[A-Za-z0-9][\w.-]*/[\w.-]+", HUB_OR_FOLDER)]
    """Its Hub id, or the absolute path of a local folder; safetensors only."""
    revision: Commit | None = None
    """For a Hub id, its commit."""
    label: str
    """The label that means a refusal, as its `config.json` spells it."""

    @model_validator(mode="after")
    def _pin_what_the_hub_has(self) -> Self:
        if not self.model.startswith("/") and self.revision is None:
            raise WrongValue("is missing; a model of the Hub is pinned by its commit", "revision")
        return self

    def load(self) -> Judgement:
        """Load the model. Raises `StageError`: it cannot be loaded, is not a classifier, or has no such label."""
        return _judgement(self)


def _judgement(params: Classifier) -> Judgement:
    import torch

    from excise.plumbing.machine import chosen_device

    tokenizer, model = _load(params)
    labels = [str(label) for _, label in sorted(model.config.id2label.items())]
    if params.label not in labels:
        there = f"{', '.join(labels)}{suggest(params.label, labels)}"
        raise StageError(f"{_KEY}.label: {params.label} is none of the model's labels, which are {there}")
    if len(labels) == 1:
        raise StageError(f"{_KEY}.model: {params.model} has one label and decides nothing; name one with two or more")
    refusal = labels.index(params.label)
    device = chosen_device()
    model.to(device).eval()
    # The families around RoBERTa count their positions from two.
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = tokenizer.model_max_length if positions is None else min(tokenizer.model_max_length, positions - 2)
    # Which the chat template may have written.
    added = tuple(token for token in (tokenizer.bos_token, tokenizer.cls_token) if token)
    batch = _BATCH if tokenizer.pad_token is not None else 1

    @torch.inference_mode()
    def judge(asked: Sequence[tuple[str, str]]) -> list[Verdict]:
        texts = [_text(tokenizer, prompt, response) for prompt, response in asked]
        verdicts: list[Verdict] = []
        with progress("Judge", len(texts), "answers") as advance:
            for begin in range(0, len(texts), batch):
                some = texts[begin : begin + batch]
                encoded = tokenizer(
                    some,
                    padding=len(some) > 1,
                    truncation=True,
                    max_length=longest,
                    add_special_tokens=not some[0].startswith(added),
                    return_tensors="pt",
                )
                chosen = model(**encoded.to(device)).logits.argmax(dim=-1).tolist()
                verdicts += ["refusal" if label == refusal else "compliance" for label in chosen]
                advance(len(some))
        return verdicts

    return judge


def _load(params: Classifier) -> tuple[Any, Any]:
    # Not at the top: params.yaml is read where none of these is installed.
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from excise.plumbing.hub import hub_error

    transformers.utils.logging.disable_progress_bar()
    known = {"revision": params.revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(params.model, **known)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            params.model, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **known
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        is_of_hub = not params.model.startswith("/")
        if is_of_hub and (told := hub_error(error, f"{_KEY}.model", params.model)) is not None:
            raise told from None
        what = f"cannot be loaded as a classifier with safetensors weights: {one_line(error, 300)}"
        raise StageError(f"{_KEY}.model: {params.model} {what}") from None
    if loading["missing_keys"]:
        what = f"is no trained classifier (it lacks {min(loading['missing_keys'])}); name one that is"
        raise StageError(f"{_KEY}.model: {params.model} {what}")
    return tokenizer, model


def _text(tokenizer: Any, prompt: str, response: str) -> str:
    """What the model reads: the chat where it has a template for one, else the response alone."""
    if tokenizer.chat_template is None:
        return response
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False))
    except Exception as error:  # templates are programs: what they raise is theirs, jinja2's or transformers'
        what = f"its chat template does not take these answers: {one_line(error, 300)}"
        raise StageError(f"{_KEY}.model: {what}") from None
