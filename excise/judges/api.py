"""The judge `api`: a language model behind an OpenAI-compatible endpoint. Address and key come only from the
environment, because whoever can change params.yaml must not be able to send the key elsewhere."""

import contextlib
import email.utils
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import httpx2
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential,
)

from excise.judges import Judge, Judgment, Scoring
from excise.plumbing.errors import StageError
from excise.plumbing.files import DATA, Unreadable, lies_in_data, read_document, write_text
from excise.plumbing.progress import progress
from schemas.basis.document import Document
from schemas.basis.fields import PATH, matches
from schemas.basis.text import one_line, printable, shorten
from schemas.results import Verdict

BUILT_IN = Path(__file__).parent / "judge.txt.j2"
BUILT_IN_RUBRIC = Path(__file__).parent / "rubric.txt.j2"
_PARAMS = "params.yaml: evaluate.judge.api"
_NAMES = {"prompt", "response", "mark"}

CACHE = Path(".excise/judge")
_ADDRESS = "OPENAI_BASE_URL"
_KEY = "OPENAI_API_KEY"
_DEFAULT_ADDRESS = "https://api.openai.com/v1"

_ATTEMPTS = 5
_PAUSES = wait_exponential(multiplier=1)  # 1 s, 2 s, 4 s …, unless the endpoint asks for another pause
_LONGEST_PAUSE = 300.0  # that an endpoint may ask for, in seconds
_TIMEOUT = 60.0
_MOST_TOKENS = 16
_DECORATION = " \n\"'`*."  # may surround a label
Body = dict[str, Any]

_MALFORMED = (ValueError, LookupError, TypeError, RecursionError)


class Api(Judge):
    """A language model behind an OpenAI-compatible endpoint, whose address and key come from the environment only."""

    model: str
    """The model's name, as the endpoint knows it."""
    prompt: (
        Annotated[
            str,
            matches(
                rf"data/{PATH}\.(?:txt|j2)", "a .txt or .j2 file under data/ (such as data/judge.txt, without . or ..)"
            ),
        ]
        | None
    ) = None
    """A template under `data/` with `{{ prompt }}` and `{{ response }}`; `null`: the built-in one (docs/judges.md)."""
    rubric: (
        Annotated[str, matches(rf"built-in|data/{PATH}\.(?:txt|j2)", "built-in, or a .txt or .j2 file under data/")]
        | None
    ) = None
    """A template as of `prompt` that asks how well the question was answered, from 0 to 1: the metric `answer_score`.
    `built-in`: the one that comes with excise; `null`: no score."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests sent at once."""

    def load(self, *, sleep: Callable[[float], None] | None = None, timeout: float = _TIMEOUT) -> Judgment:
        """Read the template and the environment. Raises `StageError`: one of them is missing or malformed."""
        ask = self._asking(question(self.prompt), sleep, timeout)
        return lambda answers: [cast(Verdict, reply.verdict) for reply in ask(answers, _read_verdict)]

    def load_scoring(
        self, *, sleep: Callable[[float], None] | None = None, timeout: float = _TIMEOUT
    ) -> Scoring | None:
        """The same for the rubric."""
        if self.rubric is None:
            return None
        template = question(None if self.rubric == "built-in" else self.rubric, "rubric", BUILT_IN_RUBRIC)
        ask = self._asking(template, sleep, timeout)
        return lambda answers: [cast(float, reply.score) for reply in ask(answers, _read_score)]

    def _asking(
        self, fill_in: Callable[[str, str], str], sleep: Callable[[float], None] | None, timeout: float
    ) -> Callable[[Sequence[tuple[str, str]], "_Read"], list["_Reply"]]:
        """What asks the endpoint about answers, unless the cache has its reply."""
        address, key = _address(), _key()

        def ask_all(answers: Sequence[tuple[str, str]], read: _Read) -> list[_Reply]:
            bodies = [_body(self.model, fill_in(prompt, response)) for prompt, response in answers]
            files = [_cache_file(body) for body in bodies]
            replies: dict[Path, _Reply] = {}
            for file in files:
                with contextlib.suppress(Unreadable):
                    reply = read_document(_Reply, file)
                    if read(str(reply.verdict if reply.score is None else reply.score)) is not None:
                        replies[file] = reply
            missing = {file: body for file, body in zip(files, bodies, strict=True) if file not in replies}
            client = httpx2.Client(
                headers={"Authorization": f"Bearer {key}"},
                timeout=timeout,
                limits=httpx2.Limits(max_connections=self.concurrency),
                follow_redirects=False,  # a redirect would send the key elsewhere
            )
            with client, progress("Judge", len(missing), "answers") as advance:
                endpoint = _Endpoint(client, address, key, sleep, read)

                def ask(file: Path) -> _Reply:
                    reply = _Reply(model=self.model, **endpoint.reply(missing[file]))
                    write_text(file, reply.model_dump_json(exclude_none=True) + "\n")
                    advance(1)
                    return reply

                with ThreadPoolExecutor(self.concurrency) as pool:
                    try:
                        replies.update(zip(missing, pool.map(ask, missing), strict=True))
                    except BaseException:
                        endpoint.stop.set()
                        pool.shutdown(cancel_futures=True)
                        raise
            return [replies[file] for file in files]

        return ask_all


