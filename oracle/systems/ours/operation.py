"""A single operation in needle."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from oracle.cases import case as c
from oracle.systems import recorded
from oracle.systems.ours.contract import contract_of
from oracle.systems.ours.model import array_of, grad_of
from oracle.systems.ours.phase import Failed, Phase
from oracle.systems.trace import Clock, Observation


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
            for i, operand in enumerate(case.operands):
                tensor = ndl.Tensor(operand.array, requires_grad=i not in case.constants)
                tensor.cached_data = operand.array  # Tensor copies: this keeps the memory layout
                operands.append(tensor)
            out = op(ndl, *operands, **attributes)
            obs.put("activation", case.op, array_of(out))
        tape = recorded.record(out) if findings is not None else []
        with phase("backward"):
            out.backward(ndl.Tensor(case.cotangent_array, requires_grad=False))
        if findings is not None:
            findings.judge(tape, case.cotangent_array)
        for i, (operand, tensor) in enumerate(zip(case.operands, operands, strict=True)):
            if grad_of(tensor) is not None and (contract.strict or i not in case.constants):
                obs.put("gradient", f"operand {i}", array_of(tensor.grad))
            obs.hold("kept", f"operand {i}", np.array_equal(array_of(tensor), operand.array, equal_nan=True))
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
    except Failed as failed:
        obs.failure = failed.failure
    return obs
