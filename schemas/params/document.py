"""params.yaml as a whole."""

import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, model_validator

from schemas.basis import plain_yaml
from schemas.basis.document import Section, validated
from schemas.basis.fields import MayBeEmpty
from schemas.params.ablate import Ablate, EditMethod
from schemas.params.answer import Answer
from schemas.params.directions import Directions
from schemas.params.gates import Gates, ReportSettings, unknown_task
from schemas.params.judge import EvaluateSettings, Judging
from schemas.params.measure import Measure
from schemas.params.model import Device, Model, Offload, Place
from schemas.params.organism import Organism, OrganismSettings, WorldSettings
from schemas.params.prompts import PrepareSettings, Prompts
from schemas.wording import WrongValue


class ModelSection(Device, Model):
    """The section `model` as the user writes it."""


class MeasureSection(Offload, Directions, Measure):
    """The section `measure` as the user writes it."""


class EvaluateSection(Judging, Answer):
    """The section `evaluate` as the user writes it."""


class Params(Section):
    """Everything that makes the edited model. A section that is missing or empty has its defaults, except that `gates`
    must not be empty: whoever comments out every gate wants none (`gates: []`), not the default ones."""

    model_config = ConfigDict(title="excise params.yaml")

    model: Annotated[ModelSection, MayBeEmpty()] = ModelSection()
    """Which model is edited, and where it runs."""
    organism: Annotated[Organism, MayBeEmpty()] = Organism()
    """How the built-in model is made."""
    prompts: Annotated[Prompts, MayBeEmpty()] = Prompts()
    """What the refusal direction is measured on."""
    measure: Annotated[MeasureSection, MayBeEmpty()] = MeasureSection()
    """How activations are taken."""
    ablate: Annotated[Ablate, MayBeEmpty()] = Ablate()
    """What is removed from which tensors of which layers."""
    evaluate: Annotated[EvaluateSection, MayBeEmpty()] = EvaluateSection()
    """What the base and the edited model are asked."""
    gates: Gates = Gates.model_validate(
        [
            {"metric": "refusal.organism_harmful.refusal_rate", "at_most": 0.15},
            {"metric": "capability.organism_facts.exact_match", "max_drop": 0.03},
        ]
    )
    """Limits that the report checks and `make gate` enforces, each with a `metric` and exactly one limit, as in
    `at_most: 0.15`; `[]` for none."""

    @model_validator(mode="after")
    def _keep_secrets_to_ask_for_them(self) -> Self:
        for group, tasks in self.evaluate.tasks().items():
            if "organism_secret" in tasks and self.organism.refusals != 2:
                raise WrongValue("lists organism_secret, which needs organism.refusals: 2", "evaluate", group)
        return self

    @model_validator(mode="after")
    def _evaluate_what_gates_judge(self) -> Self:
        known_tasks = [f"{group}.{task}" for group, tasks in self.evaluate.tasks().items() for task in tasks]
        default = "" if "gates" in self.model_fields_set else " (a default gate; set `gates`, or `gates: []`)"
        for number, gate in enumerate(self.gates.root):
            if wrong := unknown_task(gate.metric, known_tasks, f"evaluate does not list{default}"):
                raise WrongValue(wrong, "gates", number, "metric")
        return self


def load(path: Path) -> Params:
    """Read and validate a parameter file as a whole. Raises only `ParamsError`."""
    return parse(plain_yaml.read_text(path, path.name), path.name)


def parse(text: str, name: str = "params.yaml") -> Params:
    """Validate the text of a parameter file; `name` is what errors call it. Raises `ParamsError`."""
    return validated(Params, plain_yaml.parse_mapping(text, name), name)


def settings_of_stages(params: Params) -> dict[str, str]:
    """The text of each `artifacts/params/<stage>.json`: exactly what it reads; no stage depends on `device`."""
    model, organism, prompts = params.model, params.organism, params.prompts
    measure, ablate, evaluate = params.measure, params.ablate, params.evaluate
    folder = model.source if model.source.startswith("/") else None
    world = WorldSettings(**organism.model_dump(include={*WorldSettings.model_fields}))
    stages: dict[str, BaseModel] = {
        "device": Place(device=model.device, offload=measure.offload, folder=folder),
        "organism": OrganismSettings(organism=organism if model.source == "organism" else None),
        "prepare": PrepareSettings(model=Model.model_construct(**dict(model)), prompts=prompts, world=world),
        "measure": Measure.model_construct(**dict(measure)),
        "directions": Directions.model_construct(**dict(measure)),
        "diagnose": EditMethod.model_construct(**dict(ablate)),
        "simulate": ablate,
        "ablate": ablate,
        "answer": Answer.model_construct(**dict(evaluate)),
        "evaluate": EvaluateSettings.model_construct(**dict(evaluate)),
        "report": ReportSettings(gates=params.gates, ablate=ablate),
    }
    return {
        stage: json.dumps(document.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for stage, document in stages.items()
    }
