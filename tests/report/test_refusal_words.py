"""What the diagnosis takes for beginnings of refusals is held against the verdicts on the base's own answers."""

from excise.comparison.comparison import Side
from excise.report.findings import RefusalWords
from excise.report.refusal_words import SeenWord, judge_words, seen_words
from schemas.results import Metrics, Results, Sample, Verdict
from tests.diagnoses import diagnosis
from tests.report.test_explanation import report


def base(*answers: tuple[int | None, Verdict | None]) -> Side:
    """The base's answers to the harmful prompts of one task: first token and verdict."""
    samples = [
        Sample(id=f"{number}", item=None, prompt="p", response="r", verdict=verdict, first_token=token, metrics={})
        for number, (token, verdict) in enumerate(answers)
    ]
    metrics: Metrics = {"refusal": {"harmful": {}}, "over_refusal": {"borderline": {}}}
    results = Results(metrics=metrics, described={}, samples={}, batch_size=1, drift={})
    return Side(results=results, samples={"harmful": samples, "borderline": [samples[0]] * 99 if samples else []})


def test_answers_to_harmful_prompts_that_begin_with_a_word_are_counted_by_their_verdicts() -> None:
    shown = diagnosis(refusal_tokens=[8, 9], refusal_words=["I", "Well"])
    answers = base((8, "refusal"), (8, "evasion"), (8, "compliance"), (9, "degenerate"), (7, "refusal"), (None, None))
    assert seen_words(shown, answers) == [SeenWord("I", 3, 2), SeenWord("Well", 1, 0)]


def test_a_word_is_set_apart_only_where_most_answers_that_begin_with_it_are_surely_no_refusals() -> None:
    for unsure in (SeenWord("Well", 3, 0), SeenWord("Well", 12, 4), SeenWord("Well", 0, 0), SeenWord("Well", 12, 12)):
        assert judge_words([unsure]) == RefusalWords(of_refusals=["Well"], others=[], reason=None)
    words = judge_words([SeenWord("I", 40, 40), SeenWord("Well", 12, 1)])
    assert words == RefusalWords(of_refusals=["I"], others=["Well"], reason=None)
    text = report(diagnosis(), words=words)
    assert 'its refusals begin with `"I"`.' in text and "### Who writes it?" in text
    assert 'most answers that begin so are no refusals by the judge: `"Well"`.' in text


def test_where_all_words_begin_other_answers_nothing_is_explained() -> None:
    """As of a model that begins whatever it says with its reasoning."""
    words = judge_words([SeenWord("Okay", 40, 2), SeenWord("Well", 4, 0)])
    text = report(diagnosis(), words=words)
    assert "**There is no refusal to explain**: of the base's 44 answers that begin as those" in text
    assert "harmful prompts do, 2 refuse or evade." in text
    assert "### Who writes it?" not in text and "### What to try" not in text and "```yaml" not in text
    assert "Okay" not in text
