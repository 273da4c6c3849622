"""needle's optimizers and clipping beside torch's."""

import numpy as np
import pytest
import torch
from rounding import Rounded, within

import needle as ndl
from needle import nn
from needle.optim import SGD, Adam


def parameter(*shape, seed=0, dtype="float32"):
    return nn.Parameter(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype=dtype)


def give(p, seed=0, scale=1.0, dtype=None):
    g = np.random.default_rng([99, seed, *p.shape]).standard_normal(p.shape) * scale
    p.grad = ndl.Tensor(g, dtype=dtype or p.dtype, requires_grad=False)
    return p.grad.numpy()


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.01), (0.999, 0.5)])
def test_sgd_equals_torch_with_a_zero_buffer(momentum, weight_decay):
    p = parameter(5, 3)
    t = torch.tensor(p.numpy().copy(), requires_grad=True)
    ours = SGD([p], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    theirs = torch.optim.SGD([t], lr=0.1, momentum=momentum, dampening=momentum, weight_decay=weight_decay)
    if momentum:
        theirs.state[t]["momentum_buffer"] = torch.zeros_like(t)
    expected, u = Rounded(p.numpy()), Rounded(np.zeros(p.shape))
    for i in range(20):
        t.grad = torch.tensor(give(p, i).copy())
        ours.step()
        theirs.step()
        assert p.dtype == ours.u[p].dtype == np.float32
        u = momentum * u + Rounded.of(1 - momentum) * (p.grad.numpy() + weight_decay * expected)
        expected = expected - 0.1 * u
        within(p, expected)
        within(t.detach(), expected)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_equals_torch(weight_decay):
    p, late = parameter(5, 3, dtype="float64"), parameter(2, dtype="float64")
    ts = [torch.tensor(q.numpy().copy(), requires_grad=True) for q in (p, late)]
    ours = Adam([p, late], lr=0.1, weight_decay=weight_decay)
    theirs = torch.optim.Adam(ts, lr=0.1, weight_decay=weight_decay)
    for i in range(20):
        ts[0].grad = torch.tensor(give(p, i).copy())
        if i >= 5:  # its own t starts here
            ts[1].grad = torch.tensor(give(late, i).copy())
        ours.step()
        theirs.step()
        for q, t in zip((p, late), ts, strict=True):
            np.testing.assert_allclose(q.numpy(), t.detach().numpy(), rtol=1e-10, atol=1e-12)
    assert ours.t == {p: 20, late: 15}
    assert ours.m[p].dtype == ours.v[p].dtype == np.float64


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e30])
@pytest.mark.parametrize("max_norm", [0.25, 10.0])
def test_clip_grad_norm_equals_torch(scale, max_norm):
    ps = [parameter(3, 4), parameter(5), parameter(2)]
    opt = SGD(ps)
    ts = [torch.tensor(p.numpy().copy(), requires_grad=True, dtype=torch.float64) for p in ps]
    kept = []
    for i, (p, t) in enumerate(zip(ps[:2], ts, strict=False)):
        g = give(p, i, scale)
        kept.append((g, g.copy()))
        t.grad = torch.tensor(g.astype(np.float64))
    expected = torch.nn.utils.clip_grad_norm_(ts, max_norm)
    norm = opt.clip_grad_norm(max_norm)
    assert type(norm) is float
    assert abs(norm - expected) <= (17 + 2) * 2.0**-53 * expected  # 17 squares added up and a root, in float64
    for p, (_, before) in zip(ps[:2], kept, strict=True):
        assert p.grad.dtype == np.float32
        within(p.grad, before * Rounded.of(min(1.0, max_norm / (float(expected) + 1e-6))))
    assert ps[2].grad is None
    for g, before in kept:
        np.testing.assert_array_equal(g, before)


def off(method):
    """A step, or clipping, after which parameters, state and gradients are off by some 100 roundings."""

    def wrong(self, *args):
        answer = method(self, *args)
        for p in self.params:
            state = [self.u[p]] if isinstance(self, SGD) and p in self.u else []
            for t in [p.grad] if args else [p, *state]:
                if t is not None:
                    t.cached_data = t.cached_data * np.asarray(1 + 2.0**-17, t.dtype)
        return answer

    return wrong


@pytest.mark.parametrize(
    ("test", "method"),
    [
        (lambda: test_sgd_equals_torch_with_a_zero_buffer(0.9, 0.01), "step"),
        (lambda: test_clip_grad_norm_equals_torch(1.0, 0.25), "clip_grad_norm"),
    ],
)
def test_a_small_error_is_not_taken_for_rounding(test, method, monkeypatch):
    test()
    monkeypatch.setattr(SGD, method, off(getattr(SGD, method)))
    with pytest.raises(AssertionError):
        test()
