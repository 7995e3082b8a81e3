"""`python -m excise COMMAND`: each is a function whose docstring is its help, and which imports only what it needs."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

EXIT_CODES = """exit codes:
  0      done
  1      an error that you can fix, or a gate that fails: one line says what
  2      wrong arguments, a bad params.yaml, or the code of another project
  128+N  interrupted by signal N
make exits with 2 for each of these except 0; a program that needs the code calls python -m excise itself."""

PROJECT = Path()

Argument = tuple[tuple[str, ...], dict[str, Any]]
Handler = Callable[..., None]


class Parser(argparse.ArgumentParser):
    """A parser with errors of one line."""

    def error(self, message: str) -> NoReturn:
        print(f"ERROR: {message}; `{self.prog} --help` lists what it takes", file=sys.stderr)
        sys.exit(2)


PARSER = Parser(
    prog="python -m excise",
    description="What people and workflows call around the stages of dvc.yaml. Run it in the project's folder.",
    epilog=EXIT_CODES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
)
COMMANDS = PARSER.add_subparsers(title="commands", metavar="COMMAND", required=True)


def main() -> None:
    arguments = vars(PARSER.parse_args())
    run = partial(arguments.pop("handler"), **arguments)
    from excise.plumbing.errors import run_command  # imports schemas, which `--help` does not need

    run_command(run)


def command(*arguments: Argument | list[Argument]) -> Callable[[Handler], Handler]:
    """Make a function the command of its name; exactly one of the arguments in a list must be given."""

    def add(handler: Handler) -> Handler:
        name = handler.__name__.replace("_", "-")
        parser = COMMANDS.add_parser(name, help=handler.__doc__, description=handler.__doc__, allow_abbrev=False)
        parser.set_defaults(handler=handler)
        for argument in arguments:
            group = parser.add_mutually_exclusive_group(required=True) if isinstance(argument, list) else parser
            for flags, options in argument if isinstance(argument, list) else [argument]:
                group.add_argument(*flags, **options)
        return handler

    return add


def arg(*flags: str, **options: Any) -> Argument:
    """An argument, as `ArgumentParser.add_argument` takes it."""
    return flags, options


def at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


OUT = arg("out", type=Path, help="a new or empty folder")
LOCKED = arg("--locked", action="store_true", help="if it must be rebuilt, use the packages that its commit pins")
NO_REMOTE = arg("--no-remote", action="store_true", help="do not ask the remote")
CACHE = arg("--cache", type=Path, required=True, metavar="DIR", help="the cache that the machine's clones share")
EXPERIMENTS = arg("file", type=Path, help="a file of experiments, such as experiments/moe.yaml")

# Parameters and runs


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


@command(arg("--show", action="store_true", help="exit with 0 even if one fails"))
def gate(show: bool) -> None:
    """Print the gates; the exit code is 1 if one fails."""
    from excise.gitops.sides import WorkingTree, check_ran
    from excise.gitops.terminal import print_gates
    from excise.plumbing.errors import StageError
    from excise.plumbing.files import read_document
    from schemas.evidence import GateVerdicts

    check_ran(WorkingTree(PROJECT))
    verdicts = read_document(GateVerdicts, Path("gates.json"))
    print_gates(verdicts)
    if verdicts.verdict == "fail" and not show:
        failed = ", ".join(gate.metric for gate in verdicts.gates if gate.verdict == "fail")
        raise StageError(f"gates failed: {failed}; see report/report.md")


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


# Past models and releases


@command(
    arg("commit", help="or a branch or tag, at which `dvc repro` had run"),
    OUT,
    LOCKED,
    arg("--no-rebuild", action="store_true", help="fail rather than run the commit's code"),
)
def model(commit: str, out: Path, locked: bool, no_rebuild: bool) -> None:
    """Get the edited model of any commit: from the cache, from the remote, or rebuilt."""
    from excise.gitops.git import commit_of
    from excise.gitops.models import ORIGINS, bring_back

    commit = commit_of(PROJECT, commit)
    origin = bring_back(PROJECT, commit, out, locked, not no_rebuild)
    print(f"{out} is the edited model of {commit[:12]}, {ORIGINS[origin]}; every file is as recorded there")


@command(
    arg("tag", help="or another name of the commit"),
    OUT,
    arg("--model", type=Path, required=True, metavar="DIR", help="the model's folder, made if it does not exist"),
    LOCKED,
)
def release(tag: str, out: Path, model: Path, locked: bool) -> None:
    """Write the files of a release of an edited model: its record, a card, and the report."""
    from excise.gitops.releases import write_release

    has_report = write_release(PROJECT, tag, out, model, locked)
    print(f"{out} holds the release of {tag}{'' if has_report else ', without its report, which is not available'}")


@command(
    arg("folder", type=Path, help="of the edited model"),
    arg("name", help="OWNER/NAME on the Hub"),
    arg("--public", action="store_true", help="make the repository public"),
)
def upload(folder: Path, name: str, public: bool) -> None:
    """Upload an edited model to the Hub, to a private repository by default."""
    from excise.gitops import hub

    print(f"{folder} is at {hub.upload(folder, name, public)}")


# Experiments


@command(
    arg("file", type=Path, nargs="?", default=Path("experiments/moe.yaml"), help="by default experiments/moe.yaml"),
    arg("--jobs", type=at_least_one, default=1, help="how many run at once (1)"),
)
def experiments(file: Path, jobs: int) -> None:
    """Run a file of experiments here, and write their tables into its document."""
    from excise.gitops.experiments.runs import run_experiments

    run_experiments(file, jobs)


@command(
    EXPERIMENTS,
    [
        arg("number", type=int, nargs="?", help="its number, from 1; the first of each group come before all others"),
        arg("--firsts", action="store_true", help="print how many must run first, as others use what they make"),
        arg("--count", action="store_true", help="print how many experiments there are"),
    ],
)
def experiment(file: Path, number: int | None, firsts: bool, count: bool) -> None:
    """Run one experiment of a file in this clone, and push it to the git origin and the DVC remote."""
    from excise.gitops.experiments.runs import run_experiment, sizes

    if number is not None:
        run_experiment(file, number)
    else:
        print(sizes(file)[0 if firsts else 1])


@command(EXPERIMENTS)
def collect(file: Path) -> None:
    """Fetch the experiments of a file that other machines ran, and write their tables."""
    from excise.gitops.experiments import runs

    runs.collect(file)


# Pull requests


@command(
    arg("--base", required=True, help="what to compare with, such as origin/main"),
    arg("--head", help="a commit; by default, the working tree"),
    arg("--folder", type=Path, default=PROJECT, help="the project's folder, by default this one"),
    arg("--pictures", metavar="URL", help="the https address of the folder of pictures to show"),
    arg("--samples", type=int, choices=range(11), default=0, metavar="N", help="answers of each task, at most 10 (0)"),
    arg("--samples-from", type=Path, metavar="FILE", help="read them from such a file, not from results/"),
    arg("--write-samples", type=Path, metavar="FILE", help="write them to a file, for a machine without results/"),
    arg("--out", type=Path, default=Path("report/comment.md"), help="the file to write (report/comment.md)"),
)
def comment(out: Path, **options: Any) -> None:
    """Write a pull request's comment: what a commit, or the working tree, would change in its base."""
    from excise.gitops.comment import write_comment

    write_comment(out=out, **options)
    print(out)


