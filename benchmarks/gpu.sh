#!/usr/bin/env bash
# On a machine with a GPU: what it is, the tests that need one, and measure and ablate on it against the CPU. What it prints
# goes into benchmarks/RESULTS.md. Options are those of benchmarks/gpu.py, such as --layers 46 or --folder /scratch.
set -euo pipefail
cd "$(dirname "$0")/.."
make environment
export PATH="$PWD/.venv/bin:$PATH"
if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
fi
python -m pytest -q -k "cuda or gpu" tests/edit tests/inference tests/plumbing tests/residual
python -m benchmarks.gpu "$@"
