"""How much of what needle offers do the cases call?

The surface is read off needle itself: every public function, class, method, operator and property, and of every keyword that it
was given and that it was left at its default. What a case reaches is seen while it is judged: Python reports the calls of a few
cases of a run, of all single operations, and of those other ones that are the first with a label of the coverage table. So nobody has to
keep a list of what reaches what.

What no case calls stands in `unreached.toml`, with the file of the test that checks it instead.
"""

from __future__ import annotations

import fnmatch
import inspect
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from oracle.cases import case as c
from oracle.cases import coverage
from oracle.systems.ours.phase import heard_by

UNREACHED = Path(__file__).with_name("unreached.toml")
_MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class _Door:
    """One function: its name, and the keywords that have defaults."""

    name: str
    defaults: Mapping[str, Any]


class Surface:
    """What needle offers: ``items`` are names like ``Tensor.sum``, ``Tensor.sum(axes=…)`` and ``Tensor.sum(axes by default)``."""

    def __init__(self, ndl: ModuleType) -> None:
        self.doors: dict[CodeType, _Door] = {}
        self.classes: dict[type, str] = {}
        for name, thing in _public(ndl):
            if inspect.isclass(thing):
                self.classes[thing] = name
                for method, function in _methods(thing):
                    self._enter(name if method == "__init__" else f"{name}.{method}", function)
            else:
                self._enter(name, thing)
        made = [item for door in self.doors.values() for item in _items(door)]
        self.items = tuple(dict.fromkeys([*self.classes.values(), *made]))

    def _enter(self, name: str, function: Any) -> None:
        code = getattr(inspect.unwrap(function), "__code__", None)
        if code is None or code in self.doors:
            return
        parameters = inspect.signature(function).parameters.values()
        usual = {p.name: p.default for p in parameters if p.default is not _MISSING}
        self.doors[code] = _Door(name, usual)


def _items(door: _Door) -> Iterator[str]:
    yield door.name
    for keyword in door.defaults:
        yield f"{door.name}({keyword}=…)"
        yield f"{door.name}({keyword} by default)"


def _public(ndl: ModuleType) -> Iterator[tuple[str, Any]]:
    """Every function and class, once, under its shortest name."""
    seen: set[int] = set()
    offered = {name: getattr(ndl, name) for name in sorted(ndl.__all__)}
    modules = {name: thing for name, thing in offered.items() if isinstance(thing, ModuleType)}
    for module, place in {"": ndl, **modules}.items():
        for name in getattr(place, "__all__", None) or [n for n in vars(place) if not n.startswith("_")]:
            thing = getattr(place, name)
            if getattr(thing, "__module__", "").partition(".")[0] != ndl.__name__:
                continue
            if id(thing) not in seen and (inspect.isclass(thing) or inspect.isfunction(thing)):
                seen.add(id(thing))
                yield f"{module}.{name}" if module else name, thing


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class and its private bases define, but for what is private."""
    package = kind.__module__.partition(".")[0]
    own = [base for base in kind.__mro__ if base is kind or base.__name__[0] == "_"]
    own = [base for base in own if base.__module__.partition(".")[0] == package]
    for name, thing in ((name, thing) for base in own for name, thing in vars(base).items()):
        if name.startswith("_") and not (name.startswith("__") and name.endswith("__")):
            continue
        if isinstance(thing, property):
            yield from ((n, f) for n, f in ((name, thing.fget), (f"{name} = …", thing.fset)) if f is not None)
        elif isinstance(thing, staticmethod | classmethod):
            yield name, thing.__func__
        elif inspect.isfunction(thing):
            yield name, thing


class Watch:
    """While it is entered, the calls into a `Surface` are noted in ``reached``."""

    def __init__(self, surface: Surface) -> None:
        self.surface, self.reached = surface, set[str]()

    def __enter__(self) -> Watch:
        self._before = sys.gettrace()
        sys.settrace(self.called)  # unlike setprofile, it is not told of every call into C
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(self._before)

    def called(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call, if it is one into the surface."""
        door = self.surface.doors.get(frame.f_code) if event == "call" else None
        if door is None:
            return
        given = frame.f_locals
        self.reached.add(door.name)
        for keyword, usual in door.defaults.items():
            value = given.get(keyword)
            self.reached.add(f"{door.name}({keyword}{' by default' if _same(value, usual) else '=…'})")
        for name in ("self", "cls"):
            if name in given:
                owner = given[name]
                self.reached.add(self.surface.classes.get(owner if isinstance(owner, type) else type(owner), door.name))


def _same(value: Any, usual: Any) -> bool:
    return value is usual or (type(value) is type(usual) and isinstance(value, int | float | str) and value == usual)