class _Reply(Document):
    """What the cache keeps: a verdict or a score."""

    model: str
    verdict: Verdict | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None


_Read = Callable[[str], dict[str, Any] | None]
"""Reads a reply's text, without decoration; None if it is not what was asked for."""


def _read_verdict(text: str) -> dict[str, Any] | None:
    label = text.casefold()
    return {"verdict": label} if label in get_args(Verdict) else None


def _read_score(text: str) -> dict[str, Any] | None:
    return {"score": float(text)} if re.fullmatch(r"0(?:\.[0-9]{1,9})?|1(?:\.0{1,9})?", text) else None


def question(template_file: str | None, key: str = "prompt", built_in: Path = BUILT_IN) -> Callable[[str, str], str]:
    """Fills a template with a prompt and response, in jinja2's sandbox because it comes with the data. Raises
    `StageError`: the file is missing, leads outside `data/`, or is not a template that shows the response."""
    path, place = built_in if template_file is None else Path(template_file), f"{_PARAMS}.{key}"
    if not path.is_file():
        raise StageError(f"{place}: {path} is missing; put the file there")
    if template_file is not None and not lies_in_data(path):
        raise StageError(f"{place}: {path} leads outside {DATA}/; copy the file there")
    # The text is for a model, so nothing needs escaping.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except UnicodeDecodeError:
        raise StageError(f"{path} is not UTF-8 text; convert it") from None
    except TemplateError as error:
        raise StageError(f"{path} is not a jinja2 template: {one_line(error, 200)}") from None
    if "response" not in names or names - _NAMES:
        named = ", ".join(sorted(names)) or "none"
        raise StageError(f"{path} must name response, may name prompt and mark, and names {named}")

    def fill_in(prompt: str, response: str) -> str:
        try:
            return template.render(prompt=prompt, response=response, mark=mark(prompt, response))
        except Exception as error:  # templates are programs that may raise anything
            raise StageError(f"{path} cannot be filled in: {one_line(error, 200)}") from None

    return fill_in


def mark(prompt: str, response: str) -> str:
    """A line that occurs in neither text, not even on purpose, because it contains their digest."""
    digest = hashlib.sha256(f"{len(prompt)}\n{prompt}{response}".encode()).hexdigest()
    return f"----- {digest[:32]} -----"


class _Failure(Exception):
    def __init__(
        self, reason: str, advice: str = "run again later; verdicts so far are kept", pause: float | None = None
    ) -> None:
        super().__init__(reason)
        self.advice, self.pause = advice, pause


