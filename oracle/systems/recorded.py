"""The nodes of needle's tape, recorded before the backward pass, which frees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Node:
    """A node as it was before the backward pass, which frees it."""

    tensor: Any
    op: Any
    inputs: tuple[Any, ...]

    @property
    def kind(self) -> str:
        """Name of the op's class."""
        return type(self.op).__name__


class TapeJudge(Protocol):
    """Who looks at a tape after its backward pass, while its data is there: rule OP (`oracle.rules.tape`)."""

    def judge(
        self,
        nodes: Sequence[Node],
        seed: Any = None,
        *,
        backward: bool = True,
        labels: Mapping[int, str] | None = None,
        second: bool = False,
    ) -> None:
        """``seed`` is the adjoint of the root (ones by default), ``labels`` names the outputs of layers by their id."""


def record(root: Any, *, retain: bool = True) -> list[Node]:
    """The nodes below root, oldest first, found through ``op`` and ``inputs``; each is asked to keep its gradient."""
    nodes: list[Node] = []
    seen = {id(root)}
    stack: list[tuple[Any, Any]] = [(root, None)]
    while stack:
        tensor, rest = stack.pop()
        if rest is None:
            op, inputs = getattr(tensor, "op", None), getattr(tensor, "inputs", None)
            if op is None or not inputs:
                continue
            rest = iter(tuple(inputs))
        for x in rest:
            if id(x) not in seen:
                seen.add(id(x))
                stack += [(tensor, rest), (x, None)]
                break
        else:
            nodes.append(Node(tensor, tensor.op, tuple(tensor.inputs)))
            if retain and getattr(tensor, "requires_grad", False) and hasattr(tensor, "retain_grad"):
                tensor.retain_grad()
    return nodes
