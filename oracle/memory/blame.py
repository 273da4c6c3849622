"""Who holds what survived? memray names the line that allocated it; this names the reference that keeps it.

The case runs once more, without memray. At one boundary everything alive is set aside (``gc.freeze()``); what the
collector lists at a later boundary was born in between and survived, for good or, if it was born in the last steps, perhaps
only for a while. From the model, the optimizer and the loop, and
then from every module, references are followed breadth first to the nearest such object: a shortest path, told in
words like ``SGD.u[0.weight] → Tensor.op (EWiseAdd)``. That attribute is then left out, and the search goes on: there may be more
than one holder. Containers that were there before and have grown are named too.
"""

from __future__ import annotations

import gc
import inspect
import os
import re
import sys
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oracle.memory.probe import FIRST, Job, Measured, Watched, is_node, load_plant
from oracle.systems.ours import is_ours
from oracle.systems.source import line_in

SIZED = (dict, list, set, deque)
LIMIT = 2_000_000  # references followed
HOLDERS = 3  # of survivors, that are named
LAST = 5  # steps: what was born before them and is still there has come to stay


def explain(job: Job) -> Measured:
    """The holders of what a case leaves behind."""
    watched = Watched(job.case, load_plant(job.plant))
    first = min(FIRST, job.case.steps - 1)
    cycle = ""
    with np.errstate(all="ignore"):
        program = watched.build()
        watched.run(program, 0, first)
        gc.collect()
        gc.disable()
        gc.unfreeze()  # what was imported may be what has grown
        sizes = _sizes()
        gc.freeze()
        late = max(first + 1, job.case.steps - LAST)
        watched.run(program, first, late)
        early = {id(thing) for thing in gc.get_objects()}
        gc.freeze()
        watched.run(program, late, job.case.steps)
        found = max(watched.collected[first + 1 :])
        recent = [thing for thing in gc.get_objects() if type(thing) is not types.FrameType]
        gc.unfreeze()
        new = {id(thing) for thing in recent}  # which may stand where one of the early ones has stood
        stayed = [thing for thing in gc.get_objects() if id(thing) in early and id(thing) not in new]
        if found:
            cycle = _cycle(program, watched, job.case.steps - 1)
    skip = {id(recent), id(stayed), id(early), id(new), id(sizes), id(watched.__dict__)}
    search = _Search(program, watched.ndl, skip)
    holders: list[Holder] = []
    # With ours nothing may be alive at a boundary, so what was born last is on the shortest path to what has come to stay; with
    # another needle it may be the last step's, which goes with the next.
    lasting = [*stayed, *recent] if stayed and is_ours(watched.ndl) else stayed
    for young, stays in ((lasting, True), (recent, False)):
        nodes = [t for t in young if is_node(t, watched.ndl)]
        tensors = [t for t in young if issubclass(type(t), watched.ndl.Tensor)]
        for survivors, what in ((nodes, "with its graph"), (tensors, "")):
            holders += _holding(search, survivors, what, young, stays)
            if holders:
                break
        if holders:
            break
    grown = [(c, before) for c, before in sizes if len(c) > before and not _ours(c, skip)]
    grown.sort(key=lambda pair: pair[1] - len(pair[0]))
    for container, before in grown[:3]:
        holder = search.holder_of({id(container)})
        if holder is not None:
            holder.words += f": {type(container).__name__} grown from {before:,} to {len(container):,} entries"
            if len(container) - before < (job.case.steps - first) // 5:
                holder.keeper = ""  # a cache that is still filling up
            holders.append(holder)
    if cycle:
        holders.insert(0, Holder(f"cycle {cycle}"))
    places = [_place(h.owner, h.attribute) for h in holders]
    return Measured(holders=[h.words for h in holders], keepers=[h.keeper for h in holders], places=places)


def _holding(search: _Search, survivors: list[Any], what: str, young: list[Any], stays: bool) -> list[Holder]:
    """Who holds the survivors, each with the number of those that hang on it."""
    holders: list[Holder] = []
    left, born = {id(t) for t in survivors}, {id(thing) for thing in young}
    while left and len(holders) < HOLDERS:
        holder = search.holder_of(left)
        if holder is None:
            break
        held = _reached(holder.chain, born) & left
        holder.words = f"{holder.words} {what}".strip() + f"; {len(held):,} such Tensors survive"
        holder.keeper = holder.keeper if stays else ""
        holders.append(holder)
        left -= held
    return holders


def _reached(chain: list[Any], young: set[int]) -> set[int]:
    """Ids of what was born in between and hangs on the end of a chain."""
    found, todo = set(), [chain[-1], *chain[2:3]]
    while todo:
        thing = todo.pop()
        for one in (thing, *_references(thing)):
            if id(one) not in found and id(one) in young:
                found.add(id(one))
                todo.append(one)
    return found


