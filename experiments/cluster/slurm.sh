#!/usr/bin/env bash
# The experiments of a file on a Slurm cluster, each a task of a job array. On the login node, in the project's folder,
# which all nodes see:
#   bash experiments/cluster/slurm.sh experiments/moe.yaml [options of sbatch: --partition=gpu --time=8:00:00 ...]
# and when the queue is empty `make collect FILE=experiments/moe.yaml`. docs/scale.md explains it.
#SBATCH --job-name=excise
#SBATCH --gpus=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=.excise/cluster/%A-%a.log
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"
file=$1

if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    shift
    firsts=$(python -m excise experiment "$file" --firsts)
    count=$(python -m excise experiment "$file" --count)
    mkdir -p .excise/cluster
    # What is checked out now is what runs, however long it waits in the queue.
    task=(experiments/cluster/slurm.sh "$file" "$(git rev-parse HEAD)")
    first=$(sbatch --parsable --array="1-$firsts" "$@" "${task[@]}")
    echo "job $first: experiments 1 to $firsts, whose models and base answers serve the others"
    if [ "$count" -gt "$firsts" ]; then
        # Any end will do, as on one host: where the first of a group failed, its others make what they need themselves.
        others=$(sbatch --parsable --array="$((firsts + 1))-$count" --dependency="afterany:${first%%;*}" "$@" "${task[@]}")
        echo "job $others: experiments $((firsts + 1)) to $count"
    fi
    exit
fi

# A clone for each task, beside the cache that they share, so that models are linked and not copied. It is named after
# the task: if the node dies, its second start sweeps what the first one left.
clone=.excise/cluster/$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID
trap 'rm -rf "$clone"' EXIT
rm -rf "$clone"
git clone --quiet --no-checkout . "$clone"
git -C "$clone" checkout --quiet --detach "$2"
git -C "$clone" remote set-url origin "$(git remote get-url origin)"
if [ -e .dvc/config.local ]; then cp .dvc/config.local "$clone/.dvc/"; fi
cache=$(dvc cache dir)
clone=$PWD/$clone
cd "$clone"
dvc cache dir --local "$cache"
python -m excise experiment "$file" "$SLURM_ARRAY_TASK_ID"
