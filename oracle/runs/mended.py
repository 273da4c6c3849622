"""What would a run find if a function that is wrong were right? So it is known what comes of it, and what stands behind it.

In a child of its own, the op (or operator) of another needle that was found wrong gets the numbers of its definition, or a layer, loss
or method of `Module` another body (`instead`). If what was found of it is then gone, it was wrong indeed; another finding that is gone
with it, in all cases that are known of it, was a consequence, and one that is still there is another mistake. Nothing of this outlives
the child.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from oracle.apart import Broken, Died, apart, begin
from oracle.blame import culprit
from oracle.blame.entry import Entry, entry
from oracle.cases import case as c
from oracle.cases.battery import battery
from oracle.operations import OPERATIONS
from oracle.rules.alone import Known, known_ops
from oracle.rules.node import derived
from oracle.runs import basics, hazards, instead
from oracle.runs.judgement import verdict_on
from oracle.runs.result import Failed
from oracle.runs.shard import judge_all
from oracle.systems.candidate import candidate
from oracle.systems.ours.model import array_of
from oracle.systems.source import COMPUTE, GRADIENT
from oracle.systems.trace import HIGHER

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "__rsub__": lambda x, c: x * -1.0 + c,
    "__rtruediv__": lambda x, c: x**-1.0 * c,
    "__sub__": lambda a, b: a + b * -1.0,
}


def can_be_mended(key: str) -> bool:
    """Whether a culprit looks like one; whether it is, shows on trying."""
    function = key.partition(".")[2] in (*COMPUTE, *GRADIENT, *_OPERATORS) or key == "sum_node_list"
    return function or key in _WALKS or _part(key) in (*instead.LAYERS, _LOSS)


PROMOTES = "float64 of "  # begins the key of what makes float64 of float32
_WALKS = {f"Module.{method}": method for method in instead.WALKS}
_LOSS = "SoftmaxLoss"
_WITH_GRAPH = (*_WALKS, "sum_node_list", *basics.LOOKS)
_CLASSES = {kind.called or name: name for name, kind in c.LAYERS.items()}


def _part(key: str) -> str:
    """The layer or the loss that a key is about ("LayerNorm backward", "LayerNorm1d.forward"), but for its constructor."""
    name = re.split(r"[ .]", key.removeprefix(PROMOTES))[0]
    return "" if key.endswith(("constructor", "__init__")) else _CLASSES.get(name, name)


def mend(ndl: Any, key: str) -> bool:
    """Put what is right in the place of a function, by its culprit's key; False where that cannot be done."""
    owner, _, method = key.partition(".")
    if key == "sum_node_list":
        return _mend_sum(ndl)
    if key in (hazards.EXPONENTIAL, basics.ADDED):
        return instead.put_backward(ndl)
    if key in basics.LOOKS:
        return basics.put_init(ndl, key)
    if key in _WALKS:
        return instead.put_walk(ndl, _WALKS[key])
    if owner in ("Tensor", "Value") and method in _OPERATORS:
        right = _OPERATORS[method]
        setattr(ndl.Tensor, method, lambda self, other: right(self, other))
        return True
    kinds = [
        (kind, known) for kind, known in known_ops(ndl).items() if kind.__name__ == owner and hasattr(kind, method)
    ]
    for kind, known in kinds:
        wrong = getattr(kind, method)
        setattr(kind, method, _value(known, wrong) if method in COMPUTE else _passed_back(ndl, known, wrong))
    part = _part(key)
    return bool(kinds) or (instead.put_loss(ndl) if part == _LOSS else instead.put_layer(ndl, part))


def _mend_sum(ndl: Any) -> bool:
    homes = [home for home in (getattr(ndl, "autograd", None), ndl) if hasattr(home, "sum_node_list")]
    for home in homes:
        assert home is not None
        home.sum_node_list = lambda nodes: functools.reduce(operator.add, nodes)
    return bool(homes)


def _defined(known: Known, op: Any, xs: Sequence[Any]) -> Any:
    def meaning(tape: Any, op: Any, *operands: Any) -> Any:
        return OPERATIONS[known.name].definition(tape, *operands, **known.given(op))

    return derived(meaning, op, [np.asarray(x).astype(np.float64) for x in xs])


def _value(known: Known, wrong: Callable[..., Any]) -> Callable[..., Any]:
    def compute(self: Any, *xs: Any) -> Any:
        try:
            value, _, _ = _defined(known, self, xs)
        except Exception:
            return wrong(self, *xs)
        return np.asarray(value).astype(np.result_type(*xs))

    return compute