def _ours(container: Any, skip: set[int]) -> bool:
    return id(container) in skip


def _sizes() -> list[tuple[Any, int]]:
    """Every container with its size; dicts of plain values too, which the collector does not list itself."""
    seen: dict[int, tuple[Any, int]] = {}
    for thing in gc.get_objects():
        for one in (thing, *gc.get_referents(thing)):
            if type(one) in SIZED and id(one) not in seen:
                seen[id(one)] = (one, len(one))
    found = list(seen.values())
    gone = {id(seen), id(found)}
    return [pair for pair in found if id(pair[0]) not in gone]


# -- paths ------------------------------------------------------------------------------------------------------------


@dataclass
class Holder:
    """Who holds something."""

    words: str  # the path, in words
    keeper: str = ""  # which attribute of what it begins with: "SGD.u"
    owner: Any = None  # whoever gives that its value, and the name of the attribute
    attribute: str = ""
    chain: list[Any] = field(default_factory=list)  # the path, from its name on


class _Search:
    """Shortest paths from named places to objects."""

    def __init__(self, program: Any, ndl: Any, skip: set[int]) -> None:
        self.ndl = ndl
        self.names = {
            id(value): f"{path}.{name}"
            for path, module in program.paths.items()
            for name, value in vars(module).items()
            if isinstance(value, ndl.Tensor)
        }
        self.skip = skip | {id(sys.modules), id(self.__dict__)}
        self.program = program
        near: list[tuple[str, Any]] = [(type(program.optimizer).__name__, program.optimizer)]
        near += [(f"{type(m).__name__} {path}", m) for path, m in program.paths.items()]
        near += [("the model", program.model), ("the training loop", program)]
        modules = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, types.ModuleType)]
        modules.sort(key=lambda pair: not pair[0].startswith("needle"))
        far = [(f"module {name}", module) for name, module in modules if not name.startswith("oracle.memory")]
        self.roots = (near, far)

    def holder_of(self, targets: set[int]) -> Holder | None:
        """Who holds the nearest of some things; None if no named place leads there. It is not looked at a second time."""
        for roots in self.roots:
            chain = self._search(roots, targets)
            if chain is None:
                continue
            root, held = chain[1], chain[2:]
            if held and held[0] is getattr(root, "__dict__", None):
                held = held[1:]
            if not held:
                return Holder(self._words(chain), chain=chain)
            self.skip.add(id(held[0]))
            name = _attribute(root, held[0])
            owner = chain[0] if isinstance(root, types.ModuleType) else type(root).__name__
            by = self.program.optimizer if isinstance(held[0], self.ndl.nn.Parameter) else root
            return Holder(self._words(chain), f"{owner}{name}", by, name.removeprefix("."), chain)
        return None

    def _search(self, roots: list[tuple[str, Any]], targets: set[int]) -> list[Any] | None:
        parent: dict[int, tuple[int, Any]] = {}
        labels = {id(thing): label for label, thing in roots}
        todo: deque[Any] = deque(thing for _, thing in roots)
        for _, thing in roots:
            parent[id(thing)] = (0, thing)
        seen = 0
        stop = {id(parent), id(todo), id(targets), id(labels), id(roots), *self.skip}
        while todo and seen < LIMIT:
            thing = todo.popleft()
            for child in _references(thing):
                key = id(child)
                # type(), not isinstance, which asks the objects: some of torch's answer with a warning
                if key in parent or key in stop or type(child) in (types.ModuleType, types.FrameType):
                    continue
                seen += 1
                parent[key] = (id(thing), child)
                if key in targets:
                    chain = [child]
                    while parent[id(chain[-1])][0]:
                        chain.append(parent[parent[id(chain[-1])][0]][1])
                    chain.append(labels[id(chain[-1])])
                    return chain[::-1]
                todo.append(child)
        return None

    def _words(self, chain: list[Any]) -> str:
        """``SGD.u[0.weight] → Tensor.op (EWiseAdd)``."""
        text = str(chain[0])
        things = chain[1:]
        i = 0
        while i + 1 < len(things):
            here, following = things[i], things[i + 1]
            if isinstance(here, types.FunctionType) and following is here.__closure__ and i + 3 < len(things):
                names = zip(here.__code__.co_freevars, here.__closure__ or (), strict=True)
                text += f" (closure over {next(name for name, cell in names if cell is things[i + 2])})"
                i += 3
                if i + 1 < len(things) and _named(things[i]):
                    text += f" → {_title(things[i])}"
                continue
            if type(following) is dict and following is getattr(here, "__dict__", None) and i + 2 < len(things):
                text += _attribute(here, things[i + 2])
                i += 2
            else:
                text += self._edge(here, following)
                i += 1
            if i + 1 < len(things) and _named(things[i]):
                text += f" → {_title(things[i])}"
        last = things[-1]
        if isinstance(last, self.ndl.Tensor):
            op = getattr(last, "op", None)
            text += f" → {type(last).__name__}" + (f".op ({type(op).__name__.strip('_')})" if op is not None else "")
        return _shortened(text)

    def _edge(self, here: Any, child: Any) -> str:
        if isinstance(here, dict):
            for key, value in list(here.items()):
                if value is child:
                    name = self.names.get(id(key)) or self.names.get(key if type(key) is int else 0)  # or by its id
                    return f"[{name or (key if isinstance(key, int | str | tuple) else type(key).__name__)}]"
                if key is child:
                    return " (a key)"
        if isinstance(here, list | tuple):
            return f"[{next((i for i, v in enumerate(here) if v is child), '?')}]"
        if isinstance(here, types.MethodType):
            return f" (method of {type(child).__name__})"
        if isinstance(here, set | frozenset | deque):
            return "[…]"
        return _attribute(here, child)


