"""Mistakes that people make in a needle of their own: small patches of the correct ones beside this file.

Each says what an author should read about it: a finding that mentions `says`, placed in the function that was changed. A
text that is not found exactly once is an error: a patch that no longer applies must not pass as one that was found.
"""

from __future__ import annotations

import ast
import shutil
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CORRECT = ("plain", "arrays", "lazy", "named", "functions", "slots")


@dataclass(frozen=True)
class Mistake:
    """``old`` becomes ``new`` in a file of a correct needle; ``more`` are further changes of the same mistake."""

    name: str
    needle: str
    file: str
    old: str
    new: str
    says: str  # a regular expression: what the sentence about it must contain
    more: tuple[tuple[str, str], ...] = ()
    at: str = ""  # functions or classes that the finding may point at, where it is not the one that was changed

    def planted(self, folder: Path, *others: Mistake) -> Path:
        """The needle with this mistake, and with others of the same needle, in a folder."""
        shutil.copytree(HERE / self.needle / "needle", folder / "needle", ignore=shutil.ignore_patterns("__pycache__"))
        for file, text in self.texts(*others).items():
            (folder / "needle" / file).write_text(text, "utf-8")
        return folder

    def texts(self, *others: Mistake) -> dict[str, str]:
        """The files with this mistake and the others in them."""
        found: dict[str, str] = {}
        for mistake in (self, *others):
            before = (HERE / self.needle / "needle" / mistake.file).read_text("utf-8")
            found[mistake.file] = mistake.changed(found.get(mistake.file, before))
        return found

    def changed(self, text: str) -> str:
        """The text of the file with the mistake in it."""
        for old, new in ((self.old, self.new), *self.more):
            if text.count(old) != 1:
                raise ValueError(f"{self.name}: {old!r} stands {text.count(old)} times in {self.needle}/{self.file}")
            text = text.replace(old, new)
        return text

    def lines(self, text: str) -> list[range]:
        """Lines of the functions that a finding may point at, in the changed text: the changed one, and the class around it."""
        first = text[: text.index(self.new)].count("\n") + 1
        last = first + self.new.count("\n")
        found: list[range] = []
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            of = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            named = node.name in self.at.split()
            if named or (not self.at and of.start <= last and first < of.stop):
                found.append(of)
        if not found:
            found.append(range(first, last + 1))
        return found


