"""How each library is called: its imports, a function of arrays that `oracle.check` can judge, and the same in lines of a program."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np

from oracle import check

Function = Callable[..., Any]


USUAL = ("import numpy as np", "import torch", "import torch.nn.functional as F", "from torch import nn")


@dataclass(frozen=True)
class Library:
    """A library. ``imports`` are lines of Python; the programs begin with them."""

    name: str
    title: str
    package: str  # in the registry
    imports: tuple[str, ...]
    candidate: Callable[[Function, bool], Function] = field(repr=False)  # (function, with gradient) -> for `check.op`
    # lines of a program, in which {call} is the expression:
    leaf: str  # an input of the library's out of an array
    value: str  # that make ``ours`` the result
    gradient: str  # … the gradient for the cotangent g0, of {wrt}, which is input number {at} of {names}
    steps: str = ""  # … the weights after the steps of an optimizer
    environment: tuple[tuple[str, str], ...] = ()


def is_float(x: Any) -> bool:
    """An array that has a gradient."""
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _filled(function: Function, given: Sequence[Any]) -> tuple[Function, list[Any]]:
    """The function of the floats alone, and these."""
    at = [i for i, x in enumerate(given) if is_float(x)]

    def of_floats(*floats: Any) -> Any:
        full = list(given)
        for i, x in zip(at, floats, strict=True):
            full[i] = x
        return function(*full)

    return of_floats, [given[i] for i in at]


def _jax(function: Function, gradient: bool) -> Function:
    def candidate(*given: Any) -> Any:
        if not gradient:
            return function(*map(_as_jax, given))
        of_floats, floats = _filled(function, [_as_jax(x) if not is_float(x) else x for x in given])
        return imported("jax")["jax"].vjp(of_floats, *map(_as_jax, floats))

    return candidate


def _as_jax(x: Any) -> Any:
    return imported("jax")["jnp"].asarray(x) if isinstance(x, np.ndarray) else x


def _mygrad(function: Function, gradient: bool) -> Function:
    def tensor(a: Any) -> Any:
        return imported("mygrad")["mg"].tensor(a)

    made = check.backward(function, tensor)
    return made if gradient else lambda *given: made(*given)[0]


def _autograd(function: Function, gradient: bool) -> Function:
    def candidate(*given: Any) -> Any:
        if not gradient:
            return function(*given)
        of_floats, floats = _filled(function, given)
        vjp, out = imported("autograd")["autograd"].make_vjp(lambda xs: of_floats(*xs))(tuple(floats))
        return out, vjp

    return candidate


def _tinygrad(function: Function, gradient: bool) -> Function:
    def candidate(*given: Any) -> Any:
        make = imported("tinygrad")["Tensor"]
        leaves = [make(x) if isinstance(x, np.ndarray) else x for x in given]
        out = function(*leaves).numpy()
        if not gradient:
            return out
        wanted = [leaf for x, leaf in zip(given, leaves, strict=True) if is_float(x)]

        def vjp(cotangent: Any) -> list[Any]:
            again = function(*leaves)  # for one that has been computed there is no gradient any more
            made = again.gradient(*wanted, gradient=make(cotangent))
            return [g.numpy() for g in made]

        return out, vjp

    return candidate


def _torch(function: Function, gradient: bool) -> Function:
    import torch

    def candidate(*given: Any) -> Any:
        tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) and not is_float(x) else x for x in given]
        made = check.backward(function, lambda a: torch.from_numpy(np.array(a)).requires_grad_(gradient))(*tensors)
        return made if gradient else made[0]

    return candidate


_JAX: dict[str, Any] = {
    "candidate": _jax,
    "leaf": "jnp.asarray({})",
    "value": "ours = {call}",
    "gradient": "ours = jax.vjp(lambda {names}: {call}, {names})[1](jnp.asarray(g0))[{at}]",
    "environment": (("JAX_PLATFORMS", "cpu"),),
}
LIBRARIES = {
    made.name: made
    for made in (
        Library("jax", "JAX", "jax", ("import jax", "import jax.numpy as jnp", "import jax.scipy as jsp"), **_JAX),
        Library("flax", "flax", "flax", ("import jax", "import jax.numpy as jnp", "from flax import linen"), **_JAX),
        Library(
            "optax", "optax", "optax", ("import jax", "import jax.numpy as jnp", "import optax"), **_JAX,
            steps="ours = jnp.asarray(w0)\nrule = {call}\nstate = rule.init(ours)\nfor g in grads:\n"
            "    updates, state = rule.update(jnp.asarray(g), state, ours)\n    ours = optax.apply_updates(ours, updates)",
        ),
        Library(
            "mygrad", "MyGrad", "mygrad", ("from mygrad.nnet import initializers", "from mygrad import nnet", "import mygrad as mg"), _mygrad,
            leaf="mg.tensor({})",
            value="ours = np.asarray({call})",
            gradient="({call}).backward(g0)\nours = {wrt}.grad",
        ),
        Library(
            "autograd", "HIPS autograd", "autograd",
            (
                "import autograd.scipy as asp", "import autograd.numpy as anp",
                "from autograd.misc.optimizers import adam, rmsprop, sgd", "import autograd",
            ),
            _autograd,
            steps="ours = {call}",
            leaf="{}",
            value="ours = {call}",
            gradient="ours = autograd.make_vjp(lambda {names}: {call}, {at})({names})[0](g0)",
        ),
        Library(
            "tinygrad", "tinygrad", "tinygrad", ("from tinygrad.nn import optim", "from tinygrad import Context, Tensor"),
            _tinygrad,
            steps="w = Tensor(w0).is_param_()\nrule = {call}\nwith Context(TRAINING=1):\n    for g in grads:\n"
            "        w.grad = Tensor(g)\n        rule.step()\nours = w.numpy()",
            leaf="Tensor({})",
            value="ours = ({call}).numpy()",
            gradient="ours = ({call}).gradient({wrt}, gradient=Tensor(g0))[0].numpy()",
            environment=(("DEV", "PYTHON"),),
        ),
        Library(
            "torch", "PyTorch itself", "torch", ("import torch",), _torch,
            leaf="torch.from_numpy({}).requires_grad_()",
            value="ours = ({call}).detach().numpy()",
            gradient="ours = torch.autograd.grad({call}, {wrt}, torch.from_numpy(g0))[0].numpy()",
        ),
    )
}  # fmt: skip


@cache
def missing(name: str) -> str:
    """Why a library cannot be used here; "" if it can."""
    library = LIBRARIES[name]
    module = library.imports[-1].split()[1].split(".")[0]
    if importlib.util.find_spec(module) is None:
        return f"{library.package} is not installed"
    try:
        namespace(name)
    except Exception as error:
        return f"{library.package} cannot be imported: {type(error).__name__}: {error}"
    return ""


@cache
def imported(name: str) -> dict[str, Any]:
    """The modules of a library by the names that its imports give them."""
    library = LIBRARIES[name]
    for variable, value in library.environment:
        os.environ.setdefault(variable, value)
    there: dict[str, Any] = {}
    exec("\n".join((*USUAL, *library.imports)), there)
    return there


def namespace(name: str) -> dict[str, Any]:
    """What the expressions of a library are evaluated in."""
    return dict(imported(name))


def version(name: str) -> str:
    """The version that is installed; and on what it runs, where there is a choice."""
    library = LIBRARIES[name]
    try:
        text = metadata.version(library.package)
    except metadata.PackageNotFoundError:
        return "not installed"
    if name == "tinygrad":
        device = os.environ.get("DEV", "PYTHON")
        text += f" (device {device}{'' if device == 'PYTHON' or shutil.which('clang') else ', without clang'})"
    return text


def function(expression: str, names: Sequence[str], there: dict[str, Any]) -> Function:
    """An expression as a function of its inputs."""
    made: Function = eval(f"lambda {', '.join(names)}: {expression}", there)
    return made
