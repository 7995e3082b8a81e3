"""A pull request's comment: what a reviewer reads in it, that it always fits, and that nothing in it acts."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from excise.gitops.comment import MARKER, MOST_BYTES, MOST_IN_BLOCK, block, metric, prose, render_comment, span
from schemas.evidence import Comparison, GateVerdicts, Interval, ParameterChange, TaskChanges
from schemas.gitops import Difference, Evidence, LockChanges, StageChange
from tests.evidence_documents import (
    BAD,
    EMPTY,
    FAILS,
    GOOD,
    INCONCLUSIVE,
    NO_GATES,
    PASSES,
    VOID,
    WARNS,
    broken_rows,
    changed,
    changes,
    drift_row,
    gate,
    gates,
    good_rows,
    interval,
    row,
    silent_row,
)

BASE, HEAD = "b" * 40, "a" * 40
WORST = "A gate fails, 1 is inconclusive"
"""The heading of `BAD`."""
FACTS = "capability.organism_facts.exact_match"

ABLATE = StageChange(
    stage="ablate",
    kind="changed",
    command=False,
    dependencies=["artifacts/params/ablate.json"],
    outputs=["models/ablated"],
)


def difference(
    now: Sequence[Comparison] | None = None,
    before: Sequence[Comparison] | None = None,
    gates: GateVerdicts = GOOD,
    stages: Sequence[StageChange] = (ABLATE,),
    **given: Any,
) -> Difference:
    """What a pull request changes, of parts that may be otherwise; `before` is what `now` is where it is left out."""
    rows = good_rows() if now is None else list(now)
    usual: dict[str, Any] = {
        "base": BASE,
        "base_name": "origin/main",
        "head": HEAD,
        "uncommitted": [],
        "parameters": [ParameterChange(key="ablate.rules.0.scale", before="1.0", after="0.5")],
        "lock": LockChanges(stages=list(stages), same=7),
        "before": Evidence(rows=rows if before is None else list(before), gates=GOOD),
        "now": Evidence(rows=rows, gates=gates),
        "pictures": ["stream", "writers"],
    }
    return Difference(**{**usual, **given})


def tokens(text: str) -> list[Token]:
    """What GitHub would make of it, but for what it links by itself, which `check_inert` asks of the words."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def inline(text: str) -> Iterator[Token]:
    return chain.from_iterable(token.children or () for token in tokens(text) if token.type == "inline")


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table, as Markdown."""
    found: list[list[list[str]]] = []
    for token, after in pairwise(tokens(text)):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            found[-1][-1].append(after.content)
    return found


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of all tables that begin with this heading."""
    return [line for found in tables(text) if found[0][0] == heading for line in found[1:]]


def part(text: str, heading: str) -> str:
    return text.partition(f"### {heading}\n")[2].partition("\n### ")[0]


def test_the_first_line_is_what_it_is_found_by_and_the_verdict_is_the_heading() -> None:
    for verdicts, heading in (
        (GOOD, "All gates pass"),
        (INCONCLUSIVE, "A gate is inconclusive"),
        (EMPTY, "A gate is void, 1 is inconclusive"),
        (BAD, WORST),
    ):
        assert render_comment(difference(gates=verdicts)).splitlines()[:2] == [MARKER, f"## {heading}"]
    assert render_comment(difference(gates=NO_GATES)).splitlines()[1] == "## No gates"
    assert MARKER.startswith("<!--") and MARKER.endswith("-->")


def test_both_commits_are_named() -> None:
    assert f"Commit `{HEAD[:12]}`, compared with `{BASE[:12]}` of `origin/main`." in render_comment(difference())


def test_every_parameter_is_a_line_with_what_it_was_and_is() -> None:
    parameters = [
        ParameterChange(key="ablate.rules.0.scale", before="1.0", after="0.5"),
        ParameterChange(key="gates.1.max_drop", before=None, after="0.03"),
        ParameterChange(key="measure.winsorize", before="0.99", after=None),
    ]
    assert table(render_comment(difference(parameters=parameters)), "key") == [
        ["`ablate.rules.0.scale`", "`1.0`", "`0.5`"],
        ["`gates.1.max_drop`", "-", "`0.03`"],
        ["`measure.winsorize`", "`0.99`", "-"],
    ]


