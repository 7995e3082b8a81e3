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
    """Layers to edit, counted from 0: `18`, `10-35` (inclusive), `all`, or a list of these. The key may also be written
    `layer`."""
    measurement: Measurement
    """Measurement whose direction is removed: *m* is the residual stream entering layer *m*, 0 the embeddings, the
    number of layers the last layer's output. 18.5 interpolates between the unit vectors of 18 and 19; `same` takes each
    edited layer's own."""
    scale: Number = 1.0
    """How much of the direction is removed: 1 all, 0 nothing; 2 writes the opposite; negative values add it."""
    targets: Targets | None = None
    """Targets of this rule; `null`: those of `ablate.targets`."""
    experts: Experts | None = None
    """Edit only these routed experts and their inputs, counted from 0; `null`: all."""
    sparsity: NoSparsity = Field(default=0.0, exclude=True)
    """Must be 0. It is accepted so that rule lists of other tools can be read, and ignored."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_layers_once(cls, rule: Any) -> Any:
        if isinstance(rule, dict) and "layer" in rule and "layers" in rule:
            raise WrongValue('means the same as "layers"; give only one of them', "layer")
        return rule


class RouterBias(Section):
    """An experiment: changes which experts the routers choose."""

    strength: Number
    """Minus this times the log-odds of an expert's use (harmful against harmless) is added to its bias, in units of the
    router's scores. 0 adds nothing; negative values make the experts of harmful prompts more likely."""


class EditMethod(Section):
    """How directions are removed, independent of rules: `artifacts/params/diagnose.json`."""

    method: Literal["project", "preserve_column_norms"] = "project"
    """`project`, or `preserve_column_norms`, which then restores the norm of what each hidden unit writes."""
    through_norm: ThroughNorm = "ignore"
    """How to edit a writer behind a norm. `ignore` projects out the direction itself, which leaves a part of it in what
    is added to the stream; `orthogonal` and `oblique` leave none, and can ruin a model (docs/edit.md)."""
    orthogonalize: Orthogonalize = "source"
    """Remove the harmless mean from the direction first: `source`, the mean at the rule's measurement; `target`, the
    mean entering the edited layer; `none`, neither."""


class Ablate(EditMethod):
    """The edit."""

    allow_tied: bool = False
    """Whether the target `embedding` may edit an embedding that is also the output head."""
    targets: Targets = ("attention", "mlp", "routed_experts", "shared_experts")
    """What to edit. Writers to the residual stream: `attention`, `mlp`, `routed_experts`, `shared_experts`,
    `per_layer_input`, `embedding`. Readers of it: `router`, `expert_inputs` (also of shared experts), `mlp_inputs`,
    `attention_inputs`. A target that the model does not have is not an error."""
    router_bias: RouterBias | None = None
    """An experiment, off by default: in the layers that the rules name, experts that harmful prompts use more than
    harmless ones become less likely to be chosen. For models whose routers have a bias (docs/edit.md)."""
    rules: Annotated[Listed[Rule], Items(at_least_one=True)] = (
        Rule.model_validate({"layers": "2-3", "measurement": 5, "scale": 1.4}),
    )
    """The edit, rule by rule. If two rules name the same tensor, the later one wins."""

    def targets_of(self, rule: Rule) -> tuple[Target, ...]:
        return self.targets if rule.targets is None else rule.targets
