"""Where needle and torch differ on purpose: one test for each row of the table in oracle/README.md.

Each shows both behaviours as they are, and that the oracle takes the difference into account.
"""

import numpy as np
import pytest
import torch

import needle as ndl
from oracle.blame import judged
from oracle.cases import case as c


def agrees(*model, **changes):
    given = {"data": c.Data(rows=4, features=3), "loss": c.SoftmaxLoss(), "optimizer": c.SGD(), "seed": 1, "steps": 4}
    verdict = judged(c.TrainCase(model=model or (c.Linear(2),), **(given | changes)), ndl)
    assert verdict.oracle_errors == []
    return verdict.divergence is None


def test_first_momentum_step_is_dampened():
    ours = ndl.nn.Parameter(np.ones(1, dtype="float32"))
    ours.grad = ndl.Tensor(np.full(1, 2.0, dtype="float32"), requires_grad=False)
    ndl.optim.SGD([ours], lr=1.0, momentum=0.9).step()
    theirs = torch.nn.Parameter(torch.ones(1))
    theirs.grad = torch.full((1,), 2.0)
    torch.optim.SGD([theirs], lr=1.0, momentum=0.9, dampening=0.9).step()
    assert ours.numpy()[0] == pytest.approx(1 - 0.1 * 2)
    assert theirs.item() == pytest.approx(1 - 2)
    assert agrees(optimizer=c.SGD(lr=0.1, momentum=0.9, weight_decay=0.1))


def test_a_second_backward_overwrites():
    ours = ndl.nn.Parameter(np.ones(1, dtype="float32"))
    theirs = torch.ones(1, requires_grad=True)
    for _ in range(2):
        (ours * 3).sum().backward()
        (theirs * 3).sum().backward()
    assert ours.grad.numpy()[0] == 3
    assert theirs.grad.item() == 6
    assert agrees(backward="twice")
    assert agrees(backward="accumulate")


def test_the_running_variance_is_biased():
    x = np.array([[1.0], [3.0]], dtype="float32")
    ours, theirs = ndl.nn.BatchNorm1d(1, momentum=1.0), torch.nn.BatchNorm1d(1, momentum=1.0)
    ours(ndl.Tensor(x))
    theirs(torch.from_numpy(x))
    assert ours.running_var.numpy()[0] == pytest.approx(1.0)
    assert theirs.running_var.item() == pytest.approx(2.0)
    assert agrees(c.BatchNorm(momentum=0.5), c.Linear(2))


def test_a_linear_layer_is_transposed():
    ours, theirs = ndl.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert (ours.weight.shape, ours.bias.shape) == ((3, 2), (1, 2))
    assert (tuple(theirs.weight.shape), tuple(theirs.bias.shape)) == ((2, 3), (2,))
    assert agrees(c.Linear(5), c.Linear(2, bias=False))


def test_gradients_carry_a_graph_only_on_request():
    x = ndl.Tensor(np.array([2.0], dtype="float32"))
    (x * x).sum().backward()
    assert not x.grad.requires_grad
    (x * x).sum().backward(create_graph=True)
    assert x.grad.requires_grad
    case = c.SecondOrderCase(
        model=(c.Linear(3), c.Tanh(), c.Linear(2)), data=c.Data(3, 2), loss=c.SoftmaxLoss(), seed=0
    )
    verdict = judged(case, ndl)
    assert verdict.divergence is None
    assert any(k == "G second" for k in verdict.tally.largest)


def test_the_graph_is_freed_by_backward():
    for loss in (
        (ndl.nn.Parameter(np.ones(2, dtype="float32")) * 3).sum(),
        (torch.ones(2, requires_grad=True) ** 2).sum(),
    ):
        loss.backward()
        with pytest.raises(RuntimeError, match="retain_graph"):
            loss.backward()


def test_only_leaves_keep_their_gradient():
    x = ndl.Tensor(np.ones(2, dtype="float32"))
    y, z = x * 2, x * 3
    z.retain_grad()
    (y + z).sum().backward()
    assert y.grad is None
    assert z.grad.numpy().tolist() == [1, 1]


def test_a_parameter_without_gradient_is_skipped():
    assert agrees(c.Linear(3, frozen=True), c.Unused(2), c.Linear(2), optimizer=c.SGD(lr=0.1, weight_decay=0.5))


def test_a_frozen_norm_layer_is_left_alone_and_passes_on_what_arrives():
    for frozen in (c.BatchNorm(frozen=True), c.LayerNorm(frozen=True)):
        assert agrees(c.Linear(3), frozen, c.Tanh(), c.Linear(2), optimizer=c.SGD(lr=0.1, weight_decay=0.5))


def test_a_tied_parameter_is_stepped_once():
    assert agrees(c.Linear(3), c.Tanh(), c.Linear(3, tie=0), optimizer=c.SGD(lr=0.1, momentum=0.9))
    ours = ndl.nn.Parameter(np.ones(1, dtype="float32"))
    ours.grad = ndl.Tensor(np.ones(1, dtype="float32"), requires_grad=False)
    ndl.optim.SGD([ours, ours], lr=0.25).step()
    assert ours.numpy()[0] == 0.75


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of 0 * inf
def test_inf_that_arrives_where_a_derivative_is_0_is_nan_here_and_0_there():
    def passed_back(tensor, relu, power):
        x, b = tensor(np.array([-1.0], "float32")), tensor(np.zeros(1, "float32"))
        return [(op(x), x) for op in (relu, lambda x: power(x, b))]

    inf = np.array([np.inf], "float32")
    for y, x in passed_back(ndl.Tensor, ndl.relu, ndl.power):
        y.backward(ndl.Tensor(inf))
        assert np.isnan(x.grad.item())
    for y, x in passed_back(lambda a: torch.tensor(a, requires_grad=True), torch.relu, torch.pow):
        assert torch.autograd.grad(y, x, torch.tensor(inf))[0].item() == 0
    drawn = c.encode(c.OpCase("relu", (c.Operand((1,), (-1.0,)),), {}, cotangent=(7.0,)))
    with pytest.raises(c.CaseError):
        c.decode(drawn.replace(b"7.0", b'"inf"'))
