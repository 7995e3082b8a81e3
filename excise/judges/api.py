"""The judge `api`: a language model behind an OpenAI-compatible endpoint, asked with a template. Whom it asks, and with
which key, comes from the environment alone: who can change params.yaml must not be able to send a key elsewhere. What
was answered is kept under `.excise/judge/`, so that nothing is asked twice."""

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

from excise.judges import Judge, Judgement
from excise.plumbing.errors import StageError
from excise.plumbing.files import DATA, Unreadable, lies_in_data, read_document, write_text
from excise.plumbing.progress import progress
from schemas.basis.document import Document
from schemas.basis.fields import PATH, matches
from schemas.basis.text import one_line, printable, shorten
from schemas.results import Verdict

BUILT_IN = Path(__file__).parent / "judge.txt.j2"
_TEMPLATE = "params.yaml: evaluate.judge.api.prompt"
_NAMES = {"prompt", "response", "mark"}

CACHE = Path(".excise/judge")
_ADDRESS = "OPENAI_BASE_URL"
_KEY = "OPENAI_API_KEY"
_DEFAULT_ADDRESS = "https://api.openai.com/v1"

_ATTEMPTS = 5
_PAUSES = wait_exponential(multiplier=1)
"""1 s, 2 s, 4 s … between attempts, where the endpoint does not say how long."""
_LONGEST_PAUSE = 300.0
"""What an endpoint may ask for; beyond it, running again later serves better."""
_TIMEOUT = 60.0
_MOST_TOKENS = 16
_DRESS = " \n\"'`*."
"""What may stand around a label."""

Body = dict[str, Any]

