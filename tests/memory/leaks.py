"""Leaks, planted into a clean program: each function takes a Program and makes it leak."""

import numpy as np

import needle as ndl


def after_step(program, extra):
    """Call ``extra(t)`` at the end of every step, while loss and gradients are still there."""
    step = program.step

    def leaking(t):
        step(t)
        extra(t)

    program.step = leaking


# -- the nine of the design


def velocity_keeps_its_graph(program):
    optimizer = program.optimizer

    def step():  # written with Tensors, as many do
        for p in optimizer.params:
            if p.grad is not None:
                old = optimizer.u.get(p)
                g = ndl.Tensor(p.grad.numpy(), requires_grad=True)
                optimizer.u[p] = g * 0.1 if old is None else old * 0.9 + g * 0.1
                p.data = p.data - 0.01 * optimizer.u[p].data

    optimizer.step = step


def parameter_replaced_by_a_graph(program):
    backward = ndl.Tensor.backward  # needle's own frees the graph, and the next step would say so
    ndl.Tensor.backward = lambda self, *g, **_: backward(self, *g, retain_graph=True)
    linear = program.paths["0"]
    after_step(program, lambda t: setattr(linear, "weight", linear.weight * 1.0))


def statistic_keeps_its_graph(program):
    norm = program.paths["1"]
    weight = norm.weight

    def update(t):
        norm.running_mean = norm.running_mean * 0.9 + weight * 0.1

    after_step(program, update)


def list_of_losses(program):
    program.history = []
    after_step(program, lambda t: program.history.append(program.loss))


def list_of_tiny_tensors(program):
    program.history = []
    after_step(program, lambda t: program.history.append(ndl.Tensor(np.float32(t), requires_grad=False)))


def reference_cycles(program):
    def tie(t):
        out = program.model(ndl.Tensor(program.batches.x[t, 0], requires_grad=False))
        out.describe = lambda: out.shape

    after_step(program, tie)


def dict_entry_per_step(program):
    program.by_step = {}
    after_step(program, lambda t: program.by_step.update({t: float(t)}))


def float64_promotion(program):
    """An op computes in float64, as `x * np.float64(2)` once did."""
    relu = next(m for m in program.paths.values() if type(m) is ndl.nn.ReLU)
    relu.forward = lambda x: ndl.relu(x.astype("float64"))


def gradients_kept(program):
    """Gradients of the step before stay alive."""
    program.previous = []

    def keep(t):
        program.previous = [p.grad for p in program.model.parameters()]

    after_step(program, keep)


# -- and five more


def closure_over_the_loss(program):
    program.reports = []

    def note(t):
        loss = program.loss
        program.reports.append(lambda: loss)

    after_step(program, note)


def module_hooks(program):
    module = program.paths["0"]
    module.hooks = []
    after_step(program, lambda t: module.hooks.append(lambda out: out))


def cache_by_shape(program):
    """A cache in a module of needle; every step meets another shape, and it has no end."""
    ndl.ops.shapes_seen = {}
    after_step(program, lambda t: ndl.ops.shapes_seen.setdefault(t, (t, 3)))


def graph_kept_in_eval(program):
    program.outputs = []
    evaluate = program.evaluate

    def leaking(t):
        evaluate(t)
        program.model.eval()
        program.outputs.append(program.model(ndl.Tensor(program.batches.x[t, 0], requires_grad=False)))
        program.model.train()

    program.evaluate = leaking


def one_int_in_100_steps(program):
    program.numbers = [0] * 8
    program.numbers.pop()  # room for one more: the list takes no more memory for it

    def keep(t):
        if t == 70:
            program.numbers.append(10**9 + t)

    after_step(program, keep)
