#!/usr/bin/env bash
# Refuses, before anything of it runs, each job that a pull request of a fork asks for. A workflow's own `if:` cannot:
# a fork may change the workflow. Install it on the machine, outside of any checkout, as docs/runner.md says
# (ACTIONS_RUNNER_HOOK_JOB_STARTED).
set -euo pipefail
# A fork's workflow also chooses the folder that this is started in; modules that lie there must not be ours.
cd /
exec python3 -I - <<'PYTHON'
import json
import os
import sys

name = os.environ["GITHUB_EVENT_NAME"]
with open(os.environ["GITHUB_EVENT_PATH"], encoding="utf-8") as file:
    event = json.load(file)

if name == "pull_request":
    head = event["pull_request"]["head"]["repo"]  # null where the fork was deleted
    allowed = head is not None and head["full_name"] == os.environ["GITHUB_REPOSITORY"]
else:
    # Both need the right to write to the repository.
    allowed = name in ("push", "workflow_dispatch")
if not allowed:
    sys.exit(f"::error::this machine runs nothing for {name} of a fork; a maintainer who read it may dispatch its commit")
PYTHON
