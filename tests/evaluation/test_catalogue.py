"""Which tasks can be listed: ours, lm-eval's, and the user's own prompts; what is wrong with one is one line."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from excise.evaluation.asking.answers import ask
from excise.evaluation.asking.catalogue import TASKS_FOLDER, draw, load_tasks
from excise.evaluation.asking.tasks.prompts import published
from excise.evaluation.scoring.harness import SCORES_FOLDER
from excise.plumbing.errors import StageError
from excise.plumbing.private.lm_eval import task_config
from schemas.params.document import EvaluateSection
from schemas.params.tasks import TASKS
from schemas.prompts import ChatFormat
from tests.evaluation.fake_hub import Rules
from tests.evaluation.fake_hub import hub as hub
from tests.hub import Hub


class Recorded(Rules):
    """It records the conversations that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.chats: list[list[dict[str, str]]] = []

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        self.chats.append(chat_history)
        return "1"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project with a folder for tasks of one's own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/tasks"
    folder.mkdir(parents=True)
    return folder


def write_task(folder: Path, name: str, more: str = "") -> None:
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: gsm8k\ntest_split: test\noutput_type: generate_until\n"
        f"doc_to_text: '{{{{question}}}}'\ndoc_to_target: ''\nmetric_list: [{{metric: exact_match}}]\n{more}"
    )


def evaluate(**listed: Any) -> EvaluateSection:
    return EvaluateSection.model_validate({"refusal": [], "over_refusal": [], "capability": [], **listed})


def refused(params: EvaluateSection) -> str:
    with pytest.raises(StageError) as error:
        load_tasks(params)
    return str(error.value)


@pytest.mark.parametrize("folder", [TASKS_FOLDER, SCORES_FOLDER])
def test_every_task_of_ours_has_a_file(folder: Path) -> None:
    assert {path.stem for path in folder.glob("[!_]*.yaml")} == set(TASKS)


@pytest.mark.parametrize("name", ["refusal_jbb", "refusal_sorrybench", "over_refusal_xstest", "over_refusal_orbench"])
def test_what_is_scored_is_what_is_asked(hub: list[dict[str, Any]], name: str) -> None:
    """But for how."""
    listed = evaluate(**{name.rpartition("_")[0]: [name]})
    asked, scored = (
        dict(task.parts[name].dump_config())
        for folder in (TASKS_FOLDER, SCORES_FOLDER)
        for task in load_tasks(listed, folder)
    )
    for key in ("process_results", "metric_list", "metadata"):
        asked.pop(key, None), scored.pop(key)
    assert asked == scored


@pytest.mark.parametrize(
    ("name", "source", "revision", "prompt", "samples"),
    [
        ("refusal_jbb", "JailbreakBench/JBB-Behaviors", "886acc352a31533ffbcf4ef22c744658688086fc", "goal 1", 4),
        (
            "refusal_sorrybench",
            "sorry-bench/sorry-bench-202406",
            "b34822276edde97592eda99c0b56d306f8830469",
            "sorry 2",
            2,
        ),
        ("over_refusal_xstest", "Paul/XSTest", "f600c994b256f12867dfa5b3eb3d545a3e62f8b5", "prompt 2", 3),
        ("over_refusal_orbench", "bench-llm/or-bench", "e36d8b80e81837c8a8f264bbb2a49f1b32c7e272", "prompt 1", 3),
    ],
)
def test_published_prompts_are_loaded_by_pinned_revision(
    hub: list[dict[str, Any]], name: str, source: str, revision: str, prompt: str, samples: int
) -> None:
    group = name.rpartition("_")[0]
    (asked,) = load_tasks(evaluate(**{group: [name]}))
    assert asked.judged and [(one["path"], one["revision"]) for one in hub] == [(source, revision)]
    (task,) = asked.parts.values()
    assert len(task.eval_docs) == samples
    assert task.doc_to_text(task.eval_docs[1]) == prompt
    assert task.config.generation_kwargs["max_gen_toks"] == 256


@pytest.mark.slow
def test_an_answer_takes_no_more_than_half_of_what_the_model_can_read(hub: list[dict[str, Any]]) -> None:
    listed = evaluate(refusal=["refusal_jbb"], capability=["gsm8k", "arc_easy"])
    for longest, expected in ((128, [64, 64]), (100_000, [256, None])):
        jbb, gsm8k, _ = load_tasks(listed, longest_text=longest)
        settings = [task.config.generation_kwargs for asked in (jbb, gsm8k) for task in asked.parts.values()]
        assert [one.get("max_gen_toks") for one in settings] == expected


