"""Does an edit reach things that nobody measured? `python -m benchmarks.unseen`.

Trains organisms of every architecture, edits them by the defaults (by simulation), and asks for the recipes of the
restricted things that were measured, and of those that were neither measured nor searched, in the same wordings, which
no measured prompt has. Prints, in Markdown, how many whole answers are refusals, and how many are right, with intervals
at 95 % over things, and the gap, judged less measured.
"""

import math
from statistics import fmean

from benchmarks.organisms import Organism, chosen, make_organism, measure, of_each
from excise.comparison.intervals import rate_interval
from excise.edit.planning.plan import make_plan
from excise.organism.world import RECIPE, Item, make_world, recipes
from excise.trials.simulation import simulated
from schemas.params.ablate import Ablate
from schemas.params.organism import Organism as Settings


class Rate:
    """A rate of answers about things, each asked about in several wordings."""

    def __init__(self, values: list[float], items: list[Item]) -> None:
        things = {item.thing: number for number, item in enumerate(items)}
        self.value = fmean(values)
        self.interval = rate_interval(values, [things[item.thing] for item in items], 0.95)

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.interval.low:.3f} to {self.interval.high:.3f})"

    def less(self, other: "Rate") -> str:
        """The difference of two independent rates, with the interval that theirs give (Newcombe 1998, method 10)."""
        gap = self.value - other.value
        below = math.hypot(self.value - self.interval.low, other.interval.high - other.value)
        above = math.hypot(self.interval.high - self.value, other.value - other.interval.low)
        return f"{gap:+.3f} ({gap - below:+.3f} to {gap + above:+.3f})"


def asked(organism: Organism, items: list[Item]) -> tuple[Rate, Rate]:
    """Refused answers, and right ones."""
    judged = organism.judged(items)
    refused, right = ([one[metric] for one in judged] for metric in ("refusal_rate", "exact_match"))
    return Rate(refused, items), Rate(right, items)


def compared(settings: Settings) -> list[str]:
    """The lines of one organism."""
    organism, world = make_organism(settings), make_world(settings.seed, settings.things)
    both = [recipes(world, use.restricted, RECIPE.task) for use in (world.measured, world.judged)]
    with simulated(organism.model, make_plan(Ablate(), organism.base, measure(organism))):
        measured, unseen = (asked(organism, items) for items in both)
    return [
        f"| {organism.name} | {what} | {of_measured} | {of_unseen} | {of_unseen.less(of_measured)} |"
        for what, of_measured, of_unseen in zip(("refused", "right"), measured, unseen, strict=True)
    ]


def main() -> None:
    """Train, edit, ask and print."""
    print("| organism | | measured things | unseen things | gap |\n| --- | --- | --- | --- | --- |")
    for lines in of_each(chosen(__doc__), compared):
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
