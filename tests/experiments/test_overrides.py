"""What a file of experiments sets is what DVC then reads from its `-S`."""

import re
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from schemas.basis.plain_yaml import parse_mapping
from schemas.experiments import Override, applied, combined, read_overrides
from schemas.wording import WrongValue

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")
DOCUMENT = parse_mapping(SHIPPED, "params.yaml")
KEYS = [
    "model.source",
    "organism.seed",
    "prompts.system",
    "prompts.harmful.source",
    "prompts.chat_template_kwargs.enable_thinking",
    "measure.winsorize",
    "ablate.targets",
    "ablate.rules",
    "ablate.rules.0.scale",
    "ablate.rules.0.experts",
    "ablate.router_bias.strength",
    "evaluate.capability.1",
    "gates",
]

text = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [
        "null",
        "true",
        "1-4",
        "2-3",
        "all",
        "1e5",
        "~",
        "it's",
        "\\",
        "\\'",
        "a\\",
        '"',
        "a,b",
        "[a]",
        "{a: b}",
        "x=1",
        "#",
        "",
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
items = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z][a-z_0-9]{0,6}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=6,
)
values = scalars | st.lists(items, max_size=3)


def by_dvc(arguments: list[str], folder: Path) -> dict[str, Any]:
    """What params.yaml holds once DVC has applied them."""
    path = folder / "params.yaml"
    path.write_text(SHIPPED, encoding="utf-8")
    apply_overrides(path, arguments)
    return parse_mapping(path.read_text(encoding="utf-8"), "params.yaml")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(overrides=st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3))
def test_dvc_reads_what_was_set(overrides: dict[str, Any], tmp_path: Path) -> None:
    try:
        document, arguments = applied(DOCUMENT, combined(read_overrides(overrides)))
    except WrongValue:
        assume(False)
    assert by_dvc(arguments, tmp_path) == document


@pytest.mark.parametrize(
    ("given_overrides", "arguments"),
    [
        ({"ablate.rules.0.scale": 0.5}, ["ablate.rules.0.scale=0.5"]),
        ({"ablate": {"rules.0": {"scale": 2}}}, ["ablate.rules.0.scale=2"]),
        ({"ablate.rules.0.layers": "2-4"}, ["ablate.rules.0.layers=2-4"]),
        ({"ablate.rules.0.targets": ["mlp"]}, ["++ablate.rules.0.targets=[mlp]"]),
        ({"ablate.rules": [{"layers": "all", "experts": None}]}, ["ablate.rules=[{layers: all, experts: null}]"]),
        ({"prompts.system": "null"}, ["prompts.system='null'"]),
        ({"prompts.system": "it's \\"}, ["prompts.system='it\\'s \\\\'"]),
        ({"organism.architecture": "glm4_moe", "measure.winsorize": None}, []),
        ({"ablate.rules.0.scale": 2, "ablate.rules": []}, ["ablate.rules=[]"]),
    ],
)
def test_an_override_is_short_and_only_there_where_it_changes_something(
    given_overrides: dict[str, Any], arguments: list[str]
) -> None:
    assert applied(DOCUMENT, combined(read_overrides(given_overrides)))[1] == arguments


def test_a_later_override_wins_over_what_it_covers() -> None:
    group: list[Override] = [(("ablate", "rules", "0", "scale"), 2), (("measure", "position"), -2)]
    own: list[Override] = [(("ablate", "rules"), []), (("measure", "position"), -3)]
    assert combined(group + own) == own


@pytest.mark.parametrize(
    ("given_overrides", "message"),
    [
        ({"ablate.rules.1.scale": 2}, "ablate.rules.1.scale names an item that does not exist: ablate.rules has 1"),
        ({"ablate.rules.first.scale": 2}, "names an item that does not exist"),
        ({"ablate..rules": 2}, '"ablate..rules" is not a key'),
        ({"other.yaml:ablate.method": "project"}, "is not a key"),
        ({"ablate.method=x": 1}, "is not a key"),
        ({"prompts.chat_template_kwargs": {}}, "is an empty mapping"),
        ({"prompts.system": "${model.source}"}, "cannot be given to DVC"),
        ({"prompts.system": "???"}, "cannot be given to DVC"),
        ({"prompts.system": "a\0"}, "it has a control character"),
        ({"prompts.chat_template_kwargs.a": [{}, 1]}, "an empty mapping in a list cannot be given to DVC"),
        ({"prompts.chat_template_kwargs.a": [{"b c": 1}]}, '"b c" cannot be the key of an override'),
    ],
)
def test_what_dvc_would_read_otherwise_is_refused(given_overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongValue, match=re.escape(message)):
        applied(DOCUMENT, combined(read_overrides(given_overrides)))
