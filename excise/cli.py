"""`python -m excise COMMAND`."""

import sys
from functools import partial
from importlib import import_module

from excise.commands.parser import COMMANDS, PARSER

__all__ = ["COMMANDS", "PARSER", "main"]

EXIT_CODES = """exit codes:
  0      done
  1      an error that you can fix: one line says what
  2      wrong arguments, a bad params.yaml, or the code of another project
  128+N  interrupted by signal N
exit codes of gate:
  0      every gate passes, or is inconclusive where params.yaml accepts that
  1      a gate fails
  2      an error of any kind: nothing is known of the gates
  3      no gate fails, but one is void
  4      neither, but one is inconclusive and says `inconclusive: fail`
make exits with 2 for each of these except 0; a program that needs the code calls python -m excise itself."""

# In the order of the help.
for group in ("runs", "releases", "experiments", "pull_requests", "storage", "project"):
    import_module(f"excise.commands.{group}")
PARSER.epilog = EXIT_CODES


def main() -> None:
    arguments = vars(PARSER.parse_args())
    handler, failed = arguments.pop("handler"), arguments.pop("failed")
    run = partial(handler, **arguments)
    try:
        from excise.plumbing.errors import run_command  # imports schemas, which `--help` does not need

        run_command(run, failed)
    except Exception as error:  # Python itself would exit with 1, which is a verdict of `gate`
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(failed)
