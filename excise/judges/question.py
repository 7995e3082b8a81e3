"""What the judge `api` is asked: a template, ours or the user's own, filled with one prompt and one response."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from excise.plumbing.errors import StageError
from excise.prompts.rows import DATA, lies_in_data
from schemas.text import printable, shorten

BUILT_IN = Path(__file__).parent / "judge.txt.j2"
_KEY = "params.yaml: evaluate.api.prompt"
_NAMES = {"prompt", "response", "mark"}

Question = Callable[[str, str], str]
"""(prompt, response) → the text that is sent."""


def question(own: str | None) -> Question:
    """The question of a template under `data/`, or of the built-in one.

    A template runs in jinja2's sandbox: it comes with the data and not with the code.

    Raises:
        StageError: the file is missing, leads outside `data/`, or is no template that shows the response.
    """
    path = BUILT_IN if own is None else _under_data(Path(own))
    # What is sent is text for a model: there is nothing to escape.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except UnicodeDecodeError:
        raise StageError(f"{path} is not UTF-8 text; convert it") from None
    except TemplateError as error:
        raise StageError(f"{path} is not a jinja2 template: {_one_line(error)}") from None
    if "response" not in names or names - _NAMES:
        raise StageError(
            f"{path} must name response, may name prompt and mark, and names {', '.join(sorted(names)) or 'none'}"
        )

    def ask(prompt: str, response: str) -> str:
        try:
            return template.render(prompt=prompt, response=response, mark=mark(prompt, response))
        except Exception as error:  # a template is a program: what it raises is its own
            raise StageError(f"{path} cannot be filled in: {_one_line(error)}") from None

    return ask


def mark(prompt: str, response: str) -> str:
    """A line that occurs in neither text: it is made of their digest, so that no text can hold it on purpose."""
    digest = hashlib.sha256(f"{len(prompt)}\n{prompt}{response}".encode()).hexdigest()
    return f"----- {digest[:32]} -----"


def _under_data(path: Path) -> Path:
    if not path.is_file():
        raise StageError(f"{_KEY}: {path} is missing; put the file there")
    if not lies_in_data(path):
        raise StageError(f"{_KEY}: {path} leads outside {DATA}/; copy the file there")
    return path


def _one_line(error: Exception) -> str:
    return shorten(printable(" ".join(str(error).split())), 200)
