"""Sources: what a user's file may hold, how rows become prompts, and what is told of those that do not."""

import json
import os
import random
import resource
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from excise.plumbing.errors import StageError
from excise.plumbing.files import write_lines
from excise.prompts import chats as prompts
from excise.prompts.chats import identity, read_prompts
from excise.prompts.gathering import gather, in_order
from schemas.params.sources import CustomPrompts, PromptSource
from schemas.prompts import Prompt, PromptOrigin, Turn

KINDS = ("jsonl", "json", "csv", "parquet")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user's prompts, in a project of its own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def given(name: str, content: str | bytes, column: str | None = None) -> list[Prompt]:
    path = Path("data") / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return gather(PromptSource(source=path.as_posix(), column=column)).prompts


def texts(name: str, content: str | bytes, column: str | None = None) -> list[str]:
    return [prompt.prompt for prompt in given(name, content, column)]


def refused(name: str, content: str | bytes, column: str | None = None) -> str:
    with pytest.raises(StageError) as caught:
        given(name, content, column)
    assert str(caught.value).isprintable()
    return str(caught.value)


def lines(*objects: Any) -> str:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)


def test_a_text_file_holds_one_prompt_a_line() -> None:
    assert texts("a.txt", "one\n\n  two \r\n\t\nthree") == ["one", "two", "three"]


def test_a_jsonl_file_holds_one_object_a_line() -> None:
    content = lines({"prompt": "one\nline"}, {"prompt": " two ", "other": 1}) + "\n"
    assert texts("a.jsonl", content) == ["one\nline", "two"]


def test_a_column_says_where_the_prompt_is() -> None:
    assert texts("a.jsonl", lines({"prompt": "no", "goal": "yes"}), "goal") == ["yes"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_prompt(name: str) -> None:
    content = "one\n" if name == "a.txt" else lines({"prompt": "one"})
    assert texts(name, content.encode("utf-8-sig")) == ["one"]


def test_a_prompt_stands_once_in_the_order_of_the_file() -> None:
    assert texts("a.txt", "b\na\nb\n a \nc\n") == ["b", "a", "c"]


def test_an_id_depends_on_the_prompt_alone() -> None:
    first, second = given("a.txt", "one\ntwo\n"), given("b.jsonl", lines({"prompt": "two"}, {"prompt": "one"}))
    assert {prompt.prompt: prompt.id for prompt in first} == {prompt.prompt: prompt.id for prompt in second}
    assert len({prompt.id for prompt in first}) == 2


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c"], ids=ascii)
def test_characters_that_some_take_for_line_ends_stay_within_a_prompt(data: Path, character: str) -> None:
    text = f"one{character}line"
    found = given("raw.jsonl", lines({"prompt": text}))
    assert [prompt.prompt for prompt in found] == [text]
    write_lines(prompts.FOLDER / "list.jsonl", found)
    assert read_prompts("list") == found


@pytest.mark.parametrize("line", ['{"prompt": null}', '{"prompt": " "}', '{"prompt": []}', "", " \t"])
def test_a_line_that_asks_nothing_is_passed_over(line: str) -> None:
    assert texts("a.jsonl", f'{{"prompt": "one"}}\n{line}\n{{"prompt": "two"}}\n') == ["one", "two"]


@pytest.mark.parametrize(
    "line",
    [
        '{"goal": "x"}',
        '{"prompt": 7}',
        '["prompt"]',
        '"prompt"',
        "7",
        "null",
        "{",
        '{"prompt": "\\ud800"}',
        "[" * 100_000,
    ],
    ids=lambda line: line[:20],
)
def test_a_line_without_a_prompt_is_named_by_its_number(line: str) -> None:
    told = refused("a.jsonl", '{"prompt": "good"}\n\n' + line + "\n")
    assert told.startswith("data/a.jsonl: line 3 has no text in 'prompt'; ")


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", ""), ("a.txt", " \n\n"), ("a.jsonl", "\n"), ("a.txt", "\ufeff")]
)
def test_a_file_without_a_prompt_is_refused(name: str, content: str) -> None:
    assert refused(name, content) == f"data/{name} has no prompts; add some"


def test_text_that_is_not_utf_8_is_refused() -> None:
    assert refused("a.txt", "für".encode("latin-1")) == "data/a.txt is not UTF-8 text; convert it"


def test_a_missing_file_is_told_as_missing() -> None:
    with pytest.raises(
        StageError, match=r"^params\.yaml names data/a\.txt, which is missing or is not a file; put the file there$"
    ):
        gather(PromptSource(source="data/a.txt"))


