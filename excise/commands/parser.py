"""How a function becomes a command: its arguments and its help."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

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
    formatter_class=argparse.RawDescriptionHelpFormatter,
)
COMMANDS = PARSER.add_subparsers(title="commands", metavar="COMMAND", required=True)


def command(*arguments: Argument | list[Argument], failed: int = 1) -> Callable[[Handler], Handler]:
    """Make a function the command of its name; exactly one of the arguments in a list must be given. `failed` is its
    exit code for errors that the user can mend."""

    def add(handler: Handler) -> Handler:
        name = handler.__name__.replace("_", "-")
        parser = COMMANDS.add_parser(name, help=handler.__doc__, description=handler.__doc__, allow_abbrev=False)
        parser.set_defaults(handler=handler, failed=failed)
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


ITS_CACHE = arg("--cache", type=Path, metavar="DIR", help="use this cache from now on, which several clones share")
