"""Who is to blame where the first bad tensor or node is not the cause: an op within an op, a layer of a program, a value that was
written into, a graph that is another one than it should be.
"""

import numpy as np
import pytest

import needle
from needle.autograd import Tensor
from oracle.blame import judged
from oracle.blame.locate import investigate
from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.rules.calls import Calls
from oracle.rules.verdict import Divergence, Evidence
from oracle.systems.ours import calls
from oracle.trust.faults import FAULTS
from oracle.trust.patches import compute, wrap

SGD = c.SGD(lr=0.25, momentum=0.5, weight_decay=0.5)
PASS = (a.Pass(to_input=True),)


def op(name, *operands, order=1, cotangent=(1.0, -2.0, 0.5), **attributes):
    shapes = [np.shape(x) for x in operands]
    given = tuple(c.Operand(s, tuple(np.ravel(x).tolist())) for s, x in zip(shapes, operands, strict=True))
    return c.OpCase(op=name, operands=given, attributes=attributes, cotangent=cotangent, order=order)


def train(*model, rows=4, features=3, **more):
    about = {"loss": c.SoftmaxLoss(), "optimizer": SGD, "seed": 1, "steps": 1, **more}
    return c.TrainCase(model=model, data=c.Data(rows=rows, features=features), **about)


def program(*model, actions=PASS, rows=4, features=3, **more):
    about = {"loss": c.SoftmaxLoss(), "optimizer": SGD, "seed": 3, **more}
    return c.ProgramCase(model=model, data=c.Data(rows=rows, features=features), actions=actions, **about)


MATRIX = [[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]]
SQUARE = (c.Linear(3), c.Tanh(), c.Linear(3))

# fault, a case, and the whole name of the suspect
BEYOND_THE_FIRST = [
    # an op that is at work inside another one, or in a pass of a higher order
    ("sigmoid-backward", op("softplus", MATRIX, order=3), "Sigmoid backward"),
    ("where-forward", op("clip", np.arange(9.0).reshape(3, 3) - 4, low=-2.0, high=2.0), "Where forward"),
    ("multiply-backward-plain", op("power", [1.5, 2.0], [2.5, 0.5], order=3), "EWiseMul backward"),
    ("add-keeps-first", op("power", [1.5, 2.0], [2.5, 0.5], order=3), "accumulation of gradients"),
    ("add-scalar-backward", op("layer_norm", MATRIX, [1.0, 2.0, 0.5], [0.0, 1.0, 2.0], order=2, eps=1e-3), "AddScalar backward"),
    ("mul-scalar-forward", op("whole_power_scalar", [1e-20] * 3, c=-2.0), "MulScalar forward"),  # infinite, and of the other sign
    ("max-forward", op("minimum", MATRIX, axes=(1,)), "Min forward, in Max.compute"),
    ("max-second-cut", op("minimum", [[1.0, 1.0, 2.0]], axes=(1,), order=2), "Min second backward, in Max.vjp"),
    # rules that write into what they are given
    ("multiply-second-writes", op("multiply", MATRIX, MATRIX, order=2), "EWiseMul backward writes into operand 0"),
    ("program-out-grad-written", op("flip", MATRIX, axes=(0,)), "flip writes into the out_grad that backward is given"),
    # layers of programs, seen from inside
    ("linear-transposed", program(*SQUARE), "Linear forward in training mode"),
    ("linear-backward-input", program(*SQUARE), "Linear backward"),
    ("loss-backward-onehot", program(*SQUARE), "SoftmaxCrossEntropy backward"),
    ("dropout-no-scale", program(c.Linear(3), c.Dropout(0.5), c.Linear(2)), "Dropout forward in training mode"),
    ("dropout-in-eval", program(c.Linear(3), c.Dropout(0.5), c.Linear(2), actions=(a.Evaluate(), a.Pass())),
     "Dropout forward in evaluation mode"),
    ("dropout-in-eval", program(c.Linear(3), c.Dropout(0.5), c.Linear(2), actions=(a.Mode(training=False), *PASS)),
     "Dropout forward in evaluation mode"),
    ("program-bn-eps-cached",  # a layer in front, where a loss of one class has no gradient
     program(c.Linear(1), c.BatchNorm(), c.BatchNorm(), actions=(a.Pass(), a.SetLayer("eps", 0.5), a.Pass())),
     "BatchNorm forward in training mode"),
    ("linear-transposed", program(c.Linear(3), c.Tanh(), again=0), "Linear forward in training mode"),
    # before an exception; a constant; a graph that is another one
    ("flatten-detached", program(c.Linear(3), c.Flatten(), actions=(a.Pass(),)),
     "Flatten forward: a constant where a gradient should flow (missing)"),
    ("identity-detached", train(c.Linear(3), c.Identity()), "Identity forward: a constant where a gradient should flow (missing)"),
    ("linear-no-bias", train(c.Linear(3)), "Linear forward in training mode"),
    ("bn-updates-in-eval", train(c.Linear(3), c.BatchNorm(), steps=3), "evaluation mode changes buffers"),
    # who writes into what somebody else reads later
    ("batchnorm-centres-input", train(c.Residual((c.BatchNorm(),)), c.Linear(2)), "BatchNorm forward in training mode"),
    ("batchnorm-centres-input", program(c.Residual((c.BatchNorm(),)), c.Linear(2)), "BatchNorm forward in training mode"),
    ("batchnorm-centres-evaluated", train(c.Softplus(), c.Residual(()), c.BatchNorm(), keep_init=True),
     "BatchNorm forward in evaluation mode"),
    ("program-reset-writes", train(c.Linear(3), steps=2), "reset_grad writes into gradients (alias)"),
    ("grad-kept-over-steps", train(c.Linear(3), steps=2, seed=4), "reset_grad leaves gradients"),
    ("sgd-decay-in-gradient", train(c.Linear(3), steps=2), "SGD.step writes into gradients"),
    ("program-out-grad-written", train(c.Linear(3), loss=c.Cotangent()),
     "Tensor.backward writes into the out_grad that it is given (alias)"),
    ("loss-shifts-labels", program(c.Linear(3)), "SoftmaxLoss forward or backward"),
    ("sgd-gradient-scaled", program(c.Linear(3), actions=(a.Pass(), a.Keep("gradient"), a.Step())),
     "SGD.step writes into gradients"),
    # what was so before
    ("adam-default-beta2", program(c.Linear(3), optimizer=c.Adam()), "Adam constructor: beta2"),
    ("linear-bias-shape", program(c.Linear(3)), "Linear constructor"),
    ("bn-running-float64", train(c.BatchNorm(), c.Linear(3), steps=2), "BatchNorm running statistics"),
    ("program-load-half", program(c.Linear(3), actions=(a.Load(file=True),)), "state_dict into a fresh model: parameter"),
    ("program-file-half", program(c.Linear(3), actions=(a.Load(file=True),)), "a file into a fresh model: parameter"),
    # neither an op nor a layer
    ("program-input-written", train(c.Linear(3), c.Sequential((c.Softplus(),)), c.Linear(3)),
     "Sequential forward writes into its input (alias)"),
    ("program-graph-never-freed", train(c.Linear(3), backward="twice"), "Tensor.backward: it does not free the graph"),
    ("program-evaluation-draws", train(c.Linear(3), steps=3), "Module.eval changes the random state"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "case", "what"), BEYOND_THE_FIRST, ids=[f"{b[0]}, {i}" for i, b in enumerate(BEYOND_THE_FIRST)]
)
def test_the_cause_is_named_and_not_where_it_shows_first(fault, case, what):
    assert judged(case, needle).divergence is None
    with FAULTS[fault].patch.applied():
        found = judged(case, needle).divergence
    assert found is not None, "not detected"
    assert found.suspect.what == what


