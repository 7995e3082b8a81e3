"""What a release of an edited model consists of: `python -m excise.gitops.release TAG OUT --model DIR [--locked]`.

OUT gets `edit.json` with its digest, `card.md`, and `report.html` where it can be had. DIR is the model, as
`excise.gitops.model` writes it; where there is nothing yet, it is brought back.
"""

import argparse
import shutil
from pathlib import Path

from excise.gitops.git import commit_of
from excise.gitops.models import bring_back, bring_report, check_recorded, is_free, refuse_full
from excise.gitops.processes import stoppable
from excise.gitops.recorded import recorded_at
from excise.gitops.releasing import gather, own_files
from excise.plumbing.errors import run_stage
from excise.plumbing.files import whole_folder, write_bytes, write_text
from excise.report.release import render_release


def main() -> None:
    """Check the model against what the commit records, gather what that says of it, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m excise.gitops.release", description="Write what a release consists of."
    )
    parser.add_argument("tag", help="a tag, or another name of the commit")
    parser.add_argument("out", type=Path, help="a folder that is not there yet, or is empty")
    parser.add_argument("--model", type=Path, required=True, help="the model's folder; made if it is not there")
    parser.add_argument("--locked", action="store_true", help="if it must be made anew: with that commit's packages")
    asked = parser.parse_args()
    clone = Path()
    commit = commit_of(clone, asked.tag)
    recorded = recorded_at(clone, commit)
    refuse_full(asked.out)
    with stoppable():
        if is_free(asked.model):
            origin = bring_back(clone, commit, asked.model, asked.locked, lambda line: print(line, flush=True))
        else:
            check_recorded(asked.model, recorded.model, commit)
            origin = None
        report = bring_report(clone, commit, recorded)
        with whole_folder(asked.out.resolve()) as partial:
            release = gather(
                clone, commit, asked.tag, asked.model, recorded.model, origin, asked.locked, report is not None
            )
            for name in own_files(asked.model):
                shutil.copyfile(asked.model / name, partial / name)
            write_text(partial / "card.md", render_release(release))
            if report is not None:
                write_bytes(partial / "report.html", report)
            refuse_full(asked.out)
    print(
        f"{asked.out} holds the release of {asked.tag}{'' if report else ', without its report, which cannot be had'}"
    )


if __name__ == "__main__":
    run_stage(main)
