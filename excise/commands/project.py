"""This project's own files."""

from pathlib import Path

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


@command(
    arg("model", help="a folder, organization/name on the Hub, or a model type"),
    arg("--write", action="store_true", help="also write it to schemas/architectures/"),
)
def layout(model: str, write: bool) -> None:
    """Measure which tensors of a model write to the residual stream and read it, and print that with its proof."""
    from excise.checkpoint.weights import read_checkpoint
    from excise.discovery.examination import declare, examine, example
    from excise.gitops.terminal import print_layout

    if Path(model).is_dir():
        checkpoint = read_checkpoint(Path(model))
        examined = examine(checkpoint.folder, checkpoint.tensors, checkpoint.files, model)
    elif "/" in model:
        from excise.checkpoint.snapshots import fetch_description, read_headers  # slow to import
        from excise.gitops.hub import newest

        revision = newest(model, "model")
        folder = fetch_description(model, revision)
        examined = examine(folder, *read_headers(model, revision, folder), model)
    else:
        with example(model) as folder:
            checkpoint = read_checkpoint(folder)
            examined = examine(folder, checkpoint.tensors, checkpoint.files, model)
    print_layout(examined.layout, examined.rows(), examined.proof, examined.copied(), examined.differences)
    if write:
        print(declare(examined.layout.family))
