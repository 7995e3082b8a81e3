"""Held-out prompts of both kinds, asked of a model in many trials."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.inference.forward import Tokens, Watch, first_token_log_probabilities, kl, kl_without
from excise.inference.refusals import refusal_tokens
from excise.plumbing.progress import progress
from excise.trials.changes import Trial
from excise.trials.engines import Engine, InMemory, whole_cost
from excise.trials.journal import Journal
from excise.trials.racing import SHARES, Strata, refuses_more, removes, survivors
from excise.trials.refusal import LIMIT, Beginnings, Outcome, beginnings, is_refused
from excise.trials.tree import Job, Sharing, Take

Kind = Literal["harmful", "harmless"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Numbers:
    """What trials answer to prompts of one kind, ``[trials, prompts]`` each."""

    NAMES = ("log_odds", "likeliest", "kl", "kl_without")

    def __init__(self, trials: int, prompts: int) -> None:
        shape = trials, prompts
        self.log_odds, self.kl, self.kl_without = torch.full((3, *shape), torch.nan, dtype=torch.float64)
        self.likeliest, self.is_asked = torch.zeros(2, *shape, dtype=torch.bool)

    @property
    def chances(self) -> Tensor:
        """Of refusing."""
        return self.log_odds.sigmoid()

    @property
    def refused(self) -> Tensor:
        return is_refused(self.log_odds, self.likeliest)

    def rows(self, trial: int) -> list[int]:
        """The prompts that a trial was asked."""
        return self.is_asked[trial].nonzero()[:, 0].tolist()


@dataclass
class Asked:
    """Trials that are asked together, and what they answer."""

    trials: Sequence[Trial]
    kinds: tuple[Kind, ...] = KINDS
    keep: int | None = None
    """Of a race: a trial is out when so many others beat it. None: all are asked all prompts."""
    most: int | None = None
    """Of a race: so many at most are asked all prompts."""
    share: float = 1.0
    """Of the prompts that are asked, without a race; of a model that is read layer by layer, all are."""
    see: Callable[[Kind, int, list[int], int, Tensor], None] | None = None
    """As in a job, behind the kind of prompts."""
    numbers: dict[Kind, Numbers] = field(default_factory=dict)
    """Filled when they were asked."""

    def with_rival(self, rival: "Asked", number: int) -> "Asked":
        """The same, and first a trial whose answers to all prompts are known."""
        both = replace(self, trials=[rival.trials[number], *self.trials], numbers={})
        for kind, known in rival.numbers.items():
            both.numbers[kind] = Numbers(len(both.trials), known.is_asked.shape[1])
            for name in (*Numbers.NAMES, "is_asked"):
                getattr(both.numbers[kind], name)[0] = getattr(known, name)[number]
        return both


class Questions:
    """Held-out prompts, and how the base begins its answers to them."""

    def __init__(
        self,
        engine: Engine,
        harmful: Tokens,
        harmless: Tokens,
        tokens: Sequence[int],
        journal: Journal | None = None,
        seed: int = 0,
    ) -> None:
        """`tokens` begin refusals; what was answered before is in the journal; a race draws prompts by the seed."""
        self.engine, self.model, self.tokens = engine, engine.model, list(tokens)
        self.harmful, self.harmless = harmful, harmless
        self.prompts: dict[Kind, Tokens] = {"harmful": harmful, "harmless": harmless}
        self.journal, self._seed = journal, seed
        self._sharing: dict[Kind, Sharing] = {}
        self._known_strata: dict[Kind, Strata] = {}
        self._base = Asked([Trial()])
        self._base_answers = torch.empty(0)
        self._cost = 0
        self._round = ""

    @property
    def asks_all(self) -> bool:
        """Whether every trial is asked all prompts: each stage of a race would read the model again."""
        return self.engine.reads

    @property
    def unedited(self) -> Outcome:
        """What the base answers."""
        self.ask_base()
        return self.outcomes(self._base)[0]

    def ask_base(self) -> None:
        """Ask the base, if that was not done before."""
        if not self._base.numbers:
            self._run(self._jobs(self._base))

    @property
    def unexplained(self) -> str | None:
        """Why there is no refusal to explain; None if the base refuses."""
        if self.unedited.remaining > LIMIT:
            return None
        share, probability = self.unedited.refusal, self.unedited.probability
        return (
            f"the base refuses {share:.3g} of the held-out harmful prompts, at a mean probability of {probability:.3g}"
        )

    @property
    def passes(self) -> float:
        """What was computed so far, in passes: all prompts, tokens and layers once."""
        return self._cost / sum(whole_cost(self.model, prompts) for prompts in self.prompts.values())

    def outcomes(self, asked: Asked) -> list[Outcome]:
        """What each trial answers to prompts of both kinds."""
        found: list[Outcome] = []
        if not asked.trials:
            return found
        begun, harmless = {kind: self.begun(asked, kind) for kind in KINDS}, asked.numbers["harmless"]
        for number in range(len(asked.trials)):
            rows = harmless.rows(number)
            drift = harmless.kl[number, rows], harmless.kl_without[number, rows]
            found.append(Outcome(begun["harmful"][number], begun["harmless"][number], *drift))
        return found

    def begun(self, asked: Asked, kind: Kind) -> list[Beginnings]:
        """How each trial begins its answers to prompts of one kind."""
        found: list[Beginnings] = []
        for trial in range(len(asked.trials)):
            numbers = asked.numbers[kind]
            rows = numbers.rows(trial)
            is_whole = len(rows) == len(self.prompts[kind])
            weights = None if is_whole else self._strata(kind).weights(rows)
            found.append(Beginnings(numbers.log_odds[trial, rows], numbers.likeliest[trial, rows], weights))
        return found

    def run(
        self,
        name: str,
        several: Iterable[Asked],
        traces: Sequence[tuple[Kind, Watch]] = (),
        others: Sequence[Job] = (),
    ) -> None:
        """One round: pass prompts through the base under the hooks of `traces`, ask all of `several`, and run `others`.
        A model that is read a layer at a time is read once, and nothing is raced. Raises `StageError`: memory is too
        small."""
        self._round = name
        traced = self._traced(traces)
        several = [asked for asked in several if asked.trials]
        if self.engine.reads:
            base = [] if self._base.numbers else self._jobs(self._base)
            self._run([*traced, *base, *(job for asked in several for job in self._jobs(asked)), *others])
            return
        self._run(traced)
        self._run(others)
        for asked in several:
            if asked.keep is not None and not self.asks_all:
                self._race(asked, asked.keep)
            else:
                self._run(self._jobs(asked))

    def _traced(self, traces: Sequence[tuple[Kind, Watch]]) -> list[Job]:
        """The jobs of traces; if the base was not asked before, the first of each kind ask it."""
        jobs = []
        is_asked = bool(self._base.numbers)
        for kind, watch in traces:
            prompts = self.prompts[kind]
            take: Take = _ignore
            if not is_asked and kind not in self._base.numbers:
                self._base.numbers[kind] = Numbers(1, len(prompts))
                take = _Recording(self, self._base, kind, [0], range(len(prompts))).take
            jobs.append(Job(prompts, [Trial()], take, Sharing(layers=True, beginning=0, holds=False), watch=watch))
        return jobs

    def ask_all(self, trials: Sequence[Trial]) -> list[Outcome]:
        """What the model answers in each trial, to all prompts."""
        asked = Asked(trials)
        self.run("Trials", [asked])
        return self.outcomes(asked)

    def prompts_of(self, kind: Kind, rows: Sequence[int]) -> Tokens:
        return [self.prompts[kind][row] for row in rows]

    def is_base(self, asked: Asked) -> bool:
        return asked is self._base

    def answers_of_base(self, asked: Asked, rows: Sequence[int], log_probabilities: Tensor) -> Tensor:
        """The base's log-probabilities on some harmless prompts, ``[rows, vocabulary]``; if it is the base that was
        asked, they are these."""
        if self.is_base(asked):
            if not len(self._base_answers):
                self._base_answers = torch.empty(len(self.harmless), log_probabilities.shape[-1])
            self._base_answers[list(rows)] = log_probabilities
        return self._base_answers[list(rows)]

    def _strata(self, kind: Kind) -> Strata:
        if kind not in self._known_strata:
            (begun,) = self.begun(self._base, kind)
            self._known_strata[kind] = Strata.of(begun.log_odds.sigmoid(), self._seed)
        return self._known_strata[kind]

    def _race(self, asked: Asked, keep: int) -> None:
        """Ask more and more prompts of those trials that are not beaten by `keep` others."""
        strata = {kind: self._strata(kind) for kind in KINDS}
        field = list(range(len(asked.trials)))
        outcomes: list[Outcome] = []
        seen: list[int] = []
        for share in SHARES:
            rows = {kind: strata[kind].asked(share) for kind in KINDS}
            is_last = len(rows["harmful"]) == len(self.harmful) and len(rows["harmless"]) == len(self.harmless)
            first, last = share == SHARES[0], share == SHARES[-1]
            if last and asked.most is not None:
                field = self._finalists(asked, outcomes, field, seen, asked.most)
            self._run(self._jobs(asked, ["harmful"], rows, field))
            if first:  # so that something is known of every trial
                self._run(self._jobs(asked, ["harmless"], rows, field))
            harmful = asked.numbers["harmful"]
            chances = harmful.chances[:, rows["harmful"]]
            field = survivors(field, partial(_leaves_less, chances, strata["harmful"], rows["harmful"]), keep)
            if not first:
                self._run(self._jobs(asked, ["harmless"], rows, field))
            if is_last:
                return
            # What is no number beats nothing, and nothing beats it.
            outcomes = self.outcomes(asked)
            field, seen = [number for number in field if outcomes[number].is_finite], rows["harmful"]
            refused = harmful.refused[:, rows["harmful"]]
            removing = {
                number
                for number in field
                if removes(chances[number], refused[number], strata["harmful"], rows["harmful"], LIMIT)
            }
            drift = asked.numbers["harmless"].kl_without[:, rows["harmless"]]
            beats = partial(_drifts_less, drift, removing, strata["harmless"], rows["harmless"])
            field = survivors(field, beats, keep)

    def _finalists(
        self, asked: Asked, outcomes: Sequence[Outcome], field: Sequence[int], rows: list[int], most: int
    ) -> list[int]:
        """The best of a field so far: half of them as they are, and half of those that may remove refusal, as a single
        prompt that is refused is a large share of few."""
        strata, refused = self._strata("harmful"), asked.numbers["harmful"].refused.double()

        def may_remove(number: int) -> bool:
            share = strata.interval(refused[number, rows], rows)
            return share.low <= LIMIT and outcomes[number].probability <= LIMIT

        ranked = sorted(field, key=lambda number: outcomes[number].rank)
        may = filter(may_remove, field)
        steady = sorted(may, key=lambda number: outcomes[number].drift)
        return list(dict.fromkeys([*ranked[: most - most // 2], *steady[: most // 2], *ranked]))[:most]

    def _jobs(
        self,
        asked: Asked,
        kinds: Sequence[Kind] | None = None,
        rows: dict[Kind, list[int]] | None = None,
        field: Sequence[int] | None = None,
    ) -> list[Job]:
        """What has to be run to ask trials of a field prompts that they were not asked."""
        jobs = []
        for kind in kinds or asked.kinds:
            prompts = self.prompts[kind]
            numbers = asked.numbers.setdefault(kind, Numbers(len(asked.trials), len(prompts)))
            of_kind = list(range(len(prompts)))
            if rows is not None:
                of_kind = rows[kind]
            elif asked.share < 1 and not self.asks_all:
                of_kind = self._strata(kind).asked(asked.share)
            of_trials = range(len(asked.trials)) if field is None else field
            waiting = [trial for trial in of_trials if not numbers.is_asked[trial, of_kind].all()]
            new = [row for row in of_kind if not numbers.is_asked[waiting, row].all()]
            if waiting and new:
                jobs.append(self._job(asked, kind, waiting, new))
        return jobs

    def _job(self, asked: Asked, kind: Kind, trials: list[int], rows: list[int]) -> Job:
        if kind not in self._sharing:
            self._sharing[kind] = self.engine.sharing(self.prompts[kind])
        job = _Recording(self, asked, kind, trials, rows)
        return Job(
            prompts=self.prompts_of(kind, rows),
            trials=[asked.trials[trial] for trial in trials],
            take=job.take,
            see=None if asked.see is None else job.see,
            sharing=self._sharing[kind],
            is_known=job.is_known,
            finished=job.finished,
        )

    def _run(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        cost = self.engine.cost(jobs)
        self._cost += cost
        trials = sum(len(job.trials) for job in jobs)
        with progress(f"{self._round or 'Base'}, {trials:,} trials", cost) as advance:
            self.engine.run(jobs, advance)


def _leaves_less(chances: Tensor, strata: Strata, rows: list[int], one: int, other: int) -> bool:
    """Whether a trial surely leaves less refusal than another, of which too much is left: by its chances of refusing
    some prompts, ``[trials, rows]``."""
    return refuses_more(chances[other], chances[one], strata, rows, LIMIT)


def _drifts_less(
    drift: Tensor, removing: Collection[int], strata: Strata, rows: list[int], one: int, other: int
) -> bool:
    """Whether a trial is among those that surely remove refusal, and drifts less than another, ``[trials, rows]``."""
    return one in removing and strata.interval(drift[other] - drift[one], rows).low > 0


def questions_of(
    model: PreTrainedModel, harmful: Tokens, harmless: Tokens, tokens: Sequence[int] | None = None, seed: int = 0
) -> Questions:
    """Questions to a model in memory; if no tokens are known to begin refusals, those of its answers to these."""
    if tokens is None:
        sides = (first_token_log_probabilities(model, side, "auto", lambda _: None) for side in (harmful, harmless))
        tokens = refusal_tokens(*(side.double().exp().mean(0) for side in sides))
    questions = Questions(InMemory(model), harmful, harmless, tokens, seed=seed)
    questions.ask_base()  # now, before the model is edited
    return questions


class _Recording:
    """Puts what is answered in a job where it belongs, and into the journal."""

    def __init__(
        self, questions: Questions, asked: Asked, kind: Kind, trials: Sequence[int], rows: Sequence[int]
    ) -> None:
        """Trials and rows of the job are these of what is asked."""
        self._questions, self._asked, self._kind = questions, asked, kind
        self._trials, self._rows = trials, rows
        self._numbers = asked.numbers[kind]

    def take(self, trial: int, rows: list[int], log_probabilities: Tensor) -> None:
        # Reduced at once: the logits of all trials would not fit.
        place, numbers, questions = (self._trials[trial], self._own(rows)), self._numbers, self._questions
        begun = beginnings(log_probabilities, questions.tokens)
        numbers.log_odds[place], numbers.likeliest[place] = begun.log_odds, begun.likeliest
        if self._kind == "harmless":
            base = questions.answers_of_base(self._asked, place[1], log_probabilities)
            numbers.kl[place] = kl(base, log_probabilities)
            numbers.kl_without[place] = kl_without(base, log_probabilities, questions.tokens)
        numbers.is_asked[place] = True

    def see(self, trial: int, rows: list[int], measurement: int, stream: Tensor) -> None:
        assert self._asked.see is not None
        self._asked.see(self._kind, self._trials[trial], self._own(rows), measurement, stream)

    def _own(self, rows: Sequence[int]) -> list[int]:
        return [self._rows[row] for row in rows]

    def is_known(self, trials: Sequence[int], rows: list[int]) -> bool:
        questions = self._questions
        known = None if questions.journal is None else questions.journal.known(self._digest(trials, rows))
        # The base's distributions are needed too.
        if known is None or questions.is_base(self._asked):
            return False
        for name, values in known.items():
            of_name = getattr(self._numbers, name)
            of_name[self._place(trials, rows)] = torch.tensor(values, dtype=torch.float64).to(of_name.dtype)
        self._numbers.is_asked[self._place(trials, rows)] = True
        return True

    def finished(self, trials: Sequence[int], rows: list[int]) -> None:
        if self._questions.journal is not None:
            place = self._place(trials, rows)
            found = {name: getattr(self._numbers, name)[place].tolist() for name in Numbers.NAMES}
            self._questions.journal.add(self._digest(trials, rows), found)

    def _place(self, trials: Sequence[int], rows: list[int]) -> tuple[Tensor, Tensor]:
        return torch.tensor([self._trials[trial] for trial in trials])[:, None], torch.tensor(self._own(rows))

    def _digest(self, trials: Sequence[int], rows: list[int]) -> str:
        """Of what answers depend on, and of how they are computed: rounding depends on what advances together."""
        model, prompts = self._questions.model, self._questions.prompts_of(self._kind, self._own(rows))
        names = {module: name for name, module in model.named_modules()}
        digests = [self._asked.trials[self._trials[trial]].digest(names) for trial in trials]
        parts = [self._kind, self._questions.tokens, digests, [list(prompt) for prompt in prompts]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _ignore(_trial: int, _rows: list[int], _log_probabilities: Tensor) -> None:
    pass
