"""Trials that advance together, layer by layer, as one tree. They share what they have in common until the first layer
in which they differ, and fork there; forks of a layer are one batch. The prompts' common beginning is computed once for
each fork, and a trial that changes the last token alone runs on what the base keeps of those before it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.inference.forward import Tokens, Watch, all_batches, first_token_log_probabilities
from excise.inference.loading.models import decoder_layers
from excise.plumbing.errors import StageError
from excise.trials.changes import ENTERING, Change, OnModule, Trial
from excise.trials.growing import Growing, Prompts, split

LEAST_SHARED = 2
"""Tokens that a common beginning has to have."""

Take = Callable[[int, list[int], Tensor], None]
"""Receives the number of a trial, rows of prompts, or places in them, and the log-probabilities of the next token
there, ``[rows, vocabulary]``, in nats."""
Places = Sequence[Sequence[tuple[int, int]]]
"""By prompt, the places whose answers are wanted: the number of each, and the token at which it is."""
See = Callable[[int, list[int], int, Tensor], None]
"""Receives the number of a trial, rows of prompts, a measurement, and the stream there at their last tokens, ``[rows,
hidden]``."""


@dataclass(frozen=True)
class Sharing:
    """What trials of a model may share."""

    layers: bool
    """Whether its layers can be run one by one; if not, each trial takes a pass of its own."""
    beginning: int
    """Tokens that all prompts begin with; 0 if each fork has to compute them for each prompt."""
    holds: bool
    """Whether the last token can be computed by itself, from what the base keeps of those before it."""


@dataclass(frozen=True)
class Job:
    """Trials of some prompts."""

    prompts: Tokens
    trials: Sequence[Trial]
    take: Take
    sharing: Sharing
    places: Places | None = None
    """None: only that of the last token, whose number is the prompt's."""
    see: See | None = None
    watch: Watch | None = None
    """Hooks for the base, which is then the only trial, and is not shared."""
    is_known: Callable[[Sequence[int], list[int]], bool] = lambda _numbers, _rows: False
    """Whether the answers of these trials and rows are known from before; only asked for all that advance together."""
    finished: Callable[[Sequence[int], list[int]], None] = lambda _numbers, _rows: None
    """Called with these after the last of their answers."""


def sharing(model: PreTrainedModel, prompts: Tokens) -> Sharing:
    """What gives the answers of whole passes to some prompts, tried once: some models keep states in a way that does
    not let them go on with several tokens, or do more between layers than call them."""
    exact = 3e-5 if model.dtype in (torch.float32, torch.float64) else 5e-2
    ends = sorted(prompts, key=len)[:: max(1, len(prompts) - 1)]
    longest = list(ends[-1])
    alike = [longest, [*longest[-2::-1], longest[-1]]]
    layers = list(decoder_layers(model))
    # Of another trial than the base, as what forks keep has to be their own.
    shifted = Trial((OnModule(0, layers[0], "input", "shifted", lambda stream: stream + stream.roll(1, -1)),))

    def agrees(settings: Sharing, tried: Tokens, trial: Trial, hold: bool = False) -> bool:
        plain = first_token_log_probabilities(model, tried, "auto", lambda _: None, trial.watch(model))
        found = torch.full_like(plain, torch.nan)
        try:
            for batch in _held(tried, len(tried)) if hold else _batches(tried, len(tried), settings.beginning):
                # Three forks, of which two pass as one batch.
                several = [trial, *(Trial((*trial.changes, *_nothing(model, key))) for key in range(2))]
                growing = Growing(model, layers, batch, several, [0, 1, 2], model.device, 2 * batch.ids.numel())
                growing.begin()
                for layer in range(len(layers)):
                    growing.through(layer)
                for _, rows, answers in growing.answers():
                    found[rows] = answers
                    if not bool((found[rows] - plain[rows]).abs().max() <= exact * plain.abs().max()):
                        return False
        except (AttributeError, IndexError, KeyError, RuntimeError, StageError, TypeError, ValueError):  # each its own
            return False
        return bool(found.isfinite().all())

    nothing = Sharing(layers=False, beginning=0, holds=False)
    shares = replace(nothing, layers=True)
    if not all(agrees(shares, ends, trial) for trial in (Trial(), shifted)):
        return nothing
    beginning = _common(prompts)
    begins = beginning and agrees(replace(shares, beginning=beginning), ends, shifted)
    holds = len(longest) > 1 and agrees(shares, alike, Trial(), hold=True)
    return replace(shares, beginning=beginning if begins else 0, holds=holds)


