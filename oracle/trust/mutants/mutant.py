"""Mutants: each replaces the text of one node of the syntax tree. A file's source in, all that operators make of it out."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from oracle.trust.mutants.claims import BY_TESTS, unclaimed
from oracle.trust.mutants.numeric import rungs, wrapped
from oracle.trust.mutants.operators import OPERATORS
from oracle.trust.mutants.site import Change, Function, Site, called, is_docstring, text_of

LADDER = "ladder"
RUNGS = (4, 6, 8, 10, 12, 14, 16, 18, 20)  # k of a value scaled by 1 + 2⁻ᵏ


@dataclass(frozen=True)
class Mutant:
    """One changed place."""

    key: str  # of the function's syntax tree, the operator, before, after: unrelated edits leave it as it is
    file: str
    function: str
    line: int
    operator: str
    before: str
    after: str
    start: int  # bytes of the source that are replaced …
    end: int
    text: str  # … by this
    reach: tuple[int, ...]  # lines one of which a case must run to notice anything; empty: any case might

    @property
    def kind(self) -> str:
        """Counted in the score, a place of the sensitivity ladder, or a probe for false alarms."""
        return {LADDER: "ladder", "rounding only": "probe"}.get(self.operator, "mutant")

    @property
    def by_tests(self) -> bool:
        """Judged by needle's unit tests, because no case of diff is asked to notice it."""
        return self.file in BY_TESTS or unclaimed(self.file, self.function) is not None

    def apply(self, source: bytes, k: int = RUNGS[0]) -> bytes:
        """The mutated source; ``k`` is the rung of the ladder."""
        text = self.text.replace("RUNG", str(k))
        return source[: self.start] + text.encode() + source[self.end :]

    def __str__(self) -> str:
        return f"{self.file}.py:{self.line} {self.function}: {self.operator}: {self.before} → {self.after}"


def _guard(node: ast.AST) -> bool:
    """An ``if`` that only raises, or a ``try`` that only reports better."""
    if isinstance(node, ast.For):
        return all(_guard(b) for b in node.body)
    if isinstance(node, ast.If) and not node.orelse:
        body = [b for b in node.body if not isinstance(b, ast.Assign)]
        return len(body) == 1 and (isinstance(body[0], ast.Raise) or _guard(body[0]))
    return isinstance(node, ast.ExceptHandler)


def _skipped(node: ast.AST, parent: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert) or is_docstring(node):
        return True
    if _guard(node):
        return True
    if isinstance(node, ast.If) and text_of(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.expr):
        if isinstance(parent, ast.arg) or node in (
            getattr(parent, "returns", None),
            getattr(parent, "annotation", None),
        ):
            return True
        if isinstance(parent, ast.FunctionDef | ast.ClassDef) and node in [
            *parent.decorator_list,
            *getattr(parent, "bases", ()),
        ]:
            return True
        if (
            isinstance(parent, ast.Call)
            and called(parent) in ("cast", "isinstance", "lru_cache")
            and node in parent.args
        ):
            # types, and tests of types: they choose between ways of calling
            return called(parent) != "cast" or node is parent.args[0]
    return False


