"""The smallest program that shows a finding: plain code against the API of the course, to be pasted.

It needs NumPy and a needle. It starts where the case starts, and prints the one thing that is wrong.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import inputs, programs
from oracle.rules.verdict import Divergence
from oracle.systems.candidate import candidate
from oracle.systems.ours.contract import Course, contract_of
from oracle.systems.trace import HIGHER, STATE

Array = npt.NDArray[Any]

MOST = 150  # numbers that a program writes out; beyond it, the standalone script of the case has them
NAMES = "xyzw"
CLASSES = {"BatchNorm": "BatchNorm1d", "LayerNorm": "LayerNorm1d"}
_BLOCK = """class Block(ndl.nn.Module):
    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, list(parts)

    def forward(self, x):
        return self.function(x, *self.parts)
"""
_PUT = """def put(tensor, values):
    tensor.cached_data = np.array(values, dtype="float32").reshape(tensor.shape)
"""
_PUT_BY_DATA = """def put(tensor, values):
    tensor.data = ndl.Tensor(np.array(values, dtype="float32").reshape(tensor.shape), requires_grad=False)
"""


class TooLong(ValueError):
    """The program would not be a small one."""


def call(op: str, xs: Sequence[str], attributes: Mapping[str, Any], rank: int = 2) -> str:
    """How an operation is written, on operands of these names; ``rank`` of the first decides between two ways to write it."""
    x, c_ = xs[0], attributes.get("c")
    odd = rank % 2
    binary = {"subtract": "-", "matmul": "@"}
    if op in binary and not (op == "matmul" and odd):
        return f"{x} {binary[op]} {xs[1]}"
    scalars = {"add_scalar": f"{x} + {c_}", "mul_scalar": f"{c_} * {x}", "divide_scalar": f"{x} / {c_}",
               "power_scalar": f"{x} ** {c_}"}  # fmt: skip
    if op in scalars:
        return f"ndl.{op}({x}, {c_})" if odd else scalars[op]
    reflected = {"rsub": "-", "rdiv": "/", "rpow": "**"}
    if op in reflected:
        return f"{c_} {reflected[op]} {x}"
    if op == "broadcast_to":
        return f"{x}.broadcast_to({attributes['shape']})"
    if op == "stack":
        return f"ndl.stack([{', '.join(xs)}], {attributes['axis']})"
    if op == "split":
        return f"ndl.split({x}, {attributes['axis']})[{attributes['pick']}]"
    if op == "softmax_loss":
        return f"ndl.nn.SoftmaxLoss()({x}, ndl.Tensor(np.array({list(attributes['labels'])})))"
    if op == "maximum":
        return f"{x}.max({attributes.get('axes')})"
    if op == "cast":
        return f"ndl.ops.cast((ndl.ops.cast({x}, 'float64') + {x}) * 0.5, 'float32')"
    if op == "transpose" and "axes" not in attributes:
        return f"ndl.transpose({x})"
    given = "".join(f", {value}" if name == "shape" else f", {name}={value}" for name, value in attributes.items())
    return f"ndl.{op}({', '.join(xs)}{given})"


def written(array: Array) -> str:
    """Numbers as code."""
    if array.size > MOST:
        raise TooLong(f"{array.size} numbers")
    short: Any = np.vectorize(lambda v: float(f"{v:.9g}"), otypes=[object])(array).tolist() if array.size else []
    return f'np.array({short}, dtype="float32")'


def program(case: c.Case, divergence: Divergence) -> str:
    """The program; TooLong where it would not be a small one."""
    if isinstance(case, c.OpCase):
        text = _op(case, divergence)
    elif isinstance(case, c.ProgramCase):
        text = _user(case, divergence)
    else:
        text = _model(case, divergence)
    contract = contract_of(candidate())
    return _in_its_forms(text, contract) if isinstance(contract, Course) else text


def _in_its_forms(text: str, contract: Course) -> str:
    """The program for a needle whose gradients or buffers are arrays, or whose Tensors hold theirs under another name."""
    if contract.array_gradients:
        text = re.sub(r"\.grad\.(numpy\(\)|data\b)", ".grad", text.replace("].data + ", "] + "))
    if contract.array_buffers:
        text = re.sub(r"^put\((\w+\.running_\w+), (.*)\)$", r'\1 = np.array(\2, dtype="float32")', text, flags=re.M)
        text = re.sub(r"(\.running_(mean|var))\.numpy\(\)", r"\1", text)
    if not hasattr(contract.ndl.Tensor(np.ones(1, np.float32)), "cached_data"):
        text = text.replace(_PUT, _PUT_BY_DATA)
    return text


def call_of(case: c.OpCase) -> str:
    """``1.0 - x`` for the operation of a case."""
    return call(case.op, NAMES[: len(case.operands)], case.attributes, len(case.operands[0].shape))


_HEAD = "import numpy as np\nimport needle as ndl\n\n"


def _op(case: c.OpCase, divergence: Divergence) -> str:
    if len(case.operands) > len(NAMES):
        raise TooLong("many operands")
    lines = []
    for i, (name, operand) in enumerate(zip(NAMES, case.operands, strict=False)):
        constant = ", requires_grad=False" if i in case.constants else ""
        lines.append(f"{name} = ndl.Tensor({written(operand.array)}{constant})")
    lines.append(f"out = {call_of(case)}")
    backward = f"out.backward(ndl.Tensor({written(case.cotangent_array)}))"
    if divergence.quantity in HIGHER.values():
        lines += _higher(case, divergence)
    elif divergence.quantity == "kept":
        shown = NAMES[int(divergence.name.rpartition(" ")[2])]
        lines += [backward, f"print({shown}.numpy())"]
    elif divergence.quantity == "activation" or (
        divergence.failure is not None and divergence.failure.phase == "forward"
    ):
        lines.append("print(out.numpy())")
    else:
        number = divergence.name.rpartition(" ")[2] if divergence.name.startswith("operand") else "0"
        lines += [backward, f"print({NAMES[int(number)]}.grad.numpy())"]
    return _HEAD + "\n".join(lines) + "\n"


def _higher(case: c.OpCase, divergence: Divergence) -> list[str]:
    """Lines that differentiate the gradients once more, and once more: each time the sum of their products with given numbers."""
    order = next(n for n, quantity in HIGHER.items() if quantity == divergence.quantity)
    names = {NAMES[i]: f"operand {i}" for i in range(len(case.operands)) if i not in case.constants}
    names |= {} if case.constant_cotangent else {"g": "cotangent"}
    shapes = {name: case.operands[i].shape for i, name in enumerate(NAMES[: len(case.operands)])}
    shapes["g"] = case.result_shape
    constant = ", requires_grad=False" if case.constant_cotangent else ""
    lines = [f"g = ndl.Tensor({written(case.cotangent_array)}{constant})", "out.backward(g)"]
    for n in range(2, order + 1):
        terms = [
            f"({name}.grad * ndl.Tensor({written(case.direction(n - 1, long, shapes[name]))}, requires_grad=False)).sum()"
            for name, long in names.items()
            if n > 2 or name != "g"
        ]
        lines += [f"total = {terms[0]}", *(f"total = total + {term}" for term in terms[1:])]
        lines += [f"for t in ({', '.join(names)},):\n    t.grad = None", "total.backward()"]
    name = divergence.name
    shown = next((short for short, long in names.items() if long == name), "x")
    return [*lines, f"print({shown}.grad.numpy())"]


class _Writer:
    """A model as lines of code."""

    def __init__(self, case: c.TrainCase | c.SecondOrderCase, ndl: Any) -> None:
        self.case, self.ndl = case, ndl
        self.widths = c.input_widths(case)
        self.lines: list[str] = []
        self.names: dict[str, str] = {}  # path -> variable
        self.linears: list[str] = []
        self.quiet: list[str] = []
        self.blocks = False

    def layer(self, layer: c.Layer, path: str) -> str:
        """The variable of a layer."""
        name = "l" + path.replace(".", "_").replace("left", "a").replace("right", "b")
        self.names[path] = name
        text = self._made(layer, path, name)
        if text:
            self.lines.append(f"{name} = {text}")
        if isinstance(layer, c.Linear):
            if layer.tie is not None:
                self.lines.append(f"{name}.weight = {self.linears[layer.tie]}.weight")
            self.linears.append(name)
        if isinstance(layer, c.Eval):
            self.quiet.append(name)
        return name

    def _body(self, body: Sequence[c.Layer], prefix: str) -> str:
        return ", ".join(self.layer(inner, f"{prefix}{i}") for i, inner in enumerate(body))

    def _made(self, layer: c.Layer, path: str, name: str) -> str:
        width, kind = self.widths[path], type(layer).__name__
        if isinstance(layer, c.Linear):
            return f"ndl.nn.Linear({width}, {layer.out}{'' if layer.bias else ', bias=False'})"
        if isinstance(layer, c.BatchNorm | c.LayerNorm):
            given = {n: getattr(layer, n) for n in ("eps", "momentum") if getattr(layer, n, None) is not None}
            return f"ndl.nn.{CLASSES[kind]}({width}{''.join(f', {n}={v}' for n, v in given.items())})"
        if isinstance(layer, c.Dropout):
            return f"ndl.nn.Dropout({'' if layer.p is None else layer.p})"
        if isinstance(layer, c.Sequential | c.Eval):
            return f"ndl.nn.Sequential({self._body(layer.body, f'{path}.')})"
        if isinstance(layer, c.Residual):
            return f"ndl.nn.Residual(ndl.nn.Sequential({self._body(layer.body, f'{path}.')}))"
        if isinstance(layer, c.Branch):
            left, right = (self._body(body, f"{path}.{side}") for side, body in layer.nested())
            sign = {"add": "+", "subtract": "-", "multiply": "*"}[layer.join]
            self.blocks = True
            both = f"ndl.nn.Sequential({left}), ndl.nn.Sequential({right})"
            return f"Block(lambda x, a, b: a(x) {sign} b(x), {both})"
        if kind in c.ACTIVATIONS:
            if hasattr(self.ndl.nn, kind):
                return f"ndl.nn.{kind}()"
            self.blocks = True
            return f"Block(ndl.{c.ACTIVATIONS[kind].op})"
        if isinstance(layer, c.Ops):
            return self._ops(layer, path, name)
        return f"ndl.nn.{kind}()"

    def _ops(self, layer: c.Ops, path: str, name: str) -> str:
        shapes = layer.shapes(self.case.data.rows, self.widths[path])
        body = []
        for i, step in enumerate(layer.steps):
            xs = ["x" if n == 0 else f"v{n}" for n in step.args]
            body.append(f"    v{i + 1} = {call(step.op, xs, step.attributes, len(shapes[step.args[0]]))}")
        self.lines += [f"def f{name}(x):", *body, f"    return v{len(layer.steps)}", ""]
        self.blocks = True
        return f"Block(f{name})"


def _model(case: c.TrainCase | c.SecondOrderCase, divergence: Divergence) -> str:
    needle = candidate()
    if isinstance(case, c.SecondOrderCase) or isinstance(case.data, c.Digits) or case.backward == "accumulate":
        raise TooLong("of two orders, or many rows")
    writer = _Writer(case, needle)
    for i, layer in enumerate(case.model):
        writer.layer(layer, str(i))
    step, evaluation = divergence.step, divergence.quantity in ("evaluation", "untouched")
    state, slots, batches = inputs.initial_state(case), inputs.slots(case), inputs.batches(case)
    given = "" if "initial" in (divergence.quantity, divergence.name) else "\n".join(
        f"put({_variable(writer, s.name)}, {_bare(state[s.name])})" for s in (*slots[0], *slots[1]))  # fmt: skip
    spec = case.optimizer
    kwargs = "".join(f", {n}={getattr(spec, n)}" for n in spec.__struct_fields__ if getattr(spec, n) is not None)
    lines = [
        *writer.lines,
        f"model = ndl.nn.Sequential({', '.join(writer.names[str(i)] for i in range(len(case.model)))})",
        *([] if not given else ["", *given.split("\n")]),
        f"optimizer = ndl.optim.{type(spec).__name__}(model.parameters(){kwargs})",
        f"np.random.seed({case.seed_for('program') % 1000})",
        *(f"{name}.eval()" for name in writer.quiet),
        "",
    ]
    xs = [batches.x[t, 0] for t in range(step + 1)]
    asks = "" if case.input_grad else ", requires_grad=False"
    body = []
    if len(xs) == 1 or case.data.same_batch:
        lines.append(f"x = {written(xs[0])}")
    else:
        lines.append(f"for x in {written(np.stack(xs))}:")
    body.append("out = model(ndl.Tensor(x" + asks + "))")
    body += _loss(case, batches, step)
    body += [
        "optimizer.reset_grad()",
        "loss.backward()" if not isinstance(case.loss, c.Cotangent) else "out.backward(given)",
    ]
    if case.clip is not None:
        body.append(f"optimizer.clip_grad_norm({'' if case.clip.max_norm is None else case.clip.max_norm})")
    if divergence.quantity not in ("activation", "loss", "adjoint", "gradient", "clipped", "clip norm"):
        body.append("optimizer.step()")
    if len(xs) > 1:
        if case.data.same_batch:
            lines.append(f"for _ in range({len(xs)}):")
        lines += [textwrap.indent(line, "    ") for line in body]
    else:
        lines += body
    if evaluation:
        lines += ["model.eval()", f"out = model(ndl.Tensor({'x' if len(xs) == 1 else written(xs[-1])}))"]
    lines.append(f"print({_printed(writer, divergence)})")
    helpers = (_BLOCK + "\n\n" if writer.blocks else "") + (_PUT + "\n\n" if given else "")
    return _HEAD + helpers + "\n".join(lines) + "\n"


_HELD = """class Held(ndl.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        for layer in {each}:
            x = layer(x)
        return x
"""


def _user(case: c.ProgramCase, divergence: Divergence) -> str:
    """What a user does with a model, up to the action that goes wrong."""
    if case.again is not None or case.functions:
        raise TooLong("a module that is applied twice, or a function in its place")
    whole = case.training
    writer, batches = _Writer(whole, candidate()), inputs.batches(whole)
    for i, layer in enumerate(case.model):
        writer.layer(layer, str(i))
    names = ", ".join(writer.names[str(i)] for i in range(len(case.model)))
    if case.held == "dict":
        names = ", ".join(f'"{i}": {writer.names[str(i)]}' for i in range(len(case.model)))
    made = {"sequential": f"ndl.nn.Sequential({names})", "list": f"Held([{names}])", "dict": f"Held({{{names}}})",
            "ModuleList": f"Held(ndl.nn.ModuleList([{names}]))"}  # fmt: skip
    state, slots = inputs.initial_state(whole), inputs.slots(whole)
    lines = [
        *writer.lines,
        f"model = {made[case.held]}",
        *(f"put({_variable(writer, s.name)}, {_bare(state[s.name])})" for s in (*slots[0], *slots[1])),
        f"optimizers = [{_optimizer(type(case.optimizer).__name__, _given(case.optimizer))}]",
        "",
    ]
    passes = 0
    for index, action in enumerate(case.actions[: divergence.step + 1]):
        lines += _action(case, action, index, writer, batches, passes)
        passes += isinstance(action, a.Pass)
    lines.append(f"print({_of_user(case, writer, divergence)})")
    held = _HELD.format(each="self.layers.values()" if case.held == "dict" else "self.layers")
    helpers = (
        (held + "\n\n" if case.held != "sequential" else "")
        + (_BLOCK + "\n\n" if writer.blocks else "")
        + _PUT
        + "\n\n"
    )
    return _HEAD + helpers + "\n".join(lines) + "\n"


def _optimizer(kind: str, settings: Mapping[str, Any]) -> str:
    return f"ndl.optim.{kind}(model.parameters(){''.join(f', {n}={v}' for n, v in settings.items())})"


def _given(spec: c.Optimizer) -> dict[str, Any]:
    return {n: getattr(spec, n) for n in spec.__struct_fields__ if getattr(spec, n) is not None}


def _action(
    case: c.ProgramCase, action: a.Action, index: int, writer: _Writer, batches: inputs.Batches, t: int
) -> list[str]:
    """Lines for one action; ``t`` is the number of the pass, and of its batch."""
    kinds = [type(case.optimizer).__name__]
    kinds += [made.optimizer for made in case.actions[:index] if isinstance(made, a.NewOptimizer)]
    which = (
        f"optimizers[{int(getattr(action, 'optimizer', 0)) % len(kinds)}]"
        if not isinstance(action, a.NewOptimizer)
        else ""
    )
    if isinstance(action, a.Pass):
        asks = "" if action.to_input else ", requires_grad=False"
        start = "out.backward(given)" if isinstance(case.loss, c.Cotangent) else "loss.backward()"
        add = "for p in model.parameters():\n    p.grad = before[id(p)].data + p.grad.data"
        return [
            *["before = {id(p): p.grad for p in model.parameters()}"] * action.add,
            *[f"{which}.reset_grad()"] * action.reset,
            f"np.random.seed({t})",
            f"out = model(ndl.Tensor({written(batches.x[t, 0])}{asks}))",
            *_loss(case.training, batches, t),
            *[start] * (2 if action.backward == "twice" else 1),
            *[add] * action.add,
        ]
    if isinstance(action, a.Step):
        return [f"{which}.step()"]
    if isinstance(action, a.ClipNorm):
        share = action.max_norm([np.ones(1)])
        norm = "norm = float(np.sqrt(sum((p.grad.numpy() ** 2).sum() for p in model.parameters())))"
        if action.at in ("default", "three"):
            return [f"{which}.clip_grad_norm({'' if share is None else share})"]
        return [
            norm,
            f"{which}.clip_grad_norm({share:g} * norm)" if share != np.inf else f"{which}.clip_grad_norm(np.inf)",
        ]
    if isinstance(action, a.Set):
        return [f"{which}.{action.setting} = {action.value}"]
    if isinstance(action, a.NewOptimizer):
        return [f"optimizers.append({_optimizer(action.optimizer, action.settings)})"]
    if isinstance(action, a.Mode):
        paths = programs.switched(case)
        module = "model" if action.part is None else writer.names[paths[action.part % len(paths)]]
        return [f"{module}.{'train' if action.training else 'eval'}()"]
    if isinstance(action, a.Evaluate) and not action.constant:
        return ["model.eval()", f"out = model(ndl.Tensor({written(batches.x[t, 0])}))",
                f"modes = [layer.training for layer in ({', '.join(writer.names.values())},)]", "model.train()"]  # fmt: skip
    raise TooLong(f"{action.words}, which the course has not")


def _of_user(case: c.ProgramCase, writer: _Writer, divergence: Divergence) -> str:
    """What the program prints: the thing that is wrong."""
    if divergence.name.startswith("eval()"):
        return "modes"
    name = divergence.name.rpartition(" ")[2]
    if divergence.quantity == "state" and name.rpartition(".")[0] in writer.names:
        grad = ".grad" if divergence.name.startswith("gradient") else ""
        return f"{_variable(writer, name)}{grad}.numpy()"
    return _printed(writer, divergence).replace(
        "optimizer.", f"optimizers[{getattr(case.actions[divergence.step], 'optimizer', 0)}]."
    )


def _bare(array: Array) -> str:
    return written(array).removeprefix("np.array(").removesuffix(', dtype="float32")')


def _variable(writer: _Writer, name: str) -> str:
    path, attribute = name.rsplit(".", 1)
    return f"{writer.names[path]}.{attribute}"


def _loss(case: c.TrainCase, batches: inputs.Batches, step: int) -> list[str]:
    if isinstance(case.loss, c.SoftmaxLoss):
        assert batches.labels is not None
        return [f"loss = ndl.nn.SoftmaxLoss()(out, ndl.Tensor(np.array({batches.labels[step, 0].tolist()})))"]
    assert batches.drawn is not None
    given = f"given = ndl.Tensor({written(batches.drawn[step, 0])}, requires_grad=False)"
    if isinstance(case.loss, c.Cotangent):
        return [given]
    if isinstance(case.loss, c.WeightedSum):
        return [given, "loss = (out * given).sum()"]
    return [given, f"loss = ((out - given) ** 2).sum() / {case.data.rows}"]


def _printed(writer: _Writer, divergence: Divergence) -> str:
    quantity, name = divergence.quantity, divergence.name.split("#")[0]
    if quantity == "loss":
        return "loss.numpy()"
    if quantity in ("gradient", "clipped", "gradient after step"):
        return f"{_variable(writer, name)}.grad.numpy()"
    if quantity in ("parameter", "buffer", "initial"):
        return f"{_variable(writer, name)}.numpy()"
    if quantity in STATE:
        return _state(writer, quantity, name)
    return "out.numpy()"


def _state(writer: _Writer, quantity: str, name: str) -> str:
    """Where the optimizer keeps it; the parameter, where that is not found."""
    spec, variable = writer.case.optimizer if isinstance(writer.case, c.TrainCase) else c.SGD(), _variable(writer, name)
    contract, kind = contract_of(candidate()), type(spec).__name__
    number = [slot.name for slot in inputs.slots(writer.case)[0]].index(name)
    found = contract.written(kind, quantity, variable, number) if isinstance(contract, Course) else ""
    return found or f"{variable}.numpy()"