@command()
def merge() -> None:
    """During `git merge`: take from this branch what stages write into git, and print which stages must run."""
    from excise.gitops.merging import finish_merge

    print(finish_merge(PROJECT))


@command(arg("folder", type=Path, help="a new folder"))
def hand_over(folder: Path) -> None:
    """Copy the files of a run that are to be published."""
    from excise.gitops import handover

    print("\n".join(handover.hand_over(PROJECT, folder)))


@command(arg("folder", type=Path, help="the one that `hand-over` wrote"))
def publish(folder: Path) -> None:
    """On GitHub: commit a run's results to its branch, keep the comment, set the status; fail if a gate fails."""
    from excise.gitops import publish

    publish.publish(folder)


@command(arg("tag", help="an existing tag"), arg("folder", type=Path, help="the one that `release` wrote"))
def attach(tag: str, folder: Path) -> None:
    """On GitHub: attach what `release` wrote to the release of a tag."""
    from excise.gitops import publish

    print(publish.attach(tag, folder))


# DVC's cache and remote, on a machine that runs what others pushed


@command(
    arg("--cache", type=Path, metavar="DIR", help="use this cache from now on, which several clones share"),
    NO_REMOTE,
    arg("--copies", action="store_true", help="from now on, link no file to the cache"),
)
def restore(cache: Path | None, no_remote: bool, copies: bool) -> None:
    """Restore this commit's outputs from DVC's cache or its remote."""
    from excise.gitops import storage

    storage.restore(PROJECT, cache, not no_remote, copies)


