#!/usr/bin/env bash
# The experiments of a file as managed jobs of SkyPilot, one each, on whatever clouds `sky check` names:
#   GIT_TOKEN=... bash experiments/cluster/sky.sh experiments/moe.yaml [options of `sky jobs launch`: --env DVC_PLUGIN=dvc-s3 ...]
# and when `sky jobs queue` shows none running `make collect FILE=experiments/moe.yaml`. docs/scale.md explains it.
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"
file=$1
shift
firsts=$(python -m excise experiment "$file" --firsts)
count=$(python -m excise experiment "$file" --count)
origin=$(git remote get-url origin)
commit=$(git rev-parse HEAD)

launch() {
    number=$1
    shift
    sky jobs launch --yes --name "excise-$number" --env ORIGIN="$origin" --env COMMIT="$commit" --env FILE="$file" \
        --env NUMBER="$number" --secret GIT_TOKEN "$@" experiments/cluster/sky.yaml
}

# A launch that shows its job's log lasts as long as the job: wait for these, whose models and base answers serve the
# others. Any end will do, as on one host.
for number in $(seq 1 "$firsts"); do
    launch "$number" "$@" &
done
wait
for number in $(seq $((firsts + 1)) "$count"); do
    launch "$number" --detach-run "$@"
done
