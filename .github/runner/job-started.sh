#!/usr/bin/env bash
# Refuses each job that a pull request of a fork asks for, before anything of it runs. A workflow's own `if:` cannot: a
# fork may change the workflow. Install it on the machine, outside of any checkout, as docs/runner.md says
# (ACTIONS_RUNNER_HOOK_JOB_STARTED).
#
# The runner treats this as the job's first step, and evaluates the condition of each later one by itself: after a step
# that fails, those with `if: always()` run. So a refusal also ends the worker, the process that would run them. The
# listener above it reports the job as failed, and waits for the next.
set -uo pipefail

# The worker among this process's ancestors; the parent, where none has its name.
worker() {
  local pid=$PPID name parent
  while ((pid > 1)); do
    name=$(</proc/"$pid"/comm) && read -r _ parent _ < <(sed 's/.*) //' /proc/"$pid"/stat) || break
    [[ $name == Runner.Worker ]] && echo "$pid" && return
    pid=$parent
  done
  echo "$PPID"
}

# A fork's workflow also chooses the folder that this is started in; modules that lie there must not be ours.
cd /
# Only a clear yes is one: without Python, or an event that can be read, the job is refused, too.
if [[ $(python3 -I - <<'PYTHON'
import json
import os

name = os.environ["GITHUB_EVENT_NAME"]
with open(os.environ["GITHUB_EVENT_PATH"], encoding="utf-8") as file:
    event = json.load(file)
if name == "pull_request":
    head = event["pull_request"]["head"]["repo"]  # null if the fork was deleted
    allowed = head is not None and head["full_name"] == os.environ["GITHUB_REPOSITORY"]
else:
    # Both need the right to write to the repository.
    allowed = name in ("push", "workflow_dispatch")
print("allowed" if allowed else "refused")
PYTHON
) == allowed ]]; then
  exit 0
fi
echo "::error::this machine runs nothing for ${GITHUB_EVENT_NAME:-this event} of a fork; a maintainer who read it may dispatch its commit"
kill -KILL "$(worker)"
exit 1
