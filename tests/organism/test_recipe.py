"""Whoever changes how the organism is trained decides whether it is another recipe."""

import ast
import hashlib
from pathlib import Path

from excise.organism import world
from schemas.params.organism import RECIPE

CODE = {4: "cb570537c9892012c494a611a6f28996b92503168e19eb13b816b1da494029f7"}
"""By version of the recipe, the digest of the code that belongs to it: without imports and docstrings, which give no
other weights."""


def without_words(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [
                each
                for each in body
                if not isinstance(each, ast.Import | ast.ImportFrom)
                and not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
            ]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def test_code_that_trains_otherwise_is_another_recipe() -> None:
    code = [without_words(path) for path in sorted(Path(world.__file__).parent.glob("*.py"))]
    digest = hashlib.sha256("\0".join(code).encode()).hexdigest()
    assert CODE.get(RECIPE) == digest, (
        f"the code that trains the organism changed: if it gives other weights, raise RECIPE; then write {digest} here"
    )
