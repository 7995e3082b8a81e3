"""Requests to GitHub's API, and which failures of them are tried again."""

import contextlib
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

import httpx2
from pydantic import BaseModel, TypeAdapter, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
)

from excise.plumbing.errors import StageError
from schemas.basis.text import printable, shorten

ATTEMPTS = 5
"""How often a step is tried."""

_HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
_PAUSES = wait_exponential(multiplier=2)  # 2 s, 4 s, 8 s …, unless GitHub asks for another pause
_PAUSE_OF_LIMITS = 60.0  # seconds, for which GitHub asks where it limits requests and names no time
_LONGEST_PAUSE = 60.0  # for which GitHub may ask
_LATEST_ATTEMPT = 90.0  # seconds after the first one

Shape = TypeVar("Shape")
Result = TypeVar("Result")
Given = ParamSpec("Given")


class Passing(Exception):
    """A failure that may pass, after the pause in seconds for which GitHub asks, if it does."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class NotFound(StageError):
    """GitHub knows no such thing."""


class Requests:
    """Requests that carry a token; `timeout` is in seconds, and `sleep` waits between attempts."""

    def __init__(self, token: str, timeout: float, sleep: Callable[[float], None]) -> None:
        self._client = httpx2.Client(
            headers=_HEADERS | {"Authorization": f"Bearer {token}"},
            timeout=timeout,
            follow_redirects=False,  # which would lead the token elsewhere
        )
        self._retrying = Retrying(
            retry=retry_if_exception_type(Passing),
            stop=stop_after_attempt(ATTEMPTS) | stop_after_delay(_LATEST_ATTEMPT),
            wait=_next_pause,
            sleep=sleep,
            reraise=True,
        )

    def close(self) -> None:
        self._client.close()

    def repeated(self, step: Callable[Given, Result], *arguments: Given.args, **options: Given.kwargs) -> Result:
        """What a step returns that looks before it writes: it is tried again as a whole."""
        try:
            return self._retrying(step, *arguments, **options)
        except Passing as failure:
            raise StageError(f"{failure}; run the job again: it does what is still missing") from None

    def send(self, method: str, address: str, shape: type[Shape], **content: Any) -> Shape:
        """What GitHub answers. Raises `Passing` where another attempt may help, else `StageError`."""
        asked = f"{method} {httpx2.URL(address).path}"
        try:
            response = self._client.request(method, address, **content)
        except httpx2.RequestError as error:
            raise Passing(f"GitHub did not answer {asked}: {printable(str(error))}") from None
        if not response.is_success:
            raise _refusal(response, asked)
        try:
            return TypeAdapter(shape).validate_json(response.content or b"null")
        except ValidationError:
            raise Passing(f"GitHub answered {asked} with something other than the documented JSON") from None


class _Error(BaseModel):
    message: str


def _refusal(response: httpx2.Response, asked: str) -> Exception:
    status, said = response.status_code, _reason(response)
    what = f"GitHub {'refused' if status < 500 else 'failed at'} {asked}: {status} {said}"
    if status == 404:
        return NotFound(what)
    pause = _pause(response)
    limited = status == 429 or (status == 403 and (pause is not None or "rate limit" in said))
    if not limited and status < 500:
        return StageError(f"{what}; the token lacks a permission (docs/runner.md)" if status in (401, 403) else what)
    if pause is None:
        return Passing(what, _PAUSE_OF_LIMITS if limited else None)
    if pause > _LONGEST_PAUSE:
        then = datetime.now(UTC) + timedelta(seconds=pause)
        return StageError(f"{what}; run the job again after {then:%Y-%m-%d %H:%M} UTC, when GitHub allows it")
    return Passing(what, pause)


def _reason(response: httpx2.Response) -> str:
    with contextlib.suppress(ValidationError):
        return printable(shorten(_Error.model_validate_json(response.content).message, 200))
    return printable(response.reason_phrase)


def _pause(response: httpx2.Response) -> float | None:
    """The seconds that GitHub asks to wait, by either of the ways in which it limits requests."""
    after, reset = response.headers.get("retry-after", ""), response.headers.get("x-ratelimit-reset", "")
    if re.fullmatch("[0-9]{1,9}", after):
        return float(after)
    if response.headers.get("x-ratelimit-remaining") == "0" and re.fullmatch("[0-9]{1,10}", reset):
        return max(0.0, int(reset) - time.time()) + 1
    return None


def _next_pause(state: RetryCallState) -> float:
    failure = state.outcome.exception() if state.outcome else None
    pause = failure.pause if isinstance(failure, Passing) else None
    return _PAUSES(state) if pause is None else pause
