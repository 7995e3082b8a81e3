"""DVC's cache and remote on a runner: `python -m stages.store restore|repro|push`.

`restore` uses the shared cache that the environment variable CACHE names, and takes what it or the remote has; `repro`
runs what is out of date; `push` gives the remote what it lacks. Without a remote the cache alone holds the results.
"""

import argparse
import os
from pathlib import Path

from stages.base.stage import run_stage
from stages.gitops.storage import checkout, has_remote, pull, push, repro, use_cache

PROJECT = Path()
NO_REMOTE = "No DVC remote is set (docs/runner.md): results stay in this machine's cache"


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(prog="python -m stages.store", description="A runner's cache and remote.")
    parser.add_argument("action", choices=("restore", "repro", "push"))
    action = parser.parse_args().action
    if action == "restore" and (cache := os.environ.get("CACHE")):
        use_cache(PROJECT, Path(cache))
    if action == "repro":
        repro(PROJECT)
    elif has_remote(PROJECT):
        (pull if action == "restore" else push)(PROJECT)
    else:
        print(NO_REMOTE)
        if action == "restore":
            checkout(PROJECT)


if __name__ == "__main__":
    run_stage(main)
