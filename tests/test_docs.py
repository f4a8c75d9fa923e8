"""What the documents promise is tested: each test that they name is there, and each promise names one."""

import ast
import re

import pytest
from campaign import REPOSITORY

DOCUMENTS = ["docs/reliability.md", "docs/security.md"]
NAMED = re.compile(r"`(tests/[\w/]+(?:\.py)?)(?:::(\w+))?[^`]*`")


def rows(document):
    lines = (REPOSITORY / document).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("|") and not line.startswith(("| promise", "|---"))]


def functions_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_promise_names_its_test(document):
    found = rows(document)
    assert len(found) > 10
    for row in found:
        promise, proof = row.strip("| ").split(" | ")
        assert promise and NAMED.search(proof), row


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_named_test_is_there(document):
    missing = []
    for file, function in NAMED.findall((REPOSITORY / document).read_text(encoding="utf-8")):
        path = REPOSITORY / file
        if not path.exists() or (function and function not in functions_of(path)):
            missing.append(f"{file}::{function}")
        elif path.is_file() and not any(name.startswith("test_") for name in functions_of(path)):
            missing.append(f"{file} holds no test")
    assert not missing
