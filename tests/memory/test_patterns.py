"""What users do with needle leaves nothing behind: no Tensor with a graph, nothing for the cycle collector."""

import gc

import numpy as np
import pytest

import needle as ndl
from needle import nn
from oracle.systems.window import Window

STEPS = 6


class Setup:
    """A model with everything in it, its optimizer, a batch."""

    def __init__(self) -> None:
        np.random.seed(0)
        body = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 8))
        self.model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Residual(body), nn.LayerNorm1d(8), nn.Linear(8, 3))
        self.loss_of = nn.SoftmaxLoss()
        self.opt = ndl.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.x = ndl.Tensor(np.random.randn(6, 5).astype("float32"), requires_grad=False)
        self.y = ndl.Tensor(np.arange(6) % 3, requires_grad=False)

    def loss(self):
        return self.loss_of(self.model(self.x), self.y)

    def step(self):
        loss = self.loss()
        self.opt.reset_grad()
        loss.backward()
        self.opt.step()
        return loss


def training(s):
    for _ in range(STEPS):
        s.step()


def inference_without_gradients(s):
    with ndl.no_grad():
        for _ in range(STEPS):
            s.model(s.x)


def inference_with_gradients_on(s):
    for _ in range(STEPS):
        s.model(s.x)


def a_list_of_floats(s):
    losses = [s.step().item() for _ in range(STEPS)]
    assert all(isinstance(loss, float) for loss in losses)


def a_list_of_detached_losses(s):
    losses = [s.step().detach() for _ in range(STEPS)]
    assert len(losses) == STEPS


def evaluation_in_between(s):
    for _ in range(STEPS):
        s.step()
        s.model.eval()
        s.model(s.x)
        s.model.train()


def an_exception_in_the_forward_pass(s):
    for _ in range(STEPS):
        with pytest.raises(ValueError, match="linear"):
            s.model(s.x[:, 0:3])


def an_exception_between_forward_and_backward(s):
    for _ in range(STEPS):
        try:
            s.loss()
            raise KeyError("the user's own")
        except KeyError:
            pass


def a_second_backward_that_is_refused(s):
    for _ in range(STEPS):
        loss = s.loss()
        loss.backward()
        with pytest.raises(RuntimeError):
            loss.backward()


def clipping_and_accumulation(s):
    for _ in range(STEPS):
        s.opt.reset_grad()
        s.loss().backward()
        first = [p.grad for p in s.model.parameters()]
        s.loss().backward()
        for p, g in zip(s.model.parameters(), first, strict=True):
            p.grad = g.data + p.grad.data
        s.opt.clip_grad_norm(0.1)
        s.opt.step()


def a_graph_kept_and_dropped(s):
    for _ in range(STEPS):
        loss = s.loss()
        loss.backward(retain_graph=True)
        loss.backward(retain_graph=True)


def gradients_of_gradients(s):
    for _ in range(STEPS):
        s.opt.reset_grad()
        s.loss().backward(create_graph=True)
        norm = None
        for p in s.model.parameters():
            square = (p.grad * p.grad).sum()
            norm = square if norm is None else norm + square
        s.opt.reset_grad()
        norm.backward()
        s.opt.step()


def a_loader_that_is_left_early(s):
    data = ndl.data.NDArrayDataset(np.zeros((20, 5), np.float32), np.zeros(20, np.int64))
    for _ in range(STEPS):
        for x, _y in ndl.data.DataLoader(data, batch_size=4, shuffle=True):
            s.model(x)
            break


PATTERNS = [
    training, inference_without_gradients, inference_with_gradients_on, a_list_of_floats, a_list_of_detached_losses,
    evaluation_in_between, an_exception_in_the_forward_pass, an_exception_between_forward_and_backward,
    a_second_backward_that_is_refused, clipping_and_accumulation, a_graph_kept_and_dropped, gradients_of_gradients,
    a_loader_that_is_left_early,
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.__name__)
def test_memory_check_a_usage_pattern_leaves_nothing(pattern):
    s = Setup()
    s.step()  # makes the velocities
    pattern(s)
    s.opt.reset_grad()
    gc.collect()
    with Window(ndl, closely=True) as window:
        pattern(s)
        s.opt.reset_grad()
        window.count()
    assert window.collected == 0
    assert (window.nodes, window.op) == (0, "")
    assert window.more == 0


def test_memory_check_an_exception_in_the_backward_pass_leaves_nothing():
    s = Setup()

    class Faulty(ndl.TensorOp):
        def compute(self, a):
            return a * 2

        def gradient(self, out_grad, node):
            raise ArithmeticError("no gradient today")

    def attempt():
        with pytest.raises(ArithmeticError):
            Faulty()(s.model(s.x)).sum().backward()

    attempt()
    gc.collect()
    with Window(ndl, closely=True) as window:
        for _ in range(STEPS):
            attempt()
        window.count()
    assert (window.collected, window.nodes, window.more) == (0, 0, 0)


def test_memory_check_the_window_sees_a_graph_a_cycle_and_a_tensor():
    s = Setup()
    s.step()
    gc.collect()
    kept = []
    with Window(ndl, closely=True) as window:
        kept.append(s.model(s.x))
        window.count()
    assert window.nodes == 1  # a chain of layers
    assert window.op
    assert window.more >= window.nodes
    with Window(ndl, closely=True) as window:
        out = s.model(s.x)
        out.me = out
        del out
    assert window.collected > 3
    with Window(ndl, closely=False) as window:
        kept.append(ndl.Tensor([1.0]))
        window.count()
    assert window.more == 1


def test_memory_check_the_window_gives_the_collector_back():
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), Window(ndl, closely=True):
        1 / int(gc.isenabled())
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