MISTAKES = (
    # -- operators and ops
    Mistake(
        "reflected minus", "plain", "autograd.py", "return -self + other", "return self - other", r"1\.0 - x. returns x - 1"
    ),
    Mistake(
        "reflected division", "arrays", "autograd.py",
        "return ops.mul_scalar(ops.power_scalar(self, -1), other)", "return ops.divide_scalar(self, other)",
        r"/ x",
    ),
    Mistake(
        "an axis is added, and its gradient not summed", "plain", "ops.py",
        "        axes = list(range(added))\n", "        axes = []\n",
        r"broadcast_to|BroadcastTo",
    ),
    Mistake(
        "shapes compared from the left", "lazy", "ops.py",
        "padded = (1,) * (len(self.shape) - len(old)) + tuple(old)",
        "padded = tuple(old) + (1,) * (len(self.shape) - len(old))",
        r"broadcast_to|BroadcastTo",
    ),
    Mistake(
        "negative axes are not understood", "plain", "ops.py",
        "axes = [axis % len(shape) for axis in axes]", "axes = list(axes)",
        r"summation|Summation|logsumexp|LogSumExp", at="kept Summation LogSumExp",
    ),
    Mistake(
        "batch dimensions of a product", "arrays", "ops.py",
        "return fitted(out_grad @ transpose(b), a), fitted(transpose(a) @ out_grad, b)",
        "return out_grad @ transpose(b), transpose(a) @ out_grad",
        r"matmul|MatMul",
    ),
    Mistake(
        "the first two axes instead of the last two", "plain", "ops.py",
        "(a.ndim - 2, a.ndim - 1)", "(0, 1)", r"transpose|Transpose",
    ),
    Mistake(
        "sign of a quotient", "lazy", "ops.py",
        "return out_grad / b, -(out_grad / b) * (a / b)", "return out_grad / b, (out_grad / b) * (a / b)",
        r"divide|EWiseDiv",
    ),
    Mistake(
        "factor of a power", "plain", "ops.py",
        "return out_grad * self.scalar * power_scalar(a, self.scalar - 1)",
        "return out_grad * power_scalar(a, self.scalar - 1)",
        r"power_scalar|PowerScalar",
    ),
    Mistake(
        "slope of relu at 0", "arrays", "ops.py",
        "mask = node.inputs[0].cached_data > 0", "mask = node.inputs[0].cached_data >= 0", r"relu|ReLU",
    ),
    Mistake(
        "relu writes into its input", "lazy", "ops.py",
        "        out = a.copy()\n", "        out = a\n", r"writ",
    ),
    Mistake(
        "logsumexp without a shift", "named", "ops.py",
        "top = np.max(a, axis=self.over, keepdims=True)",
        "top = 0 * np.max(a, axis=self.over, keepdims=True)",
        r"logsumexp|Soft",
    ),
    Mistake(
        "keep_dims of another library", "plain", "ops.py",
        "        top = array_api.max(z, axis=self.axes, keepdims=True)\n",
        "        top = array_api.max(z, axis=self.axes, keep_dims=True)\n",
        r"keep_dims",
    ),
    Mistake(
        "an argument that NumPy 2 has removed", "plain", "ops.py",
        "return array_api.reshape(a, self.shape)", "return array_api.reshape(a, newshape=self.shape)",
        r"newshape.*shape",
    ),
    Mistake(
        "a name that NumPy 2 has removed", "lazy", "ops.py",
        "return numpy.multiply(a, b)", "return numpy.product([a, b], axis=0)", r"np\.prod|numpy\.prod",
    ),
    Mistake(
        "exp differentiated as if it were x", "named", "ops.py",
        "return g * exp(a)", "return g * a", r"exp|Exponential",
    ),
    Mistake(
        "a gradient rule of plain numbers", "plain", "ops.py",
        "return out_grad * exp(node.inputs[0])",
        "return out_grad * type(out_grad)(array_api.exp(node.inputs[0].realize_cached_data()), requires_grad=False)",
        r"second derivative of `ndl\.exp",
    ),
    Mistake(
        "a broken tanh", "plain", "ops.py",
        "y = tanh(node.inputs[0])", "y = node.outputs[0]", r"outputs",
    ),
    Mistake(
        "sums instead of means in logsoftmax", "arrays", "ops.py",
        "return out_grad - exp(node) * total", "return out_grad - exp(node)", r"logsoftmax|LogSoftmax|SoftmaxLoss",
    ),
    Mistake(
        "stack in reverse on the way back", "lazy", "ops.py",
        "return tuple(Pick(self.axis, i)(out_grad) for i in range(len(node.inputs)))",
        "return tuple(Pick(self.axis, i)(out_grad) for i in reversed(range(len(node.inputs))))",
        r"stack|Stack",
    ),
    # -- the walk
    Mistake(
        "only the last contribution counts", "plain", "autograd.py",
        "        total = total + node\n", "        total = node\n", r"contribution|sum_node_list|accumulat",
        at="sum_node_list",
    ),
    Mistake(
        "every path is walked", "named", "core.py",
        "    for node in reversed(find_topo_sort([output])):\n        arrived = gathered.pop(id(node), None)\n"
        "        if arrived is None or not node.requires_grad:\n            continue\n",
        "    stack, sums = [(output, gathered.pop(id(output)))], {}\n    while stack:\n"
        "        node, arrived = stack.pop()\n        if not node.requires_grad:\n            continue\n",
        r"exponential|times",
        more=(
            (
                "            node.grad = arrived\n",
                "            sums[id(node)] = node.grad = sums[id(node)] + arrived if id(node) in sums else arrived\n",
            ),
            (
                "            gathered[id(x)] = gathered[id(x)] + part if id(x) in gathered else part\n",
                "            stack.append((x, part))\n",
            ),
        ),
    ),
    Mistake(
        "the walk is recursive", "lazy", "autograd.py",
        "    stack = list(node_list)\n",
        "    def visit(node):\n        if node not in visited:\n            visited.add(node)\n"
        "            for x in node.inputs:\n                visit(x)\n            topo_order.append(node)\n\n"
        "    for node in node_list:\n        visit(node)\n    stack = []\n",
        r"recurs",
    ),
    # -- layers
    Mistake(
        "the loss is a sum", "named", "nn.py",
        "return ops.summation(losses) / logits.shape[0]", "return ops.summation(losses)", r"SoftmaxLoss",
    ),
    Mistake(
        "batch statistics in evaluation", "lazy", "nn.py",
        "        if self.training:\n            mean = ops.summation",
        "        if True:\n            mean = ops.summation",
        r"BatchNorm.*evaluation|evaluation.*(BatchNorm|running)",
    ),
    Mistake(
        "weights of old and new exchanged", "arrays", "nn.py",
        "kept = old.numpy() * (1 - self.momentum) + new.numpy() * self.momentum",
        "kept = old.numpy() * self.momentum + new.numpy() * (1 - self.momentum)",
        r"running", at="BatchNorm1d",
    ),
    Mistake(
        "a running statistic keeps its graph", "plain", "nn.py",
        "self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean.data",
        "self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean",
        r"running_mean.*graph|graph.*running_mean",
    ),
    Mistake(
        "inverted dropout without the scale", "lazy", "nn.py",
        "return x * (mask / keep) if keep else x * (mask * 0)", "return x * mask if keep else x * (mask * 0)",
        r"Dropout",
    ),
    Mistake(
        "p is the share that stays", "named", "nn.py",
        "kept = init.randb(*x.shape, p=1 - self.p, dtype=\"float32\")",
        "kept = init.randb(*x.shape, p=self.p, dtype=\"float32\")",
        r"Dropout",
    ),
    Mistake(
        "the mask is float64", "plain", "nn.py",
        "mask = init.randb(*x.shape, p=1 - self.p, dtype=\"float32\")",
        "mask = init.randb(*x.shape, p=1 - self.p, dtype=\"float64\")",
        r"float64",
    ),
    Mistake(
        "dropout draws in evaluation", "arrays", "nn.py",
        "        if self.training:\n            mask = init.randb(*x.shape, p=1 - self.p).numpy()\n",
        "        mask = init.randb(*x.shape, p=1 - self.p).numpy()\n        if self.training:\n",
        r"generator|random",
    ),
    Mistake(
        "dropout seeds the generator", "lazy", "nn.py",
        "        keep = 1 - self.p\n", "        numpy.random.seed(0)\n        keep = 1 - self.p\n",
        r"seed",
        more=(("import math\n", "import math\n\nimport numpy\n"),),
    ),
    Mistake(
        "eps beside the root", "plain", "nn.py",
        "normal = centred / (var + self.eps) ** 0.5", "normal = centred / (var**0.5 + self.eps)",
        r"LayerNorm",
    ),
    Mistake(
        "no bias, no forward", "named", "nn.py",
        "return y if self.bias is None else ops.add_bias(y, self.bias)", "return ops.add_bias(y, self.bias)",
        r"bias=False",
    ),
    Mistake(
        "eval does not reach what is nested", "lazy", "nn.py",
        "    def eval(self):\n        for module in _found(self, Module):\n            module.training = False\n",
        "    def eval(self):\n        self.training = False\n",
        r"eval",
    ),
    Mistake(
        "parameters of a list are not found", "arrays", "nn.py",
        "            elif isinstance(value, (list, tuple)):\n                stack.extend(value[::-1])\n",
        "            elif isinstance(value, tuple):\n                stack.extend(value[::-1])\n",
        r"parameters", at="Module",
    ),
    Mistake(
        "modules of a dict are not found", "named", "nn.py",
        "            parts = value.values() if isinstance(value, dict) else value\n",
        "            parts = value\n",
        r"parameters|eval", at="Module",
    ),
    Mistake(
        "bound of an initialisation", "plain", "init.py",
        "bound = math.sqrt(2) * math.sqrt(3 / fan_in)", "bound = math.sqrt(2) * math.sqrt(3 / fan_out)",
        r"Linear|kaiming",
    ),
    # -- data
    Mistake(
        "the last batch is lost", "plain", "data.py",
        "range(0, len(order), self.batch_size)", "range(0, len(order) - self.batch_size + 1, self.batch_size)",
        r"batch_size=3\) on 7 rows: the last batch is lost",
    ),
    Mistake(
        "the same order in each epoch", "plain", "data.py",
        "np.random.shuffle(order)", "np.random.RandomState(0).shuffle(order)", r"shuffle=True.*the same order in each epoch",
    ),
    # -- optimizers
    Mistake(
        "the first step is not dampened", "plain", "optim.py",
        "                self.u[p] = (1 - self.momentum) * grad\n            p.data",
        "                self.u[p] = grad\n            p.data",
        r"SGD.*(damp|velocity)|1 - momentum",
    ),
    Mistake(
        "the momentum is remembered", "plain", "optim.py",
        "        self.u = {}\n", "        self.u, self.rest = {}, 1 - momentum\n", r"SGD", at="SGD",
        more=(
            ("+ (1 - self.momentum) * grad\n", "+ self.rest * grad\n"),
            ("                self.u[p] = (1 - self.momentum) * grad\n", "                self.u[p] = self.rest * grad\n"),
        ),
    ),
    Mistake(
        "all optimizers have one state", "plain", "optim.py",
        "        self.u = {}\n", "", r"SGD", at="SGD",
        more=(("class SGD(Optimizer):\n", "class SGD(Optimizer):\n    u = {}\n\n"),),
    ),
    Mistake(
        "decay outside the momentum", "named", "optim.py",
        "            wanted = p.grad.numpy() + self.weight_decay * p.numpy()\n"
        "            self.u[p] = self.momentum * self.u[p] + (1 - self.momentum) * wanted\n"
        "            self.moved(p, self.u[p])\n",
        "            self.u[p] = self.momentum * self.u[p] + (1 - self.momentum) * p.grad.numpy()\n"
        "            self.moved(p, self.u[p] + self.weight_decay * p.numpy())\n",
        r"SGD",
    ),
    Mistake(
        "the velocity keeps its graph", "plain", "optim.py",
        "            grad = p.grad.data + self.weight_decay * p.data\n            if p in self.u:",
        "            grad = p.grad + self.weight_decay * p.data\n            if p in self.u:",
        r"SGD.*graph|graph.*SGD",
    ),
    Mistake(
        "gradients are written into", "arrays", "optim.py",
        "            grad = p.grad.numpy() + self.weight_decay * p.numpy()\n"
        "            self.u[i] =",
        "            grad = p.grad.numpy()\n            grad += self.weight_decay * p.numpy()\n"
        "            self.u[i] =",
        r"writes into",
    ),
    Mistake(
        "adam without its correction", "lazy", "optim.py",
        "square = self.second[key] / (1 - self.beta2**self.steps)", "square = self.second[key]",
        r"Adam",
    ),
    Mistake(
        "adam counts from 0", "arrays", "optim.py",
        "        self.t = 0\n", "        self.t = -1\n", r"Adam", at="Adam",
    ),
    Mistake(
        "adam's corrected moment is kept", "plain", "optim.py",
        "            m_hat = self.m[p] / (1 - self.beta1**self.t)\n",
        "            self.m[p] = self.m[p] / (1 - self.beta1**self.t)\n            m_hat = self.m[p]\n",
        r"Adam",
    ),
    Mistake(
        "adam keeps its graph", "lazy", "optim.py",
        "yield id(p), p, p.grad.detach() + p.detach() * self.weight_decay",
        "yield id(p), p, p.grad + p.detach() * self.weight_decay",
        r"graph", at="Optimizer SGD Adam",
    ),
    Mistake(
        "each gradient is clipped by itself", "arrays", "optim.py",
        "        for p in grads:\n            p.grad = ",
        "        for p in grads:\n            scale = max_norm / (float(np.linalg.norm(p.grad.numpy())) + 1e-6)\n"
        "            p.grad = ",
        r"clip",
    ),
    Mistake(
        "a generator of parameters is used up", "plain", "optim.py",
        "self.params = list(params)", "self.params = params", r"generator",
    ),
    # -- and more that people write
    Mistake(
        "dropout scales in evaluation too", "lazy", "nn.py",
        "        if not self.training:\n            return x\n        keep = 1 - self.p\n",
        "        keep = 1 - self.p\n        if not self.training:\n            return x * keep\n",
        r"Dropout.*evaluation|evaluation.*Dropout",
    ),
    Mistake(
        "evaluation without eps", "plain", "nn.py",
        "mean, var = self.running_mean, self.running_var\n", "mean, var = self.running_mean, self.running_var - self.eps\n",
        r"BatchNorm.*evaluation|evaluation.*BatchNorm",
    ),
    Mistake(
        "variance of n - 1", "plain", "nn.py",
        "var = ((centred * centred).sum(axes=(1,)) / self.dim)",
        "var = ((centred * centred).sum(axes=(1,)) / max(self.dim - 1, 1))",
        r"LayerNorm",
    ),
    Mistake(
        "statistics begin elsewhere", "plain", "nn.py",
        "self.running_mean = init.zeros(dim, dtype=dtype)", "self.running_mean = init.ones(dim, dtype=dtype)",
        r"running_mean|BatchNorm", at="BatchNorm1d",
    ),
    Mistake(
        "the loss is a mean over the classes", "plain", "nn.py",
        "- picked).sum() / rows", "- picked).sum() / classes", r"SoftmaxLoss",
    ),
    Mistake(
        "train does not reach what is nested", "named", "nn.py",
        "    def train(self):\n        for module in self._walk():\n            module.training = True\n",
        "    def train(self):\n        self.training = True\n",
        r"train",
    ),
    Mistake(
        "a reshape goes back to its own shape", "plain", "ops.py",
        "return reshape(out_grad, node.inputs[0].shape)", "return reshape(out_grad, self.shape)", r"reshape|Reshape",
    ),
    Mistake(
        "the exponent is made whole", "arrays", "ops.py",
        "return np.power(a, self.scalar, dtype=a.dtype)", "return np.power(a, int(self.scalar), dtype=a.dtype)",
        r"power_scalar|PowerScalar|\*\*",
    ),
    Mistake(
        "a sum keeps its axes", "lazy", "ops.py",
        "return numpy.sum(a, axis=None if self.axes is None else tuple(self.axes))",
        "return numpy.sum(a, axis=None if self.axes is None else tuple(self.axes), keepdims=True)",
        r"summation|Summation",
    ),
    Mistake(
        "contributions are added in place", "arrays", "autograd.py",
        "        total = total + node\n", "        total.cached_data += node.cached_data\n",
        r"contribution|accumulat|sum_node_list|writ|used more than once",
        at="sum_node_list compute_gradient_of_variables",
    ),
    Mistake(
        "detach does not", "plain", "autograd.py",
        "    def detach(self):\n        return Tensor.make_const(self.realize_cached_data())\n",
        "    def detach(self):\n        return self\n",
        r"detach",
    ),
    Mistake(
        "adam's eps under the root", "plain", "optim.py",
        "(Tensor(v_hat, requires_grad=False) ** 0.5 + self.eps)", "(Tensor(v_hat, requires_grad=False) + self.eps) ** 0.5",
        r"Adam",
    ),
    Mistake(
        "adam decays beside its moments", "arrays", "optim.py",
        "            grad = p.grad.numpy() + self.weight_decay * p.numpy()\n            self.m[i] =",
        "            grad = p.grad.numpy()\n            self.m[i] =",
        r"Adam",
        more=(
            (
                "self.lr * m_hat / (np.sqrt(v_hat) + self.eps)",
                "self.lr * (m_hat / (np.sqrt(v_hat) + self.eps) + self.weight_decay * p.numpy())",
            ),
        ),
    ),
    Mistake(
        "small gradients are made large", "arrays", "optim.py",
        "(scale if scale < 1 else 1.0)", "scale", r"clip",
    ),
    Mistake(
        "exp of a function differentiated as if it were x", "functions", "engine.py",
        "(multiply(g, exp(a)),)", "(multiply(g, a),)", r"ndl\.exp",
    ),
    Mistake(
        "batch dimensions of a product of functions", "functions", "engine.py",
        "lambda g: (down(matmul(g, transpose(b)), a.shape), down(matmul(transpose(a), g), b.shape)),",
        "lambda g: (matmul(g, transpose(b)), matmul(transpose(a), g)),", r"ndl\.matmul",
    ),
    Mistake(
        "adam counts from 1", "functions", "optim.py",
        'p.t = getattr(p, "t", 0) + 1', 'p.t = getattr(p, "t", 1) + 1', r"Adam", at="Optimizer Adam",
    ),
    Mistake(
        "velocity in its dict without the factor", "functions", "optim.py",
        '+ (1 - self.momentum) * g', '+ g', r"SGD", at="Optimizer SGD",
    ),
    Mistake(
        "buffers that are arrays exchanged", "slots", "nn.py",
        "self.running_mean = (1 - m) * self.running_mean + m * mean.numpy()",
        "self.running_mean = m * self.running_mean + (1 - m) * mean.numpy()", r"running", at="BatchNorm1d",
    ),
    Mistake(
        "a gradient that is an array of the wrong sign", "slots", "ops.py",
        "unbroadcast(-g * a / (b * b), b.shape)", "unbroadcast(g * a / (b * b), b.shape)", r"Div|divide",
    ),
    # -- what nobody had thought of when the rules were written
    Mistake(
        "a result asks for no gradient", "plain", "autograd.py",
        "requires_grad = any(x.requires_grad for x in inputs)", "requires_grad = all(x.requires_grad for x in inputs)",
        r"nothing arrives at x",
    ),
    Mistake(
        "gradients are added up", "named", "core.py",
        "            node.grad = arrived\n", "            node.grad = arrived if node.grad is None else node.grad + arrived\n",
        r"second backward pass adds",
    ),
    Mistake(
        "a tensor is the array that it is made of", "lazy", "autograd.py",
        "            self.cached_data = numpy.array(array, dtype=dtype)\n",
        "            self.cached_data = numpy.asarray(array, dtype=dtype)\n",
        r"keeps the array itself",
    ),
    Mistake(
        "a residual forgets its input", "plain", "nn.py", "return self.fn(x) + x\n", "return self.fn(x)\n", r"Residual",
    ),
    Mistake(
        "a mask for ever", "plain", "nn.py",
        "        mask = init.randb(*x.shape, p=1 - self.p, dtype=\"float32\")\n",
        "        if getattr(self, \"mask\", None) is None or self.mask.shape != x.shape:\n"
        "            self.mask = init.randb(*x.shape, p=1 - self.p, dtype=\"float32\")\n        mask = self.mask\n",
        r"Dropout",
    ),
    Mistake(
        "a mask for all rows", "lazy", "nn.py",
        "mask = init.randb(*x.shape, p=keep, dtype=\"float32\")",
        "mask = init.randb(1, *x.shape[1:], p=keep, dtype=\"float32\").broadcast_to(x.shape)",
        r"Dropout",
    ),
    Mistake(
        "dropout the other way round", "named", "nn.py",
        "        if not self.training:\n            return x\n        kept",
        "        if self.training:\n            return x\n        kept",
        r"Dropout gives wrong values in training",
    ),
    Mistake(
        "the axis of the other norm", "plain", "nn.py",
        "        mean = (x.sum(axes=(1,)) / self.dim).reshape((rows, 1)).broadcast_to(x.shape)\n"
        "        centred = x - mean\n"
        "        var = ((centred * centred).sum(axes=(1,)) / self.dim).reshape((rows, 1)).broadcast_to(x.shape)\n",
        "        mean = (x.sum(axes=(0,)) / rows).reshape((1, self.dim)).broadcast_to(x.shape)\n"
        "        centred = x - mean\n"
        "        var = ((centred * centred).sum(axes=(0,)) / rows).reshape((1, self.dim)).broadcast_to(x.shape)\n",
        r"LayerNorm",
    ),
    Mistake(
        "a mean is not differentiated", "functions", "nn.py", "off = x - mean(x)\n", "off = x - mean(x).detach()\n", r"LayerNorm",
    ),
    Mistake(
        "the loss detaches", "plain", "nn.py",
        "picked = (logits * init.one_hot(classes, y))", "picked = (logits.detach() * init.one_hot(classes, y))", r"SoftmaxLoss",
    ),
    Mistake(
        "float64 in evaluation", "slots", "nn.py",
        "np.sqrt(self.running_var + np.float32(self.eps))", "np.sqrt(self.running_var + np.float64(self.eps))",
        r"BatchNorm.*float64",
    ),
    Mistake(
        "statistics move in evaluation", "slots", "nn.py",
        "        off = x - Tensor(self.running_mean, requires_grad=False)\n",
        "        self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * x.numpy().mean(0)\n"
        "        off = x - Tensor(self.running_mean, requires_grad=False)\n",
        r"BatchNorm.*evaluation",
    ),
    Mistake(
        "a bias of zeros", "functions", "nn.py",
        "self.bias = Parameter(init.kaiming_uniform(out_features, 1, dtype=dtype).numpy().reshape(-1))",
        "self.bias = Parameter(init.zeros(out_features, dtype=dtype))",
        r"Linear.*(bias|initial)", at="Linear",
    ),
    Mistake(
        "a variance in the place of a deviation", "named", "init.py",
        "std=math.sqrt(2) / math.sqrt(fan_in)", "std=math.sqrt(2) / fan_in", r"kaiming_normal",
    ),
    Mistake(
        "only direct parameters", "lazy", "nn.py",
        "        return list(_found(self, Parameter))\n",
        "        return [p for p in vars(self).values() if isinstance(p, Parameter)]\n",
        r"parameters",
    ),
    Mistake(
        "adam counts parameters", "slots", "optim.py",
        "            s[\"step\"] += 1\n", "            self.t = getattr(self, \"t\", 0) + 1\n            s[\"step\"] = self.t\n",
        r"Adam", at="Adam",
    ),
    Mistake(
        "betas exchanged", "named", "optim.py",
        "mean, square = self.m[p] / (1 - self.beta1**self.t), self.v[p] / (1 - self.beta2**self.t)",
        "mean, square = self.m[p] / (1 - self.beta2**self.t), self.v[p] / (1 - self.beta1**self.t)",
        r"Adam",
    ),
    Mistake(
        "a step that rebinds its own name", "named", "optim.py",
        "        p.data = Tensor(p.numpy()", "        p = Tensor(p.numpy()", r"stays what it was", at="Optimizer SGD Adam",
    ),
    Mistake(
        "decay of the wrong sign", "arrays", "optim.py",
        "            grad = p.grad.numpy() + self.weight_decay * p.numpy()\n            self.u[i] =",
        "            grad = p.grad.numpy() - self.weight_decay * p.numpy()\n            self.u[i] =",
        r"SGD.*decay",
    ),
    Mistake(
        "the sum of the norms", "arrays", "optim.py",
        "norm = float(np.sqrt(sum(float((p.grad.numpy().astype(\"float64\") ** 2).sum()) for p in grads)))",
        "norm = float(sum(np.linalg.norm(p.grad.numpy().astype(\"float64\")) for p in grads))",
        r"clip.*sum of the norms",
    ),
    Mistake(
        "relu in the place of its input", "functions", "engine.py",
        "    return emit(a.value * on, (a,), lambda g: (multiply(g, wrap(on)),))",
        "    a.value *= on\n    return emit(a.value, (a,), lambda g: (multiply(g, wrap(on)),))",
        r"writes into its operand",
    ),
    Mistake(
        "one maximum for all rows", "slots", "ops.py",
        "        top = a.max(axis=self.axes, keepdims=True)\n        return (np.log(",
        "        top = a.max()\n        return (np.log(",
        r"logsumexp|LogSumExp|SoftmaxLoss",
    ),
    Mistake(
        "a product goes back without transposing", "slots", "ops.py",
        "unbroadcast(g @ b.swapaxes(-1, -2), a.shape)", "unbroadcast(g @ b, a.shape)", r"x @ y",
    ),
)  # fmt: skip


