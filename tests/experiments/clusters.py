"""An origin, a DVC remote, and programs that start the scripts of experiments/cluster/ here, as engines do on nodes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem

from tests.projects import Project

FILE = """
name: mine
output: docs/mine.md
columns:
  - {title: refusal, metric: refusal.organism_harmful.refusal_rate}
  - {title: KL, metric: drift.first_token_kl}
groups:
  - name: other
    set: {organism.seed: 79, organism.pretrain_steps: 3, organism.tune_steps: 2}
    experiments:
      - {name: first}
      - {name: strict, set: {gates.0.at_most: 0.01}}
      - {name: broken, set: {ablate.rules.0.layers: [77]}}
"""

SBATCH = """#!PYTHON
import os, pathlib, re, subprocess, sys

place = pathlib.Path(__file__).parent
with open(place / "sbatch.log", "a") as log:
    print(*sys.argv[1:], file=log)
number = len((place / "sbatch.log").read_text().splitlines())
options = [word for word in sys.argv[1:] if word.startswith("--")]
script, *arguments = sys.argv[1 + len(options) :]
spooled = place / f"job{number}"  # Slurm runs a copy, in the folder that it was submitted from
text = pathlib.Path(script).read_text()
spooled.write_text(text)
begin, end = re.search(r"--array=(\\d+)-(\\d+)", " ".join(options)).groups()
output = re.search(r"^#SBATCH --output=(.+)$", text, re.MULTILINE)[1].replace("%A", str(number))
tasks = []
for task in range(int(begin), int(end) + 1):
    given = {**os.environ, "SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
    log = open(output.replace("%a", str(task)), "a")
    tasks.append(subprocess.Popen(["bash", spooled, *arguments], env=given, stdout=log, stderr=log))
for task in tasks:
    task.wait()
print(f"{number};cluster")
"""

SKY = """#!PYTHON
import os, pathlib, subprocess, sys, tempfile
from ruamel.yaml import YAML

task = YAML(typ="safe").load(open(sys.argv[-1]))
words = sys.argv[1:-1]
options = {word: words[place + 1 : place + 2] for place, word in enumerate(words)}
pairs = [words[place + 1] for place, word in enumerate(words) if word == "--env"]
given = {name: value for name, value in task["envs"].items() if value is not None} | dict(
    pair.split("=", 1) for pair in pairs
)
assert words[:3] == ["jobs", "launch", "--yes"] and given.keys() == task["envs"].keys()
assert options["--secret"] == list(task["secrets"]) and os.environ[options["--secret"][0]]
place = pathlib.Path(__file__).parent
home = pathlib.Path(tempfile.mkdtemp(dir=place, prefix=f"machine{given['NUMBER']}-"))
with open(place / f"machine{given['NUMBER']}.log", "w") as log:
    for commands in (task["setup"], task["run"]):
        settings = {**os.environ, **given, "HOME": str(home)}
        code = subprocess.call(["bash", "-c", commands], cwd=home, env=settings, stdout=log, stderr=log)
with open(place / "sky.log", "a") as log:
    print(given["NUMBER"], "--detach-run" in words, code, file=log)
sys.exit(0 if "--detach-run" in words else code)
"""

MAKE = """#!/bin/sh
echo "make $*"
"""


def engines(folder: Path) -> dict[str, str]:
    """Programs in place of `sbatch`, `sky` and (on machines that have the environment) `make`: a PATH that has them.

    Tasks of one job array run at once. `sbatch.log` and `sky.log` in the folder say what was asked of them.
    """
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("sky", SKY), ("make", MAKE)):
        (folder / name).write_text(text.replace("PYTHON", sys.executable))
        (folder / name).chmod(0o755)
    programs = Path(sys.executable).parent
    return {"PATH": os.pathsep.join([str(folder), str(programs), os.environ["PATH"]]), "GIT_TOKEN": "none"}


def with_origin(project: Project, folder: Path, file: str = FILE) -> str:
    """Give a finished project an origin and a DVC remote that have everything, and a file of experiments.

    Returns:
        The commit.
    """
    (project.folder / "mine.yaml").write_text(file)
    project.check("dvc", "remote", "add", "--default", "storage", str(folder / "remote"))
    commit = project.commit("experiments")
    project.check("git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder / "origin.git"))
    project.check("git", "remote", "add", "origin", str(folder / "origin.git"))
    project.check("git", "push", "--quiet", "origin", "HEAD:main")
    project.check("dvc", "push")
    return commit


def clone(folder: Path, name: str) -> Project:
    """Another machine's clone, which shares nothing but the origin and the DVC remote."""
    there = Project(folder / name)
    Project(folder).check("git", "clone", "--quiet", "origin.git", name)
    return there


def results_of(project: Project, reference: str) -> dict[str, Any]:
    """What an experiment's edited model was found to do, out of DVC's cache or its remote."""
    files = DVCFileSystem(str(project.folder), rev=reference)
    return dict(json.loads(files.read_text("results/ablated/results.json")))


def pushed(folder: Path) -> list[str]:
    """The names of the experiments at the origin."""
    references = Project(folder / "origin.git").check("git", "for-each-ref", "--format=%(refname)", "refs/exps")
    return [name.rpartition("/")[2] for name in references.splitlines()]
