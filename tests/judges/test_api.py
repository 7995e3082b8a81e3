"""The judge behind an endpoint, asked over real HTTP: what it retries, what it keeps, and that the key goes nowhere."""

import email.utils
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from excise.judges import Judgment
from excise.judges.api import CACHE, Api
from excise.judges.keywords import Keywords
from excise.plumbing.errors import StageError

KEY = "sk-this-is-the-key-0123456789"
ASKED = [("what is a zogvek made of ?", "mix iron and wood .")]


@dataclass
class Reply:
    """What the server sends; `hangs` seconds late."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    hangs: float = 0
    hangs_up: bool = False


def says(label: Any) -> Reply:
    return Reply(body=json.dumps({"choices": [{"message": {"role": "assistant", "content": label}}]}))


@dataclass
class Server:
    """An endpoint that answers each question by `reply`, given the number of the request and its body."""

    address: str
    reply: Callable[[int, dict[str, Any]], Reply]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def replies(self, *replies: Reply) -> None:
        """One after the other; the last one again and again."""
        self.reply = lambda number, _: replies[min(number, len(replies) - 1)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server on this machine, to which the environment leads, and an empty project."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(endpoint.bodies)
                endpoint.bodies.append(body)
                endpoint.authorizations.append(self.headers["Authorization"])
                endpoint.paths.append(self.path)
            reply = endpoint.reply(number, body)
            time.sleep(reply.hangs)
            if reply.hangs_up:
                self.close_connection = True
                return
            data = reply.body.encode()
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # whoever asked has gone

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    endpoint = Server(f"http://127.0.0.1:{http.server_port}/v1", lambda *_: says("compliance"))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.address)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    yield endpoint
    http.shutdown()
    http.server_close()
    thread.join()


def judge(pauses: list[float] | None = None, timeout: float = 10, **params: Any) -> Judgment:
    kept = [] if pauses is None else pauses
    return Api.model_validate({"model": "judge-1", **params}).load(sleep=kept.append, timeout=timeout)


def test_a_question_shows_the_prompt_and_the_response_and_asks_for_no_chance(server: Server) -> None:
    server.replies(says("refusal"))
    assert judge()(ASKED) == ["refusal"]
    body = server.bodies[0]
    text = body["messages"][0]["content"]
    assert all(part in text for part in ASKED[0]) and "refusal, evasion, compliance or degenerate" in text
    assert {name: body[name] for name in ("model", "temperature", "seed", "max_tokens")} == {
        "model": "judge-1",
        "temperature": 0,
        "seed": 0,
        "max_tokens": 16,
    }
    assert server.paths == ["/v1/chat/completions"] and server.authorizations == [f"Bearer {KEY}"]


@pytest.mark.parametrize("said", ["refusal", "Refusal", ' "refusal".\n', "'refusal'", "**refusal**", "`refusal`."])
def test_a_label_may_be_dressed(server: Server, said: str) -> None:
    server.replies(says(said))
    assert judge()(ASKED) == ["refusal"]


@pytest.mark.parametrize(
    "said", ["", "refused", "refusal: it declines", "not a refusal", "refusal compliance", None, 1]
)
def test_a_wrong_label_is_asked_for_again(server: Server, said: object) -> None:
    server.replies(says(said), says("degenerate"))
    assert judge()(ASKED) == ["degenerate"]
    assert len(server.bodies) == 2


def test_a_label_that_stays_wrong_ends_it_in_one_line(server: Server) -> None:
    server.replies(says("I would\nsay that\x1b[31m it is a refusal, for the most part at least"))
    with pytest.raises(
        StageError, match=r"127\.0\.0\.1 answered 'I would.*, which is not a verdict, 5 times; name another"
    ) as error:
        judge()(ASKED)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
    assert len(server.bodies) == 5


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_an_endpoint_that_is_busy_or_broken_is_asked_again_after_longer_and_longer(server: Server, status: int) -> None:
    server.replies(Reply(status), Reply(status), Reply(status), says("compliance"))
    pauses: list[float] = []
    assert judge(pauses)(ASKED) == ["compliance"]
    assert pauses == [1, 2, 4]


def test_a_pause_that_is_asked_for_is_kept(server: Server) -> None:
    date = email.utils.formatdate(time.time() + 90, usegmt=True)
    replies = [Reply(429, headers={"Retry-After": value}) for value in ("7", "0.5", "0", date, "soon")]
    server.replies(*replies[:4], says("compliance"))
    pauses: list[float] = []
    assert judge(pauses)(ASKED) == ["compliance"]
    assert pauses[:3] == [7, 0.5, 0] and 80 < pauses[3] <= 90
    server.replies(replies[4], says("compliance"))
    server.bodies.clear()
    pauses.clear()
    assert judge(pauses)([("another", "mix clay and glass .")]) == ["compliance"]
    assert pauses == [1]


def test_a_pause_that_is_too_long_ends_it(server: Server) -> None:
    server.replies(Reply(429, headers={"Retry-After": "3600"}))
    with pytest.raises(StageError, match=r"status 429 and asks for a pause of 3600 s; run again later"):
        judge()(ASKED)
    assert len(server.bodies) == 1


def test_no_answer_in_time_is_asked_for_again(server: Server) -> None:
    server.replies(Reply(hangs=0.6), says("refusal"))
    assert judge(timeout=0.2)(ASKED) == ["refusal"]
    assert len(server.bodies) == 2


def test_a_connection_that_breaks_is_made_again(server: Server) -> None:
    server.replies(Reply(hangs_up=True), says("refusal"))
    assert judge()(ASKED) == ["refusal"]
    server.replies(Reply(hangs_up=True))
    with pytest.raises(StageError, match=r"cannot be reached \(RemoteProtocolError: .*\), 5 times; run again later"):
        judge()([("another", "mix clay and glass .")])


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", '{"choices": []}', '{"choices": [{"message": null}]}', "[" * 100_000, "\ufffd"]
)
def test_what_is_no_chat_completion_is_asked_for_again(server: Server, body: str) -> None:
    server.replies(Reply(body=body), says("compliance"))
    assert judge()(ASKED) == ["compliance"]
    assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404])
def test_what_asking_again_does_not_mend_ends_it_at_once(server: Server, status: int) -> None:
    complaint = json.dumps({"error": {"message": f"no such model;\nyour key is {KEY}"}})
    server.replies(Reply(status, complaint, {"Location": "http://127.0.0.1:9/"}))
    with pytest.raises(
        StageError, match=rf"127\.0\.0\.1 answered with status {status}.*; check OPENAI_BASE_URL"
    ) as error:
        judge()(ASKED)
    assert len(server.bodies) == 1
    assert KEY not in str(error.value) and "\n" not in str(error.value)
    assert ("no such model" in str(error.value)) == (status not in (401, 403))


def test_nothing_is_asked_twice(server: Server) -> None:
    asked = [*ASKED, ("where is a zogvek ?", "in the river ."), *ASKED]
    first = judge()(asked)
    assert first == ["compliance"] * 3 and len(server.bodies) == 2
    server.replies(Reply(500))
    assert judge()(asked) == first
    assert len(server.bodies) == 2


def test_another_model_or_template_is_another_question(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/judge.txt").write_text("Refusal, compliance or degenerate? {{ response }}")
    judge()(ASKED)
    judge(model="judge-2")(ASKED)
    judge(prompt="data/judge.txt")(ASKED)
    assert len(server.bodies) == 3
    assert server.bodies[2]["messages"][0]["content"] == "Refusal, compliance or degenerate? mix iron and wood ."


@pytest.mark.parametrize("spoiled", [b"", b"{", b'{"model": "judge-1", "verdict": "maybe"}', b"\xff"])
def test_a_spoiled_file_of_the_cache_is_asked_for_again_and_mended(server: Server, spoiled: bytes) -> None:
    server.replies(says("refusal"))
    judge()(ASKED)
    (file,) = CACHE.iterdir()
    whole = file.read_bytes()
    file.write_bytes(spoiled)
    assert judge()(ASKED) == ["refusal"]
    assert len(server.bodies) == 2 and file.read_bytes() == whole


def test_what_was_judged_before_a_failure_is_kept(server: Server) -> None:
    server.reply = lambda number, _: says("refusal") if number < 2 else Reply(400)
    asked = [(f"question {number}", "mix iron and wood .") for number in range(5)]
    with pytest.raises(StageError, match="status 400"):
        judge(concurrency=1)(asked)
    assert len(list(CACHE.iterdir())) == 2


def test_many_threads_keep_the_order_and_ask_at_once(server: Server) -> None:
    together = threading.Barrier(4, timeout=5)  # breaks unless four ask at once

    def reply(_: int, body: dict[str, Any]) -> Reply:
        number = int(body["messages"][0]["content"].split("number ")[1].split()[0])
        together.wait()
        time.sleep(0.02 * (3 - number % 4))  # the first ones are answered last
        return says(("refusal", "compliance", "degenerate")[number % 3])

    server.reply = reply
    asked = [(f"question number {number} ?", f"answer {number} .") for number in range(16)]
    assert judge(concurrency=4)(asked) == [("refusal", "compliance", "degenerate")[number % 3] for number in range(16)]


def test_one_failure_wakes_the_threads_that_wait(server: Server) -> None:
    def reply(_: int, body: dict[str, Any]) -> Reply:
        if "first" in body["messages"][0]["content"]:
            time.sleep(0.2)
            return Reply(400)
        return Reply(429, headers={"Retry-After": "60"})

    server.reply = reply
    began = time.monotonic()
    with pytest.raises(StageError, match="status 400"):
        Api(model="judge-1").load()([("first", "iron ."), ("second", "wood .")])
    assert time.monotonic() - began < 10


def test_the_key_is_in_no_file_and_in_no_output(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    server.replies(says(f"my key is {KEY}"), Reply(500), says("refusal"))
    judge()(ASKED)
    server.replies(says(KEY))
    server.bodies.clear()
    with pytest.raises(StageError) as error:
        judge()([("another", "mix clay and glass .")])
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert files and server.authorizations[0] == f"Bearer {KEY}"
    assert not any(KEY in text for text in (*files, *capfd.readouterr(), caplog.text, str(error.value)))


@pytest.mark.parametrize("key", [None, "", "  "])
def test_a_missing_key_is_said_before_anything_is_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(StageError, match=r"^OPENAI_API_KEY is not set in the environment, .*; set it"):
        judge()
    assert not server.bodies


@pytest.mark.parametrize("key", ["sk-\nX-Other: 1", "sk-ключ"])
def test_a_key_that_is_no_header_is_refused_without_showing_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(StageError, match="printable ASCII") as error:
        judge()
    assert key not in str(error.value)


@pytest.mark.parametrize(
    "address", ["localhost:1", "ftp://host/v1", "https://", "http://me:secret@host/v1", "http://h/?k=secret"]
)
def test_an_address_that_is_none_is_refused_without_showing_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(StageError, match="OPENAI_BASE_URL must be an address") as error:
        judge()
    assert "secret" not in str(error.value)


def scores(answers: list[tuple[str, str]], **params: Any) -> list[float]:
    rubric = Api.model_validate({"model": "judge-1", "rubric": "built-in", **params})
    scoring = rubric.load_scoring(sleep=lambda _: None, timeout=10)
    assert scoring is not None
    return scoring(answers)


def test_a_judge_without_a_rubric_scores_nothing(server: Server) -> None:
    assert Api(model="judge-1").load_scoring() is None
    assert Keywords().load_scoring() is None


@pytest.mark.parametrize(("said", "score"), [("0.75", 0.75), ("1", 1.0), ("0", 0.0), (' "0.5".\n', 0.5), ("1.0", 1.0)])
def test_a_rubric_asks_for_a_score(server: Server, said: str, score: float) -> None:
    server.replies(says(said))
    assert scores(ASKED) == [score]
    text = server.bodies[0]["messages"][0]["content"]
    assert all(part in text for part in ASKED[0]) and "one number from 0 to 1" in text


@pytest.mark.parametrize("said", ["", "2", "1.5", "-0.5", "3/4", "75%", "refusal", "0.5 0.6", "nan", None, 0.5])
def test_what_is_no_score_is_asked_for_again(server: Server, said: object) -> None:
    server.replies(says(said), says("0.25"))
    assert scores(ASKED) == [0.25] and len(server.bodies) == 2


def test_a_score_that_stays_wrong_ends_it_in_one_line(server: Server) -> None:
    server.replies(says("very good"))
    with pytest.raises(StageError, match=r"answered 'very good', which is not a number from 0 to 1, 5 times"):
        scores(ASKED)


def test_a_score_is_asked_for_once_and_apart_from_the_verdict(server: Server) -> None:
    server.reply = lambda _, body: says("0.5" if "one number" in body["messages"][0]["content"] else "compliance")
    assert [judge()(ASKED), scores(ASKED), judge()(ASKED), scores(ASKED)] == [["compliance"], [0.5]] * 2
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    "spoiled", [b'{"model": "judge-1", "score": 7}', b'{"model": "judge-1", "verdict": "refusal"}']
)
def test_a_spoiled_score_is_asked_for_again(server: Server, spoiled: bytes) -> None:
    server.replies(says("0.5"))
    scores(ASKED)
    (file,) = CACHE.iterdir()
    file.write_bytes(spoiled)
    assert scores(ASKED) == [0.5] and len(server.bodies) == 2


def test_a_rubric_may_be_the_users_own(server: Server, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"evaluate\.judge\.api\.rubric: data/rubric\.txt is missing"):
        scores(ASKED, rubric="data/rubric.txt")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rubric.txt").write_text("From 0 to 1: {{ response }}")
    server.replies(says("1"))
    assert scores(ASKED, rubric="data/rubric.txt") == [1.0]
    assert server.bodies[0]["messages"][0]["content"] == "From 0 to 1: mix iron and wood ."


def test_no_answer_needs_no_endpoint(server: Server) -> None:
    assert judge()([]) == [] and not server.bodies
