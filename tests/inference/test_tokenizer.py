"""Tokenizers and chat templates that are broken or hostile: one line each, in bounded time and memory."""

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from excise.inference.loading.tokenizer import (
    check_chat,
    description_folder,
    end_ids,
    load_tokenizer,
    padding_id,
)
from excise.plumbing.errors import StageError
from excise.prompts.chats import render
from schemas.basis.document import FileDigest
from schemas.model import ModelManifest
from schemas.prompts import ChatFormat, Prompt, Turn
from tests.chats import VOCABULARY, chat_tokenizer, template
from tests.hub import Hub

DATE = "2025-01-01"
TOKENIZER, CONFIG, JINJA = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
MODEL = {"model_type": "llama", "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0}

Change = Callable[[Path], Any]


def chat(system: str | None = None, **kwargs: Any) -> ChatFormat:
    return ChatFormat(system=system, chat_template_kwargs=kwargs, date=DATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound tokenizer beside the config of its model."""
    chat_tokenizer(template()).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    return tmp_path


def text(file: str, content: str | bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def edit(file: str, **keys: Any) -> Change:
    return lambda folder: (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **keys}))


def vocabulary(**tokens: int) -> Change:
    def change(folder: Path) -> None:
        document = json.loads((folder / TOKENIZER).read_text())
        document["model"]["vocab"].update(tokens)
        (folder / TOKENIZER).write_text(json.dumps(document))

    return change


def instead(make: Callable[[Path], Any], file: str = TOKENIZER) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return change


def huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**40)


BROKEN: dict[str, Change] = {
    "empty": text(TOKENIZER, ""),
    "cut": lambda folder: text(TOKENIZER, (folder / TOKENIZER).read_bytes()[:3000])(folder),
    "list": text(TOKENIZER, "[]"),
    "foreign": text(TOKENIZER, '{"version": "1.0", "model": {"type": "Foreign"}}'),
    "no text": text(TOKENIZER, bytes(range(128, 256))),
    "deep list": text(TOKENIZER, "[" * 100_000 + "]" * 100_000),
    "deep object": text(TOKENIZER, '{"a":' * 100_000 + "1" + "}" * 100_000),
    "huge": instead(huge),
    "missing": instead(lambda _: None),
    "pipe": instead(os.mkfifo),
    "loop of links": instead(lambda path: path.symlink_to(path)),
    "link to nothing": instead(lambda path: path.symlink_to("nothing")),
    "folder": instead(Path.mkdir),
    "negative token": vocabulary(a=-1),
    "token of 64 bits": vocabulary(a=2**40),
    "normalizer that multiplies": edit(
        TOKENIZER,
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "s"}, "content": "s" * 40}] * 12,
        },
    ),
    "bad expression": edit(
        TOKENIZER,
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    ),
    "added token without text": edit(TOKENIZER, added_tokens=[{"id": 5}]),
    "config is a list": text(CONFIG, "[1]"),
    "config is cut": text(CONFIG, '{"a"'),
    "class is a number": edit(CONFIG, tokenizer_class=5),
    "class reads other files": edit(CONFIG, tokenizer_class="T5Tokenizer"),
    "class knows no such words": edit(CONFIG, tokenizer_class="BertTokenizer"),
    "length is a text": edit(CONFIG, model_max_length="x"),
    "token is a number": edit(CONFIG, bos_token=5),
    "tokens are a number": edit(CONFIG, extra_special_tokens=5),
    "added tokens are a list": edit(CONFIG, added_tokens_decoder=[1]),
    "template is missing": instead(lambda _: None, JINJA),
    "template is no text": text(JINJA, bytes(range(128, 256))),
    "template is a number": lambda folder: [
        instead(lambda _: None, JINJA)(folder),
        edit(CONFIG, chat_template=5)(folder),
    ],
    "template has no default": lambda folder: [
        instead(lambda _: None, JINJA)(folder),
        edit(CONFIG, chat_template=[{"name": "tool_use", "template": "x"}])(folder),
    ],
    "old template is a list": instead(lambda path: path.with_suffix(".json").write_text("[1]"), JINJA),
    "old template is a number": instead(
        lambda path: path.with_suffix(".json").write_text('{"chat_template": 5}'), JINJA
    ),
    "template asks nothing": text(JINJA, "hello"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_tokenizer_is_one_line_and_harms_no_other_process(folder: Path, change: Change) -> None:
    change(folder)
    began = time.monotonic()
    with pytest.raises(StageError) as error:
        check_chat(folder, chat())
    line = str(error.value)
    assert len(line.replace(str(folder), "FOLDER")) <= 400 and "\n" not in line
    assert time.monotonic() - began < 20


def test_a_folder_without_a_tokenizer_is_told_so(folder: Path) -> None:
    (folder / TOKENIZER).unlink()
    with pytest.raises(StageError, match=f"^{folder} has no tokenizer, such as {TOKENIZER}; name a complete copy"):
        load_tokenizer(folder, DATE)


def test_a_sound_one_gives_a_sample_of_what_the_model_reads(folder: Path) -> None:
    assert check_chat(folder, chat("be brief")) == (
        "<bos><|system|>be brief\n<|user|>What is the color of the sky?\n<|assistant|>\n"
    )


def test_no_more_than_a_gibibyte_is_taken_meanwhile(folder: Path) -> None:
    for content in ("{{ 'a' * 10**10 }}", GROWING):
        text(JINJA, content)(folder)
        with pytest.raises(StageError, match="MiB of memory"):
            check_chat(folder, chat())
    BROKEN["normalizer that multiplies"](folder)
    with pytest.raises(StageError):
        check_chat(folder, chat())
    # In kibibytes; a child is a copy of this process, whatever this one holds by now.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2**20 + max(2**18, own)


GROWING = (
    "{%- set all = namespace(text='aaaaaaaaaa') -%}"
    "{%- for _ in range(40) -%}{%- set all.text = [all.text, all.text, all.text] | join -%}{%- endfor -%}"
)
LOOP = "{%- for a in range(99999) -%}{%- for b in range(99999) -%}{%- endfor -%}{%- endfor -%}"

HOSTILE = {
    "loop": (LOOP, "more than 5 seconds"),
    "power": ("{%- set n = 10 -%}{{ n ** (n ** 9) % 7 }}", "more than 5 seconds"),
    "constant": ("{{ 'a' * 10**10 }}", "MiB of memory"),
    "joins": (GROWING, "MiB of memory"),
    "lists": (
        "{%- set all = namespace(x=[1]) -%}{%- for _ in range(60) -%}{%- set all.x = all.x + all.x -%}{%- endfor -%}",
        "MiB of memory",
    ),
    "width": ("{{ '{:>10000000000}'.format('a') }}", "MiB of memory"),
    "long": ("{{ 'a' * 10**7 }}", "10,000,000 characters"),
    "nested": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
    "recursive": ("{%- macro f() -%}{{ f() }}{%- endmacro -%}{{ f() }}", "recursion"),
    "syntax": ("{% if %}", "Expected an expression"),
    "undefined": ("{{ a.b.c }}", "'a' is undefined"),
    "unsafe": ("{{ cycler.__init__.__globals__ }}", "unsafe"),
    "talkative": ("{{ raise_exception('x' * 10000) }}", "xxx…xxx"),
}


@pytest.mark.parametrize(("content", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_one_line(content: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if says.endswith("seconds"):
        monkeypatch.setattr("excise.prompts.chats.TEMPLATE_SECONDS", 0.3)
        says = "more than 0.3 seconds"
    began, limit = time.monotonic(), resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(StageError) as error:
        render(chat_tokenizer(content), [{"role": "user", "content": "hello"}], chat())
    assert "chat template rejects these prompts: " in str(error.value) and says in str(error.value)
    assert len(str(error.value)) <= 400
    assert time.monotonic() - began < 10 and resource.getrlimit(resource.RLIMIT_DATA) == limit


def test_a_long_conversation_is_not_taken_for_a_template_s_doing() -> None:
    message = {"role": "user", "content": "a " * 2**20}
    assert len(render(chat_tokenizer(template()), [message], chat())) > 2**21


def test_a_template_that_drops_a_system_message_is_told() -> None:
    last = chat_tokenizer("{{- messages[-1]['content'] -}}")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    with pytest.raises(StageError, match="chat template ignores system messages; remove yours:"):
        render(last, messages, chat())
    assert render(last, messages[1:], chat()) == "hello"


def test_every_kind_of_conversation_is_tried(folder: Path) -> None:
    text(JINJA, "{%- if messages | length > 2 -%}{{ raise_exception('one turn only') }}{%- endif -%}" + template())(
        folder
    )
    talk = Prompt(id="1", prompt="and ?", turns=[Turn(role="user", content="a"), Turn(role="assistant", content="b")])
    check_chat(folder, chat(), [Prompt(id="2", prompt="a ?")])
    with pytest.raises(StageError, match="one turn only"):
        check_chat(folder, chat(), [Prompt(id="2", prompt="a ?"), talk])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (edit("config.json", eos_token_id=[2, VOCABULARY]), "config.json's eos_token_id"),
        (edit("config.json", bos_token_id=-1), "config.json's bos_token_id"),
        (text("generation_config.json", '{"pad_token_id": 99999}'), "generation_config.json's pad_token_id"),
        (edit("config.json", vocab_size=2), "the tokenizer's eos_token_id"),
        (edit("config.json", vocab_size=100), "a prompt"),
    ],
)
def test_tokens_outside_of_the_vocabulary_are_named(folder: Path, change: Change, where: str) -> None:
    change(folder)
    with pytest.raises(StageError, match=f"of {where} is outside the vocabulary"):
        check_chat(folder, chat())


def test_minus_one_is_how_some_say_that_nothing_pads(folder: Path) -> None:
    edit("config.json", pad_token_id=-1)(folder)
    assert check_chat(folder, chat())


def test_the_template_of_an_older_processor_is_read(folder: Path) -> None:
    expected = load_tokenizer(folder, DATE).chat_template
    (folder / JINJA).rename(folder / "saved")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": (folder / "saved").read_text()}))
    assert load_tokenizer(folder, DATE).chat_template == expected


def test_a_defect_of_ours_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.inference.loading.tokenizer.render", lambda *_: 1 // 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        check_chat(folder, chat())


def test_any_token_pads_where_none_is_named() -> None:
    bare, sound = chat_tokenizer(template(), named={}), chat_tokenizer(template())
    none, two = GenerationConfig(), GenerationConfig(eos_token_id=[7, 8])
    assert [end_ids(bare, none), end_ids(bare, two), end_ids(sound, none)] == [[], [7, 8], [2]]
    assert [padding_id(sound, [7]), padding_id(bare, [7]), padding_id(bare, [])] == [0, 7, 0]


@pytest.fixture
def of_the_hub(local_hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelManifest:
    """A pinned model of the Hub, of which this machine has nothing."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"model.safetensors": b"weights"}
    revision = local_hub.add("some/model", files)
    local_hub.use(monkeypatch, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    digests = [
        FileDigest(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for path, data in files.items()
    ]
    known: dict[str, Any] = {"model_type": "llama", "dtype": "float32", "layers": 2, "hidden_size": 4}
    return ModelManifest(source="hub", id="some/model", revision=revision, files=digests, **known)


def test_what_describes_a_model_of_the_hub_comes_without_its_weights(local_hub: Hub, of_the_hub: ModelManifest) -> None:
    found = description_folder(of_the_hub)
    assert load_tokenizer(found, DATE).chat_template == template()
    assert {"config.json", TOKENIZER} <= {path.name for path in found.iterdir()}
    assert not (found / "model.safetensors").exists() and "model.safetensors" not in local_hub.downloads()
    local_hub.asked.clear()
    assert description_folder(of_the_hub) == found and not local_hub.asked


def test_a_description_that_is_not_the_pinned_one_is_one_line(of_the_hub: ModelManifest) -> None:
    other = of_the_hub.files[0].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(StageError, match=f"{other.path} has changed since it was pinned; run"):
        description_folder(of_the_hub.model_copy(update={"files": [other, *of_the_hub.files[1:]]}))
