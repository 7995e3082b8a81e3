"""Prompts that edits are tried on are neither measured nor judged."""

from itertools import combinations

from excise.organism.world import THINGS, make_world, splits
from excise.prompts.gathering import gather_kind, hold_out, prompt_lists
from schemas.params.organism import WorldSettings
from schemas.params.prompts import Prompts
from schemas.prompts import Prompt
from stages.prepare import organism_lists

WORLD = WorldSettings(seed=0, things=THINGS, refusals=1)


def default_lists() -> dict[str, list[Prompt]]:
    prompts, made = Prompts(), organism_lists(WORLD)
    sources = (prompts.harmful, prompts.harmless)
    harmful, harmless = (gather_kind(source, made, prompts.seed).prompts for source in sources)
    return prompt_lists(harmful, harmless, prompts, made)


def test_no_prompt_stands_in_two_lists() -> None:
    lists = {name: {prompt.prompt for prompt in listed} for name, listed in default_lists().items()}
    assert {"harmful", "harmful_held_out", "harmless", "harmless_held_out", "drift"} <= lists.keys()
    for one, other in combinations(lists.values(), 2):
        assert not one & other


def test_a_fifth_of_each_side_is_held_out_and_the_rest_is_measured() -> None:
    lists = default_lists()
    for name in ("harmful", "harmless"):
        whole = {item.prompt for item in splits(make_world(0))[f"{name}_train"]}
        various = {item.prompt for item in splits(make_world(0))["harmless_various"]}
        held_out = [prompt for prompt in lists[f"{name}_held_out"] if prompt.prompt not in various]
        assert len(lists[f"{name}_held_out"]) - len(held_out) == (len(various) if name == "harmless" else 0)
        measured = lists[name]
        assert {prompt.prompt for prompt in (*held_out, *measured)} == whole
        assert len(held_out) == -(-len(whole) // 5)
        # Of every fifth thing, in each way to ask.
        assert len({prompt.item for prompt in held_out}) == 6
        assert not {prompt.item for prompt in held_out} & {prompt.item for prompt in measured}


def test_a_side_of_one_prompt_has_none_to_measure() -> None:
    listed = default_lists()["harmful"]
    assert hold_out(listed[:1]) == (listed[:1], [])
    apart = [prompt.model_copy(update={"item": None}) for prompt in listed]
    assert [len(part) for part in hold_out(apart[:7])] == [2, 5]