@pytest.mark.parametrize("link", ["a.txt", "sub"])
def test_a_link_out_of_data_is_refused(data: Path, link: str) -> None:
    # DVC records what lies in data/: what a link leads to could change without notice.
    outside = data.parent / "outside"
    outside.mkdir()
    (outside / "a.txt").write_text("secret\n")
    (data / link).symlink_to(outside / "a.txt" if link == "a.txt" else outside)
    source = PromptSource(source="data/a.txt" if link == "a.txt" else "data/sub/a.txt")
    with pytest.raises(StageError, match=r"leads outside data/; copy the file there$"):
        gather(source)


def test_a_folder_data_that_is_a_link_is_refused(data: Path) -> None:
    data.rmdir()
    (data.parent / "outside").mkdir()
    (data.parent / "outside/a.txt").write_text("secret\n")
    data.symlink_to("outside")
    with pytest.raises(StageError, match=r"leads outside data/; copy the file there$"):
        gather(PromptSource(source="data/a.txt"))


def test_a_link_within_data_is_followed(data: Path) -> None:
    (data / "b.txt").write_text("one\n")
    (data / "a.txt").symlink_to("b.txt")
    assert [prompt.prompt for prompt in gather(PromptSource(source="data/a.txt")).prompts] == ["one"]


# Tables, and other kinds of files.


def write(kind: str, rows: list[dict[str, Any]], name: str = "rows") -> str:
    """The same rows in a file of any kind; its path."""
    path = Path("data") / f"{name}.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    elif kind == "jsonl":
        path.write_text(lines(*rows))
    else:
        quoted = (",".join('"' + str(cell).replace('"', '""') + '"' for cell in row.values()) for row in rows)
        path.write_bytes(("\r\n".join([",".join(rows[0]), *quoted]) + "\r\n").encode("utf-8-sig"))
    return path.as_posix()


