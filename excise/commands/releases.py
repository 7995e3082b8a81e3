"""Past models and releases."""

from pathlib import Path

from excise.commands.parser import ITS_CACHE, PROJECT, arg, command

OUT = arg("out", type=Path, help="a new or empty folder")
LOCKED = arg("--locked", action="store_true", help="if it must be rebuilt, use the packages that its commit pins")


@command(
    arg("commit", help="or a branch or tag, at which `dvc repro` had run"),
    OUT,
    LOCKED,
    arg("--no-rebuild", action="store_true", help="fail rather than run the commit's code"),
    ITS_CACHE,
)
def model(commit: str, out: Path, locked: bool, no_rebuild: bool, cache: Path | None) -> None:
    """Get the edited model of any commit: from the cache, from the remote, or rebuilt."""
    from excise.gitops.git import commit_of
    from excise.gitops.models import ORIGINS, bring_back
    from excise.gitops.storage import use_cache

    commit = commit_of(PROJECT, commit)
    if cache is not None:
        use_cache(PROJECT, cache)
    origin = bring_back(PROJECT, commit, out, locked, not no_rebuild)
    print(f"{out} is the edited model of {commit[:12]}, {ORIGINS[origin]}; every file is as recorded there")


@command(
    arg("tag", help="or another name of the commit"),
    OUT,
    arg("--model", type=Path, required=True, metavar="DIR", help="the model's folder, made if it does not exist"),
    LOCKED,
)
def release(tag: str, out: Path, model: Path, locked: bool) -> None:
    """Write the files of a release of an edited model: its record, a card, and the report."""
    from excise.gitops.releases import write_release

    has_report = write_release(PROJECT, tag, out, model, locked)
    print(f"{out} holds the release of {tag}{'' if has_report else ', without its report, which is not available'}")


@command(
    arg("folder", type=Path, help="of the edited model"),
    arg("name", help="OWNER/NAME on the Hub"),
    arg("--public", action="store_true", help="make the repository public"),
)
def upload(folder: Path, name: str, public: bool) -> None:
    """Upload an edited model to the Hub, to a private repository by default."""
    from excise.gitops import hub

    print(f"{folder} is at {hub.upload(folder, name, public)}")
