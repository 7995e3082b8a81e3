"""Parameters and runs."""

import sys
from pathlib import Path

from excise.commands.parser import PROJECT, arg, command

REFUSED = {"fail": 1, "void": 3, "inconclusive": 4}
"""By the worst gate, the exit code of `gate`."""


@command(arg("recipe", nargs="?", help="the name of a file in recipes/, without .yaml"))
def use(recipe: str | None) -> None:
    """Make params.yaml a recipe, or list the recipes."""
    from excise.gitops.parameters import recipes, use_recipe

    print("\n".join(recipes()) if recipe is None else use_recipe(recipe))


@command(
    arg("model", nargs="?", help="organization/name on the Hub; by default the model of params.yaml"),
    arg("--dataset", metavar="ID", help="print the newest commit of this dataset instead"),
)
def pin(model: str | None, dataset: str | None) -> None:
    """Pin the base model to the newest commit of a Hub model, in params.yaml."""
    from excise.gitops.hub import newest
    from excise.gitops.parameters import pin_base

    print(newest(dataset, "dataset") if dataset else pin_base(model))


@command(arg("--simulate", action="store_true", help="first run the stage simulate, unless it ran with these rules"))
def plan(simulate: bool) -> None:
    """Print what the rules of params.yaml would edit, after `dvc repro directions`, and fail where `ablate` would."""
    from excise.edit.checkpoint import Remainder, rehearse, resolve_edit
    from excise.edit.forecast import current_simulation, print_forecast
    from excise.gitops import storage
    from excise.gitops.terminal import print_plan
    from excise.plumbing.errors import StageError
    from excise.plumbing.machine import chosen_device
    from excise.plumbing.progress import progress

    edit, remainder = resolve_edit(), Remainder()
    with progress("Rehearse", sum(row.bytes for row in edit.rows), "B") as advance:
        rehearse(edit, chosen_device(), remainder, advance)
    print_plan(edit.rows, remainder.range(), edit.spare_layers, edit.base.checkpoint.left_out)
    if (simulation := current_simulation(edit.settings)) is None and simulate:
        try:
            storage.repro(PROJECT, ["--quiet", "simulate"])
        except StageError as error:
            print(error, file=sys.stderr)
        simulation = current_simulation(edit.settings)
    print_forecast(simulation)


@command(arg("arguments", nargs="*", metavar="STAGE", help="only these stages; after --, any arguments of `dvc repro`"))
def repro(arguments: list[str]) -> None:
    """Run every stage that is out of date, and check that DVC's cache holds what it made."""
    from excise.gitops import storage

    storage.repro(PROJECT, arguments)


@command(arg("--show", action="store_true", help="exit with 0 whatever the gates are"), failed=2)
def gate(show: bool) -> None:
    """Print the gates; exit with 1 if one fails, 3 if one is void, 4 if one is inconclusive and not accepted."""
    from excise.gitops.sides import WorkingTree, check_ran
    from excise.gitops.terminal import print_gates
    from excise.plumbing.errors import StageError
    from excise.plumbing.files import read_document
    from excise.report.words import headline
    from schemas.evidence import GateVerdicts

    check_ran(WorkingTree(PROJECT))
    verdicts = read_document(GateVerdicts, Path("gates.json"))
    print_gates(verdicts)
    if not verdicts.accepted and not show:
        refused = ", ".join(gate.metric for gate in verdicts.gates if not gate.accepted)
        raise StageError(f"{headline(verdicts)}: {refused}; see report/report.md", REFUSED[verdicts.verdict])


@command(arg("--out", type=Path, default=Path("report/shown.html"), help="the file to write (report/shown.html)"))
def report(out: Path) -> None:
    """Write the report with commit, versions and changed parameters."""
    from excise.gitops.difference import provenance
    from excise.gitops.sides import WorkingTree, check_ran
    from excise.plumbing.files import write_text
    from excise.report.page import render_page
    from excise.report.reading import read_report

    check_ran(WorkingTree(PROJECT))
    write_text(out, render_page(read_report(), provenance(PROJECT)))
    print(out)


@command(arg("folder", type=Path, nargs="?", default=Path("models/ablated"), help="of the model (models/ablated)"))
def verify(folder: Path) -> None:
    """Check an edited model's files against its edit.json."""
    from excise.checkpoint.weights import EDIT_DIGEST, EDIT_RECORD
    from excise.gitops.models import check_edited, has_digest

    print(f"{folder} is what its {EDIT_RECORD} says: {len(check_edited(folder))} files")
    if not has_digest(folder):
        print(f"{EDIT_RECORD} itself is not covered: this model was made by a version that wrote no {EDIT_DIGEST}")