ROWS = [
    {"topic": "fish", "prompt": "how do fish sleep ?"},
    {"topic": "fish", "prompt": 'a line,\nand "another"'},
    {"topic": "", "prompt": "  "},
    {"topic": "sky", "prompt": "wärum is the sky blue\u2028?"},
    {"topic": "sky", "prompt": "how do  fish\nsleep ?"},
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_prompts_and_counts(kind: str) -> None:
    found = gather(CustomPrompts(source=write(kind, ROWS), item="topic"))
    assert [(one.prompt, one.item) for one in found.prompts] == [
        ("how do fish sleep ?", "fish"),
        ('a line,\nand "another"', "fish"),
        ("wärum is the sky blue\u2028?", "sky"),
    ]
    assert (found.origin.rows, found.origin.empty, found.origin.duplicates) == (5, 1, 1)


@pytest.mark.parametrize("kind", ["txt", *KINDS])
def test_a_slice_is_of_the_file_s_own_rows_empty_ones_too(kind: str) -> None:
    rows = [{"prompt": text} for text in ("a", "b", "", "c", "d")]
    source = write(kind, rows) if kind != "txt" else "data/rows.txt"
    Path("data/rows.txt").write_text("a\nb\n\nc\nd\n")
    found = gather(PromptSource(source=source, slice="1:4"))
    assert [one.prompt for one in found.prompts] == ["b", "c"]
    assert (found.origin.rows, found.origin.empty) == (3, 1)


def test_a_slice_beyond_the_last_row_says_how_many_there_are() -> None:
    with pytest.raises(StageError, match=r"^data/rows\.csv has no prompts in rows 7:9 of its 5$"):
        gather(PromptSource(source=write("csv", ROWS), slice="7:9"))


def test_an_origin_tells_the_file_by_its_digest_and_holds_no_prompt() -> None:
    (Path("data") / "a.txt").write_bytes(b"one\n")
    assert gather(PromptSource(source="data/a.txt", slice=":3")).origin == PromptOrigin(
        kind="file",
        source="data/a.txt",
        revision=None,
        config=None,
        split=None,
        slice=":3",
        column=None,
        sha256="2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806",
        rows=1,
        empty=0,
        duplicates=0,
    )


def test_json_may_be_a_list_of_texts() -> None:
    assert texts("a.json", json.dumps(["one", "", None, "two"])) == ["one", "two"]


def test_a_row_without_a_text_is_an_error_also_outside_the_slice(data: Path) -> None:
    (data / "a.json").write_text('["one", 7]')
    with pytest.raises(StageError, match=r"^data/a\.json: row 1 has no text in 'prompt'; "):
        gather(PromptSource(source="data/a.json", slice=":1"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", '{"prompt": ["one"]}', "data/a.json is not a list; write a list of texts or of objects"),
        ("a.json", '["one", 7]', "data/a.json: row 1 has no text in 'prompt'; fix it or name another column"),
        (
            "a.json",
            '{"prompt": "one"}\n{"prompt": "two"}\n',
            "data/a.json is not JSON; fix it, or name it .jsonl if each line is an object",
        ),
        ("a.json", '[{"a": 1}]', "data/a.json: row 0 has no text in 'prompt'; fix it or name another column"),
        ("a.csv", "a,b\n1,2\n", "data/a.csv has no column 'prompt'; it has 'a', 'b'"),
        ("a.csv", "prompt,prompt\none,two\n", "data/a.csv has 2 columns 'prompt'; rename the others"),
        ("a.csv", "", "data/a.csv has no column 'prompt'; it has none"),
        (
            "a.csv",
            "prompt,topic\none,x\ntwo, or three,y\n",
            "data/a.csv: row 1 has 3 cells but the header has 2; put cells with commas in quotes",
        ),
        ("a.csv", 'prompt\n"one\n', "data/a.csv: line 2 is not CSV: unexpected end of data; fix it"),
        ("a.csv", "prompt\nfür\n".encode("latin-1"), "data/a.csv is not UTF-8 text; convert it"),
        ("a.json", '["für"]'.encode("utf-16"), "data/a.json is not UTF-8 text; convert it"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_one_line(name: str, content: str | bytes, says: str) -> None:
    assert refused(name, content) == says


SCRAPS = st.sampled_from(
    [
        b"prompt",
        b"\n",
        b"\r\n",
        b'"',
        b",",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"\xef\xbb\xbf",
        b"\x00",
        b"\xff",
        b"null",
        b"9" * 5000,
    ]
)


@hypothesis_given(
    st.sampled_from(["txt", *KINDS]), st.lists(st.one_of(SCRAPS, st.binary(max_size=6)), max_size=12).map(b"".join)
)
def test_whatever_the_bytes_are_there_are_prompts_or_one_line(kind: str, content: bytes) -> None:
    Path(f"data/any.{kind}").write_bytes(content)
    try:
        found = gather(PromptSource(source=f"data/any.{kind}")).prompts
    except StageError as error:
        assert str(error).startswith("data/any.") and "\n" not in str(error)
    else:
        assert found and all(prompt.prompt.strip() for prompt in found)


def test_parquet_that_is_none_or_was_cut_is_one_line(data: Path) -> None:
    write("parquet", ROWS)
    whole = (data / "rows.parquet").read_bytes()
    for content in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2]):
        assert refused("a.parquet", content).startswith("data/a.parquet is not a complete Parquet file: ")


def test_parquet_cells_that_are_no_text_are_named(data: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [1, 2]}), data / "a.parquet")
    with pytest.raises(StageError, match=r"^data/a\.parquet: row 0 has no text in 'prompt'; fix it or name "):
        gather(PromptSource(source="data/a.parquet"))
    with pytest.raises(StageError, match=r"^data/a\.parquet has no column 'ask'; it has 'prompt'$"):
        gather(PromptSource(source="data/a.parquet", column="ask"))


def test_parquet_texts_that_are_not_utf_8_are_named_by_their_row(data: Path) -> None:
    cells = pyarrow.array([b"one", "für".encode("latin-1")]).cast(pyarrow.binary())
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 2, cells.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), data / "a.parquet")
    with pytest.raises(StageError, match=r"^data/a\.parquet: row 1 has no text in 'prompt'; fix it or name "):
        gather(PromptSource(source="data/a.parquet"))


def test_parquet_with_any_byte_wrong_is_prompts_or_one_line(data: Path) -> None:
    whole = (data.parent / write("parquet", ROWS)).read_bytes()
    chance = random.Random(0)
    for _ in range(300):
        spoiled = bytearray(whole)
        spoiled[chance.randrange(len(whole))] = chance.randrange(256)
        (data / "a.parquet").write_bytes(spoiled)
        try:
            assert gather(PromptSource(source="data/a.parquet")).prompts
        except StageError as error:
            assert "\n" not in str(error)