@pytest.mark.parametrize(("parameters", "says"), [([], "says the same"), (None, "has no params.yaml to compare with")])
def test_where_no_parameter_changed_that_is_said(parameters: list[ParameterChange] | None, says: str) -> None:
    text = render_comment(difference(parameters=parameters))
    assert says in part(text, "Parameters") and not table(text, "key")


def test_gates_stand_worst_first_with_the_verdict_that_they_had() -> None:
    earlier = gates(WARNS, gate(FAILS.metric, limit=0.5, words="at most 0.5"))
    before = Evidence(rows=good_rows(), gates=earlier)
    lines = table(render_comment(difference(gates=BAD).model_copy(update={"before": before})), "gate")
    assert [(line[0], line[3], line[4]) for line in lines] == [
        (f"`{FAILS.metric}`", "**fail**", "new"),
        (f"`{WARNS.metric}`", "**inconclusive**", "inconclusive"),
        (f"`{PASSES.metric}`", "**pass**", "new"),
    ]
    assert [line[3] for line in table(render_comment(difference(gates=gates(*BAD.gates, VOID))), "gate")] == [
        *("**fail**", "**void**", "**inconclusive**", "**pass**")
    ]
    assert lines[1][5] == "the limit is inside its interval; about 1,400 samples would settle it"


def test_metrics_that_moved_stand_open_the_worst_first_and_the_others_are_folded() -> None:
    better, worse, new = "capability.a.acc", "capability.b.acc", "capability.c.acc"
    now = [
        row(better, 0.5, 0.9),
        row(worse, 0.5, 0.2),
        row(new, 0.5, 0.5),
        row(FACTS, 1.0, 0.9),
        drift_row("answer_kl", 0.1),
    ]
    before = [row(better, 0.5, 0.6), row(worse, 0.5, 0.5), row(FACTS, 1.0, 0.91), drift_row("answer_kl", 0.1)]
    text = render_comment(difference(now, [*before, row("capability.d.acc", 0.5, 0.4)]))
    assert table(text, "metric") == [
        [f"`{worse}`", "0.5000", "0.5000", "0.2000", "0.1800 to 0.2200", "↓ **worse**"],
        [f"`{better}`", "0.5000", "0.6000", "0.9000", "0.8800 to 0.9200", "↑ **better**"],
        ["`capability.d.acc`", "", "0.4000", "", "", "**gone**"],
        [f"`{new}`", "0.5000", "", "0.5000", "0.4800 to 0.5200", "**new**"],
        [f"`{FACTS}`", "1.0000", "0.9100", "0.9000", "0.8800 to 0.9200", "↓ within noise"],
        ["`drift.answer_kl`", "", "0.1000", "0.1000", "0.0900 to 0.1100", "unchanged"],
    ]
    assert text.index("<summary>Unchanged or within noise: 2</summary>") > text.index(f"`{new}`")
    assert text.index("`drift.answer_kl`") < text.index("</details>")


def test_where_nothing_moved_that_is_said() -> None:
    assert "No metric moved beyond noise." in render_comment(difference())


def test_without_results_before_metrics_are_compared_with_the_base_model() -> None:
    now = [row(FACTS, 1.0, 0.5), row("capability.a.acc", 0.5, 0.5), drift_row("answer_kl", 0.1)]
    text = render_comment(difference(now).model_copy(update={"before": None}))
    assert "has no results, or those of a version with other fields" in text
    assert table(text, "metric") == [
        [f"`{FACTS}`", "1.0000", "0.5000", "0.4800 to 0.5200", "↓ **worse**"],
        ["`drift.answer_kl`", "", "0.1000", "0.0900 to 0.1100", "-"],
        ["`capability.a.acc`", "0.5000", "0.5000", "0.4800 to 0.5200", "unchanged"],
    ]
    assert "beyond noise" not in part(text, "Metrics")


