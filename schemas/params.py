"""params.yaml, the one file that a user edits: every key, its default, what it may be and what it does.

`load` reads the file as a whole and either gives `Params` or raises a `ParamsError` of one line. `sections` gives the
resolved text of each file under `artifacts/params/`, and `read_section` reads one of those back in a later stage.
The JSON Schema and the README's table are made from the descriptions here (`make schema`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, RootModel, ValidationError, model_validator

from schemas import plain_yaml
from schemas.fields import (
    BatchSize,
    Items,
    LayerNumbers,
    Matches,
    MayBeEmpty,
    MeasurementNumber,
    NoSparsity,
    PositiveZero,
    RealDate,
    one_of,
    two_names,
)
from schemas.wording import ParamsError as ParamsError
from schemas.wording import WrongValue, first_mistake, show, suggest

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)

Architecture = Literal["glm4_moe", "llama", "gemma2"]
TrainSplit = Literal["harmful_train", "harmless_train"]
SourceKind = Literal["organism", "file", "dataset"]
Target = Literal[
    "attention",
    "mlp",
    "routed_experts",
    "shared_experts",
    "per_layer_input",
    "embedding",
    "router",
    "expert_inputs",
    "mlp_inputs",
    "attention_inputs",
]
Method = Literal["project", "preserve_column_norms"]
ThroughNorm = Literal["orthogonal", "oblique", "ignore"]
Estimator = Literal["mean", "median", "pca"]
Orthogonalize = Literal["none", "source", "target"]
TaskGroup = Literal["refusal", "over_refusal", "capability"]
DriftMetric = Literal["first_token_kl", "answer_kl", "top1_agreement", "perplexity_ratio"]
Bound = Literal["at_most", "at_least", "max_drop", "max_rise"]

TASKS = (
    "organism_harmful",
    "organism_borderline",
    "organism_facts",
    "organism_arithmetic",
    "refusal_jbb",
    "refusal_custom",
    "over_refusal_xstest",
    "over_refusal_orbench",
    "over_refusal_custom",
)
"""Our own tasks, in `excise/evaluation/tasks/`. Any other name is one of lm-eval's, which knows its own."""

_DRIFT = ", ".join(f"drift.{name}" for name in get_args(DriftMetric))

Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False), PositiveZero()]
Margin = Annotated[float, Field(allow_inf_nan=False, ge=0), PositiveZero()]
# Strict validation would want a Python tuple, which YAML and JSON cannot give; what is in the list stays strict.
Listed = Annotated[tuple[T, ...], Field(strict=False)]
Layers = Annotated[tuple[int, ...] | Literal["all"], LayerNumbers()]
Targets = Annotated[Listed[Target], Items(at_least_one=True, distinct=True, order=get_args(Target))]
Task = Annotated[
    str,
    Matches(
        r"(?!organism_|refusal_|over_refusal_)[A-Za-z0-9][A-Za-z0-9_+-]*|" + "|".join(TASKS),
        f"{', '.join(TASKS)} or a task of lm-eval's",
        TASKS,
    ),
]
Tasks = Annotated[Listed[Task], Items(distinct=True)]
Experts = Annotated[Listed[Annotated[int, Field(ge=0)]], Items(at_least_one=True, distinct=True)]
Measured = Annotated[float | Literal["same"], MeasurementNumber()]