def test_of_parquet_the_named_columns_alone_are_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("parquet", [{"prompt": "one", "topic": "a", "other": "b"}])
    read: list[Any] = []
    whole = pyarrow.parquet.ParquetFile.read

    def watched(self: Any, columns: Any = None, **settings: Any) -> Any:
        read.append(columns)
        return whole(self, columns=columns, **settings)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read", watched)
    gather(CustomPrompts(source="data/rows.parquet", item="topic"))
    assert read == [["prompt", "topic"]]


# Conversations.

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "name a colour"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": " and another ? "},
    {"role": "assistant", "content": "blue"},
]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_messages_end_with_the_user_s_last_turn_and_keep_what_was_said_before(kind: str) -> None:
    (found,) = gather(PromptSource(source=write(kind, [{"messages": TALK}]), column="messages")).prompts
    assert found.prompt == "and another ?"
    assert found.turns == [Turn(**turn) for turn in TALK[:3]]  # type: ignore[arg-type]


def test_share_gpt_s_names_mean_the_same() -> None:
    shared = [
        {"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], turn["role"]), "value": turn["content"]}
        for turn in TALK
    ]
    one, other = (given("a.jsonl", lines({"prompt": talk})) for talk in (TALK, shared))
    assert one == other


def test_one_message_is_the_same_prompt_as_its_text() -> None:
    (talk,) = given("a.jsonl", lines({"prompt": [{"role": "user", "content": "how ?"}]}))
    (text,) = given("a.txt", "how ?\n")
    assert talk == text and text.turns == []


def test_an_id_depends_on_what_was_said_before_too() -> None:
    first, second = given("a.jsonl", lines({"prompt": TALK}, {"prompt": TALK[3:]}))
    assert (first.prompt, len({first.id, second.id})) == (second.prompt, 2)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (["how ?"], ": message 0 in 'prompt' is not an object with role and content; fix it or name another column"),
        (
            [{"role": "tool", "content": "x"}],
            ": message 0 in 'prompt' has the role \"tool\"; allowed are system, user, assistant, human, gpt",
        ),
        (
            [{"role": ["user"], "content": "x"}],
            ": message 0 in 'prompt' has the role [\"user\"]; allowed are system, user, assistant, human, gpt",
        ),
        (
            [{"role": "user", "content": "\ud800"}],
            ": message 0 in 'prompt' has no text as its content; fix it or leave it out",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            ": message 0 in 'prompt' has no text as its content; fix it or leave it out",
        ),
        (
            [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}],
            " has no user message in 'prompt'; fix it or leave it out",
        ),
    ],
)
def test_messages_that_are_no_conversation_are_named(messages: list[Any], says: str) -> None:
    assert refused("a.jsonl", json.dumps({"prompt": messages})) == f"data/a.jsonl: line 1{says}"


# Order.

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=30, unique=True)


def made(texts: list[str]) -> list[Prompt]:
    return [Prompt(id=f"{number}-{text}", prompt=text) for number, text in enumerate(sorted(texts))]


@hypothesis_given(TEXTS, st.integers(0, 2**40), st.randoms(use_true_random=False))
def test_the_order_depends_on_seed_and_prompts_alone(texts: list[str], seed: int, shuffle: random.Random) -> None:
    prompts = made(texts)
    shuffled = shuffle.sample(prompts, len(prompts))
    assert in_order(prompts, seed) == in_order(shuffled, seed)


@hypothesis_given(TEXTS, st.integers(0, 2**40))
def test_one_prompt_more_moves_no_other(texts: list[str], seed: int) -> None:
    *prompts, last = made(texts)
    assert [prompt for prompt in in_order([*prompts, last], seed) if prompt != last] == in_order(prompts, seed)


def test_another_seed_is_another_order() -> None:
    prompts = made([str(number) for number in range(20)])
    orders = [[prompt.id for prompt in in_order(prompts, seed)] for seed in range(5)]
    assert len({tuple(order) for order in orders}) == 5 and [p.id for p in prompts] not in orders


def test_a_seed_s_order_stays_what_it_is() -> None:
    # Of another version, too: results are recorded by seed.
    found = given("a.txt", "".join(f"prompt {number}\n" for number in range(6)))
    assert [prompt.prompt[-1] for prompt in in_order(found, 0)] == list("240135")
    assert [prompt.prompt[-1] for prompt in in_order(found, 1)] == list("540213")