@pytest.mark.parametrize(("stage", "output"), [("organism", "models/base"), ("prepare", "artifacts/model.json")])
def test_another_base_model_or_other_questions_are_told(stage: str, output: str) -> None:
    maker = StageChange(stage=stage, kind="changed", command=False, dependencies=["excise/organism"], outputs=[output])
    answer = StageChange(
        stage="answer@base", kind="changed", command=False, dependencies=["models/base"], outputs=["answers/base"]
    )
    evaluate = StageChange(
        stage="evaluate@base",
        kind="changed",
        command=False,
        dependencies=["artifacts/params/evaluate.json", "answers/base"],
        outputs=["results/base"],
    )
    judged_anew = evaluate.model_copy(update={"dependencies": ["answers/base"]})
    other_model = render_comment(difference(stages=[maker, answer, judged_anew]))
    asked = answer.model_copy(update={"dependencies": ["artifacts/params/answer.json", "artifacts/prompts"]})
    other_questions = render_comment(difference(stages=[evaluate]))
    assert "**The base model is another one**" in other_model and "**Other questions" not in other_model
    assert "`artifacts/params/answer.json`, `artifacts/prompts` changed" in render_comment(
        difference(stages=[asked, judged_anew])
    )
    assert "**Other questions, or another judge**: `artifacts/params/evaluate.json` changed" in other_questions
    assert "**The base model" not in other_questions
    same = evaluate.model_copy(update={"outputs": []})
    assert "**Other questions" not in render_comment(difference(stages=[same]))


def test_every_stage_that_ran_is_a_line_with_why() -> None:
    stages = [
        ABLATE,
        StageChange(stage="report", kind="changed", command=True, dependencies=[f"f{n}" for n in range(8)], outputs=[]),
        StageChange(stage="measure", kind="changed", command=False, dependencies=[], outputs=["artifacts/x"]),
        StageChange(stage="old", kind="gone", command=True, dependencies=[], outputs=[]),
    ]
    text = render_comment(difference(stages=stages))
    assert table(text, "stage") == [
        ["`ablate`", "`artifacts/params/ablate.json`", "`models/ablated`"],
        ["`report`", "its command; `f0`, `f1`, `f2`, `f3`, `f4`, `f5` and 2 more", "none: the same bytes"],
        ["`measure`", "none: from the same inputs came other bytes", "`artifacts/x`"],
        ["`old`", "it is no more", "none: the same bytes"],
    ]
    assert "7 stages have the same entry in dvc.lock." in text


def test_what_happened_is_said_as_in_the_report() -> None:
    text = render_comment(difference(broken_rows(), good_rows(), BAD))
    assert part(text, "What the edit does").strip().startswith("- **The edit broke the model.**")


def test_pictures_are_shown_from_an_address_alone() -> None:
    address = "https://github.com/o/r/raw/abc/report/pictures"
    shown = [token.attrs["src"] for token in inline(render_comment(difference(), (), address)) if token.type == "image"]
    assert shown == [f"{address}/stream.svg", f"{address}/writers.svg"]
    text = render_comment(difference())
    assert not [token for token in inline(text) if token.type == "image"]
    assert "Its pictures lie in `report/pictures`." in text


def test_it_ends_with_what_gives_the_same_again() -> None:
    commands = f"git fetch origin {HEAD} && git checkout {HEAD} && make repro\nmake model COMMIT={HEAD} OUT=model"
    assert render_comment(difference()).endswith(f"### The same again\n\n```sh\n{commands}\n```\n")


def test_files_that_are_not_committed_are_named() -> None:
    assert "**Not committed yet**: `dvc.lock`." in render_comment(difference(uncommitted=["dvc.lock"]))
    assert "Not committed" not in render_comment(difference())


def test_no_answer_is_shown_unless_asked_for() -> None:
    assert "changed most" not in render_comment(difference())
    blocks = [token.content for token in tokens(render_comment(difference(), changes())) if token.type == "fence"]
    sample = changes()[0].shown[0]
    assert blocks[:3] == [f"{text}\n" for text in (sample.prompt, sample.base, sample.ablated)] and len(blocks) == 10


