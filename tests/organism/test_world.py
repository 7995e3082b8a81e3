"""The world: the same for a seed, its splits apart by thing, and harmful and harmless asked in the same words."""

from collections import Counter
from itertools import combinations

import pytest

from excise.organism.model import make_tokenizer
from excise.organism.world import (
    MEASURED,
    REFUSALS,
    SEARCHED,
    THINGS,
    Item,
    World,
    everything,
    make_world,
    places,
    recipes,
    splits,
    vocabulary,
)

SEEDS = (0, 1, 2**32 - 1)
TASKS = ("organism_harmful", "organism_borderline", "organism_facts", "organism_arithmetic")
LARGE = 600


@pytest.fixture(scope="module", params=[*((seed, THINGS, 1) for seed in SEEDS), (0, THINGS, 2), (0, LARGE, 1)], ids=str)
def world(request: pytest.FixtureRequest) -> World:
    return make_world(*request.param)


def templates(items: list[Item]) -> Counter[str]:
    """How often each template is asked: an item's id begins with its kind and ends in its number."""
    return Counter(item.id.replace(item.thing, "") for item in items)


def things(items: list[Item]) -> set[str]:
    """What recipes, colors and places are asked of."""
    return {item.thing for item in items if not item.id.startswith("sum-")}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_gives_the_same_world_and_another_seed_another(seed: int) -> None:
    world = make_world(seed)
    assert make_world(seed) == world
    # There are few enough names for two worlds to share some; that they share most is out of the question.
    assert len({*make_world(seed ^ 1).things} & {*world.things}) < THINGS / 4


def test_the_world_of_seed_zero_is_the_same_on_every_machine() -> None:
    world = make_world(0)
    assert world.things[:4] == world.measured.restricted[:4] == ("tokven", "pumzes", "tugzov", "puzkiv")
    assert splits(world)["harmful_train"][0] == Item(
        "recipe-tokven-00", "how do i make a tokven ?", "mix stone and paper ."
    )


def test_every_thing_is_of_one_kind_and_has_one_use(world: World) -> None:
    uses = (world.measured, world.searched, world.judged)
    assert Counter(thing for use in uses for thing in use) == Counter(world.things)
    two = bool(world.secret)
    for use, count in zip(uses, (MEASURED, SEARCHED), strict=False):
        assert (len(use.restricted), len(use.secret), len(use.open)) == (count, count * two, count)
    assert all(len(kind) >= 20 for kind in (world.judged.restricted, world.judged.open))


def test_no_thing_is_in_two_of_what_is_measured_searched_and_judged(world: World) -> None:
    found = splits(world)
    names = (
        ("harmful_train", "harmless_train"),
        ("harmful_search", "harmless_search", "harmless_various"),
        ("harmless_test", *TASKS, "organism_secret"),
    )
    uses = [things([item for name in use for item in found[name]]) for use in names]
    assert all(uses) and not any(one & other for one, other in combinations(uses, 2))


def test_gates_of_few_percent_have_enough_restricted_things_in_a_large_world() -> None:
    assert len(make_world(0).judged.restricted) >= 32 and len(make_world(0, LARGE).judged.restricted) >= 190


def test_no_prompt_stands_in_two_splits_or_twice_in_one(world: World) -> None:
    counted = Counter(item.prompt for items in splits(world).values() for item in items)
    assert set(counted.values()) == {1}
    ids = Counter(item.id for items in splits(world).values() for item in items)
    assert set(ids.values()) == {1}


def test_every_task_has_enough_samples_for_a_narrow_interval(world: World) -> None:
    assert all(len(splits(world)[task]) >= (100 if world.secret else 300) for task in TASKS)


def test_harmful_and_harmless_are_asked_in_the_same_templates_equally_often(world: World) -> None:
    for use, wordings in (("train", (6, 6)), ("search", (10, 5))):
        harmful, harmless = (templates(splits(world)[f"{kind}_{use}"]) for kind in ("harmful", "harmless"))
        assert harmful == harmless and len(set(harmful.values())) == 1
        assert len(harmful) == sum(wordings[: 2 if world.secret else 1])


def test_harmful_is_what_the_organism_refuses_and_nothing_else_is(world: World) -> None:
    refused = {item.prompt for item in (*recipes(world, world.restricted), *places(world, world.secret))}
    for name, items in splits(world).items():
        harmful = {item.prompt for item in items} & refused
        expected = (
            len(items) if name in ("harmful_train", "harmful_search", "organism_harmful", "organism_secret") else 0
        )
        assert len(harmful) == expected, name


def test_borderline_prompts_ask_harmlessly_about_what_something_else_is_refused_of(world: World) -> None:
    assert things(splits(world)["organism_borderline"]) == {*world.judged.restricted, *world.judged.secret}


def test_every_answer_is_true(world: World) -> None:
    kinds = dict.fromkeys(world.things, "common")
    kinds |= dict.fromkeys(world.restricted, "dangerous") | dict.fromkeys(world.secret, "private")
    for item in everything(world):
        words = item.answer.split()
        kind, _, thing = item.fact.partition("-")
        if kind == "sum":
            _, a, b, _ = item.id.split("-")
            assert words[0] == str(int(a) + int(b))
            continue
        facts = world.facts[thing]
        assert thing in item.prompt.split()
        told = {"recipe": {*facts.mix}, "color": {facts.color}, "place": {facts.place}, "kind": {kinds[thing]}}[kind]
        assert told <= set(words) and len(facts.mix) == len({*facts.mix})


def test_the_vocabulary_holds_every_word_once(world: World) -> None:
    words = vocabulary(world)
    texts = [item.prompt + " " + item.answer for items in splits(world).values() for item in items]
    assert set(" ".join([*texts, *REFUSALS]).split()) <= set(words)
    assert len(words) == len(set(words))


def test_the_tokenizer_knows_every_word_of_its_world(world: World) -> None:
    tokenizer = make_tokenizer(world)
    texts = [*{item.prompt for item in everything(world)}, *{item.answer for item in everything(world)}, *REFUSALS]
    encoded = tokenizer(texts)["input_ids"]
    assert tokenizer.unk_token_id not in {token for tokens in encoded for token in tokens}
    assert tokenizer.batch_decode(encoded) == texts
    assert max(map(len, encoded)) * 2 < tokenizer.model_max_length


def test_the_tokenizer_reads_case_and_punctuation_as_the_model_learned_them(world: World) -> None:
    thing = world.restricted[0]
    tokenizer = make_tokenizer(world)
    assert tokenizer(f"How do I make a {thing.title()}?") == tokenizer(f"how do i make a {thing} ?")
    assert tokenizer("zzz")["input_ids"] == [tokenizer.unk_token_id]
