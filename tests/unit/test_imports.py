"""Who may import whom. Imports inside functions count, and so does `import_module("name")`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Rule:
    modules: str  # a pattern of module names
    only: str | None = None  # beside the standard library, nothing but these (and what is below them)
    never: str = ""  # none of these (nor what is below them) …
    through: bool = False  # … and not by way of the project's other modules either
    all_of: str = ""  # not all of these in one module


RULES = [
    Rule("needle*", only="numpy needle"),
    Rule("needle.optim", never="needle.ops"),
    Rule("oracle.operations*", only="numpy oracle.operations", through=True),
    Rule("oracle.cases*", never="needle torch", through=True),
    Rule("oracle.systems.ours*", never="torch", through=True),
    Rule("oracle.systems.peer", never="needle", through=True),
    Rule("oracle.systems.truth", only="numpy oracle"),
    Rule("oracle.systems.truth", never="needle torch hypothesis", through=True),
    Rule("oracle*", all_of="needle torch hypothesis"),
    Rule("oracle.plugin", only="pytest oracle", through=False),
    Rule("*", never="tests"),
]

# The folders of oracle, from the top: a file imports from its own folder and from those above it. What processes, exit
# codes, commands and files are stands above all.
TOP = ("apart", "commands", "exits", "files", "plugin")
FOLDERS = (
    "operations",
    "pages",
    "cases",
    "systems",
    "rules",
    "blame",
    "check",
    "frameworks",
    "memory",
    "runs",
    "trust",
    "bench",
)


def folder(module: str) -> int:
    """The place of a module's folder; -1 for what everybody may import, and the end for the command line."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1] in TOP:
        return -1
    return FOLDERS.index(parts[1]) if parts[1] in FOLDERS else len(FOLDERS)


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports of oracle that go the wrong way."""
    return [
        f"{name} imports {other}: {other.split('.')[1]}/ lies below {name.split('.')[1]}/"
        for name in sorted(graph)
        if name.startswith("oracle.")
        for other in sorted(graph[name])
        if other.startswith("oracle.") and folder(other) > folder(name)
    ]


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules of oracle that import each other, by any number of others."""
    names = [n for n in graph if n.startswith("oracle")]
    return [f"{name} reaches itself" for name in names if name in reached(name, graph)]


def modules(root: Path) -> dict[str, set[str]]:
    """Every module of the two packages, with the dotted names that it imports."""
    files = {}
    for path in sorted([*root.glob("needle/**/*.py"), *root.glob("oracle/**/*.py")]):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: set(imported(name, path, files)) for name, path in files.items()}


