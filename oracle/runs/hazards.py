"""What no number shows: a needle that grows, that walks too long, or that touches what is not its own.

Each look is a small program against the API of the course, run in a child of its own with a time limit; what it finds is an
`Entry`. A model that cannot be trained at all is for the cases to find: such a look says nothing.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from oracle.apart import Broken, Died, apart
from oracle.blame.entry import HAZARD, HINT, WRONG, Entry, run
from oracle.runs import loading
from oracle.systems.candidate import candidate
from oracle.systems.ours.model import array_of
from oracle.systems.source import line_in, line_of

SECONDS = 10.0  # for one look; without a hazard each takes some ms
STEPS = 12  # of a training run whose memory is looked at
DEPTH = 12  # of y = y + y, in which the calls of gradient rules are counted
CHAIN = 5_000  # ops in a row

_TRAIN = """import numpy as np
import needle as ndl

np.random.seed(0)
model = {model}
optimizer = ndl.optim.{optimizer}
for step in range({steps}):
    x = ndl.Tensor(np.random.randn(4, 3).astype("float32"), requires_grad=False)
    y = ndl.Tensor(np.array([0, 1, 0, 1]))
    loss = ndl.nn.SoftmaxLoss()(model(x), y)
    optimizer.reset_grad()
    loss.backward()
    optimizer.step()
"""
_LINEAR = "ndl.nn.Linear(3, 2)"
_SGD = "SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)"
_PLACES = {"SGD": ("optim.SGD", "step"), "Adam": ("optim.Adam", "step"), "BatchNorm1d": ("nn.BatchNorm1d", "forward"),
           "LayerNorm1d": ("nn.LayerNorm1d", "forward"), "Dropout": ("nn.Dropout", "forward")}  # fmt: skip


_INITIAL: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("xavier_uniform", "√(6 / (fan_in + fan_out))", lambda r: (r.rand(5, 3) * 2 - 1) * np.sqrt(6 / 8)),
    ("xavier_normal", "√(2 / (fan_in + fan_out))", lambda r: r.randn(5, 3) * np.sqrt(2 / 8)),
    ("kaiming_uniform", "√2 · √(3 / fan_in)", lambda r: (r.rand(5, 3) * 2 - 1) * np.sqrt(2) * np.sqrt(3 / 5)),
    ("kaiming_normal", "√2 / √fan_in", lambda r: r.randn(5, 3) * np.sqrt(2) / np.sqrt(5)),
)


def _initialisers(ndl: Any) -> list[Entry]:
    """What they draw from the global generator, by the formula of the course."""
    found = []
    for name, formula, right in _INITIAL:
        function = getattr(ndl.init, name, None)
        if function is None:
            continue
        np.random.seed(3)
        try:
            made = array_of(function(5, 3))
        except NotImplementedError:
            continue
        expected = right(np.random.RandomState(3))
        if made.shape == expected.shape and np.allclose(made, expected, rtol=1e-5, atol=1e-6):
            continue
        text = (
            f"import numpy as np\nimport needle as ndl\n\nnp.random.seed(3)\nprint(ndl.init.{name}(5, 3).numpy()[0])\n"
        )
        sentence = f"init.{name}(5, 3) is not what the course has: its bound, or its standard deviation, is {formula}"
        row = str([float(f"{v:.6g}") for v in expected[0]])
        found.append(Entry(name, WRONG, sentence, line_in(function), text, run(text)[0], exact=row))
    return found


Look = Callable[..., list[Entry]]


def hazards() -> list[Entry]:
    """All of them; what ends its process or does not come back is said only where a look is about that."""
    found: list[Entry] = []
    for look, arguments in _LOOKS:
        # with a detach that detaches, what then still grows has a reason of its own
        mended = look is _growth and any(entry.key == DETACH for entry in found)
        try:
            found += apart(_looked, look, arguments, mended, patience=SECONDS, heard=bytearray())
        except (Broken, Died):
            continue
    return list({entry.key: entry for entry in reversed(found)}.values())[::-1]


def endless() -> list[Entry]:
    return _too_many(candidate(), "more than can be waited for")


def _looked(look: Look, arguments: tuple[str, ...], mended: bool = False) -> list[Entry]:
    ndl = candidate()
    if mended:
        ndl.Tensor.detach = lambda tensor: ndl.Tensor(np.array(array_of(tensor)), requires_grad=False)
    gc.freeze()  # what is older is not looked through
    return look(ndl, *arguments)


# -- memory -----------------------------------------------------------------------------------------------------------


def _growth(ndl: Any, model: str, optimizer: str, holder: str) -> list[Entry]:
    """Tensors with a graph that outlive their step, and who holds them: more of them with each step."""
    text = _TRAIN.format(model=model, optimizer=optimizer, steps=STEPS)
    counts: list[int] = []
    held: list[dict[str, int]] = []
    space: dict[str, Any] = {"__name__": "program"}
    body = text.replace("    optimizer.step()\n", "    optimizer.step()\n    _look()\n")

    def look() -> None:
        space.pop("loss", None)
        space.pop("x", None)
        for p in space["optimizer"].params if hasattr(space["optimizer"], "params") else ():
            p.grad = None
        gc.collect()
        counts.append(sum(1 for thing in gc.get_objects() if _has_graph(ndl, thing)))
        held.append(_held(space, ndl))

    space["_look"] = look
    with np.errstate(all="ignore"):
        exec(compile(body, "program", "exec"), space)
    if not _rises(counts[3:]):
        return []
    by_path = {path: [now.get(path, 0) for now in held[3:]] for path in held[-1]}
    growing = {path: series for path, series in by_path.items() if _rises(series)} or {"": counts[3:]}
    return [_grown(ndl, text, series, path, holder) for path, series in growing.items()]


EXPONENTIAL = "exponential walk"
DETACH = "Tensor.detach"
_DETACHED = """import numpy as np
import needle as ndl