def _nothing(model: PreTrainedModel, key: int) -> tuple[Change, ...]:
    """A change that changes nothing, but makes a fork of its own."""
    return (OnModule(0, decoder_layers(model)[0], "output", ("nothing", key), lambda stream: stream),)


@dataclass(frozen=True)
class Batching:
    """Where trials run, and how much at once."""

    device: torch.device
    prompts: int
    """In a batch, at most."""
    tokens: int
    """Of several forks that pass through a layer as one batch, at most."""
    streams: int
    """Bytes of the streams of trials that advance together, at most; others run afterwards."""


def growings(
    model: PreTrainedModel, job: Job, batching: Batching, keep: Callable[[Tensor], Tensor] = lambda stream: stream
) -> Iterator[Growing]:
    """All that a job has to compute, in batches that fit; nothing is computed yet."""
    layers = list(decoder_layers(model))
    beginning, size = job.sharing.beginning, batching.prompts
    is_held = [job.sharing.holds and trial.is_last_only for trial in job.trials]
    for hold in (True, False):
        numbers = [number for number, each in enumerate(is_held) if each is hold]
        if not numbers:
            continue
        for prompts in _held(job.prompts, size) if hold else _batches(job.prompts, size, beginning):
            if job.places is not None:
                prompts.wanted = [
                    (place, row, token - beginning)
                    for row, number in enumerate(prompts.rows)
                    for place, token in job.places[number]
                ]
            for group in split(numbers, lambda number: job.trials[number].at(ENTERING)).values():
                one = (prompts.ids.numel() + prompts.before.numel()) * _hidden(model) * model.dtype.itemsize
                at_once = max(1, batching.streams // one)
                # Neighbours have most in common, so that few layers are computed again for the next ones.
                ordered = neighbours(job.trials, group, len(layers))
                for start in range(0, len(ordered), at_once):
                    some = ordered[start : start + at_once]
                    yield Growing(model, layers, prompts, job.trials, some, batching.device, batching.tokens, keep)


def _hidden(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().hidden_size)


def _batches(prompts: Tokens, size: int, beginning: int) -> Iterator[Prompts]:
    """Of prompts whose common beginning is apart."""
    for batch in all_batches(prompts, size):
        before, ids = batch.ids[:1, :beginning], batch.ids[:, beginning:]
        yield Prompts(batch.rows, ids, batch.mask, batch.ends - beginning, before)


def _held(prompts: Tokens, size: int) -> Iterator[Prompts]:
    """Of prompts of one length, of which all tokens but the last one are the base's."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, tokens in enumerate(prompts):
        by_length[len(tokens)].append(row)
    for _, rows in sorted(by_length.items()):
        for start in range(0, len(rows), size):
            of_batch = rows[start : start + size]
            ids = torch.tensor([list(prompts[row]) for row in of_batch])
            ends = torch.zeros(len(of_batch), dtype=torch.long)
            yield Prompts(of_batch, ids[:, -1:], torch.ones_like(ids), ends, ids[:, :-1], is_held=True)


def _common(prompts: Tokens) -> int:
    """How many tokens all prompts begin with, one at least left for each of them."""
    most = min(map(len, prompts)) - 1
    common = next((place for place in range(most) if len({tokens[place] for tokens in prompts}) > 1), most)
    return common if common >= LEAST_SHARED else 0


def neighbours(trials: Sequence[Trial], numbers: Sequence[int], layers: int) -> list[int]:
    """Numbers of trials, those that have most in common next to each other; the same order in every process."""
    seen: dict[tuple[int, tuple[Change, ...]], int] = {}

    def course(number: int) -> list[int]:
        return [seen.setdefault((layer, trials[number].at(layer)), len(seen)) for layer in range(layers)]

    return sorted(numbers, key=course)
