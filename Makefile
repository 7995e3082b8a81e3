# `make repro` and `make test` are all that a newcomer needs; they make .venv from requirements.lock if it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/requirements.lock
# What is installed: all of it, or requirements-publish.lock, which is enough to publish a run.
LOCK ?= requirements.lock
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
unexport PYTHONPATH PYTHONHOME

# Several targets on one line are steps, in their order. `exec`, so that no shell stands between make and a command: make
# ends the processes that it started itself.
.NOTPARALLEL:

.PHONY: help repro use pin gate report verify plan experiments experiment collect merge model release upload pr-comment \
	fetch restore rerun keep push doctor hand-over publish attach test test-slow test-nightly lint types audit actionlint format schema lock environment

EXCISE := exec python -m excise

help: ## List these targets; `python -m excise --help` lists commands, with their arguments and exit codes
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# make itself exits with 2 whatever a command's exit code is. Values reach commands through the environment, never as text
# of the command, and behind `--` or `=`: some are chosen by strangers.

repro: environment ## Run every stage that is out of date, then print the gates
	@python -m excise repro
	@python -m excise gate --show
	@echo "The evidence, with every changed answer: report/report.html"

gate: environment ## Print the gates; fail if one does, is void, or is inconclusive and may not be
	@$(EXCISE) gate

report: environment ## Write report/shown.html: the report with commit, versions and parameter changes
	@$(EXCISE) report

verify: environment ## Check an edited model's files against its edit.json (FOLDER=models/ablated)
	@$(EXCISE) verify -- "$${FOLDER:-models/ablated}"

plan: environment ## Print what the rules would edit and what would come of it; measures first where that is out of date
	@python -m excise repro -- --quiet directions
	@$(EXCISE) plan --simulate

use: environment ## Make params.yaml the recipe RECIPE=llama-3.1-8b-instruct of recipes/; without a name, list them
	@$(EXCISE) use -- $${RECIPE:+"$$RECIPE"}

pin: environment ## Pin the base to the newest commit of MODEL=organization/name; DATASET=id prints that of a dataset
	@$(EXCISE) pin $${DATASET:+--dataset="$$DATASET"} -- $${MODEL:+"$$MODEL"}

experiments: environment ## Run FILE=experiments/moe.yaml, JOBS=1 at a time; write the tables of docs/moe.md
	@$(EXCISE) experiments --jobs="$${JOBS:-1}" -- "$${FILE:-experiments/moe.yaml}"

experiment: environment ## Run experiment NUMBER of FILE, and push it to the git origin and the DVC remote
	@$(EXCISE) experiment -- "$$FILE" "$$NUMBER"

collect: environment ## Fetch the experiments of FILE that other machines ran; write their tables
	@$(EXCISE) collect -- "$$FILE"

pr-comment: environment ## Write report/comment.md: what this would change in BASE=origin/main
	@$(EXCISE) comment --base="$${BASE:-origin/main}" --out="$${OUT:-report/comment.md}" \
		$${SAMPLES:+--samples="$$SAMPLES"} $${WRITE_SAMPLES:+--write-samples="$$WRITE_SAMPLES"}

merge: environment ## After `git merge` and params.yaml: take generated files from this branch, print what must run
	@$(EXCISE) merge

model: environment ## Make the edited model of any commit: COMMIT=abc123 OUT=folder [ENV=locked] [CACHE=/folder]
	@$(EXCISE) model $(if $(filter locked,$(ENV)),--locked) $(if $(filter never,$(REBUILD)),--no-rebuild) \
		$${CACHE:+--cache="$$CACHE"} -- "$$COMMIT" "$$OUT"

release: environment ## Make the model of TAG again in MODEL=folder; write its card, record and report to RELEASE=folder
	@$(EXCISE) release --model="$$MODEL" -- "$$TAG" "$$RELEASE"

upload: environment ## Upload MODEL=folder to the Hub as HUB=organization/name, private; HF_TOKEN holds the token
	@$(EXCISE) upload -- "$$MODEL" "$$HUB"

fetch: environment ## On a runner: fetch what COMMIT recorded into the cache CACHE=/folder, running nothing of it
	@$(EXCISE) fetch --cache="$$CACHE" -- "$$COMMIT"

restore: environment ## On a runner: use the cache CACHE=/folder, take what the remote has [REMOTE=none] [LINKS=copy]
	@$(EXCISE) restore $${CACHE:+--cache="$$CACHE"} $(if $(filter none,$(REMOTE)),--no-remote) $(if $(filter copy,$(LINKS)),--copies)