class _Endpoint:
    def __init__(
        self,
        client: httpx2.Client,
        address: httpx2.URL,
        key: str,
        sleep: Callable[[float], None] | None,
        read: _Read,
    ) -> None:
        self.stop = threading.Event()
        self._client, self._address, self._key, self._read = client, address, key, read
        self._retrying = Retrying(
            retry=retry_if_exception_type(_Failure),
            stop=stop_after_attempt(_ATTEMPTS) | stop_when_event_set(self.stop),
            wait=_next_pause,
            sleep=sleep or sleep_using_event(self.stop),  # a pause ends when another thread fails
            reraise=True,
        )

    def reply(self, body: Body) -> dict[str, Any]:
        """The verdict on an answer, or its score, retrying. Raises `StageError`: all fail, or a retry cannot help."""
        try:
            return self._retrying(self._ask, body)
        except _Failure as failure:
            raise self._error(f"{failure}, {_ATTEMPTS} times", failure.advice) from None

    def _ask(self, body: Body) -> dict[str, Any]:
        try:
            response = self._client.post(self._address, json=body)
        except httpx2.TimeoutException:
            raise _Failure("did not respond in time") from None
        except httpx2.RequestError as error:
            raise _Failure(f"cannot be reached ({type(error).__name__}: {self._safe(str(error))})") from None
        status = response.status_code
        if status == 429 or status >= 500:
            failure = _Failure(f"answered with status {status}", pause=_pause(response.headers.get("Retry-After")))
            if failure.pause is not None and failure.pause > _LONGEST_PAUSE:
                raise self._error(f"{failure} and asks for a pause of {failure.pause:.0f} s", failure.advice)
            raise failure
        if status != 200:
            reason = f"answered with status {status}{self._complaint(response)}"
            raise self._error(reason, f"check {_ADDRESS}, {_KEY} and evaluate.judge.api")
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except _MALFORMED:
            raise _Failure("did not answer with a chat completion") from None
        reply = self._read(content.strip(_DECORATION)) if isinstance(content, str) else None
        if reply is None:
            shown = shorten(printable(self._safe(repr(content))), 40)
            wanted = "a verdict" if self._read is _read_verdict else "a number from 0 to 1"
            raise _Failure(f"answered {shown}, which is not {wanted}", advice="name another model or template")
        return reply

    def _complaint(self, response: httpx2.Response) -> str:
        """The endpoint's own message; empty if it is about the key, which it may quote in part."""
        if response.status_code in (401, 403):
            return ""
        try:
            return f" ({shorten(printable(self._safe(str(response.json()['error']['message']))), 200)})"
        except _MALFORMED:
            return ""

    def _safe(self, text: str) -> str:
        return text.replace(self._key, "…")

    def _error(self, reason: str, advice: str) -> StageError:
        return StageError(f"evaluate.judge.api: the judge at {self._address.host} {reason}; {advice} (docs/judges.md)")


def _body(model: str, text: str) -> Body:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "seed": 0,
        "max_tokens": _MOST_TOKENS,
    }


def _cache_file(body: Body) -> Path:
    """Named by the request, whatever the endpoint."""
    return CACHE / f"{hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}.json"


def _next_pause(state: RetryCallState) -> float:
    failure = state.outcome.exception() if state.outcome else None
    pause = failure.pause if isinstance(failure, _Failure) else None
    return _PAUSES(state) if pause is None else pause


def _pause(retry_after: str | None) -> float | None:
    """The seconds of a `Retry-After` header, which is a number or a date; None if it is missing or malformed."""
    if retry_after is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", retry_after):
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _address() -> httpx2.URL:
    address = os.environ.get(_ADDRESS) or _DEFAULT_ADDRESS
    try:
        url = httpx2.URL(address.rstrip("/") + "/chat/completions")
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise StageError(f"{_ADDRESS} must be an address such as {_DEFAULT_ADDRESS}, without user, password or query")
    return url


def _key() -> str:
    key = os.environ.get(_KEY, "").strip()
    if not key:
        reason = "is not set in the environment, and params.yaml: evaluate.judge is api"
        raise StageError(f"{_KEY} {reason}; set it (to any text if the endpoint needs no key)")
    if not (key.isascii() and key.isprintable()):
        raise StageError(f"{_KEY} must be printable ASCII; set it again")
    return key