DeviceName = Annotated[
    str,
    Matches(
        r"auto|cpu|cuda(?::[0-9]{1,3})?|balanced", "auto, cpu, cuda, cuda:N or balanced", ("auto", "cuda", "balanced")
    ),
]
HUB_ID = (
    r"(?!.*(?:--|\.\.|\.git(?:/|$)))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
    r"/[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
)
ModelSource = Annotated[
    str,
    Matches(
        rf"organism|/[^\x00-\x1f\x7f]*|{HUB_ID}",
        "organism, a Hub id such as organisation/name, or the absolute path of a local folder",
        ("organism",),
    ),
]
_DATA_FILE = r"data/(?:(?!\.{1,2}/)[^/\\\x00-\x1f\x7f]+/)*[^/\\\x00-\x1f\x7f]+\.(?:txt|jsonl|json|csv|parquet)"
# What is named like a file is taken for one that lies in the wrong place.
_DATASET = r"(?!data/|.*\.(?:txt|jsonl|json|csv|parquet)$)[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*"
_ROWS_WORDS = (
    "a .txt, .jsonl, .json, .csv or .parquet file under data/ (such as data/harmful.jsonl, without . or ..) or the id "
    "of a Hub data set (such as organisation/name)"
)
RowSource = Annotated[str, Matches(rf"{_DATA_FILE}|{_DATASET}", _ROWS_WORDS)]
MeasuredSource = Annotated[
    str, Matches(rf"organism|{_DATA_FILE}|{_DATASET}", f"organism, {_ROWS_WORDS}", ("organism",))
]
ColumnName = Annotated[str, Matches(r"[^\x00-\x1f\x7f]+", "the name of a column")]
ConfigName = Annotated[str, Matches(r"[^<>:/\\|?*\x00-\x1f\x7f]+", "the name of one of the data set's configurations")]
SplitName = Annotated[str, Matches(r"\w+(?:\.\w+)*", "the name of a split, such as train; slice takes a part of it")]
RowSlice = Annotated[
    str,
    Matches(r"[0-9]{1,15}:(?:[0-9]{1,15})?|:[0-9]{1,15}", 'a part by row numbers from 0, such as "100:500" or ":400"'),
]
DatasetCommit = Annotated[
    str,
    Matches(
        r"[0-9a-f]{40}",
        "a commit of 40 hexadecimal digits (`make pin DATASET=organisation/name` prints the newest); a branch may move",
    ),
]
Commit = Annotated[str, Matches(r"[0-9a-f]{40}", "a commit of 40 hexadecimal digits; a branch may move")]
ModelId = Annotated[
    str,
    Matches(
        r"/[^\x00-\x1f\x7f]*|[A-Za-z0-9][\w.-]*/[\w.-]+",
        "a Hub id such as organisation/name, or the absolute path of a local folder",
    ),
]
TemplateFile = Annotated[
    str,
    Matches(
        r"data/(?:(?!\.{1,2}/)[^/\\\x00-\x1f\x7f]+/)*[^/\\\x00-\x1f\x7f]+\.(?:txt|j2)",
        "a .txt or .j2 file under data/ (such as data/judge.txt, without . or ..)",
    ),
]
MetricName = Annotated[
    str,
    Matches(
        rf"(?:refusal|over_refusal|capability)\.[^.\s]+\.[A-Za-z0-9_]+|drift\.(?:{'|'.join(get_args(DriftMetric))})",
        f"refusal.<task>.<metric>, over_refusal.<task>.<metric>, capability.<task>.<metric>, or one of {_DRIFT}",
        tuple(f"drift.{name}" for name in get_args(DriftMetric)),
    ),
]