rerun: environment ## On a runner: run every stage that is out of date, with what the remote has [REMOTE=none]
	@$(EXCISE) rerun $(if $(filter none,$(REMOTE)),--no-remote)

keep: environment ## On a runner: give the DVC remote what a run of COMMIT made, by its HANDOVER=folder and CACHE=/folder
	@$(EXCISE) keep --cache="$$CACHE" -- "$$COMMIT" "$$HANDOVER"

push: environment ## On a runner: give the DVC remote what it lacks
	@$(EXCISE) push

doctor: environment ## Say what is wrong with cache, remote, environment, runner and disk, and what mends it [DEEP=1]
	@$(EXCISE) doctor $${DEEP:+--deep}

clean: environment ## List what no branch, tag, experiment or stash needs; YES=1 removes it (ALL_COMMITS=1 keeps more)
	@$(EXCISE) clean $(if $(filter 1,$(YES)),--yes) $(if $(filter 1,$(ALL_COMMITS)),--all-commits)

hand-over: environment ## On a runner: copy what is published to HANDOVER=folder
	@$(EXCISE) hand-over -- "$$HANDOVER"

publish: environment ## Commit HANDOVER=folder to a branch, keep the comment, set the status
	@$(EXCISE) publish -- "$$HANDOVER"

attach: environment ## Attach RELEASE=folder to the release of TAG
	@$(EXCISE) attach -- "$$TAG" "$$RELEASE"

# Files of tests run side by side, one a core. Each computes on one thread.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m pytest --numprocesses logical --maxprocesses 8 \
	--dist loadfile --no-loadscope-reorder

test: environment ## The test suite
	@$(SIDE_BY_SIDE) -m "not slow and not nightly"

test-slow: environment ## What takes longer
	@$(SIDE_BY_SIDE) -m "slow and not alone and not nightly"
	@python -m pytest -m "slow and alone and not nightly"

test-nightly: environment ## Whole sets of damaged input, of kills and of cases, of which the others run a part
	@$(SIDE_BY_SIDE) -m "nightly and not alone"
	@python -m pytest -m "nightly and alone"

lint: environment ## Style, formatting, and dvc.yaml against the code
	@python -m excise deps --check
	@ruff check .
	@ruff format --check .

types: environment ## Static types
	@mypy

audit: environment ## Security and form of the workflows
	@zizmor --offline --persona=pedantic --quiet .github
	@check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@if command -v actionlint > /dev/null; then actionlint; \
		else echo "actionlint is not installed (make actionlint), so it checked nothing"; fi

# No package of the Python registry holds it. The sums of Go's modules are public, so a version cannot change.
actionlint: environment ## Install actionlint, for `make audit`; needs Go and a network
	@GOBIN="$(CURDIR)/$(BIN)" go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

format: environment ## Fix style and formatting
	@ruff check --fix .
	@ruff format .

schema: environment ## Write schemas/params.schema.json and docs/params.md again from schemas/params/
	@$(EXCISE) schema

# CUDA's own packages stay out of the lock, so that the CPU and the CUDA build of torch both satisfy it.
CUDA_PACKAGES := cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
	nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver \
	nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx \
	triton

# What computes results, and so is a dependency of the stages that use it.
COMPUTE := accelerate|datasets|jinja2|lm-eval|numpy|pyarrow|safetensors|scipy|tokenizers|torch|transformers

lock: ## Write requirements*.lock again from pyproject.toml
	@$(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/pip install --quiet uv
	@$(VENV)-lock/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-header --no-annotate \
		--quiet --output-file requirements.lock $(CUDA_PACKAGES:%=--no-emit-package %)
	@for group in publish remote; do \
		$(VENV)-lock/bin/uv pip compile --group $$group --universal --python-version 3.11 --no-header --no-annotate \
			--quiet --generate-hashes --constraint requirements.lock --output-file requirements-$$group.lock; done
	@grep -E '^($(COMPUTE))==' requirements.lock > requirements-compute.lock
	@rm -rf $(VENV)-lock

# The copy of the lock is made last: an installation that was cut short is started over. pip would compile on one core what
# is compiled here on all; what fails to compile is not meant for this Python, and pip ignores it too.
environment:
	@cmp -s $(LOCK) $(INSTALLED) || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")' && \
		echo "Making $(VENV) from $(LOCK) (the whole one takes about two minutes and 2 GB)" && \
		$(PYTHON) -m venv --clear $(VENV) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r $(LOCK) && \
		{ $(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true; } && \
		cp $(LOCK) $(INSTALLED); }
