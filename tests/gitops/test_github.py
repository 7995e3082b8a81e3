"""What is asked of GitHub, over real HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from excise.gitops.github import CONTEXT, GitHub
from excise.plumbing.errors import StageError
from tests.gitops.fake_github import OWN, FakeGitHub, Fault, fake_github

TOKEN = "ghs_this-is-the-token"
MARKER = "<!-- excise -->"


@pytest.fixture
def hub() -> Iterator[FakeGitHub]:
    with fake_github() as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    """How long it waited before it asked again."""
    return []


@pytest.fixture
def github(hub: FakeGitHub, pauses: list[float]) -> Iterator[GitHub]:
    with GitHub("team/models", TOKEN, hub.address, f"{hub.address}/graphql", timeout=2, sleep=pauses.append) as client:
        yield client


def test_there_is_one_comment_however_often_it_is_written(hub: FakeGitHub, github: GitHub) -> None:
    for number in range(5):
        hub.say("somebody", f"remark {number}")
    github.keep_comment(12, MARKER, f"{MARKER} first")
    hub.say("somebody", "a later remark")
    github.keep_comment(12, MARKER, f"{MARKER} second")
    assert [each["body"] for each in hub.comments if each["author"] == OWN] == [f"{MARKER} second"]
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_another_persons_comment_with_our_marker_is_left_alone(hub: FakeGitHub, github: GitHub) -> None:
    hub.say("somebody", f"{MARKER} mine")
    github.keep_comment(12, MARKER, f"{MARKER} ours")
    assert [each["body"] for each in hub.comments] == [f"{MARKER} mine", f"{MARKER} ours"]


def test_a_pull_request_that_is_not_there_is_one_line(github: GitHub) -> None:
    with pytest.raises(StageError, match="no pull request 13"):
        github.keep_comment(13, MARKER, MARKER)


def test_a_status_is_set_in_as_many_characters_as_github_takes(hub: FakeGitHub, github: GitHub) -> None:
    github.set_status("a" * 40, "failure", "x" * 500, "https://github.example/run")
    ((commit, said),) = hub.statuses
    assert commit == "a" * 40 and said["context"] == CONTEXT and said["state"] == "failure"
    assert len(said["description"]) == 140 and said["target_url"] == "https://github.example/run"


def test_a_release_is_made_once_and_its_files_are_replaced(hub: FakeGitHub, github: GitHub, tmp_path: Path) -> None:
    for text in ("one", "two"):
        (tmp_path / "card.md").write_text(text)
        (tmp_path / "edit.json").write_text("{}")
        assert github.release("model-1", text, [tmp_path / "card.md", tmp_path / "edit.json"])
    assert hub.published("model-1")["body"] == "two" and len(hub.releases) == 1
    assert hub.assets == {"card.md": b"two", "edit.json": b"{}"}


def test_a_release_may_be_immutable_once_it_is_published(hub: FakeGitHub, github: GitHub, tmp_path: Path) -> None:
    hub.immutable = True
    (tmp_path / "card.md").write_text("one")
    for _ in range(2):  # a release that is whole is left alone
        github.release("model-#2", "one", [tmp_path / "card.md"])
    assert hub.assets == {"card.md": b"one"} and hub.published("model-#2")
    assert len([asked for asked in hub.asked if not asked.startswith("GET ")]) == 3


def test_what_is_no_tag_is_not_made_one(hub: FakeGitHub, github: GitHub) -> None:
    with pytest.raises(StageError, match="main is not a tag of team/models"):
        github.release("main", "x", [])
    assert not hub.releases


def test_files_of_a_release_go_to_github_alone(hub: FakeGitHub, github: GitHub, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("x")
    github.release("model-1", "x", [])
    for elsewhere in ("https://elsewhere.example/uploads{?name}", hub.address.replace("http:", "https:"), "http://["):
        hub.published("model-1")["upload_url"] = elsewhere
        with pytest.raises(StageError, match="is not GitHub"):
            github.release("model-1", "x", [tmp_path / "card.md"])


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, '{"message": "Bad credentials"}', "401 Bad credentials; the token lacks a permission"),
        (403, '{"message": "Resource not accessible by integration"}', "the token lacks a permission"),
        (422, '{"message": "No commit found for SHA"}', "422 No commit found"),
        (500, "<html>", "500 Internal Server Error"),
        (302, "", "302"),
        (200, "<html>", "something other than the documented JSON"),
        (200, "[" * 100_000, "something other than the documented JSON"),
        (200, '["x"]', "something other than the documented JSON"),
    ],
)
def test_a_refusal_is_one_line_without_the_token(
    hub: FakeGitHub, github: GitHub, status: int, body: str, expected: str
) -> None:
    hub.fails["POST /repos"] = (status, body)
    with pytest.raises(StageError) as error:
        github.set_status("a" * 40, "success", "x", None)
    assert expected in str(error.value)
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)


def test_no_answer_is_one_line(pauses: list[float]) -> None:
    nowhere = "http://127.0.0.1:9"
    with (
        GitHub("team/models", TOKEN, nowhere, f"{nowhere}/graphql", timeout=1, sleep=pauses.append) as github,
        pytest.raises(StageError, match="GitHub did not answer GET") as error,
    ):
        github.set_status("a" * 40, "success", "x", None)
    assert TOKEN not in str(error.value)


def test_what_is_there_already_is_not_written_again(hub: FakeGitHub, github: GitHub) -> None:
    for _ in range(2):
        github.keep_comment(12, MARKER, f"{MARKER} first")
        github.set_status("a" * 40, "success", "x", "https://github.example/run")
    assert [asked for asked in hub.asked if asked.startswith(("POST /repos", "PATCH"))] == [
        "POST /repos/team/models/issues/12/comments",
        f"POST /repos/team/models/statuses/{'a' * 40}",
    ]
    github.set_status("a" * 40, "failure", "x", None)
    github.set_status("a" * 40, "success", "x", None)  # it was so before, and is not the newest
    assert [said["state"] for _, said in hub.statuses] == ["success", "failure", "success"]


def test_of_two_comments_of_ours_the_first_stays(hub: FakeGitHub, github: GitHub) -> None:
    for author, body in ((OWN, "one"), ("somebody", "theirs"), (OWN, "two"), (OWN, "three")):
        hub.say(author, f"{MARKER} {body}")
    github.keep_comment(12, MARKER, f"{MARKER} new")
    assert [each["body"] for each in hub.comments] == [f"{MARKER} new", f"{MARKER} theirs"]


def test_jobs_that_comment_at_once_leave_one_comment(hub: FakeGitHub, github: GitHub) -> None:
    """Both looked before either wrote."""
    hub.faults = [Fault("comments$", "slow", done=True, stop=lambda: hub.say(OWN, f"{MARKER} other"))]
    github.keep_comment(12, MARKER, f"{MARKER} ours")
    assert [each["body"] for each in hub.comments] == [f"{MARKER} ours"]


@pytest.mark.parametrize("endless", ["next", "new"])
def test_pages_without_end_are_one_line(hub: FakeGitHub, github: GitHub, endless: str) -> None:
    hub.endless = endless
    for step in (lambda: github.keep_comment(12, MARKER, MARKER), lambda: github.release("model-1", "x", [])):
        with pytest.raises(StageError, match="does not end within 100 pages"):
            step()
    assert not hub.comments and not hub.releases and len(hub.asked) < 300


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        (403, {"Retry-After": "7"}, 7),
        (429, {"Retry-After": "7"}, 7),
        (429, {}, 60),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"}, 1),
        (500, {"Retry-After": "soon"}, 2),
    ],
)
def test_a_request_is_repeated_when_github_allows_it(
    hub: FakeGitHub, github: GitHub, pauses: list[float], status: int, headers: dict[str, str], pause: float
) -> None:
    hub.faults = [Fault("POST", "these", answer=(status, '{"message": "x"}', headers))]
    github.set_status("a" * 40, "success", "x", None)
    assert pauses == [pause] and len(hub.statuses) == 1


@pytest.mark.parametrize("after", ["61", "999999999"])
def test_a_time_that_is_far_off_is_said(hub: FakeGitHub, github: GitHub, pauses: list[float], after: str) -> None:
    hub.faults = [Fault("POST", "these", answer=(403, "{}", {"Retry-After": after}))]
    with pytest.raises(StageError, match=r"run the job again after 20\d\d-\d\d-\d\d \d\d:\d\d UTC"):
        github.set_status("a" * 40, "success", "x", None)
    assert not pauses


def test_a_repeated_request_is_bounded(hub: FakeGitHub, github: GitHub, pauses: list[float]) -> None:
    hub.faults = [Fault("POST", "500", times=1000)]
    with pytest.raises(StageError, match="run the job again"):
        github.set_status("a" * 40, "success", "x", None)
    assert pauses == [2, 4, 8, 16]


def test_what_was_written_behind_an_answer_that_is_too_slow_is_found(hub: FakeGitHub, pauses: list[float]) -> None:
    hub.faults = [Fault("comments$", "slow", done=True)]
    with GitHub(
        "team/models", TOKEN, hub.address, f"{hub.address}/graphql", timeout=0.5, sleep=pauses.append
    ) as github:
        github.keep_comment(12, MARKER, MARKER)
    assert len(hub.comments) == len(pauses) == 1


def test_the_numbers_of_comments_do_not_fit_into_32_bits(hub: FakeGitHub, github: GitHub) -> None:
    hub.say(OWN, MARKER)
    assert hub.comments[0]["id"] > 2**31
    github.keep_comment(12, MARKER, f"{MARKER} new")
    assert hub.comments[0]["body"] == f"{MARKER} new"