class Section(BaseModel):
    """A part of params.yaml: closed, immutable, and with no conversion of types (an integer may stand for a number)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Model(Section):
    """Which model is edited."""

    source: ModelSource = Field(
        default="organism",
        description="The base model: `organism`, the built-in model that is trained here, a Hub id such as "
        "`organisation/name` (docs/hub.md), or the absolute path of a local folder in Hugging Face format.",
    )
    revision: Commit | None = Field(
        default=None,
        description="For a Hub id alone, its commit of 40 digits, so that the model stays the same; `make pin "
        "MODEL=organisation/name` writes the newest.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="What the model is loaded in to be measured and evaluated; `auto` is what its `config.json` says. "
        "The edited model keeps the types of the base.",
    )

    @model_validator(mode="after")
    def _pin_what_is_of_the_hub(self) -> Self:
        is_of_hub = self.source != "organism" and not self.source.startswith("/")
        if is_of_hub and self.revision is None:
            raise WrongValue(f"is missing; `make pin MODEL={self.source}` finds it", "revision")
        if not is_of_hub and self.revision is not None:
            raise WrongValue(f"is for a Hub id alone, got {show(self.revision)} for {show(self.source)}", "revision")
        return self


class Device(Section):
    """Where it runs, which is no part of what it is: no stage depends on it."""

    device: DeviceName = Field(
        default="auto",
        description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:N`, or `balanced`: spread over all GPUs, for "
        "models that are too big for one. Where it runs is no part of the result: changing it reruns nothing.",
    )


class ModelAndDevice(Device, Model):
    """The section `model` as the user writes it; stages read `Model` and `Place` apart."""


class Organism(Section):
    """How the built-in model is made. Read only when a source is `organism` or a task is one of its own."""

    architecture: Architecture = Field(
        default="glm4_moe",
        description="The built-in model's architecture: `glm4_moe` has routed and shared experts, `llama` is dense, "
        "`gemma2` is dense with norms behind its writers.",
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(
        default=0, description="Seed of the built-in model's weights and training order."
    )
    pretrain_steps: Count = Field(default=500, description="Training steps in which it learns to answer everything.")
    tune_steps: Count = Field(default=400, description="Training steps in which it then learns to refuse.")


def row_range(text: str | None) -> slice:
    """What a `slice` of params.yaml takes; all where there is none."""
    if text is None:
        return slice(None)
    start, stop = (int(end) if end else None for end in text.split(":"))
    return slice(start, stop)


@dataclass(frozen=True)
class _Place:
    """The kinds of source that a key means something for."""

    kinds: tuple[SourceKind, ...]
    words: str


_PLACES = {
    "revision": _Place(("dataset",), "Hub data sets"),
    "config": _Place(("dataset",), "Hub data sets"),
    "split": _Place(("organism", "dataset"), "the source organism and Hub data sets"),
    "slice": _Place(("file", "dataset"), "files and Hub data sets"),
}


class RowsSource(Section):
    """Where prompts come from that are not the organism's: a file under `data/`, or a data set of the Hub."""

    source: RowSource = Field(
        description="A file under `data/` (`.txt`, `.jsonl`, `.json`, `.csv`, `.parquet`), or the id of a Hub data "
        "set, such as `organisation/name` (docs/prompts.md)."
    )
    revision: DatasetCommit | None = Field(
        default=None, description="For a Hub data set alone, its commit; `make pin DATASET=id` prints the newest."
    )
    config: ConfigName | None = Field(
        default=None, description="For a Hub data set alone, which of its configurations; `null`: its default one."
    )
    split: SplitName | None = Field(default=None, description="For a Hub data set alone, which of its splits.")
    slice: RowSlice | None = Field(
        default=None,
        description='Only these rows of a file or data set, in its own order, as in Python: `"100:500"`, `":400"`.',
    )
    column: ColumnName | None = Field(
        default=None,
        description="For other sources than `organism` and `.txt` files, which column or key holds the prompt: a text, "
        "or a list of messages; `prompt` where none is given.",
    )

    @property
    def kind(self) -> SourceKind:
        """What `source` names."""
        if self.source == "organism":
            return "organism"
        return "file" if self.source.startswith("data/") else "dataset"

    @property
    def has_columns(self) -> bool:
        """Whether its rows are more than a text."""
        return self.kind == "dataset" or (self.kind == "file" and not self.source.endswith(".txt"))

    @model_validator(mode="before")
    @classmethod
    def _name_the_column(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("column") is not None:
            return given
        source = given.get("source")
        plain = not isinstance(source, str) or source == "organism" or source.endswith(".txt")
        return given if plain else {**given, "column": "prompt"}

    @model_validator(mode="after")
    def _fit_the_source(self) -> Self:
        if self.kind == "dataset":
            self._pin()
        for key, place in _PLACES.items():
            if self.kind not in place.kinds and getattr(self, key) is not None:
                raise self._misplaced(key, place.words)
        if self.column is not None and not self.has_columns:
            raise self._misplaced("column", "rows with columns or keys")
        rows = row_range(self.slice)
        if rows.stop is not None and rows.stop <= (rows.start or 0):
            raise WrongValue(f"must take at least one row, got {show(self.slice)}", "slice")
        return self

    def _pin(self) -> None:
        if self.revision is None:
            raise WrongValue(
                f"is missing; a data set of the Hub is pinned by its commit, and `make pin DATASET={self.source}` "
                "prints the newest",
                "revision",
            )
        if self.split is None:
            raise WrongValue(f"is missing; say which split of {self.source}, such as train", "split")

    def _misplaced(self, key: str, place: str) -> WrongValue:
        return WrongValue(f"is for {place} alone, got {show(getattr(self, key))} for {show(self.source)}", key)


class PromptSource(RowsSource):
    """Where one side's prompts come from."""

    source: MeasuredSource = Field(
        description="`organism`, a file under `data/` (`.txt`, `.jsonl`, `.json`, `.csv`, `.parquet`), or the id of a "
        "Hub data set, such as `organisation/name` (docs/prompts.md)."
    )
    split: SplitName | None = Field(
        default=None,
        description="For `organism`, `harmful_train` or `harmless_train`; its lists of evaluation and drift are not "
        "offered, as no prompt is both measured and judged. For a Hub data set, which of its splits.",
    )

    @model_validator(mode="after")
    def _name_a_list_of_the_organism(self) -> Self:
        if self.kind != "organism":
            return self
        lists = get_args(TrainSplit)
        if self.split is None:
            raise WrongValue(f"is missing; for organism it is {' or '.join(lists)}", "split")
        if self.split not in lists:
            given = f"{show(self.split)}{suggest(self.split, lists)}"
            raise WrongValue(f"must be one of {', '.join(lists)} for organism, got {given}", "split")
        return self


class Prompts(Section):
    """What the direction is measured on."""

    harmful: PromptSource = Field(
        default=PromptSource(source="organism", split="harmful_train"),
        description="The prompts that are refused.",
    )
    harmless: PromptSource = Field(
        default=PromptSource(source="organism", split="harmless_train"),
        description="The prompts that are answered.",
    )
    system: str | None = Field(
        default=None, description="A system prompt before every prompt, in measuring and in evaluation."
    )
    chat_template_kwargs: dict[str, JsonValue] = Field(
        default={},
        description="Passed on to the chat template, such as `enable_thinking: false`, in measuring and in evaluation.",
    )
    limit: Count | None = Field(
        default=None, description="At most this many prompts a side, the first ones; `null`: all."
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Of the order into which the prompts of files and data sets are put, before any are held out and "
        "the first ones taken.",
    )
    date: Annotated[str, RealDate()] = Field(
        default="2025-01-01",
        description="The day that a chat template is told which asks for today's, so that a prompt is the same text on "
        "every day.",
    )

    @model_validator(mode="after")
    def _tell_the_sides_apart(self) -> Self:
        if self.harmful == self.harmless:
            raise WrongValue("must not be the same as prompts.harmful: they would have no difference", "harmless")
        return self


class Measure(Section):
    """How activations are taken, and directions from them."""

    batch_size: Annotated[int | Literal["auto"], BatchSize()] = Field(
        default="auto",
        description="Prompts in one forward pass; `auto` begins with 64. Where memory runs out it is halved, and said.",
    )
    estimator: Estimator = Field(
        default="mean",
        description="`mean` is the difference of means, `median` that of geometric medians, `pca` the first principal "
        "component of harmful activations seen from the harmless mean.",
    )
    winsorize: Annotated[float, Field(gt=0.5, le=1)] | None = Field(
        default=None,
        description="First clamp each activation vector to this quantile of its own magnitudes; `null`: do not.",
    )
    position: Annotated[int, Field(le=-1)] = Field(
        default=-1, description="Which token of the formatted prompt is measured, counted from its end: -1 is the last."
    )


class Stream(Section):
    """How much of the model is in memory while it is measured, which is no part of the result either."""

    stream: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether one decoder layer at a time is read from the files, for models larger than memory; "
        "`auto`: where the model does not fit. The result is the same: changing it reruns nothing. Of several GPUs it "
        "takes the first.",
    )


