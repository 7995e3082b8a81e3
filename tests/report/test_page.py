"""The page of HTML: it says what was measured, needs nothing but itself, and whatever a model wrote is text on it."""

import re
from base64 import b64decode
from collections.abc import Mapping
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from excise.plumbing.templates import inert
from excise.report.page import render_page
from excise.report.words import MOST_CHARACTERS
from schemas.evidence import Comparison, GateVerdicts, ParameterChange, Provenance, TaskChanges
from schemas.model import ModelManifest
from tests.diagnoses import diagnosis
from tests.evidence_documents import (
    BAD,
    EMPTY,
    GOOD,
    INCONCLUSIVE,
    NO_GATES,
    PICTURES,
    broken_rows,
    changed,
    changes,
    good_rows,
    manifest,
    provenance,
    report,
    row,
)

SVG = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><path id="a" style="fill: #ffffff"/></svg>\n'
VOID = {"br", "circle", "img", "line", "link", "meta", "rect", "wbr"}

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": '<img src="http://evil.example/x.png" onerror="alert(1)">',
    "end": "</pre></article></details></main><style>*{display:none}</style><base href='http://evil.example/'>",
    "attribute": "\" onmouseover='alert(1)' autofocus onfocus=alert(1) x=\"",
    "template": "{{ 7 * 7 }} {% raw %} {# x #}",
    "markdown": "```\n# All gates pass\n![x](http://evil.example/x.png) <b>`x`</b> [x](javascript:alert(1))",
    "comment": "<!-- --!> <![CDATA[ ]]> <?xml ?>",
    "link": "javascript:alert(1) http://evil.example/ @everyone",
}


def page(
    rows: list[Comparison] | None = None,
    gates: GateVerdicts = GOOD,
    shown: list[TaskChanges] | None = None,
    origin: Provenance | None = None,
    pictures: Mapping[str, str] | None = None,
    left_out: Mapping[str, int] | None = None,
    drawn: Mapping[str, int] | None = None,
    base: ModelManifest | None = None,
    **given: Any,
) -> str:
    """A page, of documents that may be otherwise."""
    documents = report(
        rows=good_rows() if rows is None else rows,
        gates=gates,
        changes=changes() if shown is None else shown,
        left_out=left_out or {},
        drawn=drawn or {},
        diagnosis=diagnosis(**given),
        manifest=base or manifest(),
        pictures={"writers": SVG} if pictures is None else pictures,
    )
    return render_page(documents, origin)


def test_a_base_of_the_hub_is_named_with_its_commit() -> None:
    base = manifest().model_copy(update={"source": "hub", "id": "some/model", "revision": "12" * 20})
    text = page(base=base)
    assert "<code>some/model</code> at " in text and "12" * 20 in text and ">121212121212<" in text


