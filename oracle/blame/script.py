"""The standalone script beside a failing case: numpy, torch and a needle, no oracle.

It is written from the case: the model built in needle and in torch, the data and the state before the failing step as
literals, one step, and the numbers of the failure block. Its exit code says whether they still part.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.apart import CASE_SECONDS
from oracle.blame.headline import headline, shown
from oracle.blame.literals import listed, literal, mapping, number, safe
from oracle.blame.locate import suspect
from oracle.blame.program_script import program_values
from oracle.blame.sources import operations_text
from oracle.blame.written import model_values
from oracle.cases import case as c
from oracle.cases import inputs
from oracle.operations.integers import in_numpy
from oracle.pages import templates
from oracle.rules.verdict import Divergence
from oracle.systems.candidate import candidate, home
from oracle.systems.trace import CHANGED, ENDED, HIGHER, UNSEEN, State

Array = npt.NDArray[Any]

UPDATED = ("clip norm", "clipped", "gradient after step", "velocity", "first moment", "second moment", "parameter")


def script(case: c.Case, divergence: Divergence, ndl: Any, *, replayed: bool = False) -> str:
    """The text of the script. ``replayed`` lets it take all steps from the first one on, for faults that count steps."""
    if divergence.quantity in ("graph", "live tensors", "cycles"):
        raise ValueError("what a step leaves in memory is counted by the oracle alone; replay the case")
    if isinstance(case, c.TrainCase) and case.dtypes is not None:
        raise ValueError("in other dtypes torch has no such model to stand beside it; replay the case")
    if isinstance(case, c.OpCase):
        return _op(case, divergence)
    if isinstance(case, c.SecondOrderCase):
        if divergence.quantity == "handed in":
            raise ValueError(
                "what is handed in to two backward passes is looked at by the oracle alone; replay the case"
            )
        return _second(case, divergence)
    if isinstance(case, c.ProgramCase):
        return _render("script_program.py.j2", **_common(case, divergence) | program_values(case, divergence))
    return _train(case, divergence, ndl, replayed)


def checked(case: c.Case, divergence: Divergence) -> str:
    """The script, run once. Where one step from its state does not show the fault, it takes all steps from the first."""
    needle = candidate()
    text = script(case, divergence, needle)
    if divergence.name == CHANGED:
        raise ValueError("a script with needle and torch alone does not look at the state of the process")
    if divergence.name == ENDED or _endless(divergence):
        return text
    if isinstance(case, c.TrainCase) and divergence.step and not fails(text):
        longer = script(case, divergence, needle, replayed=True)
        return longer if fails(longer) else text
    return text


def _endless(divergence: Divergence) -> bool:
    return divergence.failure is not None and divergence.failure.kind == "TimeoutError"


def fails(text: str) -> bool:
    """Whether a script ends with 1, run in this process."""
    path = list(sys.path)
    space: dict[str, Any] = {"__name__": "script"}
    try:
        with np.errstate(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(text, "script", "exec"), space)
            return bool(space["main"]() == 1)
    finally:
        sys.path[:] = path


# -- the parts --------------------------------------------------------------------------------------------------------


def _render(template: str, **values: Any) -> str:
    text = templates.render(Path(__file__).parent / "templates" / template, escaped=False, **values)
    text = re.sub(r"\n{3,}(?=[ \t])", "\n\n", text)  # one blank line inside a block, two outside
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _common(case: c.Case, divergence: Divergence) -> dict[str, Any]:
    """What every script says at its top and its end."""
    folder = str(Path(home()).parent)
    d = divergence
    expected, kind = None, "number"
    if d.rule == "unexpected":
        kind = "unexpected"
    elif d.quantity in ("kept", "untouched", "handed in"):
        kind = "flag"
    elif d.quantity == "parameters":
        kind = "text"
    elif d.quantity == "gradient after step" or (d.quantity == "parameter" and d.rule == "exact"):
        kind = "bits"
    if d.quantity == "operator" and isinstance(d.truth, float):
        # judged against the definition of the op; what it must give is written down, for there is no such thing in torch
        expected = f"np.full(ours.shape, {number(d.truth)}) if ours is not None else None"
    head = headline(d)
    return {
        "headline": safe(head),
        "head": repr(head),
        "description": "\n    ".join(textwrap.wrap(safe(c.describe(case)), 110)),
        "suspect": "\n".join(textwrap.wrap(safe(suspect(case, d)), 110)),
        "numbers": [safe(f"{name:<8} {text}"[:110]) for name, text in shown(d)],
        "needle": repr(folder),
        "folder": safe(folder),
        "digest": case.digest,
        "quantity": repr(d.quantity),
        "name": repr(d.name),
        "index": repr(d.index),
        "rule": d.rule,
        "patience": int(CASE_SECONDS) + (case.steps if isinstance(case, c.TrainCase) else 0),
        "allowed": "0.0" if d.allowed is None else number(d.allowed),
        "dtype": repr("float64" if d.quantity == "clip norm" else "float32"),
        "raised": d.failure is not None,
        "expected": expected,
        "kind": kind,
        "listed": getattr(getattr(case, "loss", None), "labels", "") == "list",
        "handed": d.quantity == "handed in",
        "unwatched": d.name.endswith(UNSEEN),
        "op": None,
    }


def _data(case: c.TrainCase | c.SecondOrderCase, first: int, last: int) -> Iterator[tuple[str, str]]:
    """Batches, labels, drawn tensors, dropout masks and seeds of some steps."""
    batches, masks = inputs.batches(case), inputs.masks(case, last + 1)
    steps = range(first, last + 1)

    def by_step(values: Array) -> str:
        return _dict_of_steps({t: [literal(v) for v in values[t]] for t in steps})

    yield "X", by_step(batches.x)
    if batches.labels is not None:
        yield "LABELS", by_step(batches.labels)
    if batches.drawn is not None:
        yield "DRAWN", by_step(batches.drawn)
    yield "MASKS", mapping({path: by_step(mask) for path, mask in masks.items()})
    yield "STEP_SEEDS", repr({t: inputs.step_seed(case, t) for t in steps})


def _dict_of_steps(values: dict[int, list[str]]) -> str:
    body = "".join(f"{t}: {listed(v)},\n" for t, v in values.items())
    return "{\n" + textwrap.indent(body, "    ") + "}"


def _state(state: State) -> str:
    parts = {"tensors": mapping({n: literal(v) for n, v in state.tensors.items()})}
    parts |= {q: mapping({n: literal(v) for n, v in values.items()}) for q, values in state.slots.items() if values}
    return mapping(parts)


# -- the three kinds --------------------------------------------------------------------------------------------------


def _train(case: c.TrainCase, divergence: Divergence, ndl: Any, replayed: bool) -> str:
    from oracle.systems import peer as peer
    from oracle.systems.lockstep import Lockstep

    last = divergence.step
    # the steps of a parameter are not those of the case if it missed one: then from the start
    ended = divergence.name == ENDED  # needle cannot be run here without ending this process
    first = 0 if replayed or case.gap or ended else max(0, last - 1) if divergence.quantity == "kept" else last
    state = State(inputs.initial_state(case))
    if first:
        for step in Lockstep(case, ndl).steps():
            if step.ours.step == first:
                state = step.before
                break
    spec = case.optimizer
    parameters, buffers = inputs.slots(case)
    rates = {t: case.lr_at(t) for t in range(first, last + 1)}
    given = ", ".join(f"{n}={getattr(spec, n)!r}" for n in spec.__struct_fields__ if getattr(spec, n) is not None)
    default = peer.DEFAULT_LR
    lr = default if spec.lr is None else spec.lr
    decay = spec.weight_decay or 0.0
    adam = isinstance(spec, c.Adam)
    about: dict[str, Any] = {"adam": adam, "decay": repr(decay), "beta": "0.0", "dampened": False}
    if isinstance(spec, c.Adam):
        b1 = 0.9 if spec.beta1 is None else spec.beta1
        b2 = 0.999 if spec.beta2 is None else spec.beta2
        eps = 1e-8 if spec.eps is None else spec.eps
        about |= {"b1": repr(b1), "b2": repr(b2), "eps": repr(eps)}
        torch_optimizer = (
            f"torch.optim.Adam(\n            list(self.model.parameters()), lr={lr!r}, betas=({b1!r}, {b2!r}), eps={eps!r}, "
            f"weight_decay={decay!r}, foreach=False\n        )"
        )
        keys = {"first moment": "exp_avg", "second moment": "exp_avg_sq"}
    else:
        beta = spec.momentum or 0.0
        about |= {"beta": repr(beta), "dampened": bool(beta)}
        torch_optimizer = (
            f"torch.optim.SGD(\n            list(self.model.parameters()), lr={lr!r}, momentum={beta!r}, dampening={beta!r}, "
            f"weight_decay={decay!r}, foreach=False\n        )"
        )
        keys = {"velocity": "momentum_buffer"}
    data = list(_data(case, first, last))
    data += [
        ("STATE", _state(state)),
        ("PARAMETERS", repr([s.name for s in parameters])),
        ("BUFFERS", repr([s.name for s in buffers])),
        ("FIRST, LAST", f"{first}, {last}"),
        ("LR", repr({t: default if r is None else r for t, r in rates.items()})),
        (
            "RATES",
            repr(
                {t: r for t, r in rates.items() if r is not None and r != (case.lr_at(t - 1) if t > first else spec.lr)}
            ),
        ),
        ("HOLDS", repr({t: (case.seed_for("holds") + t) % 2 == 0 for t in rates})),
        ("STATE_KEYS", repr(keys)),
        ("BUILD_SEED", repr(case.seed_for("build"))),
    ]
    values = _common(case, divergence) | model_values(case) | about
    if divergence.quantity == "operator":
        values["op"] = _place(divergence.name)
    if divergence.quantity == "initial":
        shape = next(slot.shape for slot in (*parameters, *buffers) if slot.name == divergence.name)
        right = divergence.truth if isinstance(divergence.truth, float) else 0.0
        values["expected"] = f"np.full({shape}, {number(right)})"
    if divergence.quantity == "operator" and not isinstance(divergence.truth, float):
        # a wrong shape or dtype, or nothing at all
        is_shape = isinstance(divergence.truth, str) and divergence.truth.startswith("(")
        values["expected"] = f"np.zeros({divergence.truth})" if is_shape else "ours"
    tied = any(isinstance(layer, c.Linear) and layer.tie is not None for _, layer in c.walk(case.model))
    all_of = f"p for p in model.parameters(){' for _ in range(2)' if tied else ''}"
    all_of = f"[{all_of}] if not hasattr(ndl.Tensor, 'retain_grad') else ({all_of})"  # the course wants a list
    clip = None if case.clip is None else 0.25 if case.clip.max_norm is None else case.clip.max_norm
    return _render(
        "script.py.j2",
        **values,
        mode="train",
        data=data,
        packed=any("unpack(" in v for _, v in data),
        needle_optimizer=f"ndl.optim.{type(spec).__name__}({all_of}{', ' if given else ''}{given})",
        torch_optimizer=torch_optimizer,
        micro=inputs.micro_batches(case),
        input_grad=case.input_grad,
        backward=case.backward,
        clip=clip,
        gap=inputs.gap(case) if case.gap else None,
        clip_text="" if case.clip is None or case.clip.max_norm is None else repr(clip),
        buffers=buffers,
        updated=divergence.quantity in UPDATED,
        evaluated=divergence.quantity in ("evaluation", "untouched", "exception in evaluation"),
    )


def _place(name: str) -> dict[str, Any]:
    """The node that a name of rule OP speaks of: ``BatchNorm backward, operand 0 (node 2 of pass 1)``."""
    node = re.search(r"\(node (\d+)", name)
    operand = re.search(r"operand (\d+)", name)
    tape = re.search(r"of pass (\d+)", name)
    assert node is not None
    return {
        "node": int(node[1]),
        "operand": None if operand is None else int(operand[1]),
        "tape": 0 if tape is None else int(tape[1]),
    }


def _second(case: c.SecondOrderCase, divergence: Divergence) -> str:
    from oracle.systems.second_order import directions

    data = list(_data(case, 0, 0))
    data += [
        ("STATE", _state(State(inputs.initial_state(case)))),
        ("PARAMETERS", repr([s.name for s in inputs.slots(case)[0]])),
        ("DIRECTIONS", mapping({n: literal(v) for n, v in directions(case).items()})),
    ]
    values = _common(case, divergence) | model_values(case)
    return _render("script.py.j2", **values, mode="second", data=data, packed=any("unpack(" in v for _, v in data))


def _dtype_of(case: c.OpCase, divergence: Divergence) -> str:
    """Of the tensor that diverges."""
    operand = divergence.name.removeprefix("operand ")
    return case.dtypes[int(operand)] if operand.isdigit() else case.dtype


def _op(case: c.OpCase, divergence: Divergence) -> str:
    arrays = [case.array(i) for i in range(len(case.operands))]
    operands = [np.ascontiguousarray(x) if x.ndim else x for x in arrays]
    constants = {*case.constants, *(i for i, x in enumerate(arrays) if x.dtype.kind != "f")}
    data = [
        ("OPERANDS", listed([literal(x) for x in operands])),
        ("LAYOUTS", repr([o.layout for o in case.operands])),
        ("COTANGENT", literal(case.cotangent_array.astype(case.dtype, copy=False))),
        ("CONSTANTS", repr(tuple(sorted(constants)))),
    ]
    kept = in_numpy(case.op, arrays, case.attributes) if case.alone else None
    about: dict[str, Any] = {}
    if case.dtypes:  # torch's float32 says nothing of other dtypes
        about = {"rule": "", "dtype": repr(_dtype_of(case, divergence) if kept is None else str(kept.dtype))}
    if kept is not None:
        about["expected"] = literal(kept)
    if case.order > 1:
        shapes = {f"operand {i}": o.shape for i, o in enumerate(case.operands)} | {"cotangent": case.result_shape}
        drawn = {(n + 1, name): case.direction(n, name, shapes[name]) for n in range(1, case.order) for name in shapes}
        data.append(("DIRECTIONS", mapping({place: literal(value) for place, value in drawn.items()})))
        data.append(("QUANTITIES", repr(HIGHER)))
    given = {k: f"np.float64({v!r})" if isinstance(v, float) else repr(v) for k, v in case.attributes.items()}
    ours = (
        "{" + ", ".join(f"{k!r}: {v}" for k, v in given.items()) + "}" if case.numpy_scalars else repr(case.attributes)
    )
    return _render(
        "script_op.py.j2",
        **_common(case, divergence) | about,
        data=data,
        ops=operations_text([case.op]),
        graph=divergence.quantity in ("gradient with graph", "exception in backward with create_graph"),
        op_name=repr(case.op),
        order=case.order,
        alone=case.alone,
        needle_attributes=ours,
        attributes=repr(case.attributes),
        packed=any("unpack(" in v for _, v in data),
    )
