"""Whether the words that the diagnosis takes for beginnings of refusals look like it: the verdicts on the base's own
answers that begin with them."""

from collections.abc import Sequence
from dataclasses import dataclass

from excise.comparison.comparison import CONFIDENCE, Side
from excise.comparison.intervals import clopper_pearson
from excise.report.findings import RefusalWords
from schemas.diagnosis import Diagnosis


@dataclass(frozen=True)
class SeenWord:
    """A token with which the base begins answers to harmful prompts more often."""

    word: str
    begun: int
    """The base's judged answers to harmful prompts that begin with it."""
    rejecting: int
    """Those of them that are refusals or evasion."""


def seen_words(diagnosis: Diagnosis, base: Side) -> list[SeenWord]:
    """The diagnosis's refusal words, in its order, and the verdicts on answers of the base that begin with them."""
    samples = [sample for task in base.results.metrics.get("refusal", {}) for sample in base.samples[task]]
    seen = []
    for token, word in zip(diagnosis.refusal_tokens, diagnosis.refusal_words, strict=True):
        verdicts = [sample.verdict for sample in samples if sample.first_token == token]
        seen.append(SeenWord(word, len(verdicts), sum(verdict in ("refusal", "evasion") for verdict in verdicts)))
    return seen


def judge_words(words: Sequence[SeenWord]) -> RefusalWords:
    """Set those apart behind which most answers are no refusals, by their interval. Too few answers tell nothing."""
    begun, rejecting = sum(word.begun for word in words), sum(word.rejecting for word in words)
    reason = f"of the base's {begun} answers that begin as those to harmful prompts do, {rejecting} refuse or evade"
    return RefusalWords(
        of_refusals=[word.word for word in words if not _mostly_others(word.rejecting, word.begun)],
        others=[word.word for word in words if _mostly_others(word.rejecting, word.begun)],
        reason=reason if _mostly_others(rejecting, begun) else None,
    )


def _mostly_others(rejecting: int, begun: int) -> bool:
    return begun > 0 and clopper_pearson(rejecting, begun, CONFIDENCE).high < 0.5