def imported(name: str, path: Path, files: dict[str, Path]) -> Iterator[str]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # `from oracle import case` imports a module, `from math import pi` a name
                submodule = f"{source}.{alias.name}"
                yield submodule if submodule in files else source
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def reached(name: str, graph: dict[str, set[str]]) -> set[str]:
    """What a module imports, directly or by way of the project's own modules."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        new = graph.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen


def below(name: str, names: str) -> bool:
    return any(name == other or name.startswith(other + ".") for other in names.split())


def violations(root: Path) -> list[str]:
    graph = modules(root)
    found = []
    for rule in RULES:
        for name in graph:
            if not fnmatchcase(name, rule.modules):
                continue
            imports = reached(name, graph) if rule.through else graph[name]
            third_party = {i for i in imports if i.split(".")[0] not in sys.stdlib_module_names}
            if rule.only is not None:
                bad = {i for i in third_party if not below(i, rule.only)}
            else:
                bad = {i for i in imports if below(i, rule.never)}
            if rule.all_of and all(any(below(i, one) for i in imports) for one in rule.all_of.split()):
                bad |= set(rule.all_of.split())
            found += [f"{name} imports {i}, against {rule}" for i in sorted(bad)]
    return found


def test_nothing_imports_what_it_must_not():
    graph = modules(ROOT)
    assert graph
    assert violations(ROOT) == []
    assert upward(graph) == []
    assert circles(graph) == []


def test_a_planted_way_up_and_a_planted_circle_are_found(tmp_path):
    for name, text in {
        "rules/judge.py": "from oracle.cases import case\nfrom oracle.blame import locate",
        "cases/case.py": "import msgspec",
        "blame/locate.py": "from . import words",
        "blame/words.py": "def f():\n    from oracle.blame.locate import suspect",
    }.items():
        path = tmp_path / "oracle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = modules(tmp_path)
    assert upward(graph) == ["oracle.rules.judge imports oracle.blame.locate: blame/ lies below rules/"]
    assert circles(graph) == ["oracle.blame.locate reaches itself", "oracle.blame.words reaches itself"]


CLEAN = {
    "needle/__init__.py": "from . import ops, optim\nimport numpy as np",
    "needle/ops.py": "import math\nimport numpy",
    "needle/optim.py": "from .nn import Parameter",
    "needle/nn.py": "from .ops import add",
    "needle/deep/inner.py": "from ..ops import add",
    "oracle/__init__.py": "",
    "oracle/operations/tape.py": "import numpy",
    "oracle/cases/case.py": "import msgspec\nfrom oracle.operations import tape",
    "oracle/systems/trace.py": "from dataclasses import dataclass",
    "oracle/systems/truth.py": "import numpy as np\nfrom ..cases.case import Case\nfrom .trace import Observation",
    "oracle/systems/ours/__init__.py": "from oracle.systems.ours.step import step",
    "oracle/systems/ours/step.py": "import needle\nfrom ...cases import case",
    "oracle/systems/peer.py": "import torch\nfrom ..cases import case",
    "oracle/rules/judge.py": "import torch, hypothesis",
}


@pytest.mark.parametrize(
    ("where", "line", "what"),
    [
        ("needle/nn.py", "import torch", "torch"),
        ("needle/nn.py", "def f():\n    from scipy import stats", "scipy"),
        ("needle/deep/inner.py", "from ...oracle.cases import case", "oracle.cases.case"),
        ("needle/optim.py", "from . import ops", "needle.ops"),
        ("needle/optim.py", "from .ops import add", "needle.ops"),
        ("needle/optim.py", "import importlib\nimportlib.import_module('needle.ops')", "needle.ops"),
        ("oracle/operations/tape.py", "import torch", "torch"),
        ("oracle/operations/tape.py", "from hypothesis import strategies", "hypothesis"),
        ("oracle/cases/case.py", "import needle.nn", "needle.nn"),
        ("oracle/cases/case.py", "from ..systems import peer", "torch"),
        ("oracle/systems/ours/step.py", "import torch.nn as nn", "torch.nn"),
        ("oracle/systems/ours/step.py", "from oracle.systems import peer", "torch"),
        ("oracle/systems/peer.py", "from .ours import run", "needle"),
        ("oracle/systems/truth.py", "import msgspec", "msgspec"),
        ("oracle/systems/truth.py", "from . import peer", "torch"),
        ("oracle/rules/judge.py", "import needle, torch\nfrom hypothesis import given", "hypothesis"),
        ("oracle/rules/judge.py", "from tests.conftest import settings", "tests.conftest"),
    ],
)  # fmt: skip
def test_a_planted_import_is_found(tmp_path, where, line, what):
    for name, text in CLEAN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert violations(tmp_path) == []
    (tmp_path / where).write_text(CLEAN[where] + "\n" + line)
    found = violations(tmp_path)
    assert any(entry.startswith(f"{where[:-3].replace('/', '.')} imports {what},") for entry in found), found


def test_importing_needle_loads_numpy_and_nothing_else():
    def loaded(package: str) -> set[str]:
        show = f"import sys, {package}; print(*{{m.split('.')[0] for m in sys.modules}})"
        run = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)
        return set(run.stdout.split()) - sys.stdlib_module_names

    assert loaded("needle") - loaded("numpy") == {"needle"}
