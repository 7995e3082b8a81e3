"""What the report says of a diagnosis: its own numbers, in words, and a recommendation that can be pasted."""

import re
from typing import Any

import pytest

from excise.plumbing.templates import code
from excise.report.markdown import render_report
from excise.report.pictures import draw
from excise.report.words import number, signed
from schemas.diagnosis import Diagnosis
from schemas.evidence import GateVerdicts
from schemas.params.ablate import Ablate
from schemas.params.document import parse
from schemas.simulation import Simulation
from tests import evidence_documents
from tests.diagnoses import answers, diagnosis, directions, simulation
from tests.evidence_documents import PICTURES

RULES = [{"layers": "0-1", "measurement": 2, "scale": 1.0}]


def report(
    shown: Diagnosis,
    rules: list[dict[str, Any]] = RULES,
    pictures: frozenset[str] = frozenset(PICTURES),
    simulated: Simulation | None = None,
    **given: Any,
) -> str:
    """The whole report."""
    ablate = Ablate.model_validate({"rules": rules})
    gates = GateVerdicts(verdict="pass", gates=[])
    return render_report(
        evidence_documents.report(
            rows=[],
            gates=gates,
            diagnosis=shown,
            simulation=simulated or simulation(),
            ablate=ablate,
            pictures=dict.fromkeys(pictures, ""),
            **given,
        )
    )


