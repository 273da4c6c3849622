"""A single operation in needle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.systems import recorded
from oracle.systems.ours.contract import contract_of
from oracle.systems.ours.model import array_of, grad_of
from oracle.systems.ours.phase import Failed, Phase
from oracle.systems.trace import HIGHER, Clock, Observation, same_bits


def run_op(
    case: c.OpCase,
    ndl: Any,
    op: Callable[..., Any],
    findings: recorded.TapeJudge | None = None,
    *,
    graph: bool = False,
    clock: Clock | None = None,
) -> Observation:
    """One operation: its value, and the gradient of its inner product with the cotangent.

    With ``graph``, once more with ``create_graph=True``: the same gradient, computed by operations on Tensors.
    """
    contract = contract_of(ndl)
    obs = contract.observation(0)
    phase = functools.partial(Phase, clock=clock or Clock(), ndl=ndl)
    try:
        attributes = dict(case.attributes)
        if case.numpy_scalars and contract.strict:
            attributes = {k: np.float64(v) if isinstance(v, float) else v for k, v in attributes.items()}
        with phase("forward"):
            operands = []
            for i in range(len(case.operands)):
                data = case.array(i)
                tensor = ndl.Tensor(data, requires_grad=i not in case.constants and data.dtype.kind == "f")
                if hasattr(tensor, "cached_data"):
                    tensor.cached_data = data  # Tensor copies: this keeps the memory layout
                operands.append(tensor)
            out = op(ndl, *operands, **attributes)
            obs.put("activation", case.op, array_of(out))
        tape = recorded.record(out) if findings is not None else []
        if array_of(out).shape != case.cotangent_array.shape:  # the shape is wrong, and not the backward pass
            if findings is not None:
                findings.judge(tape, backward=False)
            return obs
        if case.alone:
            for i, tensor in enumerate(operands):
                obs.hold("kept", f"operand {i}", same_bits(array_of(tensor), case.array(i)))
            return obs
        with phase("backward"):
            cotangent = ndl.Tensor(case.cotangent_array, requires_grad=False)
            out.backward(cotangent)
        if findings is not None:
            findings.judge(tape, case.cotangent_array)
        for i, tensor in enumerate(operands):
            if grad_of(tensor) is not None and (contract.strict or i not in case.constants):
                obs.put("gradient", f"operand {i}", array_of(tensor.grad))
            obs.hold("kept", f"operand {i}", same_bits(array_of(tensor), case.array(i)))
        obs.hold("kept", "cotangent", same_bits(array_of(cotangent), case.cotangent_array))
        if graph:
            with phase("backward with create_graph"):
                for tensor in operands:
                    tensor.grad = None
                out = op(ndl, *operands, **attributes)
                tape = recorded.record(out) if findings is not None else []
                out.backward(ndl.Tensor(case.cotangent_array, requires_grad=False), create_graph=True)
            if findings is not None:
                findings.judge(tape, case.cotangent_array, second=True)
            for i, tensor in enumerate(operands):
                if tensor.grad is not None:
                    obs.put("gradient with graph", f"operand {i}", array_of(tensor.grad))
                    if findings is not None:
                        findings.judge(recorded.record(tensor.grad, retain=False), backward=False)
        if case.order > 1 and (graph or not contract.strict):
            _higher(case, ndl, lambda: op(ndl, *operands, **attributes), operands, obs, phase, findings)
    except Failed as failed:
        obs.failure = failed.failure
    return obs


def _higher(
    case: c.OpCase,
    ndl: Any,
    result: Callable[[], Any],
    operands: Sequence[Any],
    obs: Observation,
    phase: Callable[[str], Phase],
    findings: recorded.TapeJudge | None,
) -> None:
    """The gradient of the inner product of all gradients so far with drawn directions, by the operands and the cotangent.

    Nothing where the gradients of another needle carry no graph: the course leaves that open.
    """
    contract = contract_of(ndl)
    cotangent = ndl.Tensor(case.cotangent_array.astype(case.dtype, copy=False))
    with phase("backward with create_graph"):
        for tensor in operands:
            tensor.grad = None
        contract.backward(result(), cotangent, create_graph=True)
    asked = [x for i, x in enumerate(operands) if i not in case.constants and grad_of(x) is not None]
    if not all(contract.carried(x.grad, cotangent) for x in asked):
        return
    by = {f"operand {i}": x for i, x in enumerate(operands) if i not in case.constants} | {"cotangent": cotangent}
    for order in range(2, case.order + 1):
        quantity = HIGHER[order]
        with phase(f"{quantity.partition(' ')[0]} backward"):
            total: Any = None
            for name, x in by.items():
                if grad_of(x) is not None and (order > 2 or x is not cotangent):
                    direction = case.direction(order - 1, name, array_of(x).shape)
                    part = (x.grad * ndl.Tensor(direction, requires_grad=False)).sum()
                    total = part if total is None else total + part
            for x in by.values():
                x.grad = None
            if total is None or not total.requires_grad:
                return
            tape = recorded.record(total) if findings is not None else []
            contract.backward(total, create_graph=order < case.order)
        if findings is not None:
            findings.judge(tape, second=order < case.order)
        for name, x in by.items():
            if grad_of(x) is not None:
                obs.put(quantity, name, array_of(x.grad))