# Mistakes of one needle that have nothing to do with each other: each must be told while the other is there.
PAIRS = (
    ("factor of a power", "the first step is not dampened"),
    ("an axis is added, and its gradient not summed", "the first step is not dampened"),
    ("an axis is added, and its gradient not summed", "eps beside the root"),
    ("the velocity keeps its graph", "a running statistic keeps its graph"),
    ("a broken tanh", "adam's corrected moment is kept"),
    ("keep_dims of another library", "the first step is not dampened"),
    ("only the last contribution counts", "the first step is not dampened"),
    ("the mask is float64", "eps beside the root"),
    ("negative axes are not understood", "a generator of parameters is used up"),
    ("the first two axes instead of the last two", "adam's corrected moment is kept"),
    ("shapes compared from the left", "batch statistics in evaluation"),
    ("sign of a quotient", "inverted dropout without the scale"),
    ("relu writes into its input", "adam without its correction"),
    ("eval does not reach what is nested", "inverted dropout without the scale"),
    ("a name that NumPy 2 has removed", "the walk is recursive"),
    ("sums instead of means in logsoftmax", "weights of old and new exchanged"),
    ("batch dimensions of a product", "each gradient is clipped by itself"),
    ("slope of relu at 0", "adam counts from 0"),
    ("gradients are written into", "weights of old and new exchanged"),
    ("exp differentiated as if it were x", "decay outside the momentum"),
    ("the loss is a sum", "p is the share that stays"),
    ("logsumexp without a shift", "no bias, no forward"),
    ("eps beside the root", "a residual forgets its input"),
    ("a result asks for no gradient", "eps beside the root"),
    ("a tensor is the array that it is made of", "a mask for all rows"),
    ("gradients are added up", "betas exchanged"),
    ("parameters of a list are not found", "adam counts from 0"),
)