def _passed_back(ndl: Any, known: Known, wrong: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(self: Any, *args: Any) -> Any:
        node = next((a for a in args if getattr(a, "op", None) is self), None)
        tensors = [a for a in args if a is not node]
        g, inputs = tensors[0], list(node.inputs) if node is not None else tensors[1:]
        try:
            _, _, vjp = _defined(known, self, [array_of(x) for x in inputs])
            parts = vjp(array_of(g).astype(np.float64), [True] * len(inputs))
            arrays = [
                np.zeros_like(array_of(x)) if part is None else np.asarray(part[0], np.float32)
                for x, part in zip(inputs, parts, strict=True)
            ]
            made = arrays if isinstance(g, np.ndarray) else [ndl.Tensor(a, requires_grad=False) for a in arrays]
        except Exception:
            return wrong(self, *args)
        return made[0] if len(made) == 1 else tuple(made)

    return gradient


Gone = tuple[bool | None, list["bool | None"]]  # of what was mended itself, and of other findings; None: cannot be told


def gone(cause: Failed | str, others: Sequence[Failed], already: Sequence[str] = ()) -> Gone:
    """What is gone once the culprit of a finding, or what `basics` have found, is right, beside what is right ``already``: two
    mistakes may show in the same way.
    """
    key = cause if isinstance(cause, str) else cause.culprit
    # the right numbers of an op have no graph of their own: what is differentiated twice is tried without them
    kept = [known for known in already if _keeps_graphs(known)]
    answers: dict[int, bool | None] = {}
    own: bool | None = None
    for higher, right in ((False, already), (True, kept)):
        part = [failed for failed in others if _higher(failed) == higher]
        own_too = _higher(cause) == higher
        if (part or own_too) and (_keeps_graphs(key) or not higher):
            try:
                itself, found = apart(_gone, cause if own_too else key, part, right, own_too, heard=bytearray())
            except (Broken, Died):
                continue
            own = itself if own_too else own
            answers |= {id(failed): answer for failed, answer in zip(part, found, strict=True)}
    return own, [answers.get(id(failed)) if own else None for failed in others]


def _gone(cause: Failed | str, others: Sequence[Failed], right: Sequence[str], own_too: bool) -> Gone:
    ndl, key = candidate(), cause if isinstance(cause, str) else cause.culprit
    for known in right:
        mend(ndl, known)
    if not mend(ndl, key):
        return None, [None] * len(others)
    own = True
    if own_too:
        own = not basics.LOOKS[key](ndl) if isinstance(cause, str) else _all_gone(cause)
    # what is still there itself is not its fault
    return own, [_all_gone(failed) for failed in others] if own else [None] * len(others)


def _keeps_graphs(key: str) -> bool:
    method = key.partition(".")[2]
    return key in _WITH_GRAPH or method in _OPERATORS or _part(key) in (*instead.LAYERS, _LOSS)


def _higher(failed: Failed | str) -> bool:
    """Whether it is about what is differentiated twice."""
    if isinstance(failed, str):
        return False
    return isinstance(failed.case, c.SecondOrderCase) or failed.divergence.quantity in HIGHER.values()


def _all_gone(failed: Failed) -> bool:
    """Whether no case that is known of a finding shows it."""
    for case in (failed.case, *failed.others):
        begin()
        verdict = verdict_on(case, peer_too=False)
        found = [d for d in (verdict.divergence, *verdict.beside) if d is not None]
        if any(culprit(case, d) == failed.culprit for d in found):
            return False
    return True


def plainly(failed: Failed) -> list[Failed]:
    """What the plain training run of a program shows: where that fails, what the user does in between is not to blame."""
    try:
        return apart(_plainly, failed, heard=bytearray())
    except (Broken, Died):
        return []


def _plainly(failed: Failed) -> list[Failed]:
    assert isinstance(failed.case, c.ProgramCase)
    return judge_all([failed.case.training]).failed


def behind(keys: Collection[str], known: Collection[str], lacking: frozenset[str]) -> list[Entry]:
    """What the small cases show once some functions are right, but for what is known already."""
    try:
        return apart(_behind, tuple(keys), frozenset(known), lacking, heard=bytearray())
    except (Broken, Died):
        return []


def _behind(keys: Sequence[str], known: frozenset[str], lacking: frozenset[str]) -> list[Entry]:
    ndl = candidate()
    mended = [key for key in keys if mend(ndl, key)]
    if not mended:
        return []
    cases = [case for case in battery(lacking) if isinstance(case, c.TrainCase)]
    found: list[Entry] = []
    for failed in judge_all(cases).failed:
        if failed.culprit in known:
            continue
        begin()
        made = entry(failed.case, failed.divergence, ndl)
        made.count = failed.count
        made.details.append(f"it shows only once {' and '.join(mended)} is right, which is wrong in all of these cases")
        found.append(made)
    return found
