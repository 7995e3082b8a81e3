"""Section `ablate`: what is removed from which tensors of which layers."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from schemas.basis.document import Listed, Number, Section
from schemas.basis.fields import Items, Layers, Measurement, NoSparsity
from schemas.wording import WrongValue

_Writers = Literal["attention", "mlp", "routed_experts", "shared_experts", "per_layer_input", "embedding"]
Target = Literal[_Writers, "router", "expert_inputs", "mlp_inputs", "attention_inputs"]
ThroughNorm = Literal["ignore", "orthogonal", "oblique"]
Orthogonalize = Literal["source", "target", "none"]
Targets = Annotated[Listed[Target], Items(at_least_one=True, distinct=True, order=get_args(Target))]
Experts = Annotated[Listed[Annotated[int, Field(ge=0)]], Items(at_least_one=True, distinct=True)]


def _layer_or_layers(document: dict[str, Any]) -> None:
    alias = {"description": "Another name for `layers`.", "$comment": "alias"}
    document["properties"]["layer"] = document["properties"]["layers"] | alias
    document["required"].remove("layers")
    document["oneOf"] = [{"required": ["layers"]}, {"required": ["layer"]}]


class Rule(Section):
    """One line of the edit."""

    model_config = ConfigDict(json_schema_extra=_layer_or_layers)

    layers: Layers = Field(validation_alias=AliasChoices("layers", "layer"))
    """Which layers are edited, counted from 0: `18`, `10-35` (both included), `all`, or a list of these; `layer` is
    read the same way."""
    measurement: Measurement
    """Whose direction is removed: *m* is the residual stream entering layer *m*, 0 the embeddings, the number of layers
    the last layer's output. 18.5 lies between the unit vectors of 18 and 19; `same` is each edited layer's own."""
    scale: Number = 1.0
    """How much is removed: 1 all of it, 0 nothing; 2 writes the opposite, below 0 adds the direction."""
    targets: Targets | None = None
    """This rule's own targets; `null`: those of `ablate.targets`."""
    experts: Experts | None = None
    """Of routed experts and their inputs, only these, counted from 0; `null`: all."""
    sparsity: NoSparsity = Field(default=0.0, exclude=True)
    """Only 0, so that rule lists of other tools can be read; then dropped."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_layers_once(cls, given: Any) -> Any:
        if isinstance(given, dict) and "layer" in given and "layers" in given:
            raise WrongValue('says the same as "layers"; give one of them', "layer")
        return given


class RouterBias(Section):
    """An experiment: moving what routers choose, beside what experts write."""

    strength: Number
    """How much: minus this times the log-odds of an expert's use is added to its bias, in the units of the router's
    scores. 0 adds nothing; below 0 the experts that harmful prompts use are used more."""


class EditMethod(Section):
    """How a direction is taken out, whatever the rules: `artifacts/params/diagnose.json`."""

    method: Literal["project", "preserve_column_norms"] = "project"
    """`project`, or `preserve_column_norms`: afterwards give what each hidden unit writes its old norm."""
    through_norm: ThroughNorm = "ignore"
    """What is projected out of a writer behind a norm: `ignore`, the direction itself, which leaves some of it in what
    is added; `orthogonal` and `oblique` leave none, and can ruin a model (docs/edit.md)."""
    orthogonalize: Orthogonalize = "source"
    """First take the harmless mean out of the direction: `source` the one at the rule's measurement, `target` the one
    entering the edited layer; `none` does not."""


class Ablate(EditMethod):
    """The edit."""

    allow_tied: bool = False
    """Whether the target `embedding` may edit an embedding that is the output head too."""
    targets: Targets = ("attention", "mlp", "routed_experts", "shared_experts")
    """What is edited. Writers to the residual stream: `attention`, `mlp`, `routed_experts`, `shared_experts`,
    `per_layer_input`, `embedding`; readers of it: `router`, `expert_inputs` (shared experts' too), `mlp_inputs`,
    `attention_inputs`. A model that has none of a kind is no error."""
    router_bias: RouterBias | None = None
    """An experiment, off by default: in the layers that any rule names, experts that harmful prompts use more than
    harmless ones become less likely to be chosen. For models whose routers have a bias (docs/edit.md)."""
    rules: Annotated[Listed[Rule], Items(at_least_one=True)] = (
        Rule.model_validate({"layers": "2-4", "measurement": 5}),
    )
    """The edit, rule by rule. Where two name the same tensor, the later one wins."""

    def targets_of(self, rule: Rule) -> tuple[Target, ...]:
        """The rule's own targets, or else those of the section."""
        return self.targets if rule.targets is None else rule.targets
