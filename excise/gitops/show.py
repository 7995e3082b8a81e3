"""The report as it is shown: `python -m excise.gitops.show [--out report/shown.html]`, with commit, versions and parameter
changes, which no stage's output may hold. It is refused where the stages have not run for what lies here."""

import argparse
from pathlib import Path

from excise.gitops.provenance import provenance
from excise.gitops.ran import check_ran
from excise.gitops.sides import WorkingTree
from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_text
from excise.report.page import render_page
from stages.report import REPORT, read_report


def main() -> None:
    """Read again what the report stage read, and write one page."""
    parser = argparse.ArgumentParser(
        prog="python -m excise.gitops.show", description="Write the report with its provenance."
    )
    parser.add_argument("--out", type=Path, default=REPORT / "shown.html", help="where to (report/shown.html)")
    out = parser.parse_args().out
    check_ran(WorkingTree(Path()))
    write_text(out, render_page(**vars(read_report()), provenance=provenance(Path())))
    print(out)


if __name__ == "__main__":
    run_stage(main)