x = ndl.Tensor(np.ones(2, dtype="float32"))
y = x * 2.0
print(y.{how}.op is None, y.{how}.requires_grad)
"""


def _undetached(ndl: Any) -> list[Entry]:
    """Whether ``detach()`` and ``data`` let go of the graph: whoever keeps what they give keeps all that it was made of."""
    y = ndl.Tensor(np.ones(2, np.float32)) * 2.0
    for how, made in (("detach()", y.detach), ("data", lambda: y.data)):
        if _has_graph(ndl, made()):
            text = _DETACHED.format(how=how)
            sentence = f"`x.{how}` has the graph that x was made by: whoever keeps it, as optimizers do, keeps the graph of every step"
            place = line_of(ndl, "Tensor", "detach" if how == "detach()" else "data")
            return [Entry(DETACH, HAZARD, sentence, place, text, run(text)[0], exact="True False")]
    return []


def _rises(series: Sequence[int]) -> bool:
    return len(series) >= 3 and series[-1] > series[0] and all(b >= a for a, b in itertools.pairwise(series))


def _grown(ndl: Any, text: str, steady: Sequence[int], path: str, holder: str) -> Entry:
    rate = (steady[-1] - steady[0]) / (len(steady) - 1)
    kept = f"{path or holder} holds the graph of every step"
    sentence = f"memory grows with each step, by {rate:.0f} Tensors: {kept}"
    count = "sum(isinstance(v, ndl.Tensor) and v.op is not None for v in gc.get_objects())"
    shown = (
        "import gc\n"
        + text
        + "    del loss, x\n    optimizer.reset_grad()\n    gc.collect()\n    print("
        + count
        + ")\n"
    )
    where = next((name for name in _PLACES if name in path), holder)
    theirs = f"{steady[0]}, … {steady[-1]} Tensors with an op, after the steps 4 to {len(steady) + 3}"
    place = line_of(ndl, *_PLACES[where])
    return Entry(f"growth by {where}", HAZARD, sentence, place, shown, theirs, exact="the same number each time")


def _has_graph(ndl: Any, thing: Any) -> bool:
    kind = type(thing)
    try:
        return issubclass(kind, ndl.Tensor) and getattr(thing, "op", None) is not None
    except Exception:
        return False


def _held(space: dict[str, Any], ndl: Any) -> dict[str, int]:
    """Which attributes hold Tensors with a graph ("SGD.u", "BatchNorm1d.running_mean"), and how many hang on each."""
    found: dict[str, int] = {}
    owners = [space["optimizer"], space["model"]]
    with_children = getattr(space["model"], "_children", None)
    owners += list(with_children()) if with_children is not None else []
    for owner in owners:
        for name, value in vars(owner).items():
            if name == "params":
                continue
            values = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            )
            if any(_has_graph(ndl, v) for v in values):
                found[f"{type(owner).__name__}.{name}"] = _hanging(ndl, values)
    for p in getattr(space["optimizer"], "params", ()):
        data = getattr(p, "cached_data", None)
        if getattr(p, "op", None) is not None or _has_graph(ndl, data):
            found[f"{type(space['optimizer']).__name__}: a parameter"] = _hanging(ndl, [p, data])
    return found


def _hanging(ndl: Any, tensors: Iterable[Any]) -> int:
    """How many Tensors with a graph hang on some, these among them."""
    seen: dict[int, Any] = {}
    todo = [thing for thing in tensors if _has_graph(ndl, thing)]
    while todo:
        thing = todo.pop()
        if id(thing) not in seen:
            seen[id(thing)] = thing
            todo += [x for x in getattr(thing, "inputs", None) or () if _has_graph(ndl, x)]
    return len(seen)


def _cycles(ndl: Any) -> list[Entry]:
    """Objects that only the cycle collector frees: a hint, for the design that the course teaches has them too."""
    text = _TRAIN.format(model=_LINEAR, optimizer=_SGD, steps=3)
    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(text, "program", "exec"), space)
    gc.collect()
    gc.disable()
    try:
        again = text.replace("np.random.seed(0)\nmodel", "#").partition("for step")[2]
        exec(compile("for step" + again, "program", "exec"), space)
        for name in ("loss", "x", "y"):
            space.pop(name, None)
        space["optimizer"].reset_grad()
        left = gc.collect()
    finally:
        gc.enable()
    if left < 10:
        return []
    sentence = f"graphs are freed by the cycle collector alone: {left} objects in three steps hold one another"
    return [
        Entry("reference cycles", HINT, sentence, line_of(ndl, "Tensor", "backward"), "", f"{left} objects", exact="0")
    ]


# -- walks ------------------------------------------------------------------------------------------------------------

_DIAMOND = """import numpy as np
import needle as ndl

