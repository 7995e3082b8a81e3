"""Loading a tokenizer and its chat template, which may be broken or hostile, and trying both on a conversation."""

import faulthandler
import itertools
import json
import os
import resource
import select
import signal
import stat
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer

from excise.checkpoint.base_model import base_folder, read_config
from excise.checkpoint.weights import describes
from excise.inference.loading.models import read_model_config, remote_code_is_trusted
from excise.plumbing.errors import StageError
from excise.plumbing.files import digests
from excise.plumbing.process import die_with
from excise.prompts.chats import chat_of, dated, render, short, tokenize
from schemas.model import ModelManifest
from schemas.prompts import ChatFormat, Prompt

OLD_TEMPLATE = "chat_template.json"
"""Where processors kept a chat template before it had a file of its own; transformers' tokenizers do not read it."""
LARGEST_FILE = 2**27
"""Bytes of a tokenizer's file; those of the largest vocabularies have a quarter of this."""
CHECK_SECONDS = 15
"""Processor time for loading a tokenizer and trying it."""
PROMPTS_A_SECOND = 100
"""Of those that are tried; a thousand take a second."""
CHECK_MEMORY = (2**29, 12)
"""Bytes for the same beyond what libraries take, and how many more for each byte of the folder's text files. Half a
million merges in 49 MiB of JSON were seen to take 830 MiB."""
_MOST_WAITED = 120

_TEXT_FILES = {".json", ".jinja", ".txt", ".model", ".tiktoken"}
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def description_folder(manifest: ModelManifest) -> Path:
    """Where the base's config and tokenizer lie on this machine, which need not have its weights; they are as prepare
    pinned them. Those of a model of the Hub are fetched if they are not there yet. Raises `StageError`: a file is
    missing, cannot be had from the Hub, or has changed."""
    # Slow to import, and needed only here.
    from excise.checkpoint.snapshots import fetch

    paths = [file.path for file in manifest.files if describes(file.path)]
    if manifest.id is not None and manifest.revision is not None:
        folder = fetch(manifest.id, manifest.revision, paths)
    else:
        folder = base_folder()
    for found in digests(folder, paths):
        if found not in manifest.files:
            raise StageError(f"{folder / found.path} has changed since it was pinned; run `dvc repro --force prepare`")
    return folder


def load_tokenizer(folder: Path, date: str) -> Any:
    """The tokenizer in `folder`, whose chat template knows no other day than `date`. Raises `StageError`: there is
    none, it is broken, or it has no chat template."""
    _text_bytes(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=remote_code_is_trusted(folder)
        )
        old = folder / OLD_TEMPLATE
        template = tokenizer.chat_template or (json.loads(old.read_bytes())["chat_template"] if old.is_file() else None)
    except StageError:
        raise
    except Exception as error:  # its files are others', and each library raises what it likes when one is broken
        raise StageError(
            f"the tokenizer in {folder} could not be loaded: {short(error)}; fetch its files again"
        ) from None
    if template is None:
        raise StageError(f"the tokenizer in {folder} has no chat template; refusal is measured on chat models")
    named = template if isinstance(template, dict) else {"": template}
    if not all(isinstance(text, str) for text in named.values()):
        raise StageError(f"the chat template in {folder} is not a text; fetch its files again")
    texts = {name: dated(text, date) for name, text in named.items()}
    tokenizer.chat_template = texts if named is template else texts[""]
    return tokenizer


def _text_bytes(folder: Path) -> int:
    """The size of all files that a tokenizer may be made of. Raises `StageError`: one is a pipe or holds gigabytes."""
    total = 0
    for path in sorted(path for path in folder.iterdir() if path.suffix in _TEXT_FILES and not path.is_dir()):
        try:
            status = path.stat()
        except OSError as error:
            raise StageError(f"{path} cannot be read: {error.strerror}; fetch it again") from None
        if not stat.S_ISREG(status.st_mode):
            raise StageError(f"{path} is not a regular file; fetch it again")
        if status.st_size > LARGEST_FILE:
            raise StageError(f"{path} has {status.st_size:,} bytes, too many for a tokenizer's file; fetch it again")
        total += status.st_size
    return total


def padding_id(tokenizer: Any, ends: list[int]) -> int:
    """What fills short rows of a batch, which attention masks: any token will do where neither of the two names one."""
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id, *ends)
    return next((token for token in named if token is not None), 0)


