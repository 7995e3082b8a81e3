"""Loading a tokenizer and its chat template, and checking both on a conversation: they may be broken or hostile."""

import contextlib
import faulthandler
import itertools
import json
import multiprocessing
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer

from excise.checkpoint.base_model import base_folder, read_config
from excise.checkpoint.weights import describes
from excise.inference.loading.models import read_model_config, remote_code_is_trusted
from excise.plumbing.errors import StageError
from excise.plumbing.files import digests, open_plain
from excise.plumbing.process import die_with
from excise.prompts.chats import chat_of, dated, render, short, tokenize
from schemas.model import ModelManifest
from schemas.prompts import ChatFormat, Prompt

LARGEST_FILE = 2**27  # bytes; the largest vocabularies have a quarter of this
CHECK_SECONDS = 15  # processor time for loading and checking a tokenizer
PROMPTS_A_SECOND = 100  # prompts for which the check gets another second; a thousand take a second
CHECK_MEMORY = (2**29, 12)
"""Bytes, and bytes for each byte of the folder's text files; half a million merges in 49 MiB of JSON took 830 MiB."""
_MOST_WAITED = 120
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_TEXT_FILES = {".json", ".jinja", ".txt", ".model", ".tiktoken"}
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def description_folder(manifest: ModelManifest) -> Path:
    """The folder of the base model's config and tokenizer, as pinned; it need not have weights. Raises `StageError`: a
    file is missing, cannot be fetched, or has changed."""
    paths = [file.path for file in manifest.files if describes(file.path)]
    folder = base_folder(manifest, paths)
    for file in digests(folder, paths):
        if file not in manifest.files:
            raise StageError(f"{folder / file.path} has changed since it was pinned; run `dvc repro --force prepare`")
    return folder


def load_tokenizer(folder: Path, date: str) -> Any:
    """The tokenizer in `folder`, with `date` for its chat template. Raises `StageError`: one is missing or broken."""
    _text_bytes(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=remote_code_is_trusted(folder)
        )
        old = folder / "chat_template.json"  # where older processors keep it; transformers' tokenizers do not read it
        template = tokenizer.chat_template or (json.loads(old.read_bytes())["chat_template"] if old.is_file() else None)
    except StageError:
        raise
    except Exception as error:  # each library raises errors of its own if a file is broken
        if not any((folder / name).exists() for name in _VOCABULARIES) and not [*folder.glob("*.tiktoken")]:
            where = f"{folder} has no tokenizer, such as {_VOCABULARIES[0]}"
            raise StageError(f"{where}; name a complete copy of the model") from None
        raise StageError(f"the tokenizer in {folder} does not load: {short(error)}; fetch its files again") from None
    if template is None:
        raise StageError(f"the tokenizer in {folder} has no chat template; name a chat model")
    templates = template if isinstance(template, dict) else {"": template}
    if not all(isinstance(text, str) for text in templates.values()):
        raise StageError(f"the chat template in {folder} is not a text; fetch its files again")
    dated_templates = {name: dated(text, date) for name, text in templates.items()}
    tokenizer.chat_template = dated_templates if templates is template else dated_templates[""]
    return tokenizer


def _text_bytes(folder: Path) -> int:
    """The size of all files that a tokenizer may read. Raises `StageError`: one is not a regular file or too large."""
    total = 0
    for path in sorted(path for path in folder.iterdir() if path.suffix in _TEXT_FILES and not path.is_dir()):
        with open_plain(path, "fetch it again") as file:
            size = os.fstat(file.fileno()).st_size
        if size > LARGEST_FILE:
            raise StageError(f"{path} has {size:,} bytes, too many for a tokenizer's file; fetch it again")
        total += size
    return total