x = ndl.Tensor(np.ones(2, dtype="float32"))
y = x
for _ in range({depth}):
    y = y + y
{end}"""


def is_exponential() -> bool:
    """Whether the backward pass of the needle under test takes every path; also where it does not come back from one."""
    try:
        return apart(_found_exponential, patience=SECONDS, heard=bytearray())
    except Died as death:
        return death.endless
    except Broken:
        return False


def _found_exponential() -> bool:
    return bool(exponential(candidate()))


def exponential(ndl: Any) -> list[Entry]:
    """How often gradient rules are called in a backward pass through y = y + y."""
    calls = 0

    def count(frame: types.FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        if (
            event == "call"
            and frame.f_code.co_name in ("gradient", "vjp", "backward")
            and "node" not in frame.f_code.co_freevars
        ):
            owner = frame.f_locals.get("self")
            calls += owner is not None and not isinstance(owner, ndl.Tensor)

    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(_DIAMOND.format(depth=DEPTH, end=""), "program", "exec"), space)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        space["y"].backward(ndl.Tensor(np.ones(2, np.float32), requires_grad=False))
        array_of(space["x"].grad)
    finally:
        sys.setprofile(before)
    return _too_many(ndl, f"{calls}") if calls > 4 * DEPTH else []


def _too_many(ndl: Any, calls: str) -> list[Entry]:
    sentence = (
        f"the backward pass is exponential: {calls} calls of gradient rules for {DEPTH} ops in a row of y = y + y, where "
        f"{DEPTH} are enough (every path is walked, or a node is visited more than once)"
    )
    text = _DIAMOND.format(depth=24, end="y.sum().backward()  # takes longer than you will wait\n")
    return [Entry(EXPONENTIAL, HAZARD, sentence, walk_of(ndl), text, f"{calls} calls", exact=f"{DEPTH} calls")]


def walk_of(ndl: Any) -> str:
    autograd = getattr(ndl, "autograd", None)
    for owner in (autograd, sys.modules.get(ndl.Tensor.__module__)):
        for name in ("compute_gradient_of_variables", "find_topo_sort"):
            function = getattr(owner, name, None)
            if function is not None:
                return line_in(function) or line_of(ndl, "Tensor", "backward")
    return line_of(ndl, "Tensor", "backward")


def _recursive(ndl: Any) -> list[Entry]:
    """A chain that is longer than Python's stack is deep."""
    text = (
        'import numpy as np\nimport needle as ndl\n\nx = ndl.Tensor(np.ones(2, dtype="float32"))\ny = x\n'
        f'for _ in range({CHAIN:_}):\n    y = y + 1\ny.backward(ndl.Tensor(np.ones(2, dtype="float32")))\nprint(x.grad.numpy())\n'
    )
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    place = ""
    try:
        space: dict[str, Any] = {"__name__": "program"}
        try:
            exec(compile(text.replace("print(x.grad.numpy())", ""), "program", "exec"), space)
            array_of(space["x"].grad)
            return []
        except RecursionError as error:
            place = _recursing(error, ndl)
    finally:
        sys.setrecursionlimit(before)
    sentence = f"the walk is recursive: a chain of {CHAIN:,} ops ends with RecursionError"
    return [Entry("recursive walk", HAZARD, sentence, place, text, "RecursionError", exact="[1.0, 1.0]")]


