"""`python -m excise COMMAND`."""

from excise.cli import main
from excise.plumbing.process import begin

begin()
main()
