"""What does a user do with the layers of a model that is at work? A fresh one in the place of another, two that change places."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from oracle.cases.action import Action, Hands, Plan, Write
from oracle.cases.bounds import Place
from oracle.cases.known import STATES, Known
from oracle.operations.drawn import Draw


def within(path: str, name: str) -> bool:
    """Whether a module or a tensor of that name is the layer at the path, or in it."""
    return name == path or name.startswith(f"{path}.")


class PutLayer(Action, frozen=True, tag="PutLayer"):
    """``model[1] = Linear(3, 3)``: a layer like the one that is there, with numbers of its own, which the optimizers then have instead.

    In a model that is a list or a dict of layers it is put there. Where no layer can be replaced, nothing is done.
    """

    layer: Place = 0

    weight = 3

    @property
    def words(self) -> str:
        """What it is called."""
        return "layer replaced"

    @classmethod
    def drawn(cls, draw: Draw, plan: Plan) -> PutLayer:
        """Any layer."""
        return cls(draw.whole(0, max(0, plan.layers - 1)))

    def _path(self, k: Known) -> str:
        return k.places[self.layer % len(k.places)] if k.places else ""

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        path = self._path(k)
        if not path:
            return
        yield "_, fresh, given = build()"
        for name in k.parameters:
            if within(path, name):
                yield f"given[{name!r}].data = ndl.Tensor({write(k.numbers(name))}, requires_grad=False)"
                yield "for o in optimizers:"
                yield f"    o.params[:] = [given[{name!r}] if p is parameters[{name!r}] else p for p in o.params]"
                yield f"parameters[{name!r}] = given[{name!r}]"
        yield f"places(model)[key(model, {path})] = fresh[{path!r}]"
        yield f"layers.update({{n: m for n, m in fresh.items() if n == {path!r} or n.startswith({path + '.'!r})}})"

    def needle(self, w: Hands) -> None:
        """``model[1] = …``."""
        w.put_layer(self.layer)

    def meaning(self, k: Known) -> None:
        """The layer is as a new one: no gradients, no state in any optimizer, it trains, and its settings are as built."""
        path = self._path(k)
        if not path:
            return
        for name in k.parameters:
            if within(path, name):
                k.values |= {f"parameter {name}": k.numbers(name), f"requires_grad {name}": True}
                gone = [f"gradient {name}"]
                for i, (kind, _) in enumerate(k.optimizers):
                    gone += [f"optimizer {i}: {q} {name}" for q in (*STATES[kind], "t")]
                for key in gone:
                    k.values.pop(key, None)
        for key, value in k.values.items():
            kind, _, name = key.partition(" ")
            if kind == "buffer" and within(path, name):
                k.values[key] = (np.ones_like if name.endswith("running_var") else np.zeros_like)(value)
        k.values |= {f"mode {layer}": True for layer in k.layers if within(path, layer)}
        k.values |= {key: v for key, v in k.built.items() if within(path, key.split(" ")[1])}


PutLayer.examples = (PutLayer(),)


class SwapLayers(Action, frozen=True, tag="SwapLayers"):
    """``model[1], model[2] = model[2], model[1]``, of two layers of the same kind and sizes; where there are none, nothing."""

    pair: Place = 0

    weight = 2

    @property
    def words(self) -> str:
        """What it is called."""
        return "layers swapped"

    def _renamed(self, k: Known) -> Callable[[str], str]:
        """The name that a part of one of the layers has afterwards; any other name is what it was."""
        one, other = k.pairs[self.pair % len(k.pairs)] if k.pairs else ("", "")

        def renamed(name: str) -> str:
            for path, to in ((one, other), (other, one)):
                if path and within(path, name):
                    return to + name[len(path) :]
            return name

        return renamed

    def code(self, k: Known, write: Write) -> Iterator[str]:
        """Lines of a script."""
        if k.pairs:
            one, other = k.pairs[self.pair % len(k.pairs)]
            renamed = self._renamed(k)
            yield "held = places(model)"
            yield f"one, other = key(model, {one}), key(model, {other})"
            yield "held[one], held[other] = held[other], held[one]"
            for things, names in (("layers", k.layers), ("parameters", k.parameters)):
                moved = ", ".join(f"{n!r}: {things}[{renamed(n)!r}]" for n in names if renamed(n) != n)
                yield f"{things}.update({{{moved}}})"

    def needle(self, w: Hands) -> None:
        """``model[1], model[2] = model[2], model[1]``."""
        w.swap_layers(self.pair)

    def meaning(self, k: Known) -> None:
        """All that belongs to one of them is the other's, by name: an optimizer has its parameters in another order."""
        renamed = self._renamed(k)
        k.values = {" ".join(map(renamed, key.split(" "))): value for key, value in k.values.items()}
        k.optimizers = [(kind, list(map(renamed, names))) for kind, names in k.optimizers]


SwapLayers.examples = (SwapLayers(),)