def _recursing(error: BaseException, ndl: Any) -> str:
    """The function that calls itself."""
    folder = inspect.getfile(ndl).rpartition("/")[0]
    counts: dict[tuple[str, int, str], int] = {}
    tb = error.__traceback__
    while tb is not None:
        code = tb.tb_frame.f_code
        if code.co_filename.startswith(folder):
            at = (code.co_filename, code.co_firstlineno, code.co_qualname)
            counts[at] = counts.get(at, 0) + 1
        tb = tb.tb_next
    if not counts:
        return ""
    file, line, name = max(counts, key=lambda at: counts[at])
    return f"{'/'.join(file.split('/')[-2:])}:{line} in {name}"


# -- what is not its own ----------------------------------------------------------------------------------------------

_GENERATOR = """import numpy as np
import needle as ndl

w = ndl.nn.Parameter(ndl.Tensor(np.ones(2, dtype="float32")))
optimizer = ndl.optim.{kind}((p for p in [w]), lr=0.1)
for _ in range(2):
    optimizer.reset_grad()
    (w * w).sum().backward()
    before = np.array(w.numpy())
    optimizer.step()
    print(np.array_equal(before, w.numpy()))
"""


def _exhausted(ndl: Any) -> list[Entry]:
    """A generator of parameters, which an optimizer must put into a list before it looks at it twice."""
    found = []
    for kind in ("SGD", "Adam"):
        text = _GENERATOR.format(kind=kind)
        printed, raised = run(text)
        of_list = run(text.replace("(p for p in [w])", "[w]"))
        if (not raised and "True" not in printed) or of_list == (printed, raised):  # that is not of the generator
            continue
        if raised and "StopIteration" not in raised and "generator" not in raised:
            continue
        sentence = "an optimizer that is given a generator of parameters uses it up: later steps change nothing"
        place = line_of(ndl, f"optim.{kind}", "__init__")
        base = getattr(ndl.optim, "Optimizer", None)
        place = (line_in(base, "__init__") if base is not None else "") or place
        found.append(
            Entry(
                "generator used up",
                HAZARD,
                sentence,
                place,
                text,
                raised or printed.replace("\n", ", "),
                exact="False, False",
            )
        )
        break
    return found