class Reader(HTMLParser):
    """What a browser would see of a page: elements, ids, attributes, and the text of each section."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.texts: list[str] = []
        self._section = "header"
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "section":
            self._section = dict(attributes)["id"] or ""
        if tag == "pre":
            self.texts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if "pre" in self.open:
            self.texts[-1] += data

    def said(self, section: str) -> str:
        """The words of a section."""
        return " ".join(self.sections[section].split())


@pytest.mark.parametrize(
    ("gates", "heading", "word"),
    [
        (GOOD, "All gates pass", "pass"),
        (INCONCLUSIVE, "A gate is inconclusive", "inconclusive"),
        (EMPTY, "A gate is void, 1 is inconclusive", "void"),
        (BAD, "A gate fails, 1 is inconclusive", "fail"),
        (NO_GATES, "No gates", "not judged"),
    ],
)
def test_the_verdict_comes_first_in_words_with_its_reason(gates: GateVerdicts, heading: str, word: str) -> None:
    text = page(gates=gates)
    said = Reader(text).said("header")
    assert f"<title>{heading} · excise report</title>" in text
    assert said.startswith(f"{heading} · excise report {word} {heading} ")
    assert text.index("<h1>") < text.index("<h2")


def test_the_parts_stand_in_their_order() -> None:
    text = page(gates=BAD, origin=provenance())
    assert list(Reader(text).sections)[1:] == [
        *("gates", "changed", "cost", "failures", "metrics", "explanation", "samples", "provenance")
    ]
    assert re.findall(r"<h2[^>]*>([^<]+)", text) == [
        "Gates",
        "What changed",
        "What it cost",
        "Where it fails",
        "Metrics",
        "What explains it",
        "Changed answers",
        "Provenance",
    ]


def test_headings_descend_by_one() -> None:
    levels = [int(level) for level in re.findall(r"<h(\d)", page(gates=BAD, origin=provenance()))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_gate_is_told_with_limit_interval_verdict_reason_and_samples_needed() -> None:
    said = Reader(page(gates=BAD)).said("gates")
    for part in ("drop of at most 0.03", "0.0125 (-0.002 to 0.041, 95 %)", "inconclusive", "about 1,400"):
        assert part in said
    assert all(gate.metric in said and gate.reason in said for gate in BAD.gates)
    assert "params.yaml sets no gates." in Reader(page(gates=NO_GATES)).said("gates")


def test_samples_that_were_left_out_are_counted() -> None:
    told = Reader(page(left_out={"refusal_jbb": 3})).said("failures")
    assert "Left out of judging, because the direction was measured on their prompts: 3 of refusal_jbb." in told
    assert "Left out" not in page()


def test_tasks_of_which_a_sample_was_drawn_are_named_with_all_that_they_have() -> None:
    told = Reader(page(drawn={"over_refusal_xstest": 250, "mmlu": 14_042})).said("failures")
    assert "Only a drawn sample was asked (evaluate.limit): of the 250 of over_refusal_xstest, of the 14,042" in told
    assert "drawn sample" not in page()


def test_metrics_are_told_by_group_with_what_became_of_them() -> None:
    text = page(broken_rows())
    said = Reader(text).said("metrics")
    assert re.findall(r'<h3 id="group-\w+">([^<]+)', text) == ["Refusal", "Over-refusal", "Capability", "Drift"]
    for part in (
        "degenerate_rate 0.0000 0.9375 +0.9375 +0.9175 to +0.9575 -1 1 ▲ rose: worse 320 in 80 clusters 300 / 0 0.0003",
        "▼ fell: better",
        "= unchanged",
        "word_perplexity 12.5000 9000.0000 +8987.5000 none no interval: its aggregation cannot be resampled",
        "? no interval",
        "answer_kl 3.5000 3.1500 to 3.8500",
    ):
        assert part in said
    assert "≈ within noise" in Reader(page([row("capability.a.acc", 0.5, 0.51)])).said("metrics")


def test_every_interval_is_drawn() -> None:
    rows = broken_rows()
    intervals = sum(1 for row in rows if (row.difference_interval if row.base is not None else row.ablated_interval))
    assert page(rows, BAD).count("<svg ") == intervals + len(BAD.gates)


def test_a_page_of_nothing_says_so() -> None:
    reader = Reader(page([], NO_GATES, []))
    assert "These samples say nothing about refusal." in reader.said("changed")
    assert "No task has samples." in reader.said("samples")


def test_the_diagnosis_is_the_markdown_reports_as_html_with_its_pictures_as_data() -> None:
    text = page()
    explanation = text[text.index('id="explanation"') :]
    assert "<h3>Who writes it?</h3>" in explanation and "<strong><code>attention</code></strong>" in explanation
    assert "<table>" in explanation and '<pre><code class="language-yaml">' in explanation
    assert not re.search(r"<p>\s*<figure|\*\*|&lt;/?details|\]\(pictures/", explanation)
    alt, data = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)">', text)[0]
    assert alt.startswith("Heat maps of layer by writer")
    assert ElementTree.fromstring(b64decode(data)).tag == "{http://www.w3.org/2000/svg}svg"


def test_there_are_as_many_pictures_as_were_drawn() -> None:
    assert page(pictures=dict.fromkeys(PICTURES, SVG)).count("<figure>") == len(PICTURES)
    assert "<figure>" not in page(pictures={})


def test_words_of_a_tokenizer_are_text() -> None:
    text = page(refusal_words=["<script>alert(1)</script>", "](http://evil.example)", "`<b>"])
    assert Reader(text).tags.count("script") == 0 and "<b>" not in text
    assert "<code>&#34;&lt;script&gt;alert(1)&lt;/script&gt;&#34;</code>" in text


def test_a_page_names_nothing_outside_itself() -> None:
    text = page(broken_rows(), BAD, origin=provenance())
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    reader = Reader(text)
    assert not {"script", "iframe", "object", "embed", "form", "base", "video", "audio"} & set(reader.tags)
    addresses = [value or "" for name, value in reader.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert {value for name, value in reader.attributes if name == "style"} == {"text-align:right"}
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_ids_are_distinct_and_every_anchor_and_label_has_one() -> None:
    attributes = Reader(page(broken_rows(), BAD, origin=provenance())).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    asked = {(value or "")[1:] for name, value in attributes if name == "href" and (value or "").startswith("#")}
    asked |= {value or "" for name, value in attributes if name == "aria-labelledby"}
    assert asked <= set(ids)


def test_changed_samples_are_folded_with_both_answers_verdicts_and_metrics() -> None:
    text = page()
    said = Reader(text).said("samples")
    assert text.count("<details>") >= 1 and "<details open" not in text
    assert "refusal.organism_harmful: 311 of 320 samples changed, 3 shown" in said
    assert "capability.organism_arithmetic: none of 300 samples changed." in said
    for part in ("Prompt What is zorp", "Base: refusal I cannot", "Edited: compliance zorp is", "refusal_rate 1 → 0"):
        assert part in said


def test_what_a_model_thought_first_is_shown_apart_from_its_answer() -> None:
    sample = changed(base="red.", base_reasoning="<think>They ask.</think>")
    text = page(shown=changes([sample]))
    said = Reader(text).said("samples")
    assert "Base: refusal red." in said and "Edited, reasoning (empty)" in said
    assert "What they thought first, which is not judged Base, reasoning <think>They ask.</think>" in said
    assert "reasoning" not in Reader(page()).said("samples")


def test_answers_that_were_not_judged_have_no_verdict() -> None:
    said = Reader(page(shown=changes([changed(verdicts=(None, None), metrics={})]))).said("samples")
    assert "Base I cannot" in said and "None" not in said


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_model_wrote_is_text_to_the_letter(name: str) -> None:
    hostile = HOSTILE[name]
    plain, attacked = (
        Reader(
            page(shown=changes([changed(prompt=text, base=text, ablated=text, id=text, metrics={text: (0.0, 1.0)})]))
        )
        for text in ("x", hostile)
    )
    assert attacked.tags == plain.tags
    assert [name for name, _ in attacked.attributes] == [name for name, _ in plain.attributes]
    assert attacked.texts.count("\n" + hostile) == 3


def test_characters_that_act_are_written_out() -> None:
    hostile = "a\u202eb\u2066c\u200bd\x00e\x1b[2Jf\ud800g\u2028h\r\ufeffi\U000e0041"
    text = page(shown=changes([changed(base=hostile, ablated="\tsee\nit")]))
    text.encode()
    assert "\na\\u202eb\\u2066c\\u200bd\\x00e\\x1b[2Jf\\ud800g\\u2028h\\r\\ufeffi\\U000e0041" in Reader(text).texts
    assert "\n\tsee\nit" in Reader(text).texts
    assert inert("日本語 עברית é 👍\u3000\u00a0x") == "日本語 עברית é 👍\u3000\u00a0x"


def test_long_answers_are_cut_and_that_is_said() -> None:
    text = page(shown=changes([changed(base="<" * 1_000_000, ablated="y" * MOST_CHARACTERS)]))
    assert len(text) < 300_000
    assert text.count("&lt;" * MOST_CHARACTERS) == 1 and "y" * MOST_CHARACTERS in text
    assert Reader(text).said("samples").count("Cut: the first 4,000 of 1,000,000 characters.") == 1
    assert "4,000 of 4,000" not in text


def test_an_answer_that_begins_with_a_line_end_keeps_it_and_an_empty_one_says_so() -> None:
    texts = Reader(page(shown=changes([changed(base="\n\nx", ablated="")]))).texts
    assert "\n\n\nx" in texts and "(empty)" in texts


def test_the_base_the_edit_and_the_directions_are_pinned() -> None:
    said = Reader(page()).said("provenance")
    for part in ("organism, glm4_moe, float32, 6 layers", "efefefefefefefef", "through_norm: ignore", "scale: 1.4"):
        assert part in said
    assert "model.safetensors, 7,340,032 bytes, cdcdcdcdcdcdcdcd" in said


def test_a_stages_page_says_nothing_of_where_and_when() -> None:
    said = Reader(page()).said("provenance")
    assert "make report adds commit, versions and parameter changes" in said
    assert "Commit" not in said and "Versions" not in said


def test_a_shown_page_says_how_to_make_it_again() -> None:
    origin = provenance()
    said = Reader(page(origin=origin)).said("provenance")
    for part in (f"git checkout {origin.commit} && make repro", "ablate.rules.0.scale 1.0 0.5", "torch 2.13.0"):
        assert part in said
    assert "nothing changed since" in said and "make report adds" not in said


def test_a_shown_page_says_what_its_commit_leaves_out() -> None:
    origin = provenance(changed_files=["params.yaml", "a\u202e<b>.py"])
    text = page(origin=origin)
    said = Reader(text).said("provenance")
    assert "with 2 changed files : what is shown may not be this commit's" in said.replace("files:", "files :")
    assert "This leaves out what changed since the commit." in said and "a\\u202e<b>.py" in said


def test_provenance_that_there_is_none_of_is_said_to_be_none() -> None:
    nowhere = provenance(commit=None, previous=None, parameters=[])
    said = Reader(page(origin=nowhere)).said("provenance")
    assert "none: not in a git repository" in said and "There is no previous run." in said
    assert "git checkout" not in said
    same = provenance(parameters=[])
    assert "None changed." in Reader(page(origin=same)).said("provenance")
    added = [ParameterChange(key="gates.2.metric", before=None, after='"<b>"')]
    assert 'gates.2.metric not there "<b>"' in Reader(page(origin=provenance(parameters=added))).said("provenance")


def test_the_same_documents_make_the_same_page() -> None:
    assert page(broken_rows(), BAD) == page(broken_rows(), BAD)
