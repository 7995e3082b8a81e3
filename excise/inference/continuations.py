"""What a model answers, and what a model predicts while it reads the base model's answers."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.inference.forward import Batch, BatchSize, Tokens, in_batches, logits_at
from excise.inference.loading.tokenizer import end_ids, padding_id
from excise.plumbing.progress import Advance

ANSWER_TOKENS = 32
"""Longest answer that is generated and compared: what an edit does to a text shows early."""
MOST_LIKELY = 512
"""The base's most likely tokens that are kept; others count as one, so the KL is a lower bound of the vocabulary's."""


@dataclass(frozen=True)
class Predictions:
    """What a model predicts at each token of the base's answers, one answer after another."""

    lengths: Tensor  # [prompts] int64: tokens of each answer
    answer: Tensor  # [tokens] int64: the base's answers
    answer_log_probability: Tensor  # [tokens] float32, in nats: what the model gives the token that the base chose
    tokens: Tensor  # [tokens, likely] int64: the tokens that the base finds most likely, in descending order
    log_probabilities: Tensor  # [tokens, likely] float32, in nats: what the model gives these
    best: Tensor  # [tokens] int64: what the model finds most likely

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    def answers(self) -> list[list[int]]:
        """The base's answers, each as tokens."""
        return [answer.tolist() for answer in self.answer.split(self.lengths.tolist())]

    def likely(self) -> list[Tensor]:
        """For each prompt ``[tokens, likely]``: the tokens that the base finds most likely."""
        return list(self.tokens.split(self.lengths.tolist()))


@torch.inference_mode()
def greedy_answers(
    model: Any, tokenizer: Any, prompts: Tokens, batch_size: BatchSize, advance: Advance
) -> list[list[int]]:
    """Greedy answers of at most ``ANSWER_TOKENS`` tokens, including the end-of-text token."""
    answers: dict[int, list[int]] = {}
    padding = padding_id(tokenizer, ends := end_ids(tokenizer, model.generation_config))

    def compute(batch: Batch) -> None:
        # Generation needs padding on the left.
        shift = batch.ids.shape[1] - batch.mask.sum(dim=1)
        order = (torch.arange(batch.ids.shape[1]) - shift[:, None]) % batch.ids.shape[1]
        ids, mask = batch.ids.gather(1, order), batch.mask.gather(1, order)
        generated = model.generate(
            input_ids=ids.masked_fill(mask == 0, padding).to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=padding,
        )
        for row, answer in zip(batch.rows, generated[:, ids.shape[1] :].tolist(), strict=True):
            length = next((length for length, token in enumerate(answer, 1) if token in ends), len(answer))
            answers[row] = answer[:length]

    in_batches(prompts, batch_size, advance, compute)
    return [answers[row] for row in range(len(prompts))]


@torch.inference_mode()
def predictions(
    model: PreTrainedModel,
    prompts: Tokens,
    answers: Tokens,
    batch_size: BatchSize,
    advance: Advance,
    likely: Sequence[Tensor] | None = None,
) -> Predictions:
    """What the model predicts while it reads each prompt and the base's answer to it, in one forward pass per batch.
    `likely`: for each prompt, the base's most likely tokens, ``[tokens, likely]``; None if the model is the base."""
    columns_of: dict[int, tuple[Tensor, ...]] = {}

    def compute(batch: Batch) -> None:
        wanted = [torch.arange(len(prompts[row]) - 1, len(prompts[row]) + len(answers[row]) - 1) for row in batch.rows]
        positions = torch.cat(wanted).unique()
        logits = logits_at(model, batch, positions)
        for index, row in enumerate(batch.rows):
            at_answer = logits[index, torch.searchsorted(positions, wanted[index])].float()
            log_probabilities, chosen = torch.log_softmax(at_answer, dim=-1), torch.tensor(answers[row])
            size = min(MOST_LIKELY, log_probabilities.shape[-1])
            kept = log_probabilities.topk(size, dim=-1).indices if likely is None else likely[row].to(at_answer.device)
            columns_of[row] = (
                chosen,
                log_probabilities.gather(1, chosen[:, None].to(at_answer.device))[:, 0].cpu(),
                kept.cpu(),
                log_probabilities.gather(1, kept).cpu(),
                log_probabilities.argmax(dim=-1).cpu(),
            )

    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    in_batches(texts, batch_size, advance, compute)
    columns = [torch.cat(column) for column in zip(*(columns_of[row] for row in range(len(prompts))), strict=True)]
    return Predictions(torch.tensor([len(answer) for answer in answers]), *columns)
