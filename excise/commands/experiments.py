"""Experiments."""

from pathlib import Path

from excise.commands.parser import arg, at_least_one, command

EXPERIMENTS = arg("file", type=Path, help="a file of experiments, such as experiments/moe.yaml")


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