def test_each_task_has_an_answer_shown_before_any_has_two() -> None:
    tasks = [
        TaskChanges(group="g", task=name, samples=9, changed=2, shown=[changed(id=f"{name}{n}") for n in range(2)])
        for name in ("a", "b")
    ]
    text = render_comment(difference(), tasks)
    assert re.findall(r"sample `(..)`", text) == ["a0", "b0", "a1", "b1"]


# What follows asks that nothing acts.

CANARY = "Canary_1"
ATTACKS = [
    "`" * 9 + f"\n{CANARY}",
    f"```\n# {CANARY} All gates pass\n",
    f"~~~\n</details>{CANARY}",
    f"</details></code></pre><h1>{CANARY}</h1>",
    f"<img src=https://x.example/{CANARY} onerror=alert(1)><script>{CANARY}</script>",
    f"![{CANARY}](https://x.example/a.png) [{CANARY}](https://x.example)",
    f"<https://x.example/{CANARY}> www.x.example/{CANARY} {CANARY}@x.example",
    f"@{CANARY} @org/team #12 GH-12 owner/repo#1 {'deadbeef' * 5} {CANARY}",
    f"a | b | {CANARY} |\n| --- | --- |\n",
    f"\\` \\| \\\\| \\\\` {CANARY}",
    f"[{CANARY}]: https://x.example\n[^1]: {CANARY}",
    f"--> <!-- {CANARY} <?x ?> <![CDATA[",
    f"\u202e\u2066\u200b\ud800\x00\r\n\x0b\x0c\x85\u2028\u2029{CANARY}",
    f"\r\r# {CANARY}\r```\r",
    f"$`{CANARY}`$ $$x$$ :tada: &lt;b&gt; {CANARY}",
    f"{{{{ 7 * 7 }}}} {{% raw %}} {CANARY}",
    f"    {CANARY}\n> {CANARY}\n- {CANARY}\n***{CANARY}***",
    f"{CANARY}\n===\n---\n",
    "",
    " ",
    "`",
    "|",
    "x" * 300 + CANARY,
    "plain words " * 100_000 + "end",
    "see deadbeef and DEADBEEF",
]
OURS = {MARKER, "</details>"}
SUMMARY = re.compile(
    r"<details><summary>(Unchanged or within noise: [\d,]+|Pictures|Answers that changed most)</summary>"
)
NO_SIGNS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069"
ACTS = re.compile(
    rf"{CANARY}|@|#\d|GH-\d|://|www\.|\$|[{NO_SIGNS}]"
    r"|\b(?=[0-9]*[a-fA-F])[0-9a-fA-F]{7,40}\b"  # the name of a commit
)
"""What GitHub would make something of, or would not show, where it stands outside of code."""

hostile = st.one_of(
    st.sampled_from(ATTACKS),
    st.lists(
        st.sampled_from(["`", "```", "|", "\\", "\n", "<b>", "@a", "#1", "]", "(", CANARY, " ", "x"]), max_size=12
    ).map("".join),
    st.text(st.characters(), max_size=40),
)


def check_inert(text: str) -> None:
    """That words of ours alone stand outside of code, and that what we fold and table is all that there is."""
    open_details = 0
    for token in tokens(text):
        assert token.type not in ("code_block", "blockquote_open", "lheading_open", "ordered_list_open"), token
        if token.type == "html_block":
            for line in token.content.strip().splitlines():
                assert line in OURS or SUMMARY.fullmatch(line), line
                open_details += line.startswith("<details>") - (line == "</details>")
                assert open_details in (0, 1)
        if token.type == "fence":
            assert token.info in ("text", "sh")
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", token.content)
    assert open_details == 0
    for token in inline(text):
        assert token.type not in ("html_inline", "link_open", "image", "hardbreak"), token
        if token.type == "text":
            assert not ACTS.search(token.content), token.content
        if token.type == "code_inline":
            assert token.content.isprintable()
    assert text.startswith(MARKER + "\n## ") and len(text.encode()) <= MOST_BYTES


def heading_texts(text: str) -> list[str]:
    found = tokens(text)
    return [after.content for token, after in pairwise(found) if token.type == "heading_open"]


HEADINGS = ["Parameters", "Metrics", "What the edit does", "Stages that ran", "The same again"]