def lengths(params: EvaluateSection, **model: Any) -> list[int]:
    """Tokens of an answer in each task."""
    parts = [part for task in load_tasks(params, **model) for part in task.parts.values()]
    return [part.config.generation_kwargs["max_gen_toks"] for part in parts]


def test_reasoning_gets_room_in_addition_to_the_answer(hub: list[dict[str, Any]]) -> None:
    listed = evaluate(refusal=["refusal_jbb"])
    for longest, expected in ((100_000, 2304), (1000, 500), (None, 2304)):
        assert lengths(listed, longest_text=longest, reasoning=True) == [expected]
    short = evaluate(refusal=["refusal_jbb"], max_new_tokens=64, reasoning_tokens=100)
    assert (lengths(short), lengths(short, reasoning=True)) == ([64], [164])
    none = evaluate(refusal=["refusal_jbb"], reasoning_tokens=0)
    assert lengths(none, reasoning=True) == [256]


@pytest.mark.slow
def test_a_length_of_answers_is_for_judged_tasks_that_set_none(
    own: Path, hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, length in (("sets_none", ""), ("sets_one", "max_new_tokens: 40, ")):
        write_task(own, name, f"generation_kwargs: {{{length}until: []}}\n")
    listed = evaluate(refusal=["sets_none", "sets_one"], include="data/tasks", max_new_tokens=99)
    assert lengths(listed) == [99, 40]
    asked = load_tasks(evaluate(capability=["sets_none"], include="data/tasks", max_new_tokens=99))
    (part,) = asked[0].parts.values()
    assert "max_gen_toks" not in part.config.generation_kwargs


def test_prompts_of_the_user_s_own_are_loaded_from_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.jsonl").write_text('{"ask": "a ?", "about": "a"}\n{"ask": "b ?", "about": "a"}\n')
    (tmp_path / "data/other.txt").write_text("c ?\n\nd ?\n")
    (mine, other) = load_tasks(
        evaluate(
            refusal=["refusal_custom"],
            over_refusal=["over_refusal_custom"],
            custom={
                "refusal": {"source": "data/mine.jsonl", "column": "ask", "item": "about"},
                "over_refusal": {"source": "data/other.txt"},
            },
        )
    )
    documents = [list(task.eval_docs) for asked in (mine, other) for task in asked.parts.values()]
    assert [[(one["prompt"], one["item"]) for one in found] for found in documents] == [
        [("a ?", "a"), ("b ?", "a")],
        [("c ?", None), ("d ?", None)],
    ]


def test_prompts_of_the_user_s_own_may_be_a_data_set_of_the_hub(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = '{"ask": "a ?", "about": "a"}\n{"ask": "b ?", "about": "b"}\n{"ask": "c ?", "about": "b"}\n'
    commit = local_hub.add("some/questions", {"train.jsonl": rows.encode()}, "datasets")
    local_hub.use(monkeypatch, tmp_path)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", local_hub.address)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    source = {"source": "some/questions", "revision": commit, "split": "train", "slice": "1:"}
    columns = {"column": "ask", "item": "about"}
    (asked,) = load_tasks(evaluate(refusal=["refusal_custom"], custom={"refusal": {**source, **columns}}))
    assert [(one["prompt"], one["item"]) for one in asked.parts["refusal_custom"].eval_docs] == [
        ("b ?", "b"),
        ("c ?", "b"),
    ]


def test_conversations_are_asked_as_a_whole_and_their_own_system_message_counts(own: Path) -> None:
    before = [{"role": "user", "content": "a ?"}, {"role": "assistant", "content": "no ."}]
    talks: list[list[dict[str, str]]] = [
        [{"role": "user", "content": "b ?"}],
        [*before, {"role": "user", "content": "why ?"}],
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": "c ?"}],
    ]
    Path("data/mine.json").write_text(json.dumps([{"prompt": talk} for talk in talks]))
    (asked,) = load_tasks(evaluate(refusal=["refusal_custom"], custom={"refusal": {"source": "data/mine.json"}}))
    model = Recorded()
    ask(model, asked, ChatFormat(system="be brief", chat_template_kwargs={}, date="2025-01-01"))
    system = [{"role": "system", "content": "be brief"}]
    assert model.chats == [system + talks[0], system + talks[1], talks[2]]
    (task,) = asked.parts.values()
    assert [task.doc_to_text(document) for document in task.eval_docs] == [
        "b ?",
        "user: a ?\n\nassistant: no .\n\nuser: why ?",
        "system: be kind\n\nuser: c ?",
    ]


def test_named_sets_are_tasks_of_their_own(own: Path) -> None:
    Path("data/one.txt").write_text("a ?\n")
    Path("data/two.jsonl").write_text('{"prompt": "b ?", "kind": 1}\n{"prompt": "c ?", "kind": 2}\n')
    sets = {"one": {"source": "data/one.txt"}, "two": {"source": "data/two.jsonl", "where": {"kind": 2}}}
    listed = evaluate(
        refusal=["refusal_custom_two"],
        over_refusal=["over_refusal_custom_one", "over_refusal_custom_two"],
        custom={"refusal": sets, "over_refusal": sets},
    )
    found = {
        name: [document["prompt"] for document in part.eval_docs]
        for task in load_tasks(listed)
        for name, part in task.parts.items()
    }
    assert found == {
        "refusal_custom_two": ["c ?"],
        "over_refusal_custom_one": ["a ?"],
        "over_refusal_custom_two": ["c ?"],
    }


def test_a_file_of_the_user_s_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    told = refused(evaluate(refusal=["refusal_custom"], custom={"refusal": {"source": "data/none.txt"}}))
    assert told == "params.yaml names data/none.txt, which is missing or is not a file; put the file there"


@pytest.mark.slow
def test_lm_eval_s_own_tasks_and_groups_can_be_listed(hub: list[dict[str, Any]]) -> None:
    (task, group) = load_tasks(evaluate(capability=["arc_easy", "mmlu_stem"]))
    assert list(task.parts) == ["arc_easy"] and not task.judged
    assert len(group.parts) > 10 and all(name.startswith("mmlu_") for name in group.parts)
    assert all(one.get_config("num_fewshot") == 0 for one in task.parts.values())


def test_what_cannot_be_asked_is_one_line_that_says_why(hub: list[dict[str, Any]]) -> None:
    told = refused(evaluate(capability=["arc_eazy"]))
    assert told == 'params.yaml: evaluate.capability: arc_eazy is not an lm-eval task; did you mean "arc_easy"?'
    assert "arc_easy generates no answer" in refused(evaluate(refusal=["arc_easy"]))
    assert "ai2_arc is a tag for several" in refused(evaluate(capability=["ai2_arc"]))
    assert "runs code from a model or the Hub" in refused(evaluate(capability=["humaneval"]))


@pytest.mark.slow
def test_tasks_of_one_s_own_can_be_listed_with_functions_beside_them(own: Path, hub: list[dict[str, Any]]) -> None:
    (own / "own.py").write_text("def loud(document):\n    return document['question'].upper()\n")
    write_task(own, "mine")
    text = (own / "mine.yaml").read_text().replace("'{{question}}'", "!function own.loud")
    (own / "mine.yaml").write_text(text)
    (own / "both.yaml").write_text("group: both\ntask: [mine, arc_easy]\naggregate_metric_list: [{metric: acc}]\n")
    (mine,) = load_tasks(evaluate(refusal=["mine"], include="data/tasks"))
    (task,) = mine.parts.values()
    assert mine.judged and task.doc_to_text(task.eval_docs[0]) == "WHAT IS 0 PLUS ONE ?"
    (both,) = load_tasks(evaluate(capability=["both"], include="data/tasks"))
    assert set(both.parts) == {"mine", "arc_easy"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task: [", "data/tasks/a.yaml is not a task file of lm-eval: "),
        ("- 1\n", "data/tasks/a.yaml is not a task file of lm-eval: "),
        ("include: none.yaml\n", "data/tasks/a.yaml is not a task file of lm-eval: "),
        ("include: ../../elsewhere.yaml\n", "leads outside data/; tasks there may only use files and code in it"),
        ("task: a\ndoc_to_text: !function other.f\n", "!function other.f is in no file of data/tasks; put its code"),
        ("task: a\ndoc_to_text: !function os.getcwd\n", "!function os.getcwd is in no file of data/tasks"),
        ("task: refusal_jbb\n", "data/tasks/a.yaml is named refusal_jbb, as is a task of excise; give it a name"),
        ("task: b\n", "data/tasks/b.yaml is named b, as is data/tasks/a.yaml; give it a name of its own"),
    ],
)
def test_a_wrong_task_of_one_s_own_is_one_line_and_never_left_out(own: Path, text: str, says: str) -> None:
    Path("elsewhere.yaml").write_text("task: elsewhere\n")
    write_task(own, "b")
    (own / "a.yaml").write_text(text)
    told = refused(evaluate(capability=["b"], include="data/tasks"))
    assert says in told and "\n" not in told and len(told) <= 400


@pytest.mark.slow
def test_a_folder_of_tasks_that_is_not_there_or_lacks_one_is_one_line(own: Path, hub: list[dict[str, Any]]) -> None:
    told = refused(evaluate(capability=["b"], include="data/none"))
    assert told == "params.yaml: evaluate.include names data/none, which is not a folder; put your tasks there"
    write_task(own, "mine_own")
    told = refused(evaluate(capability=["mine_onw"], include="data/tasks"))
    assert told.endswith('mine_onw is not an lm-eval task or one in data/tasks; did you mean "mine_own"?')


def drawn_from(rows: list[dict[str, Any]], **settings: Any) -> list[str]:
    """The prompts that are drawn of a file of these rows, which is asked after another task."""
    Path("data/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("data/first.txt").write_text("x ?\ny ?\n")
    sets = {"first": {"source": "data/first.txt"}, "rows": {"source": "data/rows.jsonl"}}
    params = evaluate(refusal=[f"refusal_custom_{name}" for name in sets], custom={"refusal": sets}, **settings)
    tasks = load_tasks(params)
    counts = draw(tasks, params)
    (part,) = tasks[1].parts.values()
    prompts = [document["prompt"] for document in part.eval_docs]
    assert counts.get("refusal_custom_rows", len(prompts)) == len(rows)
    return prompts


def test_a_limit_draws_from_all_rows_whatever_their_order_and_whatever_else_is_asked(own: Path) -> None:
    rows = [{"prompt": f"{number} ?", "kind": number // 25} for number in range(250)]
    prompts = drawn_from(rows, limit=100)
    assert len(prompts) == 100 and {int(text.split()[0]) // 25 for text in prompts} == set(range(10))
    assert prompts == sorted(prompts, key=lambda text: int(text.split()[0]))  # in their own order
    assert prompts == drawn_from(rows, limits={"refusal_custom_rows": 100})
    assert set(prompts) == set(drawn_from(rows[::-1], limit=100))
    assert len(set(prompts) & set(drawn_from(rows, limit=100, seed=1))) < 60
    assert set(drawn_from(rows, limit=50)) < set(prompts)
    more = drawn_from([*rows, {"prompt": "one more ?", "kind": 0}], limit=100)
    assert len(set(prompts) - set(more)) <= 1


def test_a_limit_of_one_task_replaces_that_of_all(own: Path) -> None:
    rows = [{"prompt": f"{number} ?"} for number in range(9)]
    assert len(drawn_from(rows, limit=1, limits={"refusal_custom_rows": 4})) == 4
    assert len(drawn_from(rows, limit=4, limits={"refusal_custom_first": 1})) == 4
    assert len(drawn_from(rows)) == len(drawn_from(rows, limit=9)) == 9


def test_published_tables_are_checked_by_digest_and_kept(
    own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    table = tmp_path / "table.csv"
    table.write_text("goal,kind\na ?,x\nb ?,y\n")
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    asked: Any = {"url": table.as_uri(), "sha256": digest}
    assert published(**asked)["test"]["goal"] == ["a ?", "b ?"]
    assert published(**asked, where={"kind": "y"})["test"]["goal"] == ["b ?"]
    table.unlink()
    assert published(**asked)["test"]["goal"] == ["a ?", "b ?"]
    with pytest.raises(StageError, match=r"cannot be read: .*; run again, or leave its task out$"):
        published(url=table.as_uri(), sha256="0" * 64)
    table.write_text("goal,kind\nc ?,x\n")
    with pytest.raises(StageError, match=r"table\.csv has changed since its SHA-256 was pinned; leave its task out$"):
        published(url=table.as_uri(), sha256="0" * 64)


@pytest.mark.parametrize(
    ("name", "column"), [("advbench", "goal"), ("harmbench", "Behavior"), ("strongreject", "forbidden_prompt")]
)
def test_published_tables_are_pinned_by_commit_and_ask_the_column_that_their_authors_name(
    own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, column: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    table = tmp_path / "table.csv"
    table.write_text(f"{column},FunctionalCategory\na ?,standard\n")
    config = task_config(TASKS_FOLDER / f"refusal_{name}.yaml")
    pinned = config["dataset_kwargs"]
    assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+\.csv", pinned["url"])
    ours = {"url": table.as_uri(), "sha256": hashlib.sha256(table.read_bytes()).hexdigest()}
    loaded = TaskManager(include_defaults=False).load([{**config, "dataset_kwargs": {**pinned, **ours}}])
    (task,) = loaded["tasks"].values()
    assert [task.doc_to_text(document) for document in task.eval_docs] == ["a ?"]


def test_a_data_set_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", cut)
    told = refused(evaluate(refusal=["refusal_jbb"]))
    assert told == "params.yaml: evaluate.refusal: refusal_jbb could not be loaded: ConnectionError: no network"