@command(NO_REMOTE)
def rerun(no_remote: bool) -> None:
    """Run every stage that is out of date, and fetch the outputs of the others from the DVC remote."""
    from excise.gitops import storage

    storage.repro(PROJECT, may_pull=not no_remote)


@command(arg("commit", help="or a branch or tag"), CACHE)
def fetch(commit: str, cache: Path) -> None:
    """Fetch what a commit recorded from the DVC remote into a shared cache, without running its code."""
    from excise.gitops.keeping import fetch_commit

    fetch_commit(PROJECT, commit, cache)


@command(arg("commit", help="that ran"), arg("folder", type=Path, help="what `hand-over` copied"), CACHE)
def keep(commit: str, folder: Path, cache: Path) -> None:
    """Push what a run of a commit made from a shared cache to the DVC remote, without running its code."""
    from excise.gitops import keeping

    keeping.keep(PROJECT, commit, folder, cache)


@command()
def push() -> None:
    """Push to the DVC remote what it lacks."""
    from excise.gitops import storage

    storage.push(PROJECT)


@command(
    arg("--yes", action="store_true", help="remove it; otherwise it is only listed"),
    arg("--all-commits", action="store_true", help="keep what any commit names, not only the newest of each branch"),
    arg("--projects", type=Path, nargs="+", default=[], metavar="PATH", help="all other clones that share the cache"),
    arg("--shared", action="store_true", help="also drop from a shared cache what only other clones name"),
    arg("--days", type=at_least_one, default=90, help="how long verdicts and unfinished answers are kept unused (90)"),
)
def clean(yes: bool, **options: Any) -> None:
    """Remove from this disk what no branch, tag, experiment or stash needs, nor the working tree."""
    from excise.gitops import cleaning

    cleaning.clean(PROJECT, remove=yes, **options)


@command(
    arg("checks", nargs="*", metavar="CHECK", help="only these, such as remote: the words that the lines begin with"),
    arg("--deep", action="store_true", help="also read every object of the cache"),
)
def doctor(checks: list[str], deep: bool) -> None:
    """Say what is wrong with cache, remote, environment, runner and disk, and what mends it; change nothing."""
    from excise.gitops.doctor import examine

    examine(PROJECT, deep, checks)


# This project's own files


@command(
    [
        arg("--write", action="store_true", help="write them to dvc.yaml"),
        arg("--check", action="store_true", help="exit with 1 if dvc.yaml is out of date"),
    ]
)
def deps(write: bool, check: bool) -> None:
    """Compute what each stage's code depends on (docs/design.md)."""
    from excise.plumbing import dependencies

    if write:
        print(f"dvc.yaml: {'written' if dependencies.write() else 'up to date'}")
    else:
        dependencies.check()


@command()
def upgrade() -> None:
    """Take over the results of an earlier version, without training, measuring or answering again."""
    from excise.upgrade import upgrade

    upgrade()


@command()
def schema() -> None:
    """Write schemas/params.schema.json and docs/params.md again from schemas/params/."""
    from excise.plumbing.files import write_text
    from schemas.documentation import documentation

    for path, text in documentation().items():
        write_text(path, text)