class Listener:
    """Notes what of a needle's surface the cases call, while they are judged."""

    def __init__(self, ndl: ModuleType) -> None:
        self._watch, self._labels = Watch(Surface(ndl)), set[str]()

    def tells_more(self, case: c.Case) -> bool:
        """Whether a case is listened to: a single operation, and the first one with a label."""
        labels = coverage.covered(case)
        if not isinstance(case, c.OpCase) and labels <= self._labels:
            return False
        self._labels |= labels
        return True

    def during(self, case: c.Case) -> AbstractContextManager[Any]:
        """Listens to needle at work, or does not."""
        return self.listening() if self.tells_more(case) else nullcontext()

    def listening(self) -> AbstractContextManager[Any]:
        """Listens to needle at work."""
        return heard_by(self._watch.called)

    @property
    def reached(self) -> set[str]:
        """The items that have been called."""
        return self._watch.reached

    @property
    def found(self) -> dict[str, bool]:
        """Of every item, whether it has been called."""
        return {item: item in self.reached for item in self._watch.surface.items}


# -- what no case reaches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Excuse:
    """Names that no case reaches, ``*`` standing for anything, and the files of the tests that check them."""

    names: tuple[str, ...]
    by: tuple[str, ...]
    reason: str

    def of(self, items: Iterable[str]) -> list[str]:
        """Those of the items that it names."""
        return [item for item in items if any(fnmatch.fnmatchcase(item, name) for name in self.names)]


def excuses(path: Path = UNREACHED) -> list[Excuse]:
    """All of the file."""
    groups = tomllib.loads(path.read_text("utf-8")).get("group", [])
    return [Excuse(tuple(group["names"]), tuple(group["by"]), group["reason"]) for group in groups]


def problems(items: Sequence[str], reached: set[str], listed: Sequence[Excuse], root: Path) -> list[str]:
    """What is wrong: a name that nothing reaches and nobody lists, an excuse for nothing, or one that no test bears out."""
    unreached = [item for item in items if item not in reached]
    excused = {item for excuse in listed for item in excuse.of(unreached)}
    new = [item for item in unreached if item not in excused]
    found = [
        f"no case reaches {', '.join(new)}: let one call it (a block in oracle/operations, a layer, or a field of a case with "
        "its edit in oracle/cases/features.py), or name it in oracle/runs/unreached.toml with the test that checks it"
    ] * bool(new)
    spoken_of: set[str] = set()
    for excuse in listed:
        found += [f"unreached.toml names {file}, which is no file" for file in excuse.by if not (root / file).is_file()]
        text = "\n".join((root / file).read_text("utf-8") for file in excuse.by if (root / file).is_file())
        spoken_of.update(item for item in excuse.of(unreached) if mentioned(item, text))
        for name in excuse.names:
            if not Excuse((name,), (), "").of(unreached):
                why = "cases reach it" if Excuse((name,), (), "").of(items) else "needle has no such thing"
                found.append(f"unreached.toml lists {name}, but {why}: take it out")
    for item in sorted(excused - spoken_of):
        tests = " and ".join(file for excuse in listed if excuse.of([item]) for file in excuse.by)
        found.append(f"{tests}: said to check {item}, which is not mentioned")
    return found


def mentioned(item: str, text: str) -> bool:
    """Whether a test speaks of an item: of its keyword, or of its own name; of an operator by its sign."""
    name, _, keyword = item.rstrip(")").partition("(")
    own = name.removesuffix(" = …").rpartition(".")[2]
    words = {own, own.strip("_")}
    if keyword:
        words = {keyword.partition("=")[0].removesuffix(" by default")} if keyword.endswith("…") else words
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words) or any(
        sign in text for sign in _SIGNS.get(own, ())
    )


_SIGNS = {
    "__eq__": (" == ",), "__ne__": (" != ",), "__lt__": (" < ",), "__le__": (" <= ",), "__gt__": (" > ",),
    "__ge__": (" >= ",), "__pos__": ("+x", "+t"), "__matmul__": (" @ ",), "__rmatmul__": (" @ ",),
    "__iadd__": (" += ",), "__isub__": (" -= ",), "__imul__": (" *= ",), "__itruediv__": (" /= ",),
    "__ipow__": (" **= ",), "__imatmul__": (" @= ",), "__call__": ("(",), "__getitem__": ("[",), "__iter__": (" in ", "*"),
    "__setitem__": ("] = ",), "__getstate__": ("pickle", "deepcopy"), "__setstate__": ("pickle", "deepcopy"), "__delattr__": ("del ",),
    "__init_subclass__": ("class ",), "__add__": (" + ",),
    "__enter__": ("with ",), "__exit__": ("with ",), "__array__": ("np.asarray", "np.array"), "__array_function__": ("np.sum(", "np.mean("),
}  # fmt: skip
