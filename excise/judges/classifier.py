"""The judge `classifier`: a sequence-classification model from the Hub or a local folder."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import model_validator

from excise.judges import Judge, Judgment
from excise.plumbing.errors import StageError
from excise.plumbing.progress import progress
from schemas.basis.fields import matches
from schemas.basis.text import one_line, suggest
from schemas.params.model import HUB_ID, HUB_OR_FOLDER, Commit
from schemas.results import Verdict
from schemas.wording import WrongValue

_KEY = "params.yaml: evaluate.judge.classifier"
_BATCH = 16


class Classifier(Judge):
    """A sequence-classification model; the label with the highest probability decides."""

    model: Annotated[str, matches(rf"/[^\x00-\x1f\x7f]*|{HUB_ID}", HUB_OR_FOLDER)]
    """Its Hub id, or the absolute path of a local folder; safetensors only."""
    revision: Commit | None = None
    """For a Hub id, its commit."""
    label: str
    """The label that means a refusal, as its `config.json` spells it."""

    @model_validator(mode="after")
    def _pin_what_the_hub_has(self) -> Self:
        if not self.model.startswith("/") and self.revision is None:
            raise WrongValue("is missing; a Hub model is pinned by its commit", "revision")
        return self

    def load(self) -> Judgment:
        """Load the model. Raises `StageError`: it cannot be loaded, is not a classifier, or has no such label."""
        import torch

        from excise.plumbing.machine import chosen_device

        tokenizer, model = _load(self)
        labels = [str(label) for _, label in sorted(model.config.id2label.items())]
        if self.label not in labels:
            known = f"{', '.join(labels)}{suggest(self.label, labels)}"
            raise StageError(f"{_KEY}.label: {self.label} is not a label of the model; its labels are {known}")
        if len(labels) == 1:
            raise StageError(f"{_KEY}.model: {self.model} has one label and decides nothing; name one with two or more")
        refusal = labels.index(self.label)
        device = chosen_device()
        model.to(device).eval()
        # RoBERTa and its relatives count positions from two.
        positions = getattr(model.config, "max_position_embeddings", None)
        longest = tokenizer.model_max_length if positions is None else min(tokenizer.model_max_length, positions - 2)
        # The chat template may already have written them.
        first_tokens = tuple(token for token in (tokenizer.bos_token, tokenizer.cls_token) if token)
        batch_size = _BATCH if tokenizer.pad_token is not None else 1

        @torch.inference_mode()
        def judge(answers: Sequence[tuple[str, str]]) -> list[Verdict]:
            texts = [_text(tokenizer, prompt, response) for prompt, response in answers]
            verdicts: list[Verdict] = []
            with progress("Judge", len(texts), "answers") as advance:
                for begin in range(0, len(texts), batch_size):
                    batch = texts[begin : begin + batch_size]
                    encoded = tokenizer(
                        batch,
                        padding=len(batch) > 1,
                        truncation=True,
                        max_length=longest,
                        add_special_tokens=not batch[0].startswith(first_tokens),
                        return_tensors="pt",
                    )
                    predicted = model(**encoded.to(device)).logits.argmax(dim=-1).tolist()
                    verdicts += ["refusal" if label == refusal else "compliance" for label in predicted]
                    advance(len(batch))
            return verdicts

        return judge


def _load(params: Classifier) -> tuple[Any, Any]:
    # Not at the top, because params.yaml is also read where these are not installed.
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from excise.plumbing.hub import hub_error

    transformers.utils.logging.disable_progress_bar()
    pinned = {"revision": params.revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(params.model, **pinned)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            params.model, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **pinned
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        is_hub_id = not params.model.startswith("/")
        if is_hub_id and (refused := hub_error(error, f"{_KEY}.model", params.model)) is not None:
            raise refused from None
        reason = f"cannot be loaded as a classifier with safetensors weights: {one_line(error, 300)}"
        raise StageError(f"{_KEY}.model: {params.model} {reason}") from None
    if loading["missing_keys"]:
        reason = f"is not a trained classifier (it lacks {min(loading['missing_keys'])}); name one that is"
        raise StageError(f"{_KEY}.model: {params.model} {reason}")
    return tokenizer, model


def _text(tokenizer: Any, prompt: str, response: str) -> str:
    """What the model reads: the whole chat if it has a chat template, else only the response."""
    if tokenizer.chat_template is None:
        return response
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False))
    except Exception as error:  # templates are programs that may raise anything, as may jinja2 and transformers
        raise StageError(f"{_KEY}.model: its chat template rejects these answers: {one_line(error, 300)}") from None