class _Finder:
    def __init__(self, file: str, source: bytes) -> None:
        self.file = file
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.source = source
        self.found: list[Mutant] = []
        self.seen: Counter[str] = Counter()
        self._dumps: dict[int, str] = {}

    def sites(self, tree: ast.Module) -> Iterator[Site]:
        bound: dict[int, set[str]] = {}

        def visit(
            node: ast.AST, parents: list[ast.AST], inner: Function | None, outer: Function | None, name: str
        ) -> Iterator[Site]:
            if parents and _skipped(node, parents[-1]):
                return
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                if outer is None:
                    name = f"{name}.{node.name}" if name else node.name
                if isinstance(node, ast.FunctionDef):
                    inner, outer = node, outer or node
                    if node.name in ("__repr__", "__str__", "_settings"):
                        return
                    bound[id(node)] = {a.arg for a in node.args.args}
            if isinstance(node, ast.Assign | ast.AnnAssign) and outer is None and text_of(node).startswith("__all__"):
                return
            known = bound.get(id(inner), set())
            yield Site(node, parents, inner, outer, name or "module", known)
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    known |= {t.id for t in ast.walk(target) if isinstance(t, ast.Name)}
            for child in ast.iter_child_nodes(node):
                yield from visit(child, [*parents, node], inner, outer, name)

        yield from visit(tree, [], None, None, "")

    def add(self, s: Site, operator: str, change: Change) -> None:
        node, text = change
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.lines[node.lineno - 1] + node.col_offset
        end = self.lines[node.end_lineno - 1] + node.end_col_offset
        before = _short(self.source[start:end].decode())
        if before == _short(text) or f"({before})" == _short(text):
            return
        identity = f"{self._hash(s)} {operator} {before} → {_short(text)}"
        self.seen[identity] += 1
        key = hashlib.sha256(f"{identity} {self.seen[identity]}".encode()).hexdigest()[:12]
        self.found.append(
            Mutant(key, self.file, s.name, node.lineno, operator, before, _short(text), start, end, text,
                   _reach(s, node))
        )  # fmt: skip

    def _hash(self, s: Site) -> str:
        where = s.outer if s.outer is not None else s.node
        if id(where) not in self._dumps:
            bare = copy.deepcopy(where)
            body = getattr(bare, "body", None)
            if isinstance(body, list) and body and is_docstring(body[0]):
                del body[0]
            self._dumps[id(where)] = hashlib.sha256(f"{s.name} {ast.dump(bare)}".encode()).hexdigest()
        return self._dumps[id(where)]


def _short(text: str) -> str:
    return " ".join(text.split())


def _reach(s: Site, node: ast.AST) -> tuple[int, ...]:
    """The lines of which one must run before the mutant can matter."""
    if s.outer is None:
        return ()  # runs on import
    chain = [*s.parents, s.node, node]
    statements = [p for p in chain if isinstance(p, ast.stmt) and not isinstance(p, ast.FunctionDef | ast.ClassDef)]
    if any(isinstance(p, ast.arguments) for p in chain) or not statements:
        inner = s.function or s.outer
        return tuple(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
    last = statements[-1]
    body = getattr(last, "body", None)
    end = last.end_lineno or last.lineno
    if isinstance(body, list) and body:
        end = max(last.lineno, body[0].lineno - 1)  # only the head of a compound statement
    return tuple(range(last.lineno, end + 1))


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of its lines; the ladder's last."""
    finder = _Finder(file, source)
    ladder: list[tuple[Site, Change]] = []
    for s in finder.sites(ast.parse(source)):
        for name, operator in OPERATORS.items():
            for change in operator(s):
                finder.add(s, name, change)
        ladder += [(s, change) for change in wrapped("_m.scaled({}, RUNG)", rungs)(s)]
    for s, change in ladder:
        finder.add(s, LADDER, change)
    # the ladder and the probes measure the rules of diff
    return [m for m in _distinct(finder.found) if _changes(m, source) and not (m.by_tests and m.kind != "mutant")]


def _distinct(mutants: list[Mutant]) -> Iterator[Mutant]:
    """Two operators may make the same change: the first one counts."""
    seen = set()
    for m in mutants:
        # "True", "(not (x))" and their like: compare the texts without outer brackets
        change = (m.start, m.end, _short(m.text).removeprefix("(").removesuffix(")"), m.kind == "ladder")
        if change not in seen:
            seen.add(change)
            yield m


def _changes(m: Mutant, source: bytes) -> bool:
    """The text is Python, and not the same thing in other words."""
    try:
        return _meaning(m.text) != _meaning(source[m.start : m.end].decode())
    except SyntaxError:
        return False


def _meaning(text: str) -> str:
    lines = text.split("\n")
    whole = "\n".join([lines[0], *(line.strip() for line in lines[1:])])  # brackets hold it together, not indentation
    try:
        return ast.dump(ast.parse(whole.strip(), mode="eval").body)
    except SyntaxError:
        body = ast.parse("while True:\n    def f():\n        " + text.strip() if "return" in text else
                         "while True:\n    " + text.strip())  # fmt: skip
        return ast.dump(body)