def _place(owner: Any, name: str) -> str:
    """The line that gives an attribute its value, outside the constructor; else where the owner does its work. Looked for last:
    to read source fills caches, which would count as grown.
    """
    for kind in () if owner is None else type(owner).__mro__:
        try:
            lines, start = inspect.getsourcelines(kind)
            file = inspect.getsourcefile(kind) or ""
        except (OSError, TypeError):
            continue
        function = ""
        for i, text in enumerate(lines):
            begun = re.match(r"\s+def (\w+)", text)
            function = begun[1] if begun else function
            if name and function != "__init__" and re.search(rf"\.{name}\b[^=(]*[^=<>!(]?=(?!=)", text):
                return (
                    f"{'/'.join(file.replace(os.sep, '/').split('/')[-2:])}:{start + i} in {kind.__name__}.{function}"
                )
    return "" if owner is None else line_in(type(owner), "step", "forward")


def _shortened(path: str) -> str:
    """The path with what is repeated in it told once."""
    parts: list[tuple[str, int]] = []
    for part in path.split(" → "):
        if parts and parts[-1][0] == part:
            parts[-1] = part, parts[-1][1] + 1
        else:
            parts.append((part, 1))
    return " → ".join(part + f" (and {n - 1} more of these)" * (n > 1) for part, n in parts)


def _references(thing: Any) -> Iterator[Any]:
    """What a thing refers to, but for its class."""
    kind = type(thing)
    for child in gc.get_referents(thing):
        if child is not kind and not (kind is types.FunctionType and child is thing.__globals__):
            yield child


def _attribute(here: Any, child: Any) -> str:
    attributes = getattr(here, "__dict__", {})
    for name, value in list(attributes.items()):
        if value is child:
            return f".{name}"
    for name in dir(type(here)):
        if not name.startswith("__") and getattr(here, name, None) is child:
            return f".{name}"
    return ""


def _named(thing: Any) -> bool:
    return not isinstance(thing, dict | list | tuple | set | frozenset | deque | types.CellType)


def _title(thing: Any) -> str:
    if isinstance(thing, types.FunctionType):
        return f"function {thing.__name__}"
    if isinstance(thing, type):
        return f"class {thing.__name__}"
    return type(thing).__name__


# -- cycles -----------------------------------------------------------------------------------------------------------


def _cycle(program: Any, watched: Watched, t: int) -> str:
    """A shortest cycle among what one more step leaves to the collector."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        program.step(t)
        program.release()
        gc.collect()
    finally:
        gc.set_debug(0)
    garbage = list(gc.garbage)
    gc.garbage.clear()
    inside = {id(g): g for g in garbage}
    starts = [g for g in garbage if issubclass(type(g), watched.ndl.Tensor)] or garbage
    best: list[Any] | None = None
    for start in starts[:50]:
        found = _round_trip(start, inside)
        if found is not None and (best is None or len(found) < len(best)):
            best = found
    if best is None:
        return "of " + ", ".join(sorted({type(g).__name__ for g in garbage})[:6])
    things = [*best, best[0]]
    text, i = _title(best[0]), 0
    while i + 1 < len(things):
        here, following = things[i], things[i + 1]
        if type(following) is dict and following is getattr(here, "__dict__", None) and i + 2 < len(things):
            text, i = text + _attribute(here, things[i + 2]), i + 2
        else:
            text, i = text + _attribute(here, following), i + 1
        if _named(things[i]):
            text += f" → {_title(things[i])}"
    return text


def _round_trip(start: Any, inside: dict[int, Any]) -> list[Any] | None:
    parent: dict[int, int] = {}
    todo = deque([start])
    while todo:
        thing = todo.popleft()
        for child in gc.get_referents(thing):
            if child is start:
                chain = [thing]
                while chain[-1] is not start:
                    chain.append(inside[parent[id(chain[-1])]])
                return chain[::-1]
            if id(child) in inside and id(child) not in parent:
                parent[id(child)] = id(thing)
                todo.append(child)
    return None