_MALFORMED = (ValueError, LookupError, TypeError, RecursionError)
"""What reading an answer of another form raises."""


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
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests sent at once."""

    def load(self, *, sleep: Callable[[float], None] | None = None, timeout: float = _TIMEOUT) -> Judgement:
        """Read the template and the environment. Raises `StageError`: one of them is missing or malformed."""
        ask = question(self.prompt)
        address, key = _address(), _key()

        def judge(asked: Sequence[tuple[str, str]]) -> list[Verdict]:
            bodies = [_body(self.model, ask(prompt, response)) for prompt, response in asked]
            files = [_file(body) for body in bodies]
            verdicts = {file: verdict for file in files if (verdict := _kept(file)) is not None}
            missing = {file: body for file, body in zip(files, bodies, strict=True) if file not in verdicts}
            client = httpx2.Client(
                headers={"Authorization": f"Bearer {key}"},
                timeout=timeout,
                limits=httpx2.Limits(max_connections=self.concurrency),
                follow_redirects=False,  # which would lead the key elsewhere
            )
            with client, progress("Judge", len(missing), "answers") as advance:
                endpoint = _Endpoint(client, address, key, sleep)

                def settle(file: Path) -> Verdict:
                    verdict = endpoint.verdict(missing[file])
                    write_text(file, _Kept(model=self.model, verdict=verdict).model_dump_json() + "\n")
                    advance(1)
                    return verdict

                with ThreadPoolExecutor(self.concurrency) as pool:
                    try:
                        verdicts.update(zip(missing, pool.map(settle, missing), strict=True))
                    except BaseException:
                        endpoint.stop.set()
                        pool.shutdown(cancel_futures=True)
                        raise
            return [verdicts[file] for file in files]

        return judge


def question(own: str | None) -> Callable[[str, str], str]:
    """From prompt and response to the text that is sent, by a template under `data/`, or by the built-in one. It runs
    in jinja2's sandbox: it comes with the data and not with the code. Raises `StageError`: the file is missing, leads
    outside `data/`, or is no template that shows the response."""
    path = BUILT_IN if own is None else Path(own)
    if not path.is_file():
        raise StageError(f"{_TEMPLATE}: {path} is missing; put the file there")
    if own is not None and not lies_in_data(path):
        raise StageError(f"{_TEMPLATE}: {path} leads outside {DATA}/; copy the file there")
    # What is sent is text for a model: there is nothing to escape.
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

    def ask(prompt: str, response: str) -> str:
        try:
            return template.render(prompt=prompt, response=response, mark=mark(prompt, response))
        except Exception as error:  # a template is a program: what it raises is its own
            raise StageError(f"{path} cannot be filled in: {one_line(error, 200)}") from None

    return ask


def mark(prompt: str, response: str) -> str:
    """A line that occurs in neither text: it is made of their digest, so that no text can hold it on purpose."""
    digest = hashlib.sha256(f"{len(prompt)}\n{prompt}{response}".encode()).hexdigest()
    return f"----- {digest[:32]} -----"


class _Failure(Exception):
    """An attempt that gave no verdict."""

    def __init__(
        self, reason: str, do: str = "run again later; what is judged is kept", pause: float | None = None
    ) -> None:
        super().__init__(reason)
        self.do, self.pause = do, pause


class _Endpoint:
    """Where questions go, from any thread."""

    def __init__(
        self, client: httpx2.Client, address: httpx2.URL, key: str, sleep: Callable[[float], None] | None
    ) -> None:
        self.stop = threading.Event()
        self._client, self._address, self._key = client, address, key
        self._again = Retrying(
            retry=retry_if_exception_type(_Failure),
            stop=stop_after_attempt(_ATTEMPTS) | stop_when_event_set(self.stop),
            wait=_pause_before_the_next,
            sleep=sleep or sleep_using_event(self.stop),  # a pause ends where another thread has failed
            reraise=True,
        )

    def verdict(self, body: Body) -> Verdict:
        """The verdict on one answer, asked for again where that may help. Raises `StageError`: it never came, or asking
        again does not help."""
        try:
            return self._again(self._ask, body)
        except _Failure as failure:
            raise self._error(f"{failure}, {_ATTEMPTS} times", failure.do) from None

    def _ask(self, body: Body) -> Verdict:
        try:
            response = self._client.post(self._address, json=body)
        except httpx2.TimeoutException:
            raise _Failure("gave no answer in time") from None
        except httpx2.RequestError as error:
            raise _Failure(f"cannot be reached ({type(error).__name__}: {self._safe(str(error))})") from None
        status = response.status_code
        if status == 429 or status >= 500:
            failure = _Failure(f"answered with status {status}", pause=_pause(response.headers.get("Retry-After")))
            if failure.pause is not None and failure.pause > _LONGEST_PAUSE:
                raise self._error(f"{failure} and asks for a pause of {failure.pause:.0f} s", failure.do)
            raise failure
        if status != 200:
            what = f"answered with status {status}{self._complaint(response)}"
            raise self._error(what, f"check {_ADDRESS}, {_KEY} and evaluate.judge.api")
        try:
            said = response.json()["choices"][0]["message"]["content"]
        except _MALFORMED:
            raise _Failure("answered with other than a chat completion") from None
        label = said.strip(_DRESS).casefold() if isinstance(said, str) else None
        if label not in get_args(Verdict):
            shown = shorten(printable(self._safe(repr(said))), 40)
            raise _Failure(f"answered {shown}, which is not a verdict", do="name another model or template")
        return cast(Verdict, label)

    def _complaint(self, response: httpx2.Response) -> str:
        """What the endpoint says is wrong; nothing of it where it is about the key, which it may quote in part."""
        if response.status_code in (401, 403):
            return ""
        try:
            return f" ({shorten(printable(self._safe(str(response.json()['error']['message']))), 200)})"
        except _MALFORMED:
            return ""

    def _safe(self, text: str) -> str:
        return text.replace(self._key, "…")

    def _error(self, what: str, do: str) -> StageError:
        return StageError(f"evaluate.judge.api: the judge at {self._address.host} {what}; {do} (docs/judges.md)")


class _Kept(Document):
    """One file of the cache."""

    model: str
    verdict: Verdict


def _body(model: str, text: str) -> Body:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "seed": 0,
        "max_tokens": _MOST_TOKENS,
    }


def _file(body: Body) -> Path:
    """Where the verdict is kept, by what is asked, of whichever endpoint."""
    return CACHE / f"{hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}.json"


def _kept(file: Path) -> Verdict | None:
    """The verdict that was given before; None where there is none, or a file that cannot be read."""
    try:
        return read_document(_Kept, file).verdict
    except Unreadable:
        return None


def _pause_before_the_next(state: RetryCallState) -> float:
    failure = state.outcome.exception() if state.outcome else None
    asked = failure.pause if isinstance(failure, _Failure) else None
    return _PAUSES(state) if asked is None else asked


def _pause(asked: str | None) -> float | None:
    """The seconds of a `Retry-After`, which is a number or a date; None where there is none that can be read."""
    if asked is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", asked):
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return None


def _address() -> httpx2.URL:
    given = os.environ.get(_ADDRESS) or _DEFAULT_ADDRESS
    try:
        url = httpx2.URL(given.rstrip("/") + "/chat/completions")
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        what = f"is no address such as {_DEFAULT_ADDRESS}, without a name, a key or a question in it"
        raise StageError(f"{_ADDRESS} {what}")
    return url


def _key() -> str:
    key = os.environ.get(_KEY, "").strip()
    if not key:
        what = "is not set in the environment, and params.yaml: evaluate.judge is api"
        raise StageError(f"{_KEY} {what}; set it (to any text, where the endpoint wants none)")
    if not (key.isascii() and key.isprintable()):
        raise StageError(f"{_KEY} holds other than printable ASCII; set it again")
    return key