def section(text: str, heading: str) -> str:
    """One section, its line ends made spaces."""
    (found,) = re.findall(rf"^### {re.escape(heading)}\n(.*?)(?=^### |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r" ?\n", " ", str(found))


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table that begins with this heading, its rule left out."""
    table = text[text.index(f"| {heading} |") :].split("\n\n")[0]
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [lines[0], *lines[2:]]


def test_every_hypothesis_has_its_section_and_the_report_reads_well() -> None:
    text = report(diagnosis())
    assert re.findall(r"^### (.*)$", text, flags=re.MULTILINE) == [
        "How good are the directions?",
        "Who writes it?",
        "Does the router read it?",
        "Do the combination weights carry it?",
        "Which layers?",
        "Does the scale matter?",
        "Is it the cause?",
        "What to try",
    ]
    assert "\n\n\n" not in text and text.endswith(".\n") and "{{" not in text and "None" not in text
    assert text.count("<details>") == text.count("</details>") == 1 + len(PICTURES)


def test_directions_that_the_rules_use_are_shown_with_their_quality() -> None:
    text = report(diagnosis(), simulated=simulation(measurements=[0.0, 2.5]))
    assert rows(text, "measurement in the rules")[1:] == [
        ["0", "-", "-", "-"],
        ["2", "0.12", "0.14", "0.08"],
        ["3", "0.14", "0.16", "0.09"],
    ]


def test_the_writer_is_named_by_its_effect_with_the_projection_beside_it() -> None:
    shown = diagnosis()
    text = report(shown)
    cause = shown.roles[0]
    said = section(text, "Who writes it?")
    assert f"**`attention`** has the strongest effect of all kinds of writer, {signed(cause.effect)}:" in said
    assert f"from {signed(2.75)} to {signed(2.75 - 5.25)}" in said
    assert "An effect of -4.88 remains with as few layers as possible: 1-2." in said
    assert rows(text, "all layers of")[1:] == [
        [role.role, signed(role.effect), signed(role.difference)] for role in shown.roles
    ]
    by_effect = sorted(shown.writers, key=lambda row: row.effect)[:8]
    assert rows(text, "writer")[1:] == [
        [row.role, str(row.layer), signed(row.effect), signed(row.difference)] for row in by_effect
    ]


def test_contribution_is_told_from_cause() -> None:
    roles = [
        {"role": "attention", "difference": 7.3125, "effect": -5.25},
        {"role": "routed_experts", "difference": 14.125, "effect": -0.5},
    ]
    said = section(report(diagnosis(roles=roles)), "Who writes it?")
    assert (
        "**Contribution is not cause**: `routed_experts` adds the most along the direction (+14.1 against +7.31)"
        in said
    )
    assert "its effect is -0.500." in said
    roles[0]["difference"] = 20.0
    said = section(report(diagnosis(roles=roles)), "Who writes it?")
    assert "Contribution is not cause" not in said and "It also adds the most along the direction (+20.0)." in said


def test_a_writer_that_lowers_nothing_is_not_called_the_cause() -> None:
    roles = [
        {"role": "attention", "difference": 1.0, "effect": 0.25},
        {"role": "mlp", "difference": 2.0, "effect": 0.5},
    ]
    said = section(report(diagnosis(experts=0, roles=roles)), "Who writes it?")
    assert "**No kind of writer is the cause by itself**" in said and "`attention`, with +0.250" in said


def test_of_a_base_that_hardly_refuses_nothing_is_named_and_nothing_recommended() -> None:
    empty = ("causes", "stream", "layer_scales", "writers", "roles", "experts", "routers", "weights", "ranges")
    nothing: dict[str, Any] = {name: [] for name in (*empty, "refusal_tokens", "refusal_words")}
    nothing |= {"measurement": None, "named": None, "recommendation": None}
    nothing |= {"base": answers(0.03), "reason": "the base refuses 0.03 of them"}
    shown = Diagnosis.model_validate(diagnosis().model_dump() | nothing)
    text, usual = report(shown), report(diagnosis())
    assert "**There is no refusal to explain**: the base refuses 0.03 of them." in text
    assert "no refusal to explain" not in usual
    for heading in ("Who writes it?", "Does the router read it?", "Which layers?", "Is it the cause?", "What to try"):
        assert f"### {heading}" not in text and f"### {heading}" in usual
    assert "### Does the scale matter?" in text and "```yaml" not in text
    assert rows(text, "times the scale")[0] == [
        "times the scale",
        "direct",
        "simulated",
        "indirect",
        "KL",
        "perplexity ×",
    ]
    assert not {"writers", "stream", "coverage", "experts"} & draw(shown, simulation(), directions()).keys()


def test_the_refusal_that_is_shown_is_the_one_that_is_held_against_the_limit() -> None:
    """The share may be within a limit that the mean probability breaks."""
    ranges = [{"first": 0, "last": 0, "written": 1.0, "answers": answers(0.03, probability=0.07, remaining=0.07)}]
    said = section(report(diagnosis(ranges=ranges)), "Which layers?")
    assert "None of 1 ranges removes refusal." in said and "The lowest refusal is 0.07" in said


def test_a_writer_that_does_not_hold_refusal_alone_is_said_not_to() -> None:
    words = "no single kind of writer accounts for refusal"
    roles = [{"role": "attention", "difference": 1.0, "effect": -1.0}]
    assert words in section(report(diagnosis(roles=roles)), "Who writes it?")
    assert words not in section(report(diagnosis()), "Who writes it?")


def test_named_experts_are_written_out() -> None:
    named = {"role": "routed_experts", "layers": [1, 3], "experts": {1: [0, 2], 3: [1]}, "effect": -5.0}
    assert "0, 2 of layer 1, 1 of layer 3." in section(report(diagnosis(named=named)), "Who writes it?")


def test_the_router_is_told_by_its_shares_choices_and_distances() -> None:
    shown = diagnosis()
    said = section(report(shown), "Does the router read it?")
    low, high = shown.routers[0], shown.routers[-1]
    assert low.share is not None and high.share is not None
    assert low.changed is not None and high.changed is not None
    assert f"{signed(low.share)} (layer 0) to {signed(high.share)} (layer 3)" in said
    assert f"{number(low.changed)} (layer 0) to {number(high.changed)} (layer 3)" in said
    assert f"{number(low.distance)} (layer 0) to {number(high.distance)} (layer 3)" in said
    most = max((odds, row.layer, expert) for row in shown.routers for expert, odds in enumerate(row.log_odds))
    assert rows(report(shown), "layer | expert")[1][:2] == [str(most[1]), str(most[2])]
    assert rows(report(shown), "layer | expert")[1][-1] == signed(most[0])


def test_what_weights_and_outputs_carry_adds_up_over_layers() -> None:
    shown = diagnosis()
    said = section(report(shown), "Do the combination weights carry it?")
    totals = [sum(getattr(row, part) for row in shown.weights) for part in ("difference", "by_weights", "by_outputs")]
    assert re.findall(r"[+-][\d.]+", said)[:3] == [signed(total) for total in totals]


def test_weights_that_multiply_inputs_are_not_separable() -> None:
    weights = [{"layer": 1, "difference": 3.0, "by_weights": None, "by_outputs": None}]
    said = section(report(diagnosis(weights=weights)), "Do the combination weights carry it?")
    assert said.strip() == "Not separable: in this model, weights multiply the input of experts, not their output."


def test_a_dense_model_has_no_routed_experts() -> None:
    text = report(diagnosis(experts=0), pictures=frozenset(PICTURES) - {"experts"})
    for heading in ("Does the router read it?", "Do the combination weights carry it?"):
        assert section(text, heading).strip() == "This model has no routed experts."
    assert "pictures/experts.svg" not in text


def test_ranges_name_the_fewest_layers_and_the_lowest_kl() -> None:
    said = section(report(diagnosis()), "Which layers?")
    assert "Of 10 ranges," in said and "4 remove refusal" in said
    assert f"Fewest layers: **layers 1-2** (KL\\* {6 / 101:.4f})." in said
    assert f"Lowest KL\\*: **layers 1-2** ({6 / 101:.4f})." in said


def test_ranges_that_a_part_of_the_prompts_ruled_out_are_counted_apart() -> None:
    few = {"harmful_prompts": 8, "harmless_prompts": 6}
    ranges = [{"first": 3, "last": 3, "written": 1.0, "answers": answers(0.0, 0.5)}]
    ranges += [{"first": 0, "last": 3, "written": 1.0, "answers": answers(0.0, 0.1, **few)}]
    said = section(report(diagnosis(ranges=ranges)), "Which layers?")
    assert "Of 2 ranges, 1 were ruled out by a part of the prompts, and 1 remove refusal." in said
    assert "Fewest layers: **layer 3**" in said and "**layer 3** (0.2500)" in said
    ranges[0]["answers"] = answers(0.5, 0.5)
    said = section(report(diagnosis(ranges=ranges)), "Which layers?")
    assert "None of 2 ranges removes refusal (1 were ruled out by a part of the prompts)." in said


def test_ranges_of_which_none_removes_refusal_say_so() -> None:
    ranges = [{"first": 3, "last": 3, "written": 1.0, "answers": answers(0.375, 0.5)}]
    ranges += [{"first": 0, "last": 0, "written": 1.0, "answers": None}]
    said = section(report(diagnosis(ranges=ranges)), "Which layers?")
    assert "None of 1 ranges" in said and "The lowest refusal is 0.38, for layer 3 (KL\\* 0.2500)." in said
    assert "1 more ranges have no tensors" in said
    said = section(report(diagnosis(ranges=[])), "Which layers?")
    assert "No range of layers has writers that can be edited" in said


def test_layers_are_told_with_what_they_write_and_the_sum_after_them() -> None:
    shown = diagnosis()
    assert rows(report(shown), "layer | added to the difference")[1:] == [
        [
            str(layer),
            signed(sum(row.difference for row in shown.writers if row.layer == layer)),
            signed(shown.stream[layer + 1].difference),
        ]
        for layer in range(4)
    ]


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ([1.0], "The rules have scale 1;"),
        ([0.55], "The rules have scale 0.55;"),
        ([-1.0, 3.0], "The rules have several scales;"),
    ],
)
def test_each_scale_is_told_beside_the_scale_of_the_rules(scales: list[float], words: str) -> None:
    text = report(diagnosis(), [{"layers": layer, "measurement": 2, "scale": s} for layer, s in enumerate(scales)])
    assert [row[:4] for row in rows(text, "times the scale")[1:]] == [
        ["0.5", "+6.00", "+3.00", "-3.00"],
        ["1", "+4.00", "-1.00", "-5.00"],
        ["2", "+0.00", "-9.00", "-9.00"],
    ]
    assert words in section(text, "Does the scale matter?")


def test_scales_at_which_the_model_is_broken_are_said_and_not_shown() -> None:
    scales = [row.model_dump() for row in simulation().scales]
    scales[2] |= {"answers": None, "simulated": None, "indirect": None}
    text = report(diagnosis(), simulated=simulation(scales=scales))
    assert [row[0] for row in rows(text, "times the scale")[1:]] == ["0.5", "1"]
    assert "At 2.0 times the scale the model produces NaN or infinite logits." in section(
        text, "Does the scale matter?"
    )


def test_the_indirect_effect_has_its_name_and_what_is_left_out_its_number() -> None:
    said = section(report(diagnosis(), simulated=simulation(measurement=2.5)), "Does the scale matter?")
    assert "Along the direction of measurement 2.5, the difference in the last measurement is +9.12." in said
    assert "The current rules would leave +4.00 of it" in said and "-1.00 remains (*simulated*)" in said
    assert "*indirect effect* of -5.00" in said
    assert "Writers that the rules leave out, and the embedding, account for +5.12." in said


def test_each_measurement_is_told_with_and_without_its_direction() -> None:
    shown = diagnosis()
    text = report(shown)
    assert rows(text, "measurement")[1:] == [
        [
            *(str(row.measurement), f"{row.ablated.refusal:.2f}", f"{row.ablated.kl_without_refusal:.4f}"),
            *(f"{row.added.over_refusal:.2f}", "32 + 16"),
        ]
        for row in shown.causes
        if row.ablated is not None and row.added is not None
    ]
    said = section(text, "Is it the cause?")
    assert (
        "the direction of measurement 2 everywhere (embeddings and every write) takes refusal from 1.00 to 0.33."
        in said
    )
    assert "over-refusal from 0.25 to 0.40." in said
    assert "Measurements without a direction: 0." in said


def test_a_direction_that_breaks_the_model_when_it_is_added_is_said_to() -> None:
    causes = [row.model_dump() for row in diagnosis().causes]
    causes[2]["added"] = None
    assert "NaN or infinite logits" in section(report(diagnosis(causes=causes)), "Is it the cause?")


@pytest.mark.parametrize(
    "rules",
    [
        [{"layers": "1-2", "measurement": 2, "scale": 1.0, "targets": ["attention"]}],
        [{"layers": 3, "measurement": 4, "scale": 1.0, "targets": ["routed_experts"], "experts": [0, 3]}] * 2,
        [{"layers": [0, "2-30", 59], "measurement": "same", "scale": -0.5}],
        [{"layers": "all", "measurement": 18.5, "scale": 1.0, "targets": ["attention", "mlp", "embedding"]}],
        [{"layers": list(range(0, 60, 2)), "measurement": 2, "scale": 1.0, "experts": list(range(0, 256, 2))}],
    ],
)
def test_the_recommendation_can_be_pasted_into_params_yaml(rules: list[dict[str, Any]]) -> None:
    recommendation = {"removes": True, "answers": answers(), "tried": 9, "ruled_out": 0, "alike": 0, "rules": rules}
    text = report(diagnosis(recommendation=recommendation))
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert parse(f"ablate:\n  method: project\n{block}").ablate.rules == Ablate.model_validate({"rules": rules}).rules


def test_the_recommendation_stands_beside_the_base_and_the_current_rules() -> None:
    text = report(diagnosis())
    assert rows(text, "rules")[1:] == [
        ["none: the base", "1.00", "+2.75", "0.25", "0.000", "0.0000"],
        ["current", "0.50", "-4.50", "0.25", "0.375", "0.1875"],
        ["recommended", "0.00", "-3.75", "0.25", "0.062", "0.0312"],
    ]
    assert "Of 77 simulated edits" in section(text, "What to try")
    assert "12 others that remove refusal cannot be distinguished from this one" in section(text, "What to try")
    assert "params.yaml has it already" not in section(text, "What to try")


def test_a_recommendation_that_is_already_in_use_is_said_to_be() -> None:
    shown = diagnosis()
    assert shown.recommendation is not None
    assert "params.yaml has it already" in section(report(shown, shown.recommendation.rules), "What to try")


def test_a_recommendation_that_removes_nothing_says_so() -> None:
    found = diagnosis().recommendation
    assert found is not None
    said = section(report(diagnosis(recommendation={**found.model_dump(), "removes": False})), "What to try")
    assert "**None of 77 simulated edits removes refusal**" in said


def test_a_model_that_takes_no_edit_that_was_tried_gets_no_recommendation() -> None:
    text = report(diagnosis(recommendation=None))
    assert "This model cannot be edited in any of the ways that were tried" in section(text, "What to try")
    assert "```yaml" not in text
    assert [row[0] for row in rows(text, "rules")[1:]] == ["none: the base", "current"]


@pytest.mark.parametrize(
    "word", ["`x", "```\n# A gate fails", "</details>", "@everyone", "a|b", "\x1b[2J\u202e", " I'", "“我"]
)
def test_words_of_a_tokenizer_cannot_break_out_of_their_code_span(word: str) -> None:
    span = code(word)
    assert span[0] == span[-1] == "`" and span.count("`") == 2
    assert span.isprintable()
    text = report(diagnosis(refusal_words=[word]))
    assert span in text
    if word != "</details>":
        assert word not in text.replace(span, "")


def test_many_words_of_refusal_are_counted() -> None:
    text = report(diagnosis(refusal_words=[f"w{n}" for n in range(30)]))
    assert '`"w7"` and 22 other tokens' in text and '"w8"' not in text


def test_pictures_are_named_by_relative_paths_and_described() -> None:
    shown = re.findall(r"^!\[(.+)\]\(pictures/(\w+)\.svg\)$", report(diagnosis()), flags=re.MULTILINE)
    assert {name for _, name in shown} == set(PICTURES)
    assert all(len(description) > 30 for description, _ in shown)
    assert "pictures/" not in report(diagnosis(), pictures=frozenset())


def test_the_report_of_a_large_model_fits_into_a_comment_and_says_what_it_leaves_out() -> None:
    large = diagnosis(layers=60, experts=128)
    text = report(large)
    assert len(text.encode()) < 12_600
    for left_out, what in (
        (60 * 3 - 8, "writers of one layer"),
        (60 * 128 - 8, "experts"),
        (60 - 8, "layers"),
        (60 - 8, "measurements"),
    ):
        assert f"{left_out} more {what} are left out here" in text
    assert "| 2 |" in text[text.index("| measurement | refusal") :]  # that which is explained is never left out


def test_numbers_that_do_not_exist_are_written_as_such() -> None:
    assert "inf" in report(diagnosis(base=answers(1.0, 0.0, harmful_log_odds=float("inf"))))