def end_ids(tokenizer: Any, generation_config: Any) -> list[int]:
    """The tokens that end an answer: the model's, or else the tokenizer's."""
    ends = generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def check_chat(folder: Path, chat: ChatFormat, prompts: Sequence[Prompt] = ()) -> str:
    """A sample conversation as the model reads it, up to where it answers. Raises `StageError` where the tokenizer in
    `folder` does not load, or makes no prompts that the model can read of this and of what it will be given. A process
    of its own does the work: a broken file may end it, and a hostile one may want all time and memory."""
    memory = CHECK_MEMORY[0] + CHECK_MEMORY[1] * _text_bytes(folder)
    seconds = CHECK_SECONDS + len(prompts) // PROMPTS_A_SECOND
    return _in_a_process(folder, seconds, memory, lambda: _check(folder, chat, prompts))


def _check(folder: Path, chat: ChatFormat, prompts: Sequence[Prompt]) -> str:
    tokenizer = load_tokenizer(folder, chat.date)
    questions = [Prompt(id="1", prompt="What is the color of the sky?"), Prompt(id="2", prompt="How do fish sleep?")]
    tokens = tokenize(tokenizer, [*questions, *prompts], chat)
    if tokens[0] == tokens[1]:
        raise StageError(
            f"the chat template or the tokenizer in {folder} makes the same prompt of different questions; name a chat "
            "model"
        )
    vocabulary = getattr(read_model_config(folder).get_text_config(), "vocab_size", None)
    largest = max(token for prompt in tokens for token in prompt)
    for where, token in (*_special_tokens(folder, tokenizer), ("a prompt", largest)):
        if isinstance(vocabulary, int) and not 0 <= token < vocabulary:
            raise StageError(
                f"{folder}: token {token} of {where} lies outside of the vocabulary, which has {vocabulary:,} tokens; "
                "fetch tokenizer and config from one source"
            )
    return render(tokenizer, chat_of(questions[0], chat.system), chat)


def _special_tokens(folder: Path, tokenizer: Any) -> Iterator[tuple[str, int]]:
    """Where each special token's number is said, and the number."""
    for name in _SPECIAL:
        if (token := getattr(tokenizer, name)) is not None:
            yield f"the tokenizer's {name}", token
    said = {"config.json": read_config(folder)}
    if (generation := folder / "generation_config.json").is_file():
        try:
            said[generation.name] = dict(json.loads(generation.read_bytes()))
        except (ValueError, TypeError, RecursionError):
            raise StageError(f"{generation} is not a JSON object; fetch it again") from None
    for file, name in itertools.product(said, _SPECIAL):
        tokens = said[file].get(name)
        for token in tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]:
            if type(token) is not int:
                raise StageError(
                    f"{folder / file}: {name} is {short(ValueError(repr(token)))}, and must be the number of a token; "
                    "correct it"
                )
            # By -1 some say that there is no padding.
            if (name, token) != ("pad_token_id", -1):
                yield f"{file}'s {name}", token


def _in_a_process(folder: Path, seconds: int, memory: int, check: Callable[[], str]) -> str:
    """What `check` gives or raises, where neither its time nor its memory nor a crash reaches this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(writer, seconds, memory, check)
    os.close(writer)
    answer = b""
    try:
        while (is_late := not select.select([reader], [], [], _MOST_WAITED + seconds)[0]) is False:
            part = os.read(reader, 2**16)
            answer += part
            if not part:
                break
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    try:
        kind, text = json.loads(answer)
    except ValueError:
        is_late |= os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
        does = f"takes more than {seconds} seconds" if is_late else "crashes or runs out of memory"
        raise StageError(
            f"the tokenizer in {folder} {does} while it is loaded and tried; fetch its files again"
        ) from None
    if kind == "error":
        raise StageError(text)
    if kind == "defect":
        raise RuntimeError(text)
    return str(text)


def _answer(writer: int, seconds: int, memory: int, check: Callable[[], str]) -> None:
    """In the other process: check within limits, answer, and end without what its parent does at its end."""
    try:
        die_with(os.getppid())
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # Rust reports its panics itself
            os.dup2(nowhere, stream)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        most = psutil.Process().memory_info().data + memory
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        try:
            answer = ("text", check())
        except StageError as error:
            answer = ("error", str(error))
        except Exception:  # it is told to the parent, which raises it there
            answer = ("defect", traceback.format_exc())
        with open(writer, "w") as pipe:
            json.dump(answer, pipe)
    finally:
        os._exit(0)
