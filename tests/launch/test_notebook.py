"""The notebook as it is stored: valid, without outputs, and with code that compiles.

tests/container/test_local_mode.py runs it.
"""

from __future__ import annotations

import ast
import json

from tests.launch.conftest import REPOSITORY

NOTEBOOK = json.loads((REPOSITORY / "docs" / "train_and_deploy.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_nothing_that_a_run_made_is_stored() -> None:
    assert [cell["outputs"] for cell in CODE] == [[]] * len(CODE)
    assert {cell["execution_count"] for cell in CODE} == {None}


def test_it_is_stored_for_local_mode() -> None:
    assert "".join(CODE[0]["source"]) == "LOCAL = True"


def test_what_later_cells_read_is_set_locally_and_in_the_account() -> None:
    statements = [statement for cell in CODE for statement in ast.parse("".join(cell["source"])).body]
    branches = [one for one in statements if isinstance(one, ast.If) and ast.unparse(one.test) == "LOCAL"]
    both = [one for one in branches if one.orelse]
    assert both
    read = _names([one for one in statements if one not in branches], ast.Load)
    for branch in both:
        assert (_names(branch.body, ast.Store) ^ _names(branch.orelse, ast.Store)) & read == set()


def _names(body: list[ast.stmt], kind: type[ast.expr_context]) -> set[str]:
    names = [node for statement in body for node in ast.walk(statement) if isinstance(node, ast.Name)]
    return {node.id for node in names if isinstance(node.ctx, kind)}
