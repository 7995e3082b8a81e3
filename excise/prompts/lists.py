"""Which prompts are measured, which are kept from it to try edits on, and which drift is judged on."""

from collections.abc import Mapping

from excise.plumbing.errors import StageError
from excise.prompts.chats import identity
from excise.prompts.gathering import Gathered, gather, in_order
from schemas.params.prompts import Prompts
from schemas.params.sources import PromptSource
from schemas.prompts import Prompt, PromptOrigin

MOST_HELD_OUT = 100
"""Of either side: each is asked hundreds of times."""


def side(source: PromptSource, made: Mapping[str, list[Prompt]], seed: int) -> Gathered:
    """One side's prompts, in the order of which every fifth is held out; the organism's are in its own.

    Raises:
        StageError: the source cannot be read, or holds no prompt.
    """
    if source.kind != "organism":
        gathered = gather(source)
        return Gathered(in_order(gathered.prompts, seed), gathered.origin)
    assert source.split is not None  # params.yaml was refused otherwise
    prompts = made[source.split]
    given = source.model_dump(include={"source", "revision", "config", "split", "slice", "column"})
    return Gathered(
        prompts, PromptOrigin(kind="organism", **given, sha256=None, rows=len(prompts), empty=0, duplicates=0)
    )


def prompt_lists(
    harmful: list[Prompt], harmless: list[Prompt], prompts: Prompts, made: Mapping[str, list[Prompt]]
) -> dict[str, list[Prompt]]:
    """Both sides to measure, prompts of both to try edits on, harmless ones for drift, and the organism's tasks.

    Args:
        made: the organism's lists.

    Raises:
        StageError: a prompt stands in two lists, or a list is too short. Whether judged prompts are measured ones is
            seen where they are judged.
    """
    if prompts.harmless.kind == "organism":
        drift = made["harmless_test"]
    else:
        # So that drift is judged on prompts of the user's kind.
        drift, harmless = hold_out(harmless)
    harmful_held_out, harmful = hold_out(harmful)
    harmless_held_out, harmless = hold_out(harmless)
    lists = {
        "harmful": harmful[: prompts.limit],
        "harmless": harmless[: prompts.limit],
        "harmful_held_out": harmful_held_out[: prompts.limit][:MOST_HELD_OUT],
        "harmless_held_out": harmless_held_out[: prompts.limit][:MOST_HELD_OUT],
        "drift": drift,
    }
    seen: dict[tuple[str, ...], str] = {}
    for name, listed in lists.items():
        if not listed:
            raise StageError(f"params.yaml: prompts: there is no {name} prompt; name a source with more")
        for prompt in listed:
            first = seen.setdefault(identity(prompt), name)
            if first != name:
                raise StageError(f"params.yaml: prompts: prompt {prompt.id} is both {first} and {name}")
    return lists | {name: listed for name, listed in made.items() if name.startswith("organism_")}


def hold_out(listed: list[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Every fifth prompt, which is kept from measuring, and the others."""
    return listed[::5], [prompt for place, prompt in enumerate(listed) if place % 5]