_DRAWS: tuple[tuple[str, str, str], ...] = (
    ("Linear", "ndl.nn.Linear(3, 2)", "Linear(3, 2)"),
    ("BatchNorm1d", "ndl.nn.BatchNorm1d(3)", "BatchNorm1d(3)"),
    ("LayerNorm1d", "ndl.nn.LayerNorm1d(3)", "LayerNorm1d(3)"),
    ("Dropout", "ndl.nn.Dropout(0.5)", "Dropout(0.5)"),
)


def _generator(ndl: Any) -> list[Entry]:
    """Who draws from NumPy's global generator where the course does not, and who seeds it."""
    found = []
    x = ndl.Tensor(np.ones((4, 3), np.float32), requires_grad=False)
    for name, text, shown in _DRAWS:
        if not hasattr(ndl.nn, name):
            continue
        np.random.seed(11)
        layer = eval(text, {"ndl": ndl})
        place = line_of(ndl, *_PLACES[name]) if name in _PLACES else line_of(ndl, f"nn.{name}", "forward")
        for mode in ("train", "eval"):
            getattr(layer, mode)()
            states = []
            for seed in (11, 12):
                np.random.seed(seed)
                array_of(layer(x))
                states.append(np.random.get_state()[1:3])  # type: ignore[index]
            seeded = str(states[0]) == str(states[1])
            np.random.seed(12)
            drawn = str(states[1]) != str(np.random.get_state()[1:3])  # type: ignore[index]
            program = (
                f"import numpy as np\nimport needle as ndl\n\nlayer = {text}\nlayer.{mode}()\nnp.random.seed(12)\n"
                'layer(ndl.Tensor(np.ones((4, 3), dtype="float32")))\nprint(np.random.rand())\n'
            )
            if seeded:
                sentence = f"{shown} seeds NumPy's global generator: everything drawn after it is the same each time"
                found.append(
                    Entry(
                        f"{name} seeds",
                        HAZARD,
                        sentence,
                        place,
                        program,
                        run(program)[0],
                        exact="another number for another seed",
                    )
                )
                break
            if drawn and (mode == "eval" or name != "Dropout"):
                when = "in evaluation" if mode == "eval" else "in its forward pass"
                np.random.seed(12)
                sentence = f"{shown} draws from NumPy's global generator {when}"
                found.append(
                    Entry(
                        f"{name} draws", HAZARD, sentence, place, program, run(program)[0], exact=f"{np.random.rand()}"
                    )
                )
                break
    return found


def _looks() -> Iterator[tuple[Look, tuple[str, ...]]]:
    yield _undetached, ()
    yield _growth, (_LINEAR, _SGD, "SGD")
    yield _growth, (_LINEAR, "Adam(model.parameters(), lr=0.1)", "Adam")
    normed = "ndl.nn.Sequential(ndl.nn.Linear(3, 3), ndl.nn.BatchNorm1d(3), ndl.nn.Linear(3, 2))"
    yield _growth, (normed, "SGD(model.parameters(), lr=0.1)", "BatchNorm1d")
    yield _recursive, ()
    yield _exhausted, ()
    yield _generator, ()
    yield _initialisers, ()
    yield loading.look, ()
    yield _cycles, ()


_LOOKS = tuple(_looks())