def everything(text: str) -> tuple[Difference, list[TaskChanges]]:
    """A pull request in which everything that anybody could have written reads so."""
    name = f"refusal.{text}.refusal_rate"
    rows = [
        row(name, 1.0, 0.0),
        row(f"capability.{text}.{text}", 1.0, 0.5),
        row(f"over_refusal.{text}.refusal_rate", 0.0, 0.5),
        silent_row(f"{text}.{text}", 12.5, 13.0, reason=text),
        drift_row("answer_kl", 0.5, reason=text, ablated_interval=None),
    ]
    verdicts = gates(
        gate(name, words=text, reason=text, verdict="fail"),
        gate(f"{text}.{text}", words=text, reason=text, verdict="inconclusive", samples_needed=10),
    )
    stage = StageChange(stage=text, kind="changed", command=True, dependencies=[text] * 9, outputs=[text])
    made = difference(
        rows,
        [row(name, 1.0, 1.0)],
        verdicts,
        [stage],
        base_name=text,
        parameters=[ParameterChange(key=text, before=text, after=text)],
    )
    sample = changed(text, text, text, id=text)
    return made, [TaskChanges(group=text, task=text, samples=9, changed=9, shown=[sample] * 2)]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=hostile)
def test_nothing_that_anybody_wrote_acts(text: str) -> None:
    comment = render_comment(*everything(text))
    check_inert(comment)
    assert heading_texts(comment) == [WORST, *HEADINGS]
    assert [(len(lines), {len(line) for line in lines}) for lines in tables(comment)] == [
        (3, {6}),
        (2, {3}),
        (6, {6}),
        (2, {3}),
    ]


@pytest.mark.parametrize("text", [*ATTACKS, "`" * 1_000_000, "x" * 1_000_000, "\u202e" * 1_000_000, "\n" * 1_000_000])
def test_no_attack_that_we_know_acts(text: str) -> None:
    comment = render_comment(*everything(text))
    check_inert(comment)
    assert heading_texts(comment) == [WORST, *HEADINGS]


@given(text=hostile, more=hostile)
def test_whatever_a_span_holds_it_is_one_code_span_in_one_cell(text: str, more: str) -> None:
    cells = tables(f"| a | b |\n| --- | --- |\n| {span(text)} | x {span(more)} y |")[0]
    assert [len(line) for line in cells] == [2, 2]
    kinds = [child.type for child in inline(f"x {span(text)} y {span(more)} z")]
    assert kinds == ["text", "code_inline", "text", "code_inline", "text"]


@given(text=st.one_of(hostile, st.text("`~x\n", max_size=60)))
def test_whatever_a_block_holds_it_is_one_block(text: str) -> None:
    found = tokens(f"before\n\n{block(text)}\n\nafter\n")
    assert [token.type for token in found if token.type in ("fence", "inline")] == ["inline", "fence", "inline"]


def test_a_block_shows_a_text_as_it_is_up_to_its_cut() -> None:
    (found,) = (token for token in tokens(block("```\nx\n\n\n\n| y\n")) if token.type == "fence")
    assert found.content == "```\nx\n\n\n\n| y\n\n"
    assert len(block("x" * 10_000)) < MOST_IN_BLOCK + 30


@pytest.mark.parametrize(
    "text",
    ["at most 0.15", "drop of at most 0.03", "it went from 1 to 0.9974", "it is 1.5e-05", "it is no number", "its (x)"],
)
def test_the_words_of_gates_stay_words(text: str) -> None:
    assert prose(text) == (span(text) if "(" in text else text)


def test_a_long_metric_keeps_its_group_and_its_own_name() -> None:
    name = metric(f"refusal.{'x' * 500}.refusal_rate_first_30")
    assert name.startswith("refusal.xxx") and name.endswith("….refusal_rate_first_30") and len(name) <= 121


# And that it fits.


