"""Is editing every `down_proj` enough, in mixtures of experts and in dense models? `python -m benchmarks.writers`.

Trains organisms of several seeds of both architectures, edits all writers of layers 1-4 along measurement 4 at scale 1,
or only what attention writes, or only what MLPs and experts write, by simulation, and asks for what is refused. Prints
the refusals left among whole answers in Markdown, and the means of mixtures and dense models with the 95 % interval of
their difference (Welch).
"""

from benchmarks.mixture_and_dense import compared, organisms
from benchmarks.organisms import make_organism, measure, of_each
from schemas.params.ablate import Ablate
from schemas.params.organism import Organism as Settings

MLPS = ("mlp", "routed_experts", "shared_experts")
WAYS = {"all writers": ("attention", *MLPS), "attention alone": ("attention",), "every `down_proj`": MLPS}


def left(settings: Settings) -> list[float]:
    """By way, the share of one organism's refused prompts that it still refuses."""
    organism = make_organism(settings)
    directions = measure(organism)
    shares = []
    for targets in WAYS.values():
        rule = {"layers": "1-4", "measurement": 4, "scale": 1.0, "targets": targets}
        ablate = Ablate.model_validate({"orthogonalize": "none", "rules": [rule]})
        shares.append(organism.refusals(ablate, directions))
    return shares


def main() -> None:
    """Train, edit, and print."""
    asked = organisms(__doc__)
    print(f"| model | seed | {' | '.join(WAYS)} |\n| --- | ---: | {' | '.join(['---:'] * len(WAYS))} |")
    shares: list[list[float]] = []
    for settings, found in zip(asked, of_each(asked, left), strict=True):
        shares.append(found)
        cells = [settings.architecture, str(settings.seed), *(f"{share:.2f}" for share in found)]
        print(f"| {' | '.join(cells)} |", flush=True)
    for way, of_way in zip(WAYS, zip(*shares, strict=True), strict=True):
        print(f"\n{way}: {compared(asked, of_way)}.")


if __name__ == "__main__":
    main()
