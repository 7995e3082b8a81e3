"""How far the edited model's first answer token drifts from the base's on harmless prompts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


@torch.inference_mode()
def first_token_log_probabilities(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], batch_size: int, advance: Callable[[int], None]
) -> Tensor:
    """What the model would say first, in nats: ``[prompts, vocabulary]`` float32 on the CPU.

    Prompts are padded on the right, where padding cannot reach the token that is read.
    """
    rows = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        lengths = torch.tensor([len(prompt) for prompt in batch])
        ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for place, prompt in enumerate(batch):
            ids[place, : len(prompt)] = torch.tensor(prompt)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        ends = lengths.unique() - 1
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            use_cache=False,
            logits_to_keep=ends.to(model.device),
        ).logits
        last = logits[torch.arange(len(batch)), torch.searchsorted(ends, lengths - 1)].float()
        rows.append(torch.log_softmax(last, dim=-1).cpu())
        advance(len(batch))
    return torch.cat(rows)


def mean_kl(base: Tensor, edited: Tensor) -> float:
    """KL(base‖edited) in nats, the mean over prompts, of two ``[prompts, vocabulary]`` log-probabilities."""
    each = torch.nn.functional.kl_div(edited.double(), base.double(), reduction="none", log_target=True).sum(dim=-1)
    return float(each.mean().clamp(min=0.0))
