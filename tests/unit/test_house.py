"""The house keeps its rooms: one question per folder, no private names across folders, rules that name their proof."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import oracle
from oracle import rules
from oracle.trust.faults import FAULTS

ROOT = Path(oracle.__file__).parent
FOLDERS = sorted(p.parent for p in ROOT.glob("*/__init__.py"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_folder_opens_with_its_question(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
    assert text
    first = re.split(r"(?<=[.?!])\s", text)[0]
    assert first.endswith("?"), f"oracle/{folder.name}/__init__.py begins with {first!r}, which is no question"


def private_across(root):
    """Imports of a name with an underscore from another folder."""
    found = []
    for path in sorted(root.glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("oracle."):
                here, there = path.relative_to(root).parts[0], node.module.split(".")[1]
                names = [a.name for a in node.names if a.name.startswith("_") and here != there]
                found += [f"{path.relative_to(root)} imports {name} from {node.module}" for name in names]
    return found


def test_private_names_stay_in_their_folder(tmp_path):
    assert private_across(ROOT) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "diff.py").write_text("from oracle.rules.judge import _keep\nfrom oracle.runs.x import _own")
    assert private_across(tmp_path) == ["runs/diff.py imports _keep from oracle.rules.judge"]


def rules_by_name():
    """Every rule: a public function that yields divergences, or a verdict on a single operation."""
    for module in pkgutil.iter_modules(rules.__path__, "oracle.rules."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            if inspect.isfunction(thing) and thing.__module__ == module.name and not name.startswith("_"):
                returns = str(inspect.signature(thing).return_annotation)
                if "Iterator[Divergence]" in returns:
                    yield f"{module.name}.{name}", thing


RULES = dict(rules_by_name())


def test_rules_are_found():
    assert {name.rpartition(".")[2] for name in RULES} >= {
        "structure", "against_truth", "torch_against_truth", "update", "clipping", "torch_update", "unchanged",
        "left_behind", "untouched", "raised",
    }  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_which_fault_proves_it(name):
    """A fault of the catalogue, or a planted mistake of the tests where no fault of needle could show it."""
    text = inspect.getdoc(RULES[name]) or ""
    assert "Proven by" in text, f"{name} does not say what proves it"
    proof = text.split("Proven by")[1]
    named = re.findall(r"``([\w-]+)``", proof)
    assert named or "tests" in proof
    assert set(named) <= set(FAULTS), f"no such fault: {set(named) - set(FAULTS)}"


def unencoded(path):
    """Lines that read what another process prints in the encoding of the terminal, which may be any."""
    calls = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
    given = ((call.lineno, {keyword.arg for keyword in call.keywords}) for call in calls)
    return [
        f"{path}:{line}" for line, names in given if names & {"text", "universal_newlines"} and "encoding" not in names
    ]


def test_what_processes_print_is_read_in_an_encoding_that_is_named(tmp_path):
    assert [place for path in ROOT.glob("**/*.py") for place in unencoded(path)] == []
    (tmp_path / "bad.py").write_text("subprocess.run(command, text=True)")
    assert unencoded(tmp_path / "bad.py") == [f"{tmp_path / 'bad.py'}:1"]