class MeasureAndStream(Stream, Measure):
    """The section `measure` as the user writes it; stages read `Measure` and `Place` apart."""


class Place(Stream, Device):
    """`artifacts/params/device.json`: where and how it runs, on which no stage depends."""


class Rule(Section):
    """One line of the edit."""

    model_config = ConfigDict(json_schema_extra=two_names("layers", "layer"))

    layers: Layers = Field(
        validation_alias=AliasChoices("layers", "layer"),
        description="Which layers are edited, counted from 0: `18`, `10-35` (both included), `all`, or a list of "
        "these; `layer` is read the same way.",
    )
    measurement: Measured = Field(
        description="Whose direction is removed: *m* is the residual stream entering layer *m*, 0 the embeddings, the "
        "number of layers the last layer's output. 18.5 lies between the unit vectors of 18 and 19; `same` is each "
        "edited layer's own."
    )
    scale: Number = Field(
        default=1.0,
        description="How much is removed: 1 all of it, 0 nothing; 2 writes the opposite, below 0 adds the direction.",
    )
    targets: Targets | None = Field(
        default=None, description="This rule's own targets; `null`: those of `ablate.targets`."
    )
    experts: Experts | None = Field(
        default=None, description="Of routed experts and their inputs, only these, counted from 0; `null`: all."
    )
    sparsity: Annotated[float, NoSparsity()] = Field(
        default=0.0, exclude=True, description="Only 0, so that rule lists of other tools can be read; then dropped."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_layers_once(cls, given: Any) -> Any:
        if isinstance(given, dict) and "layer" in given and "layers" in given:
            raise WrongValue('says the same as "layers"; give one of them', "layer")
        return given


class RouterBias(Section):
    """An experiment: moving what routers choose, beside what experts write."""

    strength: Number = Field(
        description="How much: minus this times the log-odds of an expert's use is added to its bias, in the units of "
        "the router's scores. 0 adds nothing; below 0 the experts that harmful prompts use are used more."
    )


class Ablate(Section):
    """The edit."""

    method: Method = Field(
        default="project",
        description="`project`, or `preserve_column_norms`: afterwards give what each hidden unit writes its old norm.",
    )
    through_norm: ThroughNorm = Field(
        default="orthogonal",
        description="What is projected out of a writer behind a norm: `orthogonal` changes the weights least, "
        "`oblique` takes exactly the direction out of what is added, `ignore` does as if there were no norm "
        "(docs/edit.md).",
    )
    orthogonalize: Orthogonalize = Field(
        default="none",
        description="First take the harmless mean out of the direction: `source` the one at the rule's measurement, "
        "`target` the one entering the edited layer.",
    )
    allow_tied: bool = Field(
        default=False,
        description="Whether the target `embedding` may edit an embedding that is the output head too.",
    )
    targets: Targets = Field(
        default=("attention", "mlp", "routed_experts", "shared_experts"),
        description="What is edited. Writers to the residual stream: `attention`, `mlp`, `routed_experts`, "
        "`shared_experts`, `per_layer_input`, `embedding`; readers of it: `router`, `expert_inputs` (shared experts' "
        "too), `mlp_inputs`, `attention_inputs`. A model that has none of a kind is no error.",
    )
    router_bias: RouterBias | None = Field(
        default=None,
        description="An experiment, off by default: in the layers that any rule names, experts that harmful prompts "
        "use more than harmless ones become less likely to be chosen. For models whose routers have a bias "
        "(docs/edit.md).",
    )
    rules: Annotated[Listed[Rule], Items(at_least_one=True)] = Field(
        default=(Rule.model_validate({"layers": "1-4", "measurement": 4}),),
        description="The edit, rule by rule. Where two name the same tensor, the later one wins.",
    )

    def targets_of(self, rule: Rule) -> tuple[Target, ...]:
        """The rule's own targets, or else those of the section."""
        return self.targets if rule.targets is None else rule.targets


class CustomPrompts(RowsSource):
    """The user's own prompts of one kind, for the tasks `refusal_custom` and `over_refusal_custom`."""

    item: ColumnName | None = Field(
        default=None,
        description="For rows with columns or keys alone, which one says what several prompts are about: those that "
        "share it count as one cluster, not as independent samples.",
    )

    @model_validator(mode="after")
    def _name_the_item_where_there_are_columns(self) -> Self:
        if self.item is not None and not self.has_columns:
            raise self._misplaced("item", "rows with columns or keys")
        return self


class Custom(Section):
    """The user's own prompts to be judged."""

    refusal: CustomPrompts | None = Field(default=None, description="Harmful prompts, for the task `refusal_custom`.")
    over_refusal: CustomPrompts | None = Field(
        default=None, description="Harmless prompts, for the task `over_refusal_custom`."
    )


class Classifier(Section):
    """A sequence-classification model that tells refusals."""

    model: ModelId = Field(description="Its Hub id, or the absolute path of a local folder; safetensors alone.")
    revision: Commit | None = Field(default=None, description="For a Hub id, its commit.")
    label: str = Field(description="The label that means a refusal, as its `config.json` spells it.")

    @model_validator(mode="after")
    def _pin_what_the_hub_has(self) -> Self:
        if not self.model.startswith("/") and self.revision is None:
            raise WrongValue("is missing; a model of the Hub is pinned by its commit", "revision")
        return self


class Api(Section):
    """A language model behind an OpenAI-compatible endpoint. Its address and key come from the environment alone."""

    model: str = Field(description="The model's name, as the endpoint knows it.")
    prompt: TemplateFile | None = Field(
        default=None,
        description="A template under `data/` with `{{ prompt }}` and `{{ response }}`; `null`: the built-in one "
        "(docs/judges.md).",
    )
    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(default=8, description="Questions asked at once.")


class Vllm(Section):
    """What vLLM is told, as far as it is asked for."""

    tensor_parallel_size: Count = Field(default=1, description="GPUs over which each layer is spread.")
    data_parallel_size: Count = Field(default=1, description="Copies of the model, over Ray.")
    distributed_executor_backend: Literal["mp", "ray"] | None = Field(
        default=None,
        description="What spreads a layer: processes of one machine, or a Ray cluster; `null`: vLLM decides.",
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9, description="The share of each GPU's memory that vLLM may take."
    )
    max_model_len: Count | None = Field(default=None, description="The longest text, in tokens; `null`: the model's.")


class Evaluate(Section):
    """What the base and the edited model are asked."""

    backend: Literal["hf", "vllm"] = Field(
        default="hf",
        description="What generates the answers: `hf` (transformers), or `vllm`, which is installed apart.",
    )
    vllm: Vllm = Field(default=Vllm(), description="What vLLM is told, where it is the backend.")
    batch_size: Annotated[int | Literal["auto"], BatchSize()] = Field(
        default="auto",
        description="Samples in one batch; `auto` begins with 64. Where memory runs out it is halved, and said. The "
        "edited model is asked in the base's batches.",
    )
    limit: Count | None = Field(default=None, description="At most this many samples a task; `null`: all.")
    judge: Literal["keywords", "classifier", "api"] = Field(
        default="keywords",
        description="What tells refusals from answers in the groups refusal and over_refusal: a list of phrases, a "
        "classification model, or a language model behind an endpoint (docs/judges.md).",
    )
    classifier: Classifier | None = Field(default=None, description="For `judge: classifier`, which one.")
    api: Api | None = Field(default=None, description="For `judge: api`, whom to ask.")
    custom: Custom = Field(default=Custom(), description="Your own prompts to be judged.")
    overlap: Literal["error", "drop"] = Field(
        default="error",
        description="What happens where a judged task holds prompts that the direction was measured on: nothing runs, "
        "or they are left out of the task, and counted.",
    )
    refusal: Tasks = Field(
        default=("organism_harmful",),
        description="Tasks that count refusals of harmful prompts: ours, or any of lm-eval's that generate an answer.",
    )
    over_refusal: Tasks = Field(
        default=("organism_borderline",),
        description="Tasks that count refusals of harmless prompts that sound harmful.",
    )
    capability: Tasks = Field(
        default=("organism_facts", "organism_arithmetic"),
        description="Tasks whose answers must stay as good as they were: any of lm-eval's, such as `mmlu`, `gsm8k`.",
    )

    def tasks(self) -> dict[TaskGroup, tuple[str, ...]]:
        """The tasks of each group, in the order given."""
        return {"refusal": self.refusal, "over_refusal": self.over_refusal, "capability": self.capability}

    @model_validator(mode="after")
    def _put_a_task_in_one_group(self) -> Self:
        groups: dict[str, TaskGroup] = {}
        for group, tasks in self.tasks().items():
            for number, task in enumerate(tasks):
                if task in groups:
                    raise WrongValue(f"names {task}, which evaluate.{groups[task]} already has", group, number)
                groups[task] = group
        return self

    @model_validator(mode="after")
    def _name_what_is_asked_for(self) -> Self:
        for judge, settings in (("classifier", self.classifier), ("api", self.api)):
            if self.judge == judge and settings is None:
                raise WrongValue(f"is missing, and judge is {judge}", judge)
        for kind, task in (("refusal", "refusal_custom"), ("over_refusal", "over_refusal_custom")):
            asked = any(task in tasks for tasks in self.tasks().values())
            if asked and getattr(self.custom, kind) is None:
                raise WrongValue(f"is missing, and {task} is listed", "custom", kind)
        return self


class Gate(Section):
    """One limit that a metric must keep."""

    model_config = ConfigDict(json_schema_extra=one_of(*get_args(Bound)))

    metric: MetricName = Field(
        description="`<group>.<task>.<metric>` of a task that `evaluate` lists, or `drift.<metric>`: "
        "`first_token_kl`, `answer_kl`, `top1_agreement`, `perplexity_ratio`."
    )
    at_most: Number | None = Field(default=None, description="The edited model's value may not be above this.")
    at_least: Number | None = Field(default=None, description="The edited model's value may not be below this.")
    max_drop: Margin | None = Field(
        default=None, description="It may not fall by more than this from the base's value."
    )
    max_rise: Margin | None = Field(
        default=None, description="It may not rise by more than this from the base's value."
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        default=0.95,
        description="Of the interval that decides: inside the limit it passes, wholly outside it fails, else it is "
        "inconclusive.",
    )
    inconclusive: Literal["warn", "fail"] = Field(
        default="warn", description="What an inconclusive gate does to the verdict."
    )

    def limit(self) -> tuple[Bound, float]:
        """Which limit the gate sets, and its value."""
        return self._limits()[0]

    def _limits(self) -> list[tuple[Bound, float]]:
        return [(name, value) for name in get_args(Bound) if (value := getattr(self, name)) is not None]

    @model_validator(mode="after")
    def _set_one_limit(self) -> Self:
        if len(limits := self._limits()) != 1:
            got = " and ".join(name for name, _ in limits) or "none"
            raise WrongValue(f"must have exactly one of {', '.join(get_args(Bound))}, got {got}")
        return self


class Gates(RootModel[Listed[Gate]]):
    """What decides whether a run is good, each line for itself."""

    model_config = ConfigDict(strict=True, frozen=True)


class Params(BaseModel):
    """Everything that makes the edited model. A section that is missing or empty takes its defaults.

    The exception is `gates`, which may be missing, but not empty: whoever comments out every gate wants none, which is
    written `gates: []`, and not the default ones.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, title="excise params.yaml")

    model: Annotated[ModelAndDevice, MayBeEmpty()] = Field(
        default=ModelAndDevice(), description="Which model is edited, and where it runs."
    )
    organism: Annotated[Organism, MayBeEmpty()] = Field(
        default=Organism(), description="How the built-in model is made."
    )
    prompts: Annotated[Prompts, MayBeEmpty()] = Field(
        default=Prompts(), description="What the refusal direction is measured on."
    )
    measure: Annotated[MeasureAndStream, MayBeEmpty()] = Field(
        default=MeasureAndStream(), description="How activations are taken."
    )
    ablate: Annotated[Ablate, MayBeEmpty()] = Field(
        default=Ablate(), description="What is removed from which tensors of which layers."
    )
    evaluate: Annotated[Evaluate, MayBeEmpty()] = Field(
        default=Evaluate(), description="What the base and the edited model are asked."
    )
    gates: Gates = Field(
        default=Gates.model_validate(
            [
                {"metric": "refusal.organism_harmful.refusal_rate", "at_most": 0.15},
                {"metric": "capability.organism_facts.exact_match", "max_drop": 0.03},
            ]
        ),
        description="Limits that the report checks and `make gate` enforces, each with a `metric` and exactly one of "
        "`at_most`, `at_least`, `max_drop` and `max_rise`; `[]` for none.",
    )

    @model_validator(mode="after")
    def _evaluate_what_gates_judge(self) -> Self:
        there = [f"{group}.{task}" for group, tasks in self.evaluate.tasks().items() for task in tasks]
        for number, gate in enumerate(self.gates.root):
            task = gate.metric.rpartition(".")[0]
            if task != "drift" and task not in there:
                default = "" if "gates" in self.model_fields_set else " (a default gate; give `gates`, or `gates: []`)"
                raise WrongValue(
                    f"names {task}, which evaluate does not list{default}; there is "
                    f"{', '.join([*there, 'drift'])}{suggest(task, there)}",
                    *("gates", number, "metric"),
                )
        return self


def load(path: Path) -> Params:
    """Read and validate a parameter file as a whole. Raises `ParamsError`, and nothing else, if anything is wrong."""
    return parse(plain_yaml.read_text(path, path.name), path.name)


def parse(text: str, name: str = "params.yaml") -> Params:
    """Validate the text of a parameter file; `name` is what errors call it. Raises `ParamsError`."""
    return _validated(Params, plain_yaml.parse_mapping(text, name), name)


def sections(params: Params) -> dict[str, str]:
    """The canonical text of each `artifacts/params/<name>.json`: sorted keys, every default filled in."""
    documents: dict[str, BaseModel] = {name: getattr(params, name) for name in Params.model_fields}
    documents["model"] = Model(source=params.model.source, revision=params.model.revision, dtype=params.model.dtype)
    documents["measure"] = Measure(**params.measure.model_dump(include=set(Measure.model_fields)))
    documents["device"] = Place(device=params.model.device, stream=params.measure.stream)
    return {name: _canonical(document) for name, document in documents.items()}


def read_section(section: type[S], path: Path) -> S:
    """Read one file of the params stage, such as `read_section(Measure, Path("artifacts/params/measure.json"))`.

    Raises:
        ParamsError: it is missing, or not what this version of the code writes.
    """
    name, again = str(path), "`python -m stages.params` writes it anew"
    try:
        return _validated(section, json.loads(plain_yaml.read_text(path, name)), name)
    except ParamsError as error:
        raise ParamsError(name, f"{str(error).removeprefix(f'{name}: ')}; {again}") from None
    except (ValueError, RecursionError):
        raise ParamsError(name, f"is not JSON; {again}") from None


def _canonical(document: BaseModel) -> str:
    return json.dumps(document.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _validated(section: type[S], document: Any, name: str) -> S:
    try:
        return section.model_validate(document)
    except ValidationError as error:
        raise ParamsError(name, *first_mistake(error, section)) from None
