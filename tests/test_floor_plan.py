"""Imports go downwards only, without circles: the table of rooms, read from the code itself."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dreambooth_ext"
F0 = {"errors", "options", "progress", "files", "config", "run_folder", "host", "patience", "watchdog", "ram"}
F0 |= {"lookups", "desktop", "gpu", "metrics", "outbox", "signals", "words", "file_lock", "run_state"}
MAY_IMPORT = {
    "dataset": F0,
    "models": F0,
    "training": F0 | {"models", "dataset.manifest", "dataset.buckets"},
    "playground": F0 | {"models"},
    "card": F0,
    "check": F0 | {"card", "dataset", "models", "training", "needs"},
    "plot": set(),
    "presets": F0,
    "other_trainers": F0 | {"presets"},
    "ledger": F0,
    "tensorboard_log": F0,
    "report_sections": F0 | {"plot", "comparison", "ledger", "share_plot", "dataset.pictures"},
    "report": F0 | {"report_sections"},
    "record": F0 | {"report"},
    "team": F0,
    "inputs": F0 | {"dataset", "models"},
    "recipe": F0 | {"dataset", "models", "training", "card", "check", "rollback", "team", "ledger", "record", "tensorboard_log"}
    | {"inputs"},
    "picture_room": F0 | {"dataset", "models", "check", "recipe"},
    "likeness": set(),
    "comparison": F0,
    "compare": F0 | {"models", "training", "comparison", "likeness", "recipe", "record", "inputs"},
    "rollback": F0 | {"comparison", "training"},
    "share_plot": {"comparison"},
    "jobs": F0,
    "origin": F0,
    "uploads": F0 | {"dataset"},
    "demo": F0 | {"dataset", "models", "training", "playground", "recipe", "hosts.standalone"},
    "hosts": F0 | {"models", "origin"},
    "needs": set(),
    "advice": F0 | {"dataset", "models"},
    "service": F0 | {"check", "recipe", "jobs", "uploads", "comparison", "compare", "rollback", "report", "picture_room"},
    "ui": F0 | {"check", "recipe", "presets", "other_trainers", "report", "plot", "jobs", "service", "advice", "needs"}
    | {"origin", "comparison", "share_plot", "picture_room", "dataset"},
    "api": F0 | {"presets", "other_trainers", "uploads", "picture_room", "service", "origin"},
    "commands": F0
    | {"check", "recipe", "presets", "other_trainers", "report", "jobs", "hosts", "demo", "playground", "ui", "models"}
    | {"dataset", "rollback", "service", "compare", "comparison", "picture_room", "api"},
    "cli": F0 | {"commands"},
    "__main__": {"cli"},
    "__init__": set(),
}
ONLY_IN = {"gradio": "ui", "modules": "hosts"}
# in the rooms that the WebUI loads at its start
NEVER_AT_IMPORT = {"torch", "diffusers", "transformers", "accelerate"}
LIGHT = F0 | {"dataset", "hosts", "ui", "api", "service", "advice", "needs", "jobs", "check", "recipe", "team"}
LIGHT |= {"card", "picture_room", "commands", "cli", "origin", "uploads"}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports_of(path: Path, top_level_only: bool = False):
    """(level, dotted name) of each import; `from . import x` counts as x."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.level, node.module
            else:
                yield from ((node.level, alias.name) for alias in node.names)


def own_targets(path: Path):
    """What of our package a file imports, as a dotted name below the package."""
    here = path.relative_to(PACKAGE).parts[:-1]
    for level, name in imports_of(path):
        if level == 0 and name.split(".")[0] == "dreambooth_ext":
            yield ".".join(name.split(".")[1:])
        elif level:
            yield ".".join([*here[: len(here) - level + 1], name])


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_lies_below(path):
    room = room_of(path)
    allowed = F0 if room in F0 else MAY_IMPORT[room]
    for target in own_targets(path):
        if not target or target == "__version__" or target.split(".")[0] == room:
            continue
        assert any(target == name or target.startswith(name + ".") for name in allowed), f"{room} imports {target}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_foreign_libraries_stay_in_their_room(path):
    for level, name in imports_of(path):
        if level == 0 and name.split(".")[0] in ONLY_IN:
            assert room_of(path) == ONLY_IN[name.split(".")[0]], f"{name} belongs to {ONLY_IN[name.split('.')[0]]}"
    if room_of(path) in LIGHT:
        heavy = {name.split(".")[0] for level, name in imports_of(path, top_level_only=True) if level == 0}
        assert not heavy & NEVER_AT_IMPORT


def test_there_are_no_circles():
    graph = {path: {PACKAGE / (target.replace(".", "/") + ".py") for target in own_targets(path)} for path in FILES}
    seen: dict[Path, int] = {}

    def visit(path, trail):
        if seen.get(path) == 2:
            return
        assert path not in trail, " -> ".join(p.name for p in [*trail, path])
        for target in graph.get(path, ()):
            visit(target, [*trail, path])
        seen[path] = 2

    for path in FILES:
        visit(path, [])


def test_functions_and_files_stay_small():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") < 400, f"{path} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines"


def test_parts_of_the_pages_script_stay_small_and_keep_their_names_to_themselves():
    """A WebUI loads them into one scope, in the order of their names: the others use what the first one makes."""
    parts = sorted((PACKAGE.parent / "javascript").glob("*.js"))
    assert parts[0].name == "dreambooth.js" and len(parts) > 1
    for path in parts:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") < 400, f"{path} has {text.count(chr(10))} lines"
        code = re.sub(r"^//.*\n", "", text, flags=re.MULTILINE)
        assert code.startswith("(function() {\n") and code.endswith("\n})();\n") and not re.search(r"^[^\s(}]", code, re.MULTILINE)
