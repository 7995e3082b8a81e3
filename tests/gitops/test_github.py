"""What is asked of GitHub, over real HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from excise.gitops.publish import CONTEXT, GitHub
from excise.plumbing.errors import StageError
from tests.gitops.fake_github import OWN, FakeGitHub, fake_github

TOKEN = "ghs_this-is-the-token"
MARKER = "<!-- excise -->"


@pytest.fixture
def hub() -> Iterator[FakeGitHub]:
    with fake_github() as server:
        yield server


@pytest.fixture
def github(hub: FakeGitHub) -> Iterator[GitHub]:
    with GitHub("team/models", TOKEN, hub.address, f"{hub.address}/graphql", timeout=2) as client:
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
    assert hub.releases["model-1"]["body"] == "two"
    assert hub.assets == {"card.md": b"two", "edit.json": b"{}"}


def test_a_release_may_be_immutable_once_it_is_published(hub: FakeGitHub, github: GitHub, tmp_path: Path) -> None:
    hub.immutable = True
    (tmp_path / "card.md").write_text("one")
    github.release("model-#2", "one", [tmp_path / "card.md"])
    assert hub.assets == {"card.md": b"one"} and hub.releases["model-#2"]["draft"] is False


def test_what_is_no_tag_is_not_made_one(hub: FakeGitHub, github: GitHub) -> None:
    with pytest.raises(StageError, match="main is not a tag of team/models"):
        github.release("main", "x", [])
    assert not hub.releases


def test_files_of_a_release_go_to_github_alone(hub: FakeGitHub, github: GitHub, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("x")
    github.release("model-1", "x", [])
    hub.releases["model-1"]["upload_url"] = "https://elsewhere.example/uploads{?name}"
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
        (200, "<html>", "not JSON"),
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


def test_no_answer_is_one_line() -> None:
    nowhere = "http://127.0.0.1:9"
    with (
        GitHub("team/models", TOKEN, nowhere, f"{nowhere}/graphql", timeout=1) as github,
        pytest.raises(StageError, match="GitHub did not answer POST") as error,
    ):
        github.set_status("a" * 40, "success", "x", None)
    assert TOKEN not in str(error.value)
