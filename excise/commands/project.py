"""This project's own files."""

from excise.commands.parser import arg, command


@command(
    [
        arg("--write", action="store_true", help="write them to dvc.yaml"),
        arg("--check", action="store_true", help="exit with 1 if dvc.yaml is out of date"),
    ]
)
def deps(write: bool, check: bool) -> None:
    """Compute what each stage's code depends on (docs/design.md)."""
    from excise.plumbing import dependencies

    if write:
        print(f"dvc.yaml: {'written' if dependencies.write() else 'up to date'}")
    else:
        dependencies.check()


@command()
def upgrade() -> None:
    """Take over the results of an earlier version, without measuring or answering again."""
    from excise.upgrade import upgrade

    upgrade()


@command()
def schema() -> None:
    """Write schemas/params.schema.json and docs/params.md again from schemas/params/."""
    from excise.plumbing.files import write_text
    from schemas.documentation import documentation

    for path, text in documentation().items():
        write_text(path, text)