def test_an_op_that_was_wrong_before_an_exception_is_named():
    with compute("Tanh", lambda y, x: y[:, :2]).applied():
        found = judged(train(c.Linear(3), c.Tanh(), c.Linear(3)), needle).divergence
    assert found.failure is not None
    assert found.suspect.what == "Tanh forward, shape"
    assert found.suspect.known == f"then: {found.failure.kind} in forward"


def test_a_program_that_is_right_one_layer_at_a_time_has_a_wrong_chain():
    with wrap("chain.run", lambda old: lambda steps, x: old(steps, x) * 1.5).applied():
        found = judged(program(*SQUARE), needle).divergence
    assert "chain of layers" in found.suspect.what


def test_a_parameter_that_is_not_what_was_assigned_is_nobody_elses_fault():
    with FAULTS["program-data-shared-memory-lost"].patch.applied():
        found = judged(train(*SQUARE, steps=3), needle).divergence
    assert found is None or found.suspect.what.startswith("Tensor.data")


def test_a_parameter_that_is_listed_twice_is_why_a_step_leaves_another_number_of_tensors():
    leak = Divergence(0, "live tensors", "change", "exact", "the number of live Tensors changes by -1 in the step")
    assert investigate(train(c.Linear(3)), leak, Evidence(repeated=True)).what.startswith(
        "Optimizer: it has a parameter twice"
    )
    assert "leak" in investigate(train(c.Linear(3)), leak, Evidence()).what


def _seen(fault, do):
    found = Calls()
    with FAULTS[fault].patch.applied(), calls(needle, found):
        do()
    return found


def test_calls_are_judged_innermost_first_and_in_the_dtype_that_they_have():
    x = Tensor(np.linspace(-2, 2, 6).reshape(2, 3).astype(np.float32))

    def softplus():
        needle.softplus(x).sum().backward()

    assert _seen("sigmoid-backward", softplus).bad is None  # at first order, its rule is not at work
    found = _seen("sigmoid-large-input", lambda: needle.softplus(x * 15.0).sum().backward())
    assert (found.bad.kind, found.bad.direction, found.bad.about) == (
        "Sigmoid",
        "forward",
        "called by Softplus backward",
    )
    double = Tensor(np.linspace(0.1, 2, 5))
    found = _seen("exp-double-by-single", lambda: needle.logsoftmax(needle.reshape(double, (1, 5))).sum().backward())
    assert (found.bad.kind, found.bad.direction) == ("Exp", "forward")


def test_right_calls_are_counted_and_nothing_stays_replaced():
    before = {kind: dict(vars(kind)) for kind in vars(needle.ops).values() if isinstance(kind, type)}
    found = Calls()
    with calls(needle, found):
        x = Tensor(np.ones((2, 3), np.float32))
        (needle.tanh(x) * x).sum().backward(create_graph=True)
    assert found.bad is None
    assert found.right["Tanh forward"] == 1
    assert found.right["EWiseMul backward"] == 1
    after = {kind: dict(vars(kind)) for kind in before}
    assert all(before[k].get(n) is after[k].get(n) for k in before for n in ("compute", "vjp"))
