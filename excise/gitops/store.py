"""DVC's cache and remote: `python -m excise.gitops.store restore|repro|rerun|push`.

`restore` uses the shared cache that the environment variable CACHE names, and takes what it or the remote has; `repro`
runs what is out of date, with further arguments of `dvc repro`; `rerun` does so on a runner, with what the remote has;
`push` gives the remote what it lacks. Without a remote the cache alone holds the results. Whatever interrupts this
process ends DVC and its stage, too.
"""

import argparse
import os
from pathlib import Path

from excise.gitops.processes import stoppable
from excise.gitops.storage import has_remote, push, repro, restore, use_cache
from excise.plumbing.errors import StageError, run_stage

PROJECT = Path()
NO_REMOTE = "No DVC remote is set (docs/runner.md): results stay in this machine's cache"


def main() -> None:
    """Do one of the four."""
    parser = argparse.ArgumentParser(prog="python -m excise.gitops.store", description="DVC's cache and remote.")
    parser.add_argument("action", choices=("restore", "repro", "rerun", "push"))
    asked, arguments = parser.parse_known_args()
    if arguments and asked.action != "repro":
        raise StageError(f"{asked.action} takes no {arguments[0]}")
    with stoppable():
        act(asked.action, arguments)


def act(action: str, arguments: list[str]) -> None:
    """Do it."""
    if action == "restore" and (cache := os.environ.get("CACHE")):
        use_cache(PROJECT, Path(cache))
    if action in ("restore", "push") and not has_remote(PROJECT):
        print(NO_REMOTE, flush=True)
    if action == "restore":
        restore(PROJECT)
    elif action == "push":
        if has_remote(PROJECT):
            push(PROJECT)
    else:
        repro(PROJECT, arguments, may_pull=action == "rerun")


if __name__ == "__main__":
    run_stage(main)
