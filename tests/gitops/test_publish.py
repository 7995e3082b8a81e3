"""Publishing a run: what the branch, the pull request and the status say afterwards, by its own command."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.evidence import ChangedSample, TaskChanges
from schemas.gitops import SampleFile
from tests.gitops.fake_github import fake_github
from tests.gitops.published import Published, lock, prepare, write_as_before
from tests.projects import ROOT, one_line


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Published]:
    with fake_github() as hub:
        yield prepare(tmp_path, hub)


def fail(run: Published) -> None:
    """Have a gate of the run fail."""
    judge(run, "fail")


def judge(run: Published, verdict: str, inconclusive: str = "warn") -> None:
    """Have the first gate of the run be in this state, and the others pass."""
    gates = json.loads((ROOT / "gates.json").read_text())
    for gate in gates["gates"]:
        gate |= {"verdict": "pass", "inconclusive": inconclusive}
    gates["verdict"] = gates["gates"][0]["verdict"] = verdict
    (run.handover / "gates.json").write_text(json.dumps(gates))
    lock(run)


STATES = [
    ("pass", "warn", "All gates pass", 0),
    ("inconclusive", "warn", "A gate is inconclusive", 0),
    ("inconclusive", "fail", "A gate is inconclusive, and not accepted", 4),
    ("void", "warn", "A gate is void", 3),
    ("fail", "warn", "A gate fails", 1),
]


@pytest.mark.parametrize(("verdict", "inconclusive", "said", "code"), STATES)
def test_the_status_is_a_success_only_where_each_gate_is_accepted(
    run: Published, verdict: str, inconclusive: str, said: str, code: int
) -> None:
    judge(run, verdict, inconclusive)
    done = run.publish()
    assert (done.returncode == 0) == (code == 0)
    states = {(status["state"], status["description"]) for _, status in run.hub.statuses}
    assert states == {("failure" if code else "success", said)}
    assert f"## {said}\n" in run.comments[0]


@pytest.mark.parametrize(("verdict", "inconclusive", "said", "code"), STATES)
def test_the_command_gate_exits_with_the_code_of_the_worst_gate(
    run: Published, verdict: str, inconclusive: str, said: str, code: int
) -> None:
    judge(run, verdict, inconclusive)
    run.publish(PULL_REQUEST="")
    run.clone.check("git", "checkout", "--quiet", run.tip)
    command = ("python", "-m", "excise", "gate")
    done = run.clone.run(*command, **run.settings)
    assert done.returncode == code and verdict in done.stdout
    if code:
        assert one_line(done) == f"ERROR: {said}: refusal.organism_harmful.refusal_rate; see report/report.md"
    assert run.clone.run(*command, "--show", **run.settings).returncode == 0


def test_gates_that_are_missing_are_an_error_of_their_own(run: Published) -> None:
    run.publish(PULL_REQUEST="")
    run.clone.check("git", "checkout", "--quiet", run.tip)
    command = ("python", "-m", "excise", "gate")
    (run.clone.folder / "gates.json").unlink()
    for show in ((), ("--show",)):
        assert run.clone.run(*command, *show, **run.settings).returncode == 2


def test_results_of_an_earlier_version_are_published_with_its_inconclusive_gates(run: Published) -> None:
    write_as_before(run.handover / "gates.json")
    lock(run)
    assert '"warn"' in (run.handover / "gates.json").read_text()
    assert run.publish().returncode == 0
    assert {(status["state"], status["description"]) for _, status in run.hub.statuses} == {
        ("success", "A gate is inconclusive")
    }
    assert "| **inconclusive** | inconclusive |" in run.comments[0]  # the base's is that of an earlier version, too
    assert run.origin.check("git", "show", "topic:gates.json") == (run.handover / "gates.json").read_text()


def test_results_are_recorded_shown_and_judged(run: Published) -> None:
    done = run.publish()
    assert done.returncode == 0, done.stderr
    assert run.origin.check("git", "log", "-1", "--format=%P", "topic").strip() == run.head
    assert run.origin.check("git", "show", "topic:gates.json") == (ROOT / "gates.json").read_text()
    (comment,) = run.comments
    assert "ablate.rules.0.scale" in comment and f"{run.tip[:12]}" in comment
    assert [(commit, said["state"]) for commit, said in run.hub.statuses] == [
        (run.head, "success"),
        (run.tip, "success"),
    ]
    assert run.hub.statuses[0][1]["target_url"] == "https://github.example/team/models/actions/runs/7"
    assert not run.clone.check("git", "status", "--porcelain")
    assert "ghs_secret" not in done.stdout + done.stderr + comment


def test_a_gate_that_fails_is_recorded_and_shown_and_fails_the_job(run: Published) -> None:
    fail(run)
    assert "A gate fails; the pull request's comment says which" in one_line(run.publish())
    assert run.tip != run.head
    assert "A gate fails" in run.comments[0]
    assert {said["state"] for _, said in run.hub.statuses} == {"failure"}


def test_a_branch_that_is_run_by_hand_has_no_comment(run: Published) -> None:
    assert run.publish(PULL_REQUEST="").returncode == 0
    assert run.tip != run.head and not run.comments


@pytest.mark.parametrize("name", ["GITHUB_TOKEN", "BRANCH", "COMMIT", "BASE", "GITHUB_REPOSITORY"])
def test_a_missing_setting_is_one_line_and_publishes_nothing(run: Published, name: str) -> None:
    assert f"{name} is not set" in one_line(run.publish(**{name: ""}))
    assert run.tip == run.head and not run.hub.asked


def test_a_number_that_is_none_is_one_line_and_publishes_nothing(run: Published) -> None:
    assert "PULL_REQUEST must be" in one_line(run.publish(PULL_REQUEST="../../releases/1"))
    assert run.tip == run.head and not run.hub.asked


def test_a_handover_that_is_not_accepted_publishes_nothing(run: Published) -> None:
    (run.handover / "gates.json").write_text("{}")
    assert "nothing was accepted" in one_line(run.publish())
    assert run.tip == run.head and not run.hub.asked


def test_a_token_that_may_not_comment_is_one_line_that_says_so(run: Published) -> None:
    run.hub.fails["POST /repos/.*/comments"] = (403, '{"message": "Resource not accessible by integration"}')
    error = one_line(run.publish())
    assert "the token lacks a permission" in error and "ghs_secret" not in error


def test_samples_are_shown_where_the_run_handed_them_on_and_act_on_nothing(run: Published) -> None:
    hostile = "```\n</details><img src=x onerror=alert(1)> @somebody \u202eevil " + "x" * 1_000_000
    sample = ChangedSample(
        id="1",
        prompt=hostile,
        base=hostile,
        ablated=hostile,
        base_verdict="refusal",
        ablated_verdict="compliance",
        metrics={"refusal_rate": (1.0, 0.0)},
    )
    changes = TaskChanges(group="refusal", task="organism_harmful", samples=1, changed=1, shown=[sample])
    (run.handover / "samples.json").write_text(SampleFile(tasks=[changes]).model_dump_json())
    assert run.publish().returncode == 0
    assert "onerror" not in run.comments[0]  # the branch does not decide that
    assert run.publish(SAMPLES="3", COMMIT=run.tip).returncode == 0
    (comment,) = run.comments
    assert "onerror" in comment and "\u202e" not in comment and len(comment.encode()) < 60_000
    fence, inside = "", 0
    for line in comment.splitlines():
        if fence:
            fence = "" if line.strip() == fence else fence
            inside += "onerror" in line
        elif opening := re.match(r"`{3,}", line):
            fence = opening[0]
        else:
            assert "onerror" not in line and "@somebody" not in line
    assert inside == 3 and not fence


def test_what_cannot_be_shown_is_not_recorded(run: Published) -> None:
    path = run.handover / "report/comparison.json"
    path.write_text(path.read_text().replace("refusal.organism_harmful.refusal_rate", "nodot", 1))
    lock(run)
    assert "report/comparison.json" in one_line(run.publish())
    assert run.tip == run.head and not run.hub.asked


def test_results_of_another_commit_are_not_recorded(run: Published) -> None:
    before = run.origin.check("git", "show", "main:params.yaml").encode()
    now = run.origin.check("git", "show", f"{run.head}:params.yaml").encode()
    path = run.handover / "dvc.lock"
    path.write_text(path.read_text().replace(hashlib.md5(now).hexdigest(), hashlib.md5(before).hexdigest()))
    for number in ("12", ""):
        assert "params.yaml changed since report ran" in one_line(run.publish(PULL_REQUEST=number))
    assert run.tip == run.head and not run.hub.asked


def test_publishing_again_changes_nothing(run: Published) -> None:
    assert run.publish().returncode == 0
    before = (run.tip, run.comments, run.hub.statuses.copy())
    wrote = [asked for asked in run.hub.asked if not asked.startswith("GET ") and "graphql" not in asked]
    assert run.publish().returncode == 0
    assert (run.tip, run.comments, run.hub.statuses) == before
    assert [asked for asked in run.hub.asked if not asked.startswith("GET ") and "graphql" not in asked] == wrote


@pytest.mark.parametrize("recorded", [True, False])
def test_a_branch_that_moved_on_meanwhile_gets_nothing_more(run: Published, recorded: bool) -> None:
    """Its later commit has a run of its own, whose comment must not be overwritten by an older one."""
    if recorded:
        assert run.publish().returncode == 0
    work = run.origin.folder.parent / "work"
    run.clone.check("git", "-C", str(work), "pull", "--quiet", str(run.origin.folder), "topic")
    run.clone.check("git", "-C", str(work), "commit", "--quiet", "--allow-empty", "--message", "later")
    run.clone.check("git", "-C", str(work), "push", "--quiet", str(run.origin.folder), "topic")
    asked, tip = len(run.hub.asked), run.tip
    assert "topic moved on" in one_line(run.publish())
    assert run.tip == tip and len(run.hub.asked) == asked


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("GITHUB_TOKEN", "ghs_secret\n"),
        ("GITHUB_TOKEN", "ghs_secrét"),
        ("GITHUB_API_URL", "api.github.com"),
        ("GITHUB_GRAPHQL_URL", "https:///graphql"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_without_the_token(run: Published, name: str, text: str) -> None:
    line = one_line(run.publish(**{name: text}))
    assert f"{name} must be" in line and "ghs_" not in line
    assert run.tip == run.head and not run.hub.asked