def padding_id(tokenizer: Any, ends: list[int]) -> int:
    """The token that fills short rows of a batch. Attention masks it, so any will do if the model names none."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, *ends)
    return next((token for token in candidates if token is not None), 0)


def end_ids(tokenizer: Any, generation_config: Any) -> list[int]:
    """The tokens that end an answer: the model's, or else the tokenizer's."""
    ends = generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def check_chat(folder: Path, chat: ChatFormat, prompts: Sequence[Prompt] = ()) -> str:
    """A sample conversation as the model reads it, up to its answer. Raises `StageError`: the tokenizer in `folder` is
    broken, or makes of the sample or of `prompts` what the model cannot read. A process of its own does the work: a
    broken file may crash it, and a hostile one may use up time and memory."""
    memory = CHECK_MEMORY[0] + CHECK_MEMORY[1] * _text_bytes(folder)
    seconds = CHECK_SECONDS + len(prompts) // PROMPTS_A_SECOND
    return _in_a_process(folder, seconds, memory, lambda: _check(folder, chat, prompts))


def _check(folder: Path, chat: ChatFormat, prompts: Sequence[Prompt]) -> str:
    tokenizer = load_tokenizer(folder, chat.date)
    questions = [Prompt(id="1", prompt="What is the color of the sky?"), Prompt(id="2", prompt="How do fish sleep?")]
    tokens = tokenize(tokenizer, [*questions, *prompts], chat)
    if tokens[0] == tokens[1]:
        raise StageError(f"the tokenizer in {folder} turns different questions into the same prompt; name a chat model")
    vocabulary = getattr(read_model_config(folder).get_text_config(), "vocab_size", None)
    largest = max(token for prompt in tokens for token in prompt)
    for where, token in (*_special_tokens(folder, tokenizer), ("a prompt", largest)):
        if isinstance(vocabulary, int) and not 0 <= token < vocabulary:
            raise StageError(
                f"{folder}: token {token} of {where} is outside the vocabulary, which has {vocabulary:,} tokens; "
                "fetch tokenizer and config from one source"
            )
    return render(tokenizer, chat_of(questions[0], chat.system), chat)


def _special_tokens(folder: Path, tokenizer: Any) -> Iterator[tuple[str, int]]:
    """Each special token's number, after its key and file."""
    for name in _SPECIAL:
        if (token := getattr(tokenizer, name)) is not None:
            yield f"the tokenizer's {name}", token
    configs = {"config.json": read_config(folder)}
    if (generation := folder / "generation_config.json").is_file():
        try:
            configs[generation.name] = dict(json.loads(generation.read_bytes()))
        except (ValueError, TypeError, RecursionError):
            raise StageError(f"{generation} is not a JSON object; fetch it again") from None
    for file, name in itertools.product(configs, _SPECIAL):
        tokens = configs[file].get(name)
        for token in tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]:
            if type(token) is not int:
                value = short(ValueError(repr(token)))
                raise StageError(f"{folder / file}: {name} is {value}, not the number of a token; correct it")
            if (name, token) != ("pad_token_id", -1):  # some models without padding say -1
                yield f"{file}'s {name}", token


def _in_a_process(folder: Path, seconds: int, memory: int, check: Callable[[], str]) -> str:
    """What `check` returns or raises in a process of its own, with limits on its time and memory."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, seconds, memory, check))
    child.start()
    sender.close()
    answer, is_late = b"{}", False
    try:
        with contextlib.suppress(EOFError, OSError):  # the child ended before its answer did
            is_late = not receiver.poll(_MOST_WAITED + seconds)
            answer = b"{}" if is_late else receiver.recv_bytes()
    finally:
        receiver.close()
        child.kill()
        child.join()
    match json.loads(answer):
        case {"text": str(text)}:
            return text
        case {"error": str(text)}:
            raise StageError(text)
        case {"defect": str(text)}:
            raise RuntimeError(text)
    is_late |= child.exitcode == -signal.SIGXCPU
    does = f"takes more than {seconds} seconds" if is_late else "crashes or runs out of memory"
    raise StageError(f"the tokenizer in {folder} {does} while it is loaded and checked; fetch its files again")


def _answer(sender: Connection, seconds: int, memory: int, check: Callable[[], str]) -> None:
    """In the child: check within limits, answer, and exit without the parent's cleanup."""
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
            answer = {"text": check()}
        except StageError as error:
            answer = {"error": str(error)}
        except Exception:  # the parent raises it
            answer = {"defect": traceback.format_exc()}
        sender.send_bytes(json.dumps(answer).encode())
    finally:
        os._exit(0)
