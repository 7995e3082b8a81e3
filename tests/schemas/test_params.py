"""params.yaml: what it may say, how a mistake is answered, and what the other stages get to read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from excise.comparison.limits.at_most import AtMost
from excise.comparison.limits.max_drop import MaxDrop
from schemas.basis.document import read_settings
from schemas.params.ablate import Ablate, EditMethod
from schemas.params.answer import Answer
from schemas.params.directions import Directions
from schemas.params.document import MeasureSection, Params, load, parse, settings_of_stages
from schemas.params.gates import ReportSettings
from schemas.params.judge import EvaluateSettings
from schemas.params.measure import Measure
from schemas.params.model import Place
from schemas.params.organism import OrganismSettings
from schemas.params.prompts import PrepareSettings
from schemas.params.sources import CustomPrompts, PromptSource, row_range
from schemas.wording import ParamsError

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "params.yaml"
A_SOURCE = "a .txt, .jsonl, .json, .csv or .parquet file under data/ (such as data/harmful.jsonl, without . or ..) or "

SETTINGS: dict[str, type[BaseModel]] = {
    "device": Place,
    "organism": OrganismSettings,
    "prepare": PrepareSettings,
    "measure": Measure,
    "directions": Directions,
    "diagnose": EditMethod,
    "simulate": Ablate,
    "ablate": Ablate,
    "answer": Answer,
    "evaluate": EvaluateSettings,
    "report": ReportSettings,
}


def rule(text: str) -> str:
    return f"ablate: {{rules: [{{{text}}}]}}"


def refused(text: str) -> ParamsError:
    """The error of a bad file, which is one printable line that begins with the file."""
    with pytest.raises(ParamsError) as caught:
        parse(text)
    line = str(caught.value)
    assert line.isprintable() and line.startswith("params.yaml: ") and len(line) < 600
    return caught.value


def test_the_shipped_file_is_the_defaults() -> None:
    assert load(SHIPPED) == Params()
    assert SHIPPED.read_text(encoding="utf-8").startswith(
        "# yaml-language-server: $schema=schemas/params.schema.json\n"
    )


def test_the_shipped_file_names_every_key_that_it_could() -> None:
    shipped = parse(SHIPPED.read_text(encoding="utf-8"))
    for name in Params.model_fields:
        section = getattr(shipped, name)
        assert section.model_fields_set == set(type(section).model_fields)


BAD = [
    # a key that is not there, or is not one
    ("modle: {}", "modle", 'not a key; did you mean "model"?'),
    ("release: {}", "release", "known here: model, organism, prompts, measure, ablate, evaluate, gates"),
    ("model: {name: x}", "model.name", "known here: source, revision, dtype, device"),
    ("model: {sorce: organism}", "model.sorce", 'did you mean "source"?'),
    ("prompts: {harmful: {source: organism, splitt: harmful_train}}", "prompts.harmful.splitt", '"split"?'),
    (rule("layers: 1, measurement: 2, scal: 1"), "ablate.rules.0.scal", 'did you mean "scale"?'),
    (rule("layers: 1, measurment: 2"), "ablate.rules.0.measurment", 'did you mean "measurement"?'),
    (rule("layers: 1, measurement: 2, expert: [3]"), "ablate.rules.0.expert", 'did you mean "experts"?'),
    ("ablate: {router_bais: {strength: 1}}", "ablate.router_bais", 'did you mean "router_bias"?'),
    ("ablate: {router_bias: {strenght: 1}}", "ablate.router_bias.strenght", 'did you mean "strength"?'),
    ("ablate: {router_bias: {}}", "ablate.router_bias.strength", "is missing"),
    ("ablate: {router_bias: 0.5}", "ablate.router_bias", "must be a mapping, got 0.5"),
    ("ablate: {router_bias: {strength: .inf}}", "ablate.router_bias.strength", "must be a finite number, got inf"),
    ("ablate: {router_bias: {strength: null}}", "ablate.router_bias.strength", "must be a finite number, got null"),
    ("measure: {estimator: modes}", "measure.estimator", "must be one of mean, median, pca"),
    ("gates: [{metrik: drift.first_token_kl, at_most: 1}]", "gates.0.metrik", 'did you mean "metric"?'),
    (rule("layers: 1"), "ablate.rules.0.measurement", "is missing"),
    (rule("measurement: 1"), "ablate.rules.0.layers", "is missing"),
    ("gates: [{at_most: 1}]", "gates.0.metric", "is missing"),
    ('"a\\nb\\e\\u202Ec": 1', '"a\\nb\\u001b\\u202ec"', "is not a key"),
    # the wrong kind of value: nothing is converted
    ("model: 3", "model", "must be a mapping, got 3"),
    ("model: []", "model", "must be a mapping, got []"),
    ("organism: {tune_steps: auto}", "organism.tune_steps", 'must be an integer ≥ 1, got "auto"'),
    ("organism: {tune_steps: null}", "organism.tune_steps", "must be an integer ≥ 1, got null"),
    ("organism: {tune_steps: 1.0}", "organism.tune_steps", "must be an integer ≥ 1, got 1.0"),
    ('organism: {tune_steps: "1"}', "organism.tune_steps", 'must be an integer ≥ 1, got "1"'),
    ("organism: {tune_steps: true}", "organism.tune_steps", "must be an integer ≥ 1, got true"),
    ("measure: {batch_size: atuo}", "measure.batch_size", 'did you mean "auto"?'),
    ("measure: {winsorize: 0.5}", "measure.winsorize", "> 0.5"),
    ("prompts: {system: 3}", "prompts.system", "must be text or null, got 3"),
    ("prompts: {chat_template_kwargs: [1]}", "prompts.chat_template_kwargs", "must be a mapping, got [1]"),
    ("prompts: {harmful: null}", "prompts.harmful", "must be a mapping, got null"),
    (rule("layers: 1, measurement: 1, scale: true"), "ablate.rules.0.scale", "must be a finite number, got true"),
    (rule("layers: 1, measurement: 1, scale: '1'"), "ablate.rules.0.scale", 'must be a finite number, got "1"'),
    ("ablate: {rules: {layers: 1, measurement: 1}}", "ablate.rules", "must be a non-empty list"),
    ("ablate: {rules: [1]}", "ablate.rules.0", "must be a mapping, got 1"),
    ("evaluate: {refusal: organism_harmful}", "evaluate.refusal", 'must be a list, got "organism_harmful"'),
    # out of range
    ("organism: {seed: -1}", "organism.seed", "must be an integer from 0 to 4294967295, got -1"),
    ("organism: {pretrain_steps: 0}", "organism.pretrain_steps", "must be an integer ≥ 1, got 0"),
    ("organism: {tune_steps: 0}", "organism.tune_steps", "must be an integer ≥ 1, got 0"),
    ("organism: {seed: 123456789012345678901234567890}", "organism.seed", "below 2^63"),
    ("prompts: {limit: 0}", "prompts.limit", "must be an integer ≥ 1 or null, got 0"),
    ("evaluate: {limit: 0}", "evaluate.limit", "must be an integer ≥ 1 or null, got 0"),
    ("measure: {position: 0}", "measure.position", "must be an integer ≤ -1, got 0"),
    (rule("layers: 1, measurement: -1"), "ablate.rules.0.measurement", 'must be a finite number ≥ 0 or "same", got -1'),
    (rule("layers: 1, measurement: sam"), "ablate.rules.0.measurement", 'did you mean "same"?'),
    (rule("layers: 1, measurement: true"), "ablate.rules.0.measurement", 'or "same", got true'),
    (rule("layers: 1, measurement: 2, experts: []"), "ablate.rules.0.experts", "must not be empty, got []"),
    (rule("layers: 1, measurement: 2, experts: [-1]"), "ablate.rules.0.experts.0", "must be an integer ≥ 0, got -1"),
    (rule("layers: 1, measurement: 2, targets: [mpl]"), "ablate.rules.0.targets.0", 'did you mean "mlp"?'),
    ("ablate: {method: projct}", "ablate.method", 'did you mean "project"?'),
    ("ablate: {through_norm: no}", "ablate.through_norm", "must be one of ignore, orthogonal, oblique"),
    ("ablate: {orthogonalize: true}", "ablate.orthogonalize", "must be one of source, target, none"),
    (rule("layers: 1, measurement: 1, scale: .nan"), "ablate.rules.0.scale", "must be a finite number, got nan"),
    (rule("layers: 1, measurement: 1, scale: -.inf"), "ablate.rules.0.scale", "must be a finite number, got -inf"),
    (rule("layers: 1, measurement: 1, scale: 1e400"), "ablate.rules.0.scale", "must be a finite number, got inf"),
    # a name that is not one of those offered
    ("model: {dtype: bfloat61}", "model.dtype", 'got "bfloat61"; did you mean "bfloat16"?'),
    ("model: {device: cuda:x}", "model.device", 'must be auto, cpu, cuda, cuda:N or balanced, got "cuda:x"'),
    ("model: {device: 0}", "model.device", "must be auto, cpu, cuda, cuda:N or balanced, got 0"),
    ("model: {source: organsim}", "model.source", 'did you mean "organism"?'),
    ("model: {source: meta-llama/Llama-3}", "model.revision", "`make pin MODEL=meta-llama/Llama-3` finds it"),
    ("model: {source: a/b, revision: main}", "model.revision", 'a branch may move, got "main"'),
    ("model: {source: a/b, revision: abc123}", "model.revision", "must be a commit of 40 hexadecimal digits"),
    (f"model: {{source: a/b, revision: {40 * 'A'}}}", "model.revision", "must be a commit of 40 hexadecimal digits"),
    (f"model: {{revision: {40 * 'a'}}}", "model.revision", 'is only for Hub ids, got "aaaa'),
    (f"model: {{source: /a/b, revision: {40 * 'a'}}}", "model.revision", 'for "/a/b"'),
    ("model: {source: gpt2}", "model.source", "a Hub id such as organization/name"),
    ("model: {source: models/mine/glm}", "model.source", "the absolute path of a local folder"),
    ("model: {source: ../mine}", "model.source", "the absolute path of a local folder"),
    ("model: {source: a..b/c}", "model.source", "a Hub id such as organization/name"),
    ("model: {source: a/b--c}", "model.source", "a Hub id such as organization/name"),
    ("model: {source: a/b.git}", "model.source", "a Hub id such as organization/name"),
    ("model: {source: ~/mine}", "model.source", "the absolute path of a local folder"),
    ('model: {source: "/a\\0b"}', "model.source", 'got "/a\\u0000b"'),
    ("organism: {architecture: gemma9}", "organism.architecture", "must be one of glm4_moe, llama"),
    ("ablate: {targets: [mlp, routers]}", "ablate.targets.1", "must be one of attention, mlp, routed_experts"),
    ("evaluate: {capability: [organism_fact]}", "evaluate.capability.0", 'did you mean "organism_facts"?'),
    ("evaluate: {refusal: [refusal_jbbb]}", "evaluate.refusal.0", 'did you mean "refusal_jbb"?'),
    ("evaluate: {capability: [a.b]}", "evaluate.capability.0", "an lm-eval task"),
    ("evaluate: {backend: vlm}", "evaluate.backend", "must be one of hf, vllm"),
    ("evaluate: {judge: api}", "evaluate.judge.api.model", "is missing: The model's name"),
    ("evaluate: {judge: {classifier: {model: /a}}}", "evaluate.judge.classifier.label", "is missing"),
    ("evaluate: {judge: {classifier: {label: x}}}", "evaluate.judge.classifier.label", "name it in model"),
    ("evaluate: {judge: keyword}", "evaluate.judge", 'got "keyword"; did you mean "keywords"?'),
    (
        "evaluate: {judge: {keywords: {}, api: {model: m}}}",
        "evaluate.judge",
        "must be one of api, ",
    ),
    ("evaluate: {judge: null}", "evaluate.judge", "must be one of api, "),
    ("evaluate: {judge: {keywords: {strict: true}}}", "evaluate.judge.keywords.strict", "is not a key"),
    (
        "evaluate: {judge: keywords, api: {model: m}}",
        "evaluate.api",
        "is a judge, not a key of evaluate; write judge",
    ),
    (
        "evaluate: {judge: {api: {model: a, url: b}}}",
        "evaluate.judge.api.url",
        "known here: model, prompt",
    ),
    ("evaluate: {judge: {api: {model: a, prompt: ../a.txt}}}", "evaluate.judge.api.prompt", "a .txt or .j2 file under"),
    (
        "evaluate: {judge: {classifier: {model: a/b, label: x}}}",
        "evaluate.judge.classifier.revision",
        "is pinned by its commit",
    ),
    (
        "evaluate: {judge: {classifier: {model: a/b, label: x, revision: main}}}",
        "evaluate.judge.classifier.revision",
        "a commit of 40 hexadecimal digits",
    ),
    (
        "evaluate: {judge: {classifier: {model: ../b, label: x}}}",
        "evaluate.judge.classifier.model",
        "a Hub id such as",
    ),
    ("evaluate: {refusal: [refusal_custom]}", "evaluate.custom.refusal", "is missing, and refusal_custom is listed"),
    (
        "evaluate: {custom: {refusal: {source: data/../a.txt}}}",
        "evaluate.custom.refusal.source",
        A_SOURCE,
    ),
    (
        "evaluate: {custom: {refusal: {source: data/a.txt, item: b}}}",
        "evaluate.custom.refusal.item",
        'is only for rows with columns or keys, got "b" for "data/a.txt"',
    ),
    ("evaluate: {vllm: {gpu_memory_utilization: 1.5}}", "evaluate.vllm.gpu_memory_utilization", "must be"),
    ("gates: [{metric: drift.answer_kl, at_most: 1, confidence: 1}]", "gates.0.confidence", "must be"),
    ("gates: [{metric: drift.answer_kl, at_most: 1, inconclusive: pass}]", "gates.0.inconclusive", "warn, fail"),
    (
        "gates: [{metric: drift.kl, at_most: 1}]",
        "gates.0.metric",
        "drift.first_token_kl, drift.first_token_kl_without",
    ),
    # prompts
    (
        "prompts: {harmful: {source: a/b, split: train}}",
        "prompts.harmful.revision",
        "is missing; a Hub dataset is pinned by its commit, and `make pin DATASET=a/b` prints the newest",
    ),
    (
        "prompts: {harmful: {source: a/b, split: train, revision: main}}",
        "prompts.harmful.revision",
        "must be a commit of 40 hexadecimal digits (`make pin DATASET=organization/name` prints the newest)",
    ),
    (
        f"prompts: {{harmful: {{source: a/b, revision: {'1' * 39}a}}}}",
        "prompts.harmful.split",
        "is missing; name a split of a/b, such as train",
    ),
    *(
        (
            f"prompts: {{harmful: {{source: a/b, revision: {'1' * 39}a, split: {split}}}}}",
            "prompts.harmful.split",
            "must be the name of a split, such as train; slice takes a part of it, got",
        )
        for split in ("'train[:10]'", "train+test", "3", "''")
    ),
    (
        f"prompts: {{harmful: {{source: a/b, revision: {'1' * 39}a, split: train, config: a/b}}}}",
        "prompts.harmful.config",
        "must be the name of one of the dataset's configurations, got",
    ),
    *(
        (
            f"prompts: {{harmful: {{source: {source}, {key}: {value}}}}}",
            f"prompts.harmful.{key}",
            f"is only for Hub datasets, got {shown} for",
        )
        for source in ("data/a.csv", "data/a.txt", "organism, split: harmful_train")
        for key, value, shown in (("revision", f"{'1' * 39}a", f'"{"1" * 39}a"'), ("config", "a", '"a"'))
    ),
    (
        "prompts: {harmful: {source: organism, split: harmful_train, slice: ':5'}}",
        "prompts.harmful.slice",
        'is only for files and Hub datasets, got ":5" for "organism"',
    ),
    *(
        (f"prompts: {{harmful: {{source: data/a.txt, slice: {part}}}}}", "prompts.harmful.slice", says)
        for part, says in (
            ("'-5:'", "must be a part by row numbers from 0"),
            ("':'", "must be a part by row numbers from 0"),
            ("5", "must be a part by row numbers from 0"),
            ("'1:9:2'", "must be a part by row numbers from 0"),
            ("'5:5'", 'must take at least one row, got "5:5"'),
            ("'6:5'", 'must take at least one row, got "6:5"'),
            ("':0'", 'must take at least one row, got ":0"'),
        )
    ),
    (
        "evaluate: {custom: {over_refusal: {source: organism, split: harmless_train}}}",
        "evaluate.custom.over_refusal.source",
        A_SOURCE,
    ),
    (
        "evaluate: {custom: {refusal: {source: a/b, split: train}}}",
        "evaluate.custom.refusal.revision",
        "`make pin DATASET=a/b` prints the newest",
    ),
    ("evaluate: {limits: {mmlu: 3}}", "evaluate.limits", "names mmlu, which no group lists"),
    ("evaluate: {limits: {organism_facts: 0}}", "evaluate.limits.organism_facts", "must be an integer ≥ 1, got 0"),
    ("evaluate: {limits: 3}", "evaluate.limits", "must be a mapping from tasks to numbers of samples, got 3"),
    ("evaluate: {max_new_tokens: 0}", "evaluate.max_new_tokens", "must be an integer ≥ 1, got 0"),
    ("evaluate: {reasoning_tokens: -1}", "evaluate.reasoning_tokens", "must be an integer ≥ 0, got -1"),
    *(
        (
            f"evaluate: {{include: {folder}}}",
            "evaluate.include",
            "must be a folder under data/, such as data/tasks, got",
        )
        for folder in ("tasks", "data", "data/../tasks", "/tasks", "3")
    ),
    (
        "evaluate: {refusal: [refusal_custom_a], custom: {refusal: {b: {source: data/b.txt}}}}",
        "evaluate.custom.refusal",
        "has no set a, and refusal_custom_a is listed",
    ),
    (
        "evaluate: {custom: {refusal: {a: {source: data/../b.txt}}}}",
        "evaluate.custom.refusal.a.source",
        A_SOURCE,
    ),
    (
        "evaluate: {custom: {over_refusal: {a: {source: data/b.csv, itm: c}}}}",
        "evaluate.custom.over_refusal.a.itm",
        'is not a key; did you mean "item"?',
    ),
    ("evaluate: {custom: {refusal: {a b: {source: data/b.csv}}}}", "evaluate.custom.refusal", "must name its sets by"),
    ("evaluate: {custom: {refusal: {}}}", "evaluate.custom.refusal.source", "is missing"),
    ("evaluate: {custom: {refusal: 3}}", "evaluate.custom.refusal", "must be a mapping or null, got 3"),
    (
        "prompts: {harmful: {source: data/a.txt, where: {b: c}}}",
        "prompts.harmful.where",
        'is only for rows with columns or keys, got {"b": "c"} for "data/a.txt"',
    ),
    (
        "prompts: {harmful: {source: data/a.csv, where: {b: [c]}}}",
        "prompts.harmful.where.b",
        "must be a text, a number",
    ),
    ("prompts: {harmful: {source: data/a.csv, where: {}}}", "prompts.harmful.where", "must be a mapping from columns"),
    ("evaluate: {overlap: keep}", "evaluate.overlap", "must be one of error, drop"),
    ("prompts: {seed: -1}", "prompts.seed", "must be an integer ≥ 0, got -1"),
    ("prompts: {date: '2025-02-30'}", "prompts.date", 'must be a day such as "2025-01-01", got "2025-02-30"'),
    ("prompts: {date: 20250101}", "prompts.date", 'must be a day such as "2025-01-01", got 20250101'),
    ("prompts: {date: today}", "prompts.date", 'must be a day such as "2025-01-01", got "today"'),
    ("prompts: {harmful: {split: harmful_train}}", "prompts.harmful.source", "is missing"),
    ("prompts: {harmful: {source: organism}}", "prompts.harmful.split", "harmful_train or harmless_train"),
    ("prompts: {harmful: {source: organism, split: organism_harmful}}", "prompts.harmful.split", "must be one of"),
    ("prompts: {harmless: {source: organism, split: harmless_test}}", "prompts.harmless.split", "must be one of"),
    ("prompts: {harmful: {source: organism, split: harmless_train}}", "prompts.harmless", "the same as"),
    ("prompts: {harmful: {source: data/a.txt}, harmless: {source: data/a.txt}}", "prompts.harmless", "the same as"),
    (
        "prompts: {harmful: {source: data/a.jsonl}, harmless: {source: data/a.jsonl, column: prompt}}",
        "prompts.harmless",
        "the same as",
    ),
    (
        "prompts: {harmful: {source: data/a.txt, split: harmful_train}}",
        "prompts.harmful.split",
        'is only for the source organism and Hub datasets, got "harmful_train" for "data/a.txt"',
    ),
    (
        "prompts: {harmful: {source: data/a.txt, column: text}}",
        "prompts.harmful.column",
        "only for rows with columns or keys",
    ),
    (
        "prompts: {harmful: {source: organism, split: harmful_train, column: text}}",
        "prompts.harmful.column",
        "only for rows with columns or keys",
    ),
    ("prompts: {harmful: {source: data/a.jsonl, column: ''}}", "prompts.harmful.column", "the name of a column"),
    *(
        (f"prompts: {{harmful: {{source: '{path}'}}}}", "prompts.harmful.source", A_SOURCE)
        for path in (
            "a.txt",
            "/data/a.txt",
            "data/../a.txt",
            "data/b/../../../a.txt",
            "../data/a.txt",
            "./data/a.txt",
            "data/./a.txt",
            "data//a.txt",
            "data",
            "data/",
            "data/.txt/",
            "data/.jsonl",
            "data/a.tsv",
            "data/harmful",
            "data/a.TXT",
            "data\\\\a.txt",
            "data/b\\\\..\\\\a.txt",
            "database/a.txt",
            "organization/name.parquet",
            "squad",
            "organization/name/more",
            "organization/..",
        )
    ),
    # layers
    *(
        (rule(f"layers: {layers}, measurement: 1"), "ablate.rules.0.layers", "must be a layer")
        for layers in (
            *("-1", "10000", "99999999999", "true", "1.0", "null", '"18"', "{a: 1}", "[]", "[[1]]", "[1, x]"),
            *("35-10", "1-", "-3", '"1,2"', '"1 - 2"', "0-99999", "0-99999999999", "٣-٤", '"all "', "[all, x]"),
        )
    ),
    (rule("layers: 35-10, measurement: 1"), "ablate.rules.0.layers", 'got "35-10", which ends before it begins'),
    (rule("layers: al, measurement: 1"), "ablate.rules.0.layers", 'did you mean "all"?'),
    (rule("layer: x, measurement: 1"), "ablate.rules.0.layer", 'got "x"'),
    (rule("layer: 1, layers: 1, measurement: 1"), "ablate.rules.0.layer", 'means the same as "layers"'),
    *(
        (rule(f"layer: 1, measurement: 1, sparsity: {value}"), "ablate.rules.0.sparsity", "is not supported")
        for value in ("0.5", "1", "null", "false", "'0'", "[]")
    ),
    # lists
    ("ablate: {targets: []}", "ablate.targets", "must not be empty"),
    ("ablate: {targets: null}", "ablate.targets", "must be a non-empty list, got null"),
    ("ablate: {targets: [mlp, attention, mlp]}", "ablate.targets.2", 'must be named once, got "mlp" again'),
    ("ablate: {rules: []}", "ablate.rules", "must not be empty"),
    (rule("layers: 1, measurement: 1, targets: []"), "ablate.rules.0.targets", "must not be empty"),
    (rule("layers: 1, measurement: 1, targets: [mlp, mlp]"), "ablate.rules.0.targets.1", "must be named once"),
    ("evaluate: {refusal: [organism_harmful, organism_harmful]}", "evaluate.refusal.1", "must be named once"),
    ("evaluate: {refusal: [organism_facts]}", "evaluate.capability.0", "which evaluate.refusal already has"),
    ("evaluate: {refusal: null}", "evaluate.refusal", "must be a list, got null; write [] for none"),
    # gates
    ("gates: null", "gates", "must be a list, got null; write [] for none"),
    ("gates: {}", "gates", "must be a list, got {}"),
    ("gates: [{metric: drift.first_token_kl}]", "gates.0", "exactly one of at_least, at_most, max_drop, max_rise"),
    ("gates: [{metric: drift.first_token_kl, at_most: null}]", "gates.0", "got none"),
    ("gates: [{metric: drift.first_token_kl, at_most: 1, max_rise: 1}]", "gates.0", "got at_most and max_rise"),
    (
        "gates: [{metric: drift.first_token_kl, max_rise: -0.1}]",
        "gates.0.max_rise",
        "a finite number ≥ 0, got -0.1",
    ),
    ("gates: [{metric: drift.first_token_kl, at_most: '1'}]", "gates.0.at_most", "a finite number, got"),
    ("gates: [{metric: drift.kl, at_most: 1}]", "gates.0.metric", 'got "drift.kl"'),
    ("gates: [{metric: refusal_rate, at_most: 1}]", "gates.0.metric", "refusal.<task>.<metric>"),
    ("gates: [{metric: refusal.a.b.c, at_most: 1}]", "gates.0.metric", "refusal.<task>.<metric>"),
    (
        "gates: [{metric: drift.first_token_kl, at_most: 1}, {metric: refusal.organism_harmfull.rate, at_most: 1}]",
        "gates.1.metric",
        "known: refusal.organism_harmful, over_refusal.organism_borderline, capability.organism_facts, "
        'capability.organism_arithmetic, drift; did you mean "refusal.organism_harmful"?',
    ),
    ("gates: [{metric: refusal.organism_facts.exact_match, at_most: 1}]", "gates.0.metric", "evaluate does not list"),
    ("evaluate: {refusal: []}", "gates.0.metric", "a default gate; set `gates`, or `gates: []`"),
]


@pytest.mark.parametrize(("text", "key", "says"), BAD, ids=[text[:60] for text, _, _ in BAD])
def test_a_mistake_is_one_line_that_names_the_key(text: str, key: str, says: str) -> None:
    line = str(refused(text))
    assert line.startswith(f"params.yaml: {key} ")
    assert says in line


BAD_YAML = [
    ("", "must hold a mapping of sections, got an empty file"),
    ("# nothing but a comment\n", "got an empty file"),
    ("- model", "got a list"),
    ("model", 'got "model"'),
    ("2026-01-01", "is read by YAML as a date"),
    ("model: {}\nmodel: {}", 'line 2, column 1: the key "model" is given twice'),
    ("model:\n  source: organism\n  source: organism", 'line 3, column 3: the key "source" is given twice'),
    ("model:\n\tsource: organism", "line 2, column 1: a tab, where YAML allows only spaces"),
    ("model: {source: organism", "line 1, column 25"),
    ("model: {}\n---\nmodel: {}", "single document"),
    ("model: *other", "line 1, column 8: found undefined alias"),
    ("model: !!python/object/apply:os.system [ls]", "line 1, column 8: could not determine a constructor"),
    ("model: \0", "unacceptable character"),
    ("model: {source: 2026-01-01}", "model.source is read by YAML as a date"),
    ("model: {source: !!binary aGk=}", "model.source is read by YAML as a bytes"),
    ("model: !!set {a, b}", "model is read by YAML as a set"),
    ("1: 2", "must have text for its keys, got 1"),
    ("prompts: {chat_template_kwargs: {true: 1}}", "prompts.chat_template_kwargs must have text for its keys"),
    ("? [a, b]\n: 1", "must have text for its keys"),
    ("? {a: b}\n: 1", "line 1"),
    ('model: {source: "/\\ud800"}', "model.source must be Unicode text"),
    ('"\\ud800": 1', "must be Unicode text"),
    ("model: !!float ''", "is not valid YAML"),
    ("model: !!bool x", "is not valid YAML"),
    ("model: !!int x", "is not valid YAML"),
    ('model: "\\UFFFFFFFF"', "is not valid YAML"),
    (f"organism: {{seed: {'9' * 5000}}}", "is not valid YAML"),
    (f"model: {'[' * 3000}", "is nested more than 40 deep"),
    (f"model: {'[' * 50}{']' * 50}", "is nested more than 40 deep"),
    ("model: &me [*me]", "is nested more than 40 deep"),
    ("# " + "x" * 300_000, "is longer than"),
]


@pytest.mark.parametrize(("text", "says"), BAD_YAML, ids=[ascii(text[:40]) for text, _ in BAD_YAML])
def test_what_is_no_plain_yaml_mapping_is_one_line(text: str, says: str) -> None:
    assert says in str(refused(text))


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}", "? [{}]\n  : 1"], ids=["lists", "merges", "keys"])
def test_aliases_that_multiply_are_refused_before_they_fill_the_memory(form: str) -> None:
    lines = ["a: &a {k: v}" if "<<" in form else "a: &a [1]"]
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name}\n  {form.format(', '.join([f'*{before}'] * 9))}")
    assert "with aliases expanded" in str(refused("\n".join(lines)))


def test_aliases_that_do_not_multiply_are_fine() -> None:
    shared = "ablate: {targets: &t [mlp], rules: [{layers: 1, measurement: 1, targets: *t}]}"
    assert parse(shared).ablate.rules[0].targets == ("mlp",)


def test_odd_but_legal_yaml_is_read_in_silence(recwarn: pytest.WarningsRecorder) -> None:
    assert "a is not a key" in str(refused("a: &a 1\nb: &a 2\n"))
    old = parse("%YAML 1.1\n---\nablate: {rules: [{layers: 1, measurement: 1, scale: 1e0}]}")
    assert old.ablate.rules[0].scale == 1
    assert not recwarn.list


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(ParamsError, match=r"^params.yaml: there is no such file in /"):
        load(path)
    path.write_bytes("model: {}\nprompts: {system: naïve}\n".encode("latin-1"))
    with pytest.raises(ParamsError, match=r"^params.yaml: line 2: not UTF-8 text; save the file as UTF-8$"):
        load(path)
    with pytest.raises(ParamsError, match=r"^folder: cannot be read"):
        (tmp_path / "folder").mkdir()
        load(tmp_path / "folder")


def test_the_number_of_further_mistakes_is_said() -> None:
    line = str(refused("measure: {batch_size: 0, position: 0}\norganism: {seed: x}"))
    assert line == 'params.yaml: organism.seed must be an integer from 0 to 4294967295, got "x" (and 2 more)'


def test_a_long_value_is_cut_off() -> None:
    line = str(refused(f"model: {{dtype: {'x' * 10_000}}}"))
    assert len(line) < 200 and "…" in line


def test_an_empty_or_missing_section_takes_its_defaults() -> None:
    assert parse("model:\norganism:\nprompts:\nmeasure:\nablate:\nevaluate:\n") == Params()
    assert parse("{}") == Params()
    assert parse("measure: {batch_size: 8}").measure == MeasureSection(batch_size=8)
    assert parse("gates: []").gates.root == ()


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ("18", [18]),
        ("0", [0]),
        ("10-12", [10, 11, 12]),
        ("7-7", [7]),
        ("all", "all"),
        ("[all]", "all"),
        ("[3, all]", "all"),
        ("[3, 1-2, 2-4, 3]", [1, 2, 3, 4]),
    ],
)
def test_layers_resolve_to_all_or_sorted_distinct_numbers(written: str, resolved: Any) -> None:
    for key in ("layers", "layer"):
        text = settings_of_stages(parse(rule(f"{key}: {written}, measurement: 1")))["ablate"]
        assert json.loads(text)["rules"][0]["layers"] == resolved


def test_a_rule_list_of_another_tool_works_as_it_is() -> None:
    other = parse(
        "ablate:\n  rules:\n"
        "  - layer: 11\n    measurement: 23\n    scale: 1.0\n    sparsity: 0.00\n"
        "  - layer: 12\n    measurement: 23\n    scale: 1\n    sparsity: 0\n"
    )
    ours = parse(
        "ablate: {rules: [{layers: 11, measurement: 23, scale: 1.0}, {layers: 12, measurement: 23, scale: 1.0}]}"
    )
    assert settings_of_stages(other) == settings_of_stages(ours)
    assert "sparsity" not in settings_of_stages(other)["ablate"]


def test_a_former_name_of_a_key_is_read_as_its_present_one() -> None:
    former, present = (settings_of_stages(parse(f"measure: {{{key}: on}}")) for key in ("stream", "offload"))
    assert former == present and json.loads(present["device"])["offload"] == "on"


def test_the_same_edit_has_the_same_text() -> None:
    one = "ablate: {targets: [mlp, attention], rules: [{layers: [2, 1], measurement: 1, scale: -0.0}]}"
    other = "ablate: {targets: [attention, mlp], rules: [{layers: 1-2, measurement: 1, scale: 0}]}"
    assert settings_of_stages(parse(one)) == settings_of_stages(parse(other))


def test_a_rule_without_targets_takes_the_sections() -> None:
    ablate = parse(
        "ablate: {targets: [mlp], rules: [{layers: 1, measurement: 1}, "
        "{layers: 1, measurement: 1, targets: [attention]}]}"
    ).ablate
    assert [ablate.targets_of(each) for each in ablate.rules] == [("mlp",), ("attention",)]


def test_prompt_files_are_resolved() -> None:
    prompts = parse(
        "prompts:\n"
        "  harmful: {source: data/our own/harmful..v2.jsonl}\n"
        "  harmless: {source: data/harmless.txt}\n"
        "  chat_template_kwargs: {enable_thinking: false, deep: {list: [1, 2.5, null, text]}}\n"
    ).prompts
    assert prompts.harmful == PromptSource(source="data/our own/harmful..v2.jsonl", column="prompt")
    assert prompts.harmless.column is None and prompts.harmless.split is None
    assert prompts.chat_template_kwargs == {"enable_thinking": False, "deep": {"list": [1, 2.5, None, "text"]}}


def test_one_file_may_hold_both_sides_in_two_columns() -> None:
    prompts = parse("prompts: {harmful: {source: data/a.jsonl, column: x}, harmless: {source: data/a.jsonl}}").prompts
    assert (prompts.harmful.column, prompts.harmless.column) == ("x", "prompt")


def test_rows_of_the_hub_and_of_files_are_resolved_alike() -> None:
    pinned = f"revision: {'a1' * 20}, config: hard, split: train, slice: '100:500', column: question"
    params = parse(
        f"prompts: {{harmful: {{source: org/name.v2, {pinned}}}, harmless: {{source: data/a.parquet, slice: ':4'}}}}\n"
        f"evaluate: {{custom: {{refusal: {{source: org/name.v2, {pinned}, item: topic}}}}}}"
    )
    harmful, custom = params.prompts.harmful, params.evaluate.custom.refusal
    assert isinstance(custom, CustomPrompts) and custom.item == "topic"
    assert harmful.model_dump() == custom.model_dump() | {"item": None} and harmful.kind == "dataset"
    assert (params.prompts.harmless.kind, params.prompts.harmless.column) == ("file", "prompt")


def test_lengths_and_limits_are_for_answers_and_change_nothing_that_is_measured() -> None:
    before = settings_of_stages(parse("{}"))
    for text in (
        "max_new_tokens: 9",
        "reasoning_tokens: 9",
        "limits: {organism_facts: 9}",
        "seed: 9",
        "include: data/a",
    ):
        after = settings_of_stages(parse(f"evaluate: {{{text}}}"))
        assert {name for name in after if after[name] != before[name]} == {"answer", "evaluate"}


def test_named_sets_are_read_as_they_are_written() -> None:
    params = parse(
        "evaluate:\n  refusal: [refusal_custom_a, refusal_custom_b-2]\n"
        "  custom: {refusal: {a: {source: data/a.txt}, b-2: {source: data/b.csv, where: {kind: 1}}}}\ngates: []\n"
    )
    custom = params.evaluate.custom
    assert list(custom.sources()) == ["refusal_custom_a", "refusal_custom_b-2"]
    assert custom.sources()["refusal_custom_b-2"].where == {"kind": 1}
    assert Answer.model_validate_json(settings_of_stages(params)["answer"]).custom == custom


def test_a_slice_takes_what_python_s_takes() -> None:
    rows = range(10)
    taken = {text: list(rows[row_range(text)]) for text in ("2:5", ":3", "8:", "7:99")}
    assert taken == {"2:5": [2, 3, 4], ":3": [0, 1, 2], "8:": [8, 9], "7:99": [7, 8, 9]}
    assert list(rows[row_range(None)]) == list(rows)


def test_an_unquoted_day_is_told_to_be_quoted() -> None:
    assert str(refused("prompts: {date: 2025-01-01}")).endswith(
        'prompts.date is read by YAML as a date ("2025-01-01"); quote it to make it text'
    )


def test_the_sides_may_be_swapped() -> None:
    parse(
        "prompts: {harmful: {source: organism, split: harmless_train}, "
        "harmless: {source: organism, split: harmful_train}}"
    )


@pytest.mark.parametrize("source", ["organism", "/models/glm", "/models/with space/ü"])
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:17"])
def test_models_and_devices(source: str, device: str) -> None:
    model = parse(f"model: {{source: {source}, device: '{device}'}}").model
    assert (model.source, model.device) == (source, device)


def test_a_model_of_the_hub_is_its_id_and_its_commit() -> None:
    params = parse(f"model: {{source: Some-Org/a_model-1.5, revision: {20 * '3a'}}}")
    assert (params.model.source, params.model.revision) == ("Some-Org/a_model-1.5", 20 * "3a")
    assert json.loads(settings_of_stages(params)["prepare"])["model"] == {
        "source": "Some-Org/a_model-1.5",
        "revision": 20 * "3a",
        "dtype": "auto",
    }


def test_a_gate_gives_its_limit() -> None:
    gates = parse(
        "gates: [{metric: drift.first_token_kl, at_most: 1}, "
        "{metric: capability.organism_facts.exact_match, max_drop: 0}]"
    ).gates
    assert [gate.limit for gate in gates.root] == [AtMost(limit=1.0), MaxDrop(limit=0.0)]


def test_params_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        parse("{}").measure.batch_size = 3


def test_settings_are_canonical_and_can_be_read_back(tmp_path: Path) -> None:
    params = load(SHIPPED)
    texts = settings_of_stages(params)
    assert texts.keys() == SETTINGS.keys()
    for name, text in texts.items():
        path = tmp_path / f"{name}.json"
        path.write_text(text, encoding="utf-8")
        document = read_settings(SETTINGS[name], path)
        assert text == json.dumps(document.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ("organism: {tune_steps: 3}", {"organism"}),
        ("model: {dtype: float32}", {"prepare"}),
        ("prompts: {limit: 9}", {"prepare"}),
        ("measure: {position: -2}", {"measure"}),
        ("measure: {estimator: pca}", {"directions"}),
        ("measure: {winsorize: 0.9}", {"directions"}),
        ("ablate: {method: preserve_column_norms}", {"diagnose", "simulate", "ablate", "report"}),
        ("ablate: {rules: [{layers: 1, measurement: 1}]}", {"simulate", "ablate", "report"}),
        ("evaluate: {batch_size: 3}", {"answer"}),
        ("evaluate: {limit: 3}", {"answer", "evaluate"}),
        ("evaluate: {judge: {api: {model: m}}}", {"evaluate"}),
        ("gates: []", {"report"}),
    ],
)
def test_a_key_reaches_the_stages_that_read_it(changed: str, stages: set[str]) -> None:
    before, after = settings_of_stages(Params()), settings_of_stages(parse(changed))
    assert {stage for stage in before if before[stage] != after[stage]} == stages


def test_where_it_runs_is_no_part_of_what_it_is() -> None:
    here = settings_of_stages(parse("{model: {device: cpu}, measure: {offload: off}}"))
    there = settings_of_stages(parse("{model: {device: cuda}, measure: {offload: on}}"))
    assert json.loads(there["device"]) == {"device": "cuda", "folder": None, "offload": "on"}
    assert {name for name in here if here[name] != there[name]} == {"device"}


def test_a_file_of_settings_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "measure.json"
    with pytest.raises(ParamsError, match=r"measure.json: there is no such file"):
        read_settings(Measure, path)
    path.write_text('{"batch_size": 8', encoding="utf-8")
    with pytest.raises(ParamsError, match=r"measure.json: is not JSON; `python -m stages.params` writes it again"):
        read_settings(Measure, path)
    path.write_text('{"batch_size": 0}', encoding="utf-8")
    with pytest.raises(ParamsError, match=r'measure.json: batch_size must be an integer ≥ 1 or "auto", got 0'):
        read_settings(Measure, path)


def test_schemas_import_no_stage_and_no_torch() -> None:
    code = (
        "import sys, schemas.params, schemas.documentation\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('stages', 'torch', 'transformers', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
