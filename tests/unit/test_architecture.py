"""Rules of the house that import-linter cannot say: only one module knows the platform, and packages stay empty."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "container" / "dogbreed"
MODULES = sorted(PACKAGE.rglob("*.py"))
PLATFORM = re.compile(r"/opt/ml\b|\bSAGEMAKER_|\bSM_[A-Z]")


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def prose(tree: ast.AST) -> set[int]:
    """Ids of the strings that stand alone as a statement: docstrings, which may explain what they like."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def platform_knowledge(source: str) -> list[str]:
    """Where a module's code names the platform's folders or variables, or reads the process environment."""
    tree = ast.parse(source)
    skip = prose(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip:
            if PLATFORM.search(node.value):
                found.append(f"line {node.lineno}: {node.value!r}")
        elif isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"):
            if isinstance(node.value, ast.Name) and node.value.id == "os":
                found.append(f"line {node.lineno}: os.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [f"line {node.lineno}: os.{a.name}" for a in node.names if a.name in ("environ", "getenv")]
    return found


def test_the_package_is_found():
    assert PACKAGE / "environment.py" in MODULES


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_only_environment_knows_the_platform(file):
    if file == PACKAGE / "environment.py":
        assert platform_knowledge(file.read_text(encoding="utf-8")), "this test cannot see anything any more"
    else:
        assert platform_knowledge(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        'path = "/opt/ml/model"',
        'message = f"look into /opt/ml/{name}"',
        'environ["SAGEMAKER_BATCH"]',
        'get("SM_HOSTS")',
        "import os\nos.environ",
        "import os\nos.getenv('A')",
        "from os import environ",
    ],
)
def test_that_rule_can_be_broken(source):
    assert platform_knowledge(source)


def test_prose_may_explain_the_platform():
    assert platform_knowledge('"""Reads /opt/ml and SM_HOSTS."""\nx = 1\n"""SAGEMAKER_X"""\ny = "SMILE"') == []


@pytest.mark.parametrize("file", [file for file in MODULES if file.name != "__init__.py"], ids=name_of)
def test_every_module_says_what_it_is_for(file):
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":", "?"))


def test_every_package_is_empty():
    packages = [file for file in MODULES if file.name == "__init__.py"]
    assert packages
    assert [name_of(file) for file in packages if file.read_bytes()] == []


def test_every_folder_of_modules_is_a_package():
    folders = {file.parent for file in MODULES}
    assert [name_of(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
