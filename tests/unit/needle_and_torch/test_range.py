"""Where float32 ends, needle does what torch does."""

import numpy as np
import pytest
import torch

import needle as ndl
from needle import nn, ops

F4 = np.float32
VALUES = np.array(
    [0, -0.0, 1e-45, -1e-45, 1e-40, -1e-40, 1e-38, 1e-20, 0.5, 1, -1, 2, -2, 3, 90, 1e20, -1e20, 3e38, np.inf], F4
)
PAIRS = [a.ravel() for a in np.meshgrid(VALUES, VALUES)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("size", [1e20, 1e-20, 3e19, 1.0])
@pytest.mark.parametrize("shape", [[(3,)], [(2,), (3,)]], ids=["alone", "together"])
def test_adam_takes_a_gradient_whose_square_is_out_of_range(size, decay, shape):
    ours = [nn.Parameter(np.ones(s, F4)) for s in shape]
    peers = [torch.ones(s, requires_grad=True) for s in shape]
    adam = ndl.optim.Adam(ours, lr=0.1, weight_decay=decay)
    peer = torch.optim.Adam(peers, lr=0.1, weight_decay=decay)
    for _ in range(3):
        for p, q in zip(ours, peers, strict=True):
            p.grad = ndl.Tensor(np.full(p.shape, size, F4))
            q.grad = torch.full(q.shape, size)
        adam.step()
        peer.step()
        for p, q in zip(ours, peers, strict=True):
            np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=2e-6)
            np.testing.assert_allclose(adam.v[p].numpy(), peer.state[q]["exp_avg_sq"].numpy(), rtol=2e-6, atol=3e-45)
    if size > 1:
        assert abs(ours[0].numpy()[0] - 0.7) < 1e-5


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of what overflows or is not a number in torch too
@pytest.mark.parametrize("name", ["multiply", "divide", "power"])
def test_derivatives_at_the_ends_of_the_range_are_those_of_torch(name):
    a, b = map(ndl.Tensor, PAIRS)
    y = getattr(ops, name)(a, b)
    y.backward(ndl.Tensor(np.ones_like(PAIRS[0])))
    ta, tb = (torch.tensor(p, requires_grad=True) for p in PAIRS)
    ty = {"multiply": torch.mul, "divide": torch.div, "power": torch.pow}[name](ta, tb)
    ty.backward(torch.ones_like(ty))
    for ours, peer in ((y, ty.detach()), (a.grad, ta.grad), (b.grad, tb.grad)):
        np.testing.assert_allclose(ours.numpy(), peer.numpy(), rtol=2e-6, atol=3e-45)
