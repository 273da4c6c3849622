"""pickle and copy of anything, at any time."""

import copy
import pickle

import numpy as np
import pytest

import needle as ndl
from needle import nn, ops

COPIES = [
    copy.deepcopy,
    lambda thing: pickle.loads(pickle.dumps(thing)),
    lambda thing: pickle.loads(pickle.dumps(thing, 2)),
]
copied = pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle", "protocol 2"])


def model():
    np.random.seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.1))
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm1d(4), nn.Residual(block), nn.Tanh(), nn.Linear(4, 2))


X, Y = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32), np.arange(6) % 2


def loss_of(net):
    np.random.seed(1)
    return nn.SoftmaxLoss()(net(ndl.Tensor(X)), ndl.Tensor(Y))


@copied
def test_a_copy_is_a_leaf_with_the_numbers(copied):
    x = ndl.Tensor([1.0, 2.0])
    y = x * x
    y.retain_grad()
    y.sum().backward(create_graph=True)
    for source in (x, y, x.grad, y.grad, nn.Parameter(x), ops.make_tuple(x, y), x.detach()):
        twin = copied(source)
        assert type(twin) is type(source)
        assert twin.is_leaf()
        assert twin.op is None
        assert twin.requires_grad == source.requires_grad
        for mine, its in zip(twin, source, strict=True):
            np.testing.assert_array_equal(mine.numpy(), its.numpy())
        if source.grad is None:
            assert twin.grad is None
        else:
            assert twin.grad.numpy().tolist() == source.grad.numpy().tolist()
            assert not twin.grad.requires_grad
    x.grad = y.grad = None


@copied
def test_what_hangs_on_a_tensor_goes_along(copied):
    x = ndl.Tensor([1.0])
    x.name = "first"
    assert copied(x).name == "first"


@copied
@pytest.mark.parametrize(
    "when", ["new", "forward", "backward", "create_graph", "step", "evaluation", "loss", "retained"]
)
def test_a_model_and_its_optimizer_at_any_time(copied, when):
    net = model()
    for make in (lambda p: ndl.optim.SGD(p, 0.1, 0.9, 0.01), lambda p: ndl.optim.Adam(p, 0.1)):
        optimizer = make(net.parameters())
        loss = None
        if when != "new":
            loss = loss_of(net)
        if when in ("backward", "create_graph", "step", "retained"):
            loss.backward(create_graph=when == "create_graph", retain_graph=when == "retained")
        if when == "step":
            optimizer.step()
        if when == "evaluation":
            net.eval()
            loss_of(net)
        twin, twins = copied((net, optimizer)) if when != "loss" else copied((net, optimizer, loss))[:2]
        assert [p is q for p, q in zip(twin.parameters(), twins.params, strict=True)] == [True] * 10
        for _ in range(3):
            for one, its in ((net, optimizer), (twin, twins)):
                its.reset_grad()
                loss_of(one).backward()
                its.step()
            for p, q in zip(net.parameters(), twin.parameters(), strict=True):
                np.testing.assert_array_equal(p.numpy(), q.numpy())
                assert not np.shares_memory(p.numpy(), q.numpy())
        for a, b in zip(net.buffers(), twin.buffers(), strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
        optimizer.reset_grad()


@copied
def test_a_deep_graph_is_no_obstacle(copied):
    net = nn.Sequential(*(layer for _ in range(400) for layer in (nn.Linear(2, 2), nn.Tanh())))
    x = ndl.Tensor(np.ones((2, 2), np.float32))
    loss = net(x).sum()
    loss.backward(create_graph=True)
    twin = copied(net)
    assert copied(loss).item() == loss.item()
    assert len(twin.parameters()) == 800
    for p in (x, *net.parameters()):
        p.grad = None


@copied
def test_the_rest(copied):
    for thing in (
        ndl.cpu(),
        ndl.no_grad(),
        ops.GetItem(np.array([1])),
        ops.BatchNorm(),
        ops.Reshape((1, 2)),
        nn.Flatten(),
    ):
        assert type(copied(thing)) is type(thing)
    dataset = ndl.data.NDArrayDataset(X, Y)
    loader = copied(ndl.data.DataLoader(dataset, batch_size=4))
    assert [x.shape for x, _ in loader] == [(4, 3), (2, 3)]


def test_a_shallow_copy_stays_in_the_graph():
    for net in (model(), lambda x: x * x):
        x = ndl.Tensor(X)
        np.random.seed(2)
        y = net(x)
        twin = copy.copy(y)
        assert twin.cached_data is y.cached_data
        (twin * 2 + y).sum().backward()
        both = x.grad.numpy()
        np.random.seed(2)
        (net(x) * 3).sum().backward()
        np.testing.assert_allclose(both, x.grad.numpy(), rtol=1e-4, atol=1e-6)
    p = nn.Parameter([1.0])
    assert type(copy.copy(p)) is nn.Parameter