@hypothesis_given(st.lists(st.sampled_from(["a b", "a  b", "A b", "a\u0308", "\u00e4", "c"]), min_size=1))
def test_no_two_prompts_of_a_source_are_the_same(texts: list[str]) -> None:
    Path("data/some.jsonl").write_text(lines(*({"prompt": text} for text in texts)))
    found = gather(PromptSource(source="data/some.jsonl"))
    assert len({identity(prompt) for prompt in found.prompts}) == len(found.prompts)
    assert len(found.prompts) + found.origin.duplicates == len(texts)


# What is large, hostile or odd: read, or refused before it fills the machine.


def test_a_csv_cell_may_be_as_long_as_any_prompt_and_keeps_its_line_ends(data: Path) -> None:
    long = "a" * 300_000
    assert texts("a.csv", f'prompt\n"{long}"\n"one\r\ntwo\rthree\nfour"\n"nul\0in"\n') == [
        long,
        "one\r\ntwo\rthree\nfour",
        "nul\0in",
    ]


def test_what_unpacks_to_more_than_memory_is_one_line_and_the_limit_ends_with_it(data: Path) -> None:
    """Where `tests/damage` has the whole set, with its time and memory."""
    kept = resource.getrlimit(resource.RLIMIT_DATA)
    cells = pyarrow.table({"prompt": pyarrow.array(["x" * 1_000_000] * 10)})
    with pyarrow.parquet.ParquetWriter(data / "a.parquet", cells.schema, compression="zstd") as writer:
        for _ in range(100):
            writer.write_table(cells)
    assert (data / "a.parquet").stat().st_size < 200_000
    with pytest.raises(StageError, match=r"a\.parquet takes more than 384 MiB of memory"):
        gather(PromptSource(source="data/a.parquet"))
    assert resource.getrlimit(resource.RLIMIT_DATA) == kept


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "parquet"])
def test_a_pipe_or_a_loop_of_links_is_refused_and_not_waited_for(data: Path, kind: str) -> None:
    os.mkfifo(data / f"pipe.{kind}")
    (data / f"loop.{kind}").symlink_to(f"loop.{kind}")
    for name in ("pipe", "loop"):
        with pytest.raises(StageError, match="is missing or is not a file"):
            gather(PromptSource(source=f"data/{name}.{kind}"))


LABELED: list[dict[str, Any]] = [
    {"prompt": "a", "label": "safe", "number": 1, "flag": True},
    {"prompt": "b", "label": "unsafe", "number": 2, "flag": False},
    {"prompt": "c", "label": "safe", "number": 2, "flag": True},
]


def table(kind: str, rows: list[dict[str, Any]]) -> str:
    """These rows as a file of that kind."""
    path = Path("data") / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "csv":
        cells = [list(rows[0]), *([json.dumps(value).strip('"') for value in row.values()] for row in rows)]
        path.write_text("".join(",".join(row) + "\n" for row in cells))
    else:
        path.write_text(lines(*rows) if kind == "jsonl" else json.dumps(rows))
    return path.as_posix()


@pytest.mark.parametrize("kind", KINDS)
def test_only_rows_with_the_values_that_are_asked_for_are_taken(kind: str) -> None:
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"label": "safe"}, ["a", "c"]),
        ({"number": 2}, ["b", "c"]),
        ({"flag": False}, ["b"]),
        ({"label": "safe", "number": 2}, ["c"]),
    ]
    for where, expected in cases:
        found = gather(CustomPrompts(source=table(kind, LABELED), where=where))
        assert [prompt.prompt for prompt in found.prompts] == expected
        assert (found.origin.rows, found.origin.filtered, found.origin.where) == (3, 3 - len(expected), where)
    sliced = gather(CustomPrompts(source=table(kind, LABELED), where={"label": "safe"}, slice="1:"))
    assert [prompt.prompt for prompt in sliced.prompts] == ["c"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_on_no_column_or_that_leaves_nothing_is_one_line(kind: str) -> None:
    def told(**where: Any) -> str:
        with pytest.raises(StageError) as caught:
            gather(CustomPrompts(source=table(kind, LABELED), where=where))
        return str(caught.value)

    assert told(lable="safe").startswith(f"data/rows.{kind} has no column 'lable'")
    assert told(label="Safe", number=1) == (
        f'data/rows.{kind} has no row where label: "Safe", number: 1; name values that the file or dataset holds'
    )


def test_a_source_without_a_filter_is_recorded_as_before_there_were_filters() -> None:
    origin = gather(CustomPrompts(source=table("jsonl", LABELED))).origin.model_dump()
    assert not {"where", "filtered"} & origin.keys()