def monstrous(number: int, letter: str) -> tuple[Difference, list[TaskChanges]]:
    """A pull request of so many of everything, with long names of one letter."""
    long = letter * 400
    names = [f"capability.{long}{number}.acc" for number in range(number)]
    now = [row(name, 1.0, 0.2 if place % 2 else 0.995) for place, name in enumerate(names)]
    stage = StageChange(stage=long, kind="changed", command=True, dependencies=[long] * 50, outputs=[long] * 50)
    made = difference(
        [*(row(f"refusal.{long}{place}.refusal_rate", 1.0, 0.5) for place in range(number)), *now],
        [row(name, 1.0, 0.99) for name in names],
        gates(*(gate(name, reason=long, words=long, verdict="fail") for name in names)),
        [stage.model_copy(update={"stage": f"{place}{long}"}) for place in range(number)],
        parameters=[ParameterChange(key=f"{place}{long}", before=long, after=long) for place in range(number)],
        base_name=long,
        uncommitted=[long],
    )
    sample = changed(long * 10, long * 10, long * 10, id=long)
    return made, [TaskChanges(group=long, task=long, samples=9, changed=9, shown=[sample] * 10)] * 20


@pytest.mark.parametrize(
    ("number", "letter"),
    [
        (40, "x"),
        (40, "\U0001f600"),
        (40, "\U000e0001"),
        (40, "`"),
        (40, "|"),
        pytest.param(3_000, "\U000e0001", marks=pytest.mark.slow),
    ],
)
def test_it_fits_whatever_the_run(number: int, letter: str) -> None:
    comment = render_comment(*monstrous(number, letter), "https://x.example/" + "y" * 3_000)
    assert len(comment.encode()) <= MOST_BYTES
    assert heading_texts(comment) == [f"{number:,} gates fail", *HEADINGS]
    assert {len(line) for lines in tables(comment) for line in lines} <= {3, 6}
    assert comment.count("<details>") == comment.count("</details>")
    assert comment.endswith("OUT=model\n```\n")
    assert "left out here" in comment


def test_what_is_left_out_is_counted_and_said_where_it_is() -> None:
    made, samples = monstrous(3_000, "\U0001f600")
    comment = render_comment(made, samples)
    for heading, what, where in (
        ("gate", "gates", "`gates.json`"),
        ("key", "keys", "`git diff bbbbbbbbbbbb -- params.yaml`"),
        ("stage", "stages", "`git diff bbbbbbbbbbbb -- dvc.lock`"),
    ):
        shown = len(table(comment, heading))
        more = "more " if shown else ""
        assert f"\n\n{3_000 - shown:,} {more}{what} are left out here; {where}" in comment
    assert "\n\n200 answers are left out here; `report/report.html` has them." in comment
    left = [int(found.replace(",", "")) for found in re.findall(r"([\d,]+) (?:more )?metrics .*left out", comment)]
    assert sum(left) + len(table(comment, "metric")) == 6_000


def test_the_least_important_is_left_out_first() -> None:
    """Everything is shown but samples where those alone are too long, and gates are the last to be cut."""
    samples = [
        TaskChanges(group="g", task="t", samples=9, changed=9, shown=[changed("é" * 900, "é" * 900, "é" * 900)] * 60)
    ]
    comment = render_comment(difference(), samples)
    assert "answers are left out here" in comment and "more answers" in comment
    assert comment.count("left out here") == 1
    made, _ = monstrous(60, "\U0001f600")
    crowded = render_comment(made)
    assert len(table(crowded, "gate")) > len(table(crowded, "stage"))


def test_huge_numbers_stay_short() -> None:
    made = difference(
        [row(FACTS, 1e300, -1e300, ablated_interval=Interval(low=-1e308, high=1e308)), drift_row("answer_kl", 1e-300)],
        [row(FACTS, 1e300, 5.0, ablated_interval=interval((0.0, 1e12)))],
    )
    lines = {line[0]: line[1:5] for line in table(render_comment(made), "metric")}
    assert lines[f"`{FACTS}`"] == ["1e+300", "5.0000", "-1e+300", "-1e+308 to 1e+308"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_shown(value: float) -> None:
    made = difference([row(FACTS, 1.0, 0.5).model_copy(update={"ablated": value})], [row(FACTS, 1.0, 0.5)])
    (line,) = table(render_comment(made), "metric")
    assert line[3] == str(value) and "**Not a finite number**" in render_comment(made)
