"""Programs in the style of the course's homework, unchanged, and the examples in the docstrings."""

import doctest
import importlib

import numpy as np
import pytest

import needle as ndl
from needle import nn


@pytest.mark.parametrize(
    "name", ["", ".autograd", ".ops", ".init", ".nn", ".optim", ".schedules", ".saving", ".data"], ids=str
)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module("needle" + name)).failed == 0


def softmax_loss(logits, y_one_hot):
    return (ndl.log(ndl.exp(logits).sum((1,))) - (logits * y_one_hot).sum((1,))).sum() / logits.shape[0]


def test_two_layer_network_by_hand():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 5)).astype(np.float32)
    labels = (features.sum(1) > 0).astype(np.uint8)
    w1 = ndl.Tensor(rng.standard_normal((5, 10)).astype(np.float32) / np.sqrt(10))
    w2 = ndl.Tensor(rng.standard_normal((10, 2)).astype(np.float32) / np.sqrt(2))
    losses = []
    for _ in range(60):
        for start in range(0, 60, 20):
            x = ndl.Tensor(features[start : start + 20])
            y = labels[start : start + 20]
            one_hot = np.zeros((20, 2))
            one_hot[np.arange(20), y] = 1
            loss = softmax_loss(ndl.relu(x @ w1) @ w2, ndl.Tensor(one_hot))
            loss.backward()
            w1 = ndl.Tensor(w1.realize_cached_data() - 0.2 * w1.grad.realize_cached_data())
            w2 = ndl.Tensor(w2.realize_cached_data() - 0.2 * w2.grad.realize_cached_data())
        losses.append(loss.numpy())
    assert losses[-1] < 0.3 * losses[0]


def test_gradient_of_gradient():
    x2, x3 = ndl.Tensor([6]), ndl.Tensor([0])
    y = x2 * x2 + x2 * x3
    y.backward(create_graph=True)  # the one thing that a course program has to say here
    grad_x2, grad_x3 = x2.grad, x3.grad
    grad_x2.backward()
    assert y.numpy() == 36
    assert grad_x2.numpy() == 12
    assert grad_x3.numpy() == 6
    assert x2.grad.numpy() == 2
    assert x3.grad.numpy() == 1


def residual_block(dim, hidden_dim, norm=nn.BatchNorm1d, drop_prob=0.1):
    fn = nn.Sequential(
        nn.Linear(dim, hidden_dim),
        norm(hidden_dim),
        nn.ReLU(),
        nn.Dropout(drop_prob),
        nn.Linear(hidden_dim, dim),
        norm(dim),
    )
    return nn.Sequential(nn.Residual(fn), nn.ReLU())


def mlp_resnet(dim, hidden_dim, num_blocks, num_classes, norm, drop_prob=0.1):
    blocks = [residual_block(hidden_dim, hidden_dim // 2, norm, drop_prob) for _ in range(num_blocks)]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(dim, hidden_dim), nn.ReLU(), *blocks, nn.Linear(hidden_dim, num_classes)
    )


def epoch(dataloader, model, opt=None):
    loss_fn = nn.SoftmaxLoss()
    correct, total_loss = 0, []
    if opt is None:
        model.eval()
        for x, y in dataloader:
            logits = model(x)
            correct += (logits.numpy().argmax(axis=1) == y.numpy()).sum()
            total_loss.append(loss_fn(logits, y).numpy())
    else:
        model.train()
        for x, y in dataloader:
            logits = model(x)
            loss = loss_fn(logits, y)
            correct += (logits.numpy().argmax(axis=1) == y.numpy()).sum()
            total_loss.append(loss.numpy())
            opt.reset_grad()
            loss.backward()
            opt.step()
    return 1 - correct / len(dataloader.dataset), np.mean(total_loss)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm1d])
@pytest.mark.parametrize("make", [ndl.optim.SGD, ndl.optim.Adam])
def test_mlp_resnet_learns(norm, make):
    np.random.seed(1)
    images = np.random.randn(200, 4, 4, 1).astype(np.float32)
    labels = (images.reshape(200, 16) @ np.random.randn(16, 3)).argmax(1).astype(np.uint8)
    loader = ndl.data.DataLoader(ndl.data.NDArrayDataset(images, labels), batch_size=50, shuffle=True)
    model = mlp_resnet(16, 16, 2, 3, norm)
    opt = make(model.parameters(), lr=0.01 if make is ndl.optim.Adam else 0.1, weight_decay=1e-3)
    first = epoch(loader, model, opt)
    for _ in range(15):
        epoch(loader, model, opt)
    error, loss = epoch(loader, model)
    assert loss < 0.5 * first[1]
    assert error < 0.15
    for p in model.parameters():
        assert p.dtype == np.float32


def test_training_equals_itself_with_the_same_seed():
    def run():
        np.random.seed(3)
        model = mlp_resnet(4, 8, 1, 2, nn.BatchNorm1d)
        opt = ndl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, y = np.random.randn(20, 4).astype(np.float32), np.arange(20) % 2
        loader = ndl.data.DataLoader(ndl.data.NDArrayDataset(x, y), batch_size=8, shuffle=True)
        return [epoch(loader, model, opt)[1] for _ in range(3)]

    assert run() == run()
