"""`oracle.check` as somebody uses it: what agrees, what does not, and what is said then."""

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import needle as ndl
from oracle import check
from oracle.check import fitting, steps
from oracle.check.difference import as_if
from oracle.check.smaller import shorter
from oracle.systems import noise
from oracle.systems.noise import Refused

ROOT = Path(__file__).parents[3]
f32 = np.float32


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(f32)


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    y = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return y, lambda g: g - np.exp(y) * g.sum(-1, keepdims=True)


def log_softmax_with_a_wrong_vjp(x):
    y, _ = log_softmax(x)
    return y, lambda g: g - np.exp(y) * g.mean(-1, keepdims=True)


def attention(scaled):
    def compute(q, k, v):
        scores = q @ np.swapaxes(k, -1, -2)
        if scaled:
            scores = scores / np.sqrt(f32(q.shape[-1]))
        p = np.exp(scores - scores.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True) @ v

    return compute


def convolution(x, w):
    size = x.shape[-1] - w.shape[-1] + 1
    return sum(np.einsum("bit,oi->bot", x[..., j : j + size], w[..., j]) for j in range(w.shape[-1]))


# -- op ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "torch_fn", "shapes"),
    [
        (log_softmax, lambda x: F.log_softmax(x, -1), [(..., "k")]),
        (attention(True), F.scaled_dot_product_attention, [("b", 3, 4), ("b", 5, 4), ("b", 5, 4)]),
        (convolution, F.conv1d, [(2, 3, 9), (4, 3, 2)]),
        (lambda x: x.sum(0), lambda x: x.sum(0), [("n", "m")]),
        (lambda a, b: (a * b, a + b), lambda a, b: (a * b, a + b), [(..., 3), (3,)]),
        (check.needle(ndl.tanh), torch.tanh, [("n", "m")]),
        (check.needle(ndl.logsoftmax), lambda x: F.log_softmax(x, -1), [(4, "k")]),
        (check.needle(ndl.matmul), torch.matmul, [(3, "k"), ("k", 2)]),
    ],
)  # fmt: skip
def test_what_is_right_agrees(candidate, torch_fn, shapes):
    assert 0 <= check.op(candidate, torch_fn, *shapes) <= check.LIMIT / 2


def test_a_wrong_gradient_is_found_made_small_and_shown_again():
    with pytest.raises(check.Difference) as caught:
        check.op(log_softmax_with_a_wrong_vjp, lambda x: F.log_softmax(x, -1), (..., "k"))
    found = caught.value
    assert found.name == "gradient of x (input 0)"
    assert found.share > check.LIMIT
    assert found.error > found.allowed
    assert found.inputs[0].size <= 8, "few elements"
    message = str(found)
    lines = message.splitlines()
    assert lines[0] == "gradient of x (input 0) differs from torch by more than rounding"
    assert [text.split()[0] for text in lines[1:6]] == ["where", "yours", "torch", "truth", "error"]
    assert "before it  output agree" in message
    given = {}
    exec(
        "\n".join(text.strip() for text in lines if text.startswith("    ") and "check.op" not in text),
        {"np": np},
        given,
    )
    x0, g0 = given["x0"], given["g0"]
    assert "check.op(candidate, torch_fn, x0, cotangents=[g0])" in lines[-1]
    with pytest.raises(check.Difference) as again:
        check.op(log_softmax_with_a_wrong_vjp, lambda x: F.log_softmax(x, -1), x0, cotangents=[g0])
    assert (again.value.name, again.value.index) == (found.name, found.index)
    check.op(log_softmax, lambda x: F.log_softmax(x, -1), x0, cotangents=[g0])


def test_of_a_wrong_output_no_gradient_is_reported():
    """The output is wrong in few draws, its gradient in all; in the small draw it is still the output that is."""

    def candidate(x, w):
        y = x * w * f32(1.5 if abs(x).max(initial=0) > 500 else 1)
        return y, lambda g: (g * w * f32(1.25), g * x)

    with pytest.raises(check.Difference, match=r"^output differs") as caught:
        check.op(candidate, lambda x, w: x * w, ("n", 3), ("n", 3), kinds=["normal", "big"], draws=20, seed=2)
    assert caught.value.name == "output"
    assert abs(caught.value.inputs[0]).max() > 500, "a wrong gradient of a smaller draw is another fault"


def test_what_lies_beside_a_fault_is_said_of_the_draw_before_it_was_made_small():
    def candidate(x, w):
        y = x * w
        return y, lambda g: (g * w * f32(1.25), g * x * f32(1.25))

    with pytest.raises(check.Difference) as caught:
        check.op(candidate, lambda x, w: x * w, ("n", 3), ("n", 3))
    message = str(caught.value)
    assert "before it  output agree" in message
    assert re.search(r"after it   gradient of .*1\)? differ too", message)
    assert "as if      torch's times 1.25" in message
    assert max(a.size for a in caught.value.inputs) <= 3, "the smallest sizes that show it"


def test_what_few_numbers_look_like_is_not_said():
    """Made small, x·w and its gradient by x are both 1: that the one is the other holds of few numbers alone."""

    def candidate(x, w):
        y = x * w
        return y, lambda g: (g * w + g * x, g * x)

    with pytest.raises(check.Difference, match=r"^gradient of .*0") as caught:
        check.op(candidate, lambda x, w: x * w, ("n", 3), ("n", 3))
    assert "as if" not in str(caught.value)


def test_attention_without_its_scale_is_found():
    with pytest.raises(check.Difference, match="output differs from torch by more than rounding") as caught:
        check.op(attention(False), F.scaled_dot_product_attention, ("b", 2, 4), ("b", 2, 4), ("b", 2, 4))
    assert sum(np.count_nonzero(a) for a in caught.value.inputs) <= 4, "a number in q, k and v is enough"


def test_few_zeros_are_not_called_a_mistake():
    """Made small, all that the candidate gives may be 0; drawn numbers did not look like that."""
    with pytest.raises(check.Difference) as caught:
        check.op(lambda x, w: convolution(x, w[..., ::-1]), F.conv1d, (2, 3, 9), (4, 3, 2))
    assert [np.count_nonzero(a) for a in caught.value.inputs] == [1, 1]
    assert "as if" not in str(caught.value)


def test_numbers_get_shorter_and_no_change_is_made_twice():
    given = [np.array([[0.123, 4.567]], f32), np.array([3, 1])]
    for change in shorter(given):
        tried = change(given)
        if tried is not None and tried[0][0, 1] >= 4:  # what shows the failure
            given = tried
    assert given[0].tolist() == [[0, 5]]
    assert given[1].tolist() == [3, 1], "labels stay as they are"
    assert list(shorter([])) == []


def test_the_same_seed_is_the_same_draws():
    def messages(seed):
        with pytest.raises(check.Difference) as caught:
            check.op(lambda x: x * f32(1.001), lambda x: x * 1, ("n", 3), seed=seed)
        return str(caught.value)

    assert messages(1) == messages(1)
    seen = []
    check.op(lambda x: seen.append(x.copy()) or x, lambda x: x * 1, ("n", "m"), draws=40, kinds=["normal"])
    assert {0, 1} <= {n for x in seen for n in x.shape}, "shapes with sizes 1 and 0 are drawn"


def test_draws_do_not_depend_on_the_worker_nor_on_what_ran_before(monkeypatch):
    """Under xdist a test runs in any process, after any others: the generators of random numbers are in any state."""

    def message(state):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{state}")
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(state)
        with pytest.raises(check.Difference) as caught:
            check.op(lambda x: np.tanh(x) * f32(1.001), torch.tanh, ("n", "m"), seed=4)
        return str(caught.value)

    assert message(0) == message(3) == message(4)


def test_an_op_takes_few_runs():
    """A tenth of a second: twelve draws, each the program as it is, the exact replica, and few of those with noise."""
    calls = []
    check.op(log_softmax, lambda x: calls.append(1) or F.log_softmax(x, -1), (4, 7))
    assert 12 * 4 <= len(calls) <= 12 * 6


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "complex64", "complex128"])
def test_other_precisions(dtype):
    """A product of sums in another order agrees; an error of some roundings of that precision does not."""

    def in_torch(fault):
        def candidate(a, b):
            a, b = (torch.from_numpy(x) for x in (a, b))
            if dtype == "bfloat16":
                a, b = a.to(torch.bfloat16), b.to(torch.bfloat16)
            return (b * a + b) * (1 + fault)

        return candidate

    unit = {"float64": 2.0**-53, "complex128": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 2.0**-24)
    shares = check.op(in_torch(0), lambda a, b: (a + 1) * b, (4, 5), (5,), dtype=dtype, kinds=["normal", "ties"])
    assert shares < check.LIMIT / 2
    with pytest.raises(check.Difference):
        check.op(in_torch(200 * unit), lambda a, b: (a + 1) * b, (4, 5), (5,), dtype=dtype, kinds=["normal", "ties"])


def test_whole_numbers_and_other_arguments_are_handed_on():
    labels = np.array([2, 0, 1])

    def cross_entropy(x, labels, reduction):
        y, _ = log_softmax(x)
        return -y[np.arange(3), labels].mean()

    torch_fn = lambda x, labels, reduction: F.cross_entropy(x, labels, reduction=reduction)  # noqa: E731
    check.op(cross_entropy, torch_fn, (3, 4), labels, "mean")
    with pytest.raises(check.Difference, match=r"torch's times 0\.333333 \(1/3\)"):
        check.op(cross_entropy, torch_fn, (3, 4), labels, "sum")


def test_an_error_of_the_candidate_says_on_what():
    with pytest.raises(ZeroDivisionError) as caught:
        check.op(lambda x: 1 // 0, torch.tanh, (2, 2))
    assert "check.op called the candidate with" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"dtype": "int8"}, ValueError, "dtype is one of float32"),
        ({"kinds": ["odd"]}, ValueError, "kinds are normal"),
        ({"draws": 0}, ValueError, "at least one kind and one draw"),
    ],
)
def test_usage(arguments, error, words):
    with pytest.raises(error, match=words):
        check.op(np.tanh, torch.tanh, (2,), **arguments)


def y_of_ones():
    return {"y": torch.ones(2)}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: check.same(np.tanh, y_of_ones), 'the candidate must be arrays by name, {"y": array}, but got ufunc'),
        (lambda: check.same(np.ones(2), y_of_ones), "the candidate must be arrays by name"),
        (lambda: check.same({"y": np.ones(2)}, y_of_ones()), "`program` and not `program()`, but got dict"),
        (lambda: check.tolerance(y_of_ones()), "the program is a function that is handed over"),
        (lambda: check.same({"y": np.ones(2)}, lambda: torch.ones(2)), "tensors by name, {\"y\": tensor}, but got Tensor"),
        (lambda: check.tolerance(lambda: torch.ones(2)), "a program returns tensors by name"),
        (lambda: check.op(np.tanh, torch.tanh, [..., "n"]), "a shape is a tuple: (..., 'n'), but got the list"),
        (lambda: check.op(np.tanh, torch.tanh, [2, 3]), "a shape is a tuple: (2, 3); torch_fn does not take the list [2, 3]"),
        (lambda: check.op(np.ones(2), torch.tanh, (2,)), "candidate is a function of arrays, not what it gives, but got ndarray"),
        (lambda: check.op(np.tanh, torch.ones(2), (2,)), "torch_fn is a function of arrays"),
        (lambda: check.op(np.tanh, lambda x: x.numpy(), (2,)), "and nothing within one another, but output is of the type ndarray"),
        (lambda: check.op(np.tanh, lambda x: {"a": x, "b": (x, x)}, (2,)), "but b is of the type tuple"),
        (lambda: check.training({}, NET, torch_adam, BATCHES), "but got dict, Sequential, function"),
        (lambda: check.optimizer(adam_steps()(0, []), torch_adam), "function of (weights, gradients) and one that makes"),
        (lambda: check.training(lambda p, b: [p], NET, torch_adam, BATCHES), 'arrays by name, {"step 0 weight": array}, but got list'),
    ],
)  # fmt: skip
def test_what_is_handed_over_in_another_form_is_said_in_one_line(call, words):
    with pytest.raises(TypeError, match=re.escape(words)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_pytest_shows_the_test_and_the_message_and_nothing_between():
    wrong = lambda x: np.tanh(x) * f32(1.001)  # noqa: E731
    for call in (
        lambda: check.op(wrong, torch.tanh, (..., "n")),
        lambda: check.op(wrong, torch.tanh, np.ones(2, f32)),
        lambda: check.same({"y": np.zeros(2)}, y_of_ones),
        lambda: check.same({"y": np.zeros(3)}, y_of_ones),
    ):
        with pytest.raises(check.Difference) as caught:
            call()
        shown = [e for e in caught.traceback if not e.ishidden(caught)]
        assert {Path(str(e.path)).name for e in shown} == {"test_check.py"}
    with pytest.raises(ZeroDivisionError) as raised:
        check.op(lambda x: 1 // 0, torch.tanh, ("n",))
    shown = [e for e in raised.traceback if not e.ishidden(raised)]
    assert {Path(str(e.path)).name for e in shown} == {"test_check.py"}


def test_a_shape_of_something_else_is_refused():
    with pytest.raises(TypeError, match=r"numbers from 0 on, names, or \.\.\., but got 2\.5"):
        check.op(np.tanh, torch.tanh, (2.5,))


def test_shapes_that_torch_refuses_are_not_drawn():
    check.op(lambda x: x.max(), torch.max, ("n",))  # torch has no maximum of nothing


def gru_gates(x, w):
    return x @ w.T, lambda g: (g @ w, g.T @ x)


def test_a_size_may_be_a_multiple_of_another():
    seen = []

    def gates(x, w):
        seen.append((x.shape, w.shape))
        return gru_gates(x, w)

    check.op(gates, F.linear, ("batch", "input"), ("3*hidden", "input"))
    assert all(x[1] == w[1] and w[0] % 3 == 0 for x, w in seen)
    assert len({w[0] for _, w in seen}) > 2
    assert seen[0] == ((3, 4), (15, 4)), "sizes differ in the first draw"
    assert {0} < {n for x, w in seen for n in (*x, *w)}
    with pytest.raises(check.Difference):
        check.op(lambda x, w: 2 * x @ w.T, F.linear, ("batch", "input"), ("3 * hidden", "input"))


@pytest.mark.parametrize("dim", ["3hidden", "hidden*3", "0*hidden", "a+b", "", "-1", "2*3", "3*a*b"])
def test_text_that_is_no_size_is_refused(dim):
    with pytest.raises(ValueError, match=f"{re.escape(repr(dim))} in .* is no size: write a name"):
        check.op(np.tanh, torch.tanh, (dim, 2))


def gru_cell(x, h, w_ih, w_hh):
    sigmoid = lambda a: 1 / (1 + np.exp(-np.clip(a, -80, 80)))  # noqa: E731
    i, g = np.split(x @ w_ih.T, 3, -1), np.split(h @ w_hh.T, 3, -1)
    r, z = sigmoid(i[0] + g[0]), sigmoid(i[1] + g[1])
    return (1 - z) * np.tanh(i[2] + r * g[2]) + z * h


@pytest.mark.parametrize(
    ("wrong", "torch_fn", "shapes", "words"),
    [
        # right where the hidden size is 1, and no other fits a size of its own
        (lambda x, h, a, b: gru_cell(x, h, a, b)[:, ::-1], torch.gru_cell, [("n", "i"), ("n", "h"), ("g", "i"), ("g", "h")],
         r"torch refused \d+ of \d+ draws \(.*\), and \d+ of \d+ other .*: 0 draws with h > 1 could be judged, and 3 are needed\. Fix the shapes"),
        # right about nothing: torch takes no probabilities above 1, and of drawn numbers few others
        (lambda p, y: 2 * (p - y).mean(), F.binary_cross_entropy, [("n", 9), ("n", 9)],
         r"\(all elements of \w+ should be between 0 and 1\).*: 0 draws with n > 1 .* or let it bring the numbers .* torch\.sigmoid"),
        (lambda a, b: a, torch.bmm, [("n", 5), ("n", 5)], r"\(batch1 must be a 3D tensor\).*: 0 draws"),
    ],
    ids=["gru", "numbers", "axes"],
)  # fmt: skip
def test_too_few_draws_are_an_error_and_no_agreement_about_nothing(wrong, torch_fn, shapes, words):
    """Draws that torch refused were drawn again, until only empty ones, or such of size 1, were left: there much that is wrong agrees."""
    asked = []
    with pytest.raises(ValueError, match=words):
        check.op(wrong, lambda *x: asked.append(1) or torch_fn(*x), *shapes)
    assert len(asked) < 1000


@pytest.mark.parametrize(
    ("right", "wrong", "torch_fn", "shapes"),
    [
        (convolution, lambda x, w: convolution(x, w[..., ::-1]), F.conv1d, [("n", "c", "t"), ("o", "c", "k")]),
        (
            lambda x, w: convolution(convolution(x, w), w),
            lambda x, w: convolution(convolution(x, w[..., ::-1]), w),
            lambda x, w: F.conv1d(F.conv1d(x, w), w),
            [("n", "c", "t"), ("c", "c", "k")],
        ),
        (lambda a, b: a @ b, lambda a, b: a @ b.T, torch.mm, [(..., 3), (3, 3)]),
        (lambda x: x.reshape(len(x), 2, -1), lambda x: x.reshape(len(x), -1, 2).swapaxes(1, 2),
         lambda x: x.unflatten(1, (2, -1)), [("n", "m")]),
        (gru_cell, lambda x, h, a, b: gru_cell(x, h[:, ::-1], a, b), torch.gru_cell,
         [("n", "i"), ("n", "h"), ("3*h", "i"), ("3*h", "h")]),
    ],
    ids=["conv", "two convs", "axes", "even", "gru"],
)  # fmt: skip
def test_where_torch_refuses_some_sizes_others_are_drawn_that_it_takes(right, wrong, torch_fn, shapes):
    seen = []

    def candidate(*x):
        seen.append([a.shape for a in x])
        return right(*x)

    assert check.op(candidate, torch_fn, *shapes) < check.LIMIT / 2
    telling = [s for s in seen if min(n for shape in s for n in shape) > 1]
    assert len(telling) >= 6, "more than half of the draws, none of which has a size of 1"
    assert len({str(s) for s in telling}) >= (1 if ... in shapes[0] else 3)
    with pytest.raises(check.Difference):
        check.op(wrong, torch_fn, *shapes)


def test_where_nothing_can_be_forked_sizes_are_tried_as_they_are(monkeypatch):
    monkeypatch.setattr(fitting, "FORKS", False)
    monkeypatch.setattr(
        fitting, "apart", lambda *args, **how: pytest.fail("it sets the threads of this process to one")
    )
    check.op(convolution, F.conv1d, ("n", "c", "t"), ("o", "c", "k"), draws=4)


def test_sizes_with_which_torch_ends_the_process_are_tried_in_another(capfd):
    """GRU's kernel trusts shapes that it has not looked at: where some are tried, pytest was gone, with all of its tests."""
    gru = nn.GRU(3, 4)

    def torch_fn(x, h, *weights):
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        return torch.func.functional_call(gru, dict(zip(names, weights, strict=True)), (x, h))

    shapes = [("t", "b", "i"), (1, "b", "h"), ("g", "i"), ("g", "h"), ("g",), ("g",)]
    with pytest.raises(ValueError, match=r"torch refused \d+ of \d+ draws .* \(with some it crashed, "):
        check.op(lambda *x: pytest.fail("torch took sizes"), torch_fn, *shapes)

    owner, called, fatal = os.getpid(), [], []

    def trusting(a, b):
        called.append((len(a), len(b)))
        if len(a) != len(b) and 1 in (len(a), len(b)):
            if os.getpid() != owner:
                os.kill(os.getpid(), signal.SIGSEGV)
            fatal.append((len(a), len(b)))
        if len(a) != len(b):
            raise RuntimeError("sizes differ")
        return a * b

    check.op(lambda a, b: a * b, trusting, ("n",), ("m",))
    assert {n for n, m in called} > {2, 3, 4}
    with pytest.raises(check.Difference, match=r"^output differs"):
        check.op(lambda a, b: a + b, trusting, ("n",), ("m",))
    assert not fatal
    assert capfd.readouterr() == ("", "")


def test_empty_arrays_come_on_top_of_others():
    seen = []
    check.op(lambda x: seen.append(x.shape) or x, lambda x: x * 1, ("n", "m"), draws=1)
    assert [0 in shape for shape in seen] == [False, True, True]
    with pytest.raises(check.Difference, match="another shape"):
        check.op(lambda x: x if x.size else x[0:0, 0:0], lambda x: x * 1, ("n", 3))


def test_of_nothing_only_what_has_an_answer_counts():
    """0 / √0 is nan where torch has 0; torch's convolution of no channels has no channels; and some of torch would end the process."""
    check.op(
        attention(True), F.scaled_dot_product_attention, ("b", 2, "d"), ("b", 3, "d"), ("b", 3, 2), kinds=["normal"]
    )
    assert F.conv1d(torch.zeros(2, 0, 9), torch.zeros(4, 0, 3)).shape == (2, 0, 7)
    check.op(convolution, F.conv1d, (2, "c", 9), (4, "c", 3), kinds=["normal"])
    with pytest.raises(check.Difference, match=r"yours      1\n"):
        check.op(lambda x: x.sum() + f32(x.size == 0), torch.sum, ("n",), kinds=["normal"])

    def weight_norm(v, g):
        return g * v / np.maximum(np.sqrt((v * v).sum(1, keepdims=True)), f32(1e-30))

    with noise.Nothing(), pytest.raises(RuntimeError, match="of an empty tensor would end the process"):
        torch._weight_norm(torch.zeros(0, 3), torch.ones(0, 1), 0)
    check.op(weight_norm, lambda v, g: torch._weight_norm(v, g, 0), ("n", "m"), ("n", 1), kinds=["normal"])


def test_each_name_takes_all_of_its_sizes():
    """Two draws of a kind were the same two of every kind: of seven sizes, two."""
    seen = []
    check.op(
        lambda a, b: seen.append((a.size, b.size)) or a.sum() + b.sum(), lambda a, b: a.sum() + b.sum(), ("n",), ("m",)
    )
    assert {n for n, _ in seen} == {m for _, m in seen} == {0, 1, 2, 3, 4, 5, 7, 8}
    assert len(set(seen)) >= 9
    with pytest.raises(check.Difference, match="another shape"):
        check.op(lambda x: x[: len(x) - (len(x) == 7)], lambda x: x * 1, ("n",))


def test_outputs_may_have_names():
    def moments(x, wrong=0):
        out = {"mean": x.mean(-1), "variance": x.var(-1, ddof=1)}

        def vjp(g):  # by name, too
            centred = x - x.mean(-1, keepdims=True)
            return g["mean"][:, None] / 4 + g["variance"][:, None] * 2 * centred / f32(3 + wrong)

        return out, vjp

    torch_fn = lambda x: {"variance": x.var(-1), "mean": x.mean(-1)}  # noqa: E731
    check.op(moments, torch_fn, ("n", 4))
    with pytest.raises(check.Difference, match=r"^gradient of x \(input 0\) differs"):
        check.op(lambda x: moments(x, 1), torch_fn, ("n", 4))
    with pytest.raises(check.Difference, match=r"^variance differs from torch"):
        check.op(lambda x: {"mean": x.mean(-1), "variance": x.var(-1)}, torch_fn, ("n", 4))
    with pytest.raises(check.Difference, match=r"the torch program has no var; the candidate has no variance"):
        check.op(lambda x: {"mean": x.mean(-1), "var": x.var(-1)}, torch_fn, ("n", 4))
    check.op(lambda x: (x.var(-1, ddof=1), x.mean(-1)), torch_fn, ("n", 4))  # in torch's order


def two_outputs(x):
    return x * 2, x + 1


@pytest.mark.parametrize(
    ("out", "torch_fn", "words"),
    [
        (lambda x: x * 2, two_outputs, "the candidate gave 1 output, torch 2"),
        (lambda x: (x * 2, x + 1, x), two_outputs, "the candidate gave 3 outputs, torch 2"),
        (two_outputs, lambda x: x * 2, "the candidate gave 2 outputs, torch 1"),
        (lambda x: {"output": x * 2}, two_outputs, "the candidate gave a dict with 'output', torch a tuple of 2"),
        (lambda x: {"y": x * 2}, lambda x: x * 2, "the candidate gave a dict with 'y', torch a tensor"),
        (lambda x: {}, lambda x: x * 2, "the candidate gave a dict with nothing, torch a tensor"),
        (lambda x: x * 2, lambda x: {"a": x * 2, "b": x}, "the candidate gave 1 output, torch 2 (a dict with 'a', 'b')"),
        (lambda x: {"a": x * 2}, lambda x: {"a": x * 2, "b": x}, "the candidate has no b"),
        (lambda x: (x * 2, (x + 1)[:, :1]), two_outputs, "output 1 has another shape than torch's"),
        (lambda x: (x * 2).T, lambda x: x * 2, "output has another shape than torch's"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_vjp", [True, False])
def test_outputs_of_another_form_are_told_before_vjp_meets_torchs(out, torch_fn, words, with_vjp):
    """``vjp`` got cotangents of torch's outputs, and failed in its own words: an IndexError, a KeyError, shapes that do not fit."""
    candidate = (lambda x: (out(x), lambda g: pytest.fail("vjp was called"))) if with_vjp else out
    with pytest.raises(check.Difference, match=rf"^{re.escape(words)}") as caught:
        check.op(candidate, torch_fn, ("n", 3), draws=4)
    assert "this shows it again" in str(caught.value)
    given = {}
    exec(next(text.strip() for text in str(caught.value).splitlines() if text.startswith("    x0")), {"np": np}, given)
    with pytest.raises(check.Difference, match=rf"^{re.escape(words)}"):
        check.op(candidate, torch_fn, given["x0"])


def test_lists_of_numbers_are_arrays():
    doubled = lambda x, by: [[float(v) * by for v in row] for row in x]  # noqa: E731
    check.op(lambda x: doubled(x, 2), lambda x: x * 2, (3, 2))
    with pytest.raises(check.Difference, match=r"^output differs"):
        check.op(lambda x: doubled(x, 2.01), lambda x: x * 2, (3, 2))
    several = lambda x: (x.max(), x.min())  # noqa: E731
    check.op(lambda x: [float(x.max()), float(x.min())], several, (3, 2), kinds=["normal"])


# -- same ----------------------------------------------------------------------------------------------------------------


X, W1, W2 = drawn(5, 8), drawn(8, 16, seed=1) * f32(0.4), drawn(16, 4, seed=2) * f32(0.4)


def network(variance_fault=False, scale_fault=False):
    h = np.tanh(X @ W1)
    n = h - h.mean(-1, keepdims=True)
    n = n / np.sqrt(n.var(-1, ddof=int(variance_fault), keepdims=True) + f32(1e-5))
    y = np.maximum(n, 0) @ W2
    return {"h": h, "n": n, "a": np.maximum(n, 0), "y": y * f32(1 + 1e-4) if scale_fault else y}


def program():
    x, w1, w2 = map(torch.from_numpy, (X, W1, W2))
    h = check.tap("h", torch.tanh(x @ w1))
    n = check.tap("n", F.layer_norm(h, (16,)))
    a = check.tap("a", torch.relu(n))
    return {"y": a @ w2}


def test_taps_judge_every_stage_by_itself():
    assert check.same(network(), program) < check.LIMIT / 2
    with pytest.raises(check.Difference) as caught:
        check.same(network(True, True), program)
    assert caught.value.bad == ("n", "y"), "two independent faults, and not what lies between them"
    assert "before it  h agree" in str(caught.value)
    assert "after it   y differ too" in str(caught.value)


def test_a_report_is_a_table(capsys):
    agreement = check.same(network(), program, report=True)
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()] == ["tensor", "h", "n", "a", "y", "largest"]
    assert [row.name for row in agreement.rows] == ["h", "n", "a", "y"]
    assert agreement.rows[3].shape == (5, 4)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda t: t.T, "transposed"),
        (lambda t: t / f32(2), r"torch's times 0.5 \(1/√4\)|torch's times 0.5"),
        (lambda t: t + f32(0.25), "torch's plus 0.25"),
        (lambda t: np.maximum(t, 0), "torch's relu"),
        (lambda t: t * 0, "all zero"),
        (lambda t: t[::-1], "reversed along axis 0"),
        (lambda t: t / f32(np.sqrt(7)), "1/√7"),
    ],
)
def test_a_message_says_what_the_numbers_look_like(fault, words):
    x = drawn(4, 4)
    run = lambda: {"relu": torch.relu(torch.from_numpy(x)), "y": torch.from_numpy(x) * 1}  # noqa: E731
    with pytest.raises(check.Difference, match=f"as if      .*{words}"):
        check.same({"relu": np.maximum(x, 0), "y": fault(x)}, run)


@pytest.mark.parametrize(
    ("truth", "ours", "words"),
    [
        ([0, 0, 3], [0, 0, 4.1], ""),  # any number is some multiple of any other
        ([3, 3], [4.1, 4.1], ""),
        ([0, 0, 3], [0, 0, -3], "torch's times -1"),
        ([3], [1.5], "torch's times 0.5 (1/2)"),
        ([3, 0, 2], [3.75, 0, 2.5], "torch's times 1.25"),
        ([3, 1, 2, 5], [6, 2, 4, 10], "torch's times 2"),  # and no √ of 4 elements
        ([3, 1, 2], [np.sqrt(27), np.sqrt(3), np.sqrt(12)], "torch's times 1.73205 (√3)"),
    ],
)
def test_a_factor_is_seen_where_there_are_numbers_enough(truth, ours, words):
    assert as_if(np.array(ours, float), np.array(truth, float), "y", {}) == words


@pytest.mark.parametrize(
    ("wrong", "shape", "words"),
    [
        (lambda x: x * 2, (2, "d"), "torch's times 2"),  # as many as there are rows
        (lambda x: x * 2, ("n", 4), "torch's times 2"),
        (lambda x: x * 3, ("n", "d"), "torch's times 3"),  # as many as there are rows in the first draw
        (lambda x: x / 3, ("n", "d"), "torch's times 0.333333 (1/3)"),
        (lambda x: x * f32(np.sqrt(3)), ("n", "d"), "torch's times 1.73205 (√3)"),
        (lambda x: x / len(x), ("n", "d"), "torch's times 0.333333 (1 / the number of rows)"),
        (lambda x: x * -f32(x.shape[1]), ("n", "d"), "torch's times -4 (the number of columns)"),
        (lambda x: x / np.sqrt(f32(x.shape[1])), ("n", "d"), "torch's times 0.5 (1 / √ of the number of columns)"),
        (lambda x: x * x.size, ("n", "d"), "torch's times 12 (the number of elements)"),
    ],
)  # fmt: skip
def test_a_factor_has_a_reason_if_it_holds_in_a_second_draw(wrong, shape, words):
    with pytest.raises(check.Difference) as caught:
        check.op(lambda x: wrong(np.tanh(x)), torch.tanh, shape)
    said = next(text for text in str(caught.value).splitlines() if text.startswith("  as if"))
    assert said.removesuffix(", before it was made small") == f"  as if      {words}"


class Handed:
    """An array of somebody else's: it is handed over in one way alone."""

    def __init__(self, a, way):
        setattr(type(self), way, lambda self, *args, **kwargs: getattr(a, way)(*args, **kwargs))


@pytest.mark.parametrize("way", ["__array__", "__dlpack__", "numpy"])
def test_arrays_of_anybody(way):
    x = drawn(3)
    a = torch.from_numpy(x * 2) if way == "numpy" else x * 2
    kind = type("Handed", (), {way: lambda self, *args, **kwargs: getattr(a, way)(*args, **kwargs)})
    if way == "__dlpack__":
        kind.__dlpack_device__ = lambda self: a.__dlpack_device__()
    check.same({"y": kind()}, lambda: {"y": torch.from_numpy(x) * 2})
    check.same({"y": ndl.Tensor(x * 2, dtype="float32")}, lambda: {"y": torch.from_numpy(x) * 2})
    with pytest.raises(TypeError, match="not an array of numbers"):
        check.same({"y": "words"}, lambda: {"y": torch.from_numpy(x) * 2})


@pytest.mark.parametrize("draw", [
    lambda g: torch.rand(6, 5, generator=g), lambda g: torch.empty(6, 5).uniform_(generator=g),
    lambda g: torch.randperm(30, generator=g).view(6, 5) / 30,
], ids=["rand", "uniform_", "randperm"])  # fmt: skip
def test_a_generator_of_the_programs_own_draws_the_same_in_every_run(draw):
    x, generator = drawn(6, 5), torch.Generator().manual_seed(3)
    mask = (draw(torch.Generator().manual_seed(3)) > 0.3).numpy()
    run = lambda: {"y": torch.from_numpy(x) * (draw(generator) > 0.3) / 0.7}  # noqa: E731
    check.same({"y": x * mask / f32(0.7)}, run)
    for wrong in (x * mask / f32(0.7001), x * ~mask / f32(0.7)):
        with pytest.raises(check.Difference):
            check.same({"y": wrong}, run)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())


def test_a_program_that_changes_from_call_to_call_is_refused():
    """What lies between its results was taken for rounding, and any candidate agreed."""
    x, generator, calls, once = drawn(6, 5), np.random.default_rng(3), [], []

    def masked():
        return {"y": torch.from_numpy(x) * torch.from_numpy(generator.random((6, 5)) > 0.3), "x": torch.from_numpy(x)}

    def counting():
        calls.append(1)
        return {"y": torch.from_numpy(x) * len(calls), "x": torch.from_numpy(x)}

    def after_the_first():
        once.append(1)
        return {"y": torch.from_numpy(x) * (1 if len(once) == 1 else 2), "x": torch.from_numpy(x)}

    for run in (masked, counting, after_the_first, lambda: {"x": torch.from_numpy(x), "y": masked()["y"] * 1e-3 + 1}):
        with pytest.raises(Refused, match=r"another y when it was called again: .* np\.random\.default_rng\(0\)"):
            check.same({"y": x, "x": x}, run)
    with pytest.raises(Refused):
        check.op(lambda x: x * 5, lambda x: x * float(generator.random()), ("n", 3))

    def cancelled():  # noise moves it much, and it is the same program all the time
        return {"y": torch.from_numpy(x) + 1e6 - 1e6, "b": torch.tensor([True]), "n": torch.tensor([3])}

    check.same({"y": x + f32(1e6) - f32(1e6), "b": np.array([True]), "n": np.array([3])}, cancelled)


def test_a_number_of_python_has_the_precision_that_it_came_from():
    x = drawn(50)
    run = lambda: {"norm": torch.from_numpy(x).norm().item()}  # noqa: E731
    norm = float(np.linalg.norm(x.astype(float)))
    check.same({"norm": f32(norm * (1 + 2.0**-23))}, run)
    check.same({"two": [f32(norm * (1 + 2.0**-23))] * 2}, lambda: {"two": [run()["norm"]] * 2})
    with pytest.raises(check.Difference):
        check.same({"norm": norm * 1.0001}, run)


def test_no_gradient_is_a_gradient_of_zero():
    check.same({"g": None}, lambda: {"g": torch.zeros(3)})
    check.same({"g": np.zeros(3)}, lambda: {"y": None} | {"g": torch.zeros(3)})
    with pytest.raises(check.Difference, match="None, which means zero"):
        check.same({"g": None}, lambda: {"g": torch.ones(3)})


def test_an_ordinary_program_works_as_it_is_written_and_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).to("cpu")
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model(torch.ones(2, 4)).sum().backward()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    x, labels = drawn(6, 4), np.array([0, 2, 1, 0, 2, 1])

    def run():
        torch.manual_seed(5)
        model.train().to("cpu")
        optimizer.zero_grad()
        out = model(torch.tensor(x, device="cpu"))
        loss = F.cross_entropy(out, torch.as_tensor(labels))
        loss.backward()
        weights = model[0].weight.grad.clone()
        model.eval()
        with torch.no_grad():
            predicted = model(torch.from_numpy(x).float())
        running = {n: b.clone() for n, b in model.named_buffers()}
        return {"loss": loss, "g": weights, "predicted": predicted, "best": predicted.argmax(1), **running}

    peer = {n: t.detach().clone() for n, t in run().items()}
    model.load_state_dict(state)
    for n, p in model.named_parameters():
        p.grad = grads[n].clone()
    table = check.same(peer, run, report=True)
    assert table < check.LIMIT / 2
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None or torch.equal(p.grad, grads[n]) for n, p in model.named_parameters())
    for name in ("loss", "g", "predicted", "1.running_mean", "1.running_var"):
        wrong = {**peer, name: peer[name] * 1.001}
        with pytest.raises(check.Difference, match=f"^{name} differs"):
            check.same(wrong, run)
    with pytest.raises(check.Difference, match=r"^1\.num_batches_tracked differs"):
        check.same({**peer, "1.num_batches_tracked": peer["1.num_batches_tracked"] + 1}, run)


def test_parameters_of_a_model_outside_are_what_they_were_after_a_step():
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    x = drawn(4, 3)

    def run():
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        optimizer.zero_grad()
        model(torch.from_numpy(x)).square().sum().backward()
        optimizer.step()
        return {"w": model.weight.detach().clone()}

    right = run()["w"]
    with torch.no_grad():
        model.weight.copy_(before)
        model.bias.copy_(model.bias + 0.1 * model.bias.grad)
    check.same({"w": right}, run)
    assert torch.equal(model.weight, before)
    with pytest.raises(check.Difference):
        check.same({"w": right * 1.0001}, run)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: nn.Linear(3, 2)(torch.ones(1, 3)), "autocast"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]).to_padded_tensor(0), "nested tensors"),
        (lambda: torch.eye(3).to_sparse() @ torch.eye(3), "layout torch.sparse"),
    ],
)
def test_what_noise_cannot_follow_is_refused(run, words):
    def inside():
        if words == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return {"y": run()}
        return {"y": run()}

    with pytest.raises(Refused, match=words):
        check.same({"y": np.ones((1, 2))}, inside)


def test_tolerance_alone():
    found = check.tolerance(lambda: {"y": torch.softmax(torch.from_numpy(X), 1)})
    assert found.truth["y"].dtype == np.float64
    assert found.allowed["y"].shape == X.shape
    assert (np.abs(found.torch["y"] - found.truth["y"]) < found.allowed["y"]).all()
    assert 1 < (found.allowed["y"] / (16 * 2.0**-24 * found.truth["y"])).min() < 20


def test_a_number_beyond_the_range_is_infinite():
    run = lambda: {"y": torch.exp(torch.tensor([200.0, 1.0]))}  # noqa: E731
    check.same({"y": np.array([np.inf, np.exp(1)], f32)}, run)
    with pytest.raises(check.Difference):
        check.same({"y": np.array([-np.inf, np.exp(1)], f32)}, run)
    with pytest.raises(check.Difference):
        check.same({"y": np.array([3e38, np.exp(1)], f32)}, run)


# -- training ------------------------------------------------------------------------------------------------------------

torch.manual_seed(20240229)
NET = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
BATCHES = [(drawn(9, 6, seed=s), np.arange(9) % 3) for s in range(4)]


def loop(update):
    def candidate(parameters, batches):
        p, state, seen = dict(parameters), {n: {} for n in parameters}, {}
        for i, (x, labels) in enumerate(batches):
            h = np.tanh(x @ p["0.weight"].T + p["0.bias"])
            y, vjp = log_softmax(h @ p["2.weight"].T + p["2.bias"])
            seen[f"step {i} loss"] = -y[np.arange(len(labels)), labels].mean()
            cotangent = np.zeros_like(y)
            cotangent[np.arange(len(labels)), labels] = f32(-1 / len(labels))
            dz = vjp(cotangent)
            dh = dz @ p["2.weight"] * (1 - h * h)
            g = {"0.weight": dh.T @ x, "0.bias": dh.sum(0), "2.weight": dz.T @ h, "2.bias": dz.sum(0)}
            seen |= {f"step {i} grad {n}": a for n, a in g.items()}
            p = {n: update(p[n], g[n], state[n], i + 1) for n in p}
            seen |= {f"step {i} {n}": a for n, a in p.items()}
        return seen

    return candidate


def adam(lr=0.01, b1=0.9, b2=0.999, eps=1e-8):
    def update(p, g, s, t):
        s["m"] = f32(b1) * s.get("m", 0) + f32(1 - b1) * g
        s["v"] = f32(b2) * s.get("v", 0) + f32(1 - b2) * g * g
        return p - f32(lr) * (s["m"] / f32(1 - b1**t)) / (np.sqrt(s["v"] / f32(1 - b2**t)) + f32(eps))

    return update


def dampened(beta=0.9):
    def update(p, g, s, t):
        s["u"] = f32(beta) * s.get("u", 0) + f32(1 - beta) * g
        return p - f32(0.1) * s["u"]

    return update


def torch_dampened(parameters):
    """torch's buffer starts as the undampened gradient; needle's rule starts at zero."""
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9, dampening=0.9)
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def torch_adam(parameters):
    return torch.optim.Adam(parameters, 0.01)


@pytest.mark.parametrize(("update", "optimizer"), [(adam(), torch_adam), (dampened(), torch_dampened)])
def test_training_that_is_right_agrees(update, optimizer):
    assert check.training(loop(update), NET, optimizer, BATCHES) < check.LIMIT / 2


@pytest.mark.parametrize(
    ("update", "optimizer"),
    [
        (adam(lr=0.01 * (1 + 1e-4)), torch_adam),
        (adam(eps=1e-7), torch_adam),
        (adam(b1=0.9001), torch_adam),
        (dampened(0.9001), torch_dampened),
        (dampened(), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.9)),
    ],
    ids=["lr", "eps", "first beta", "momentum", "first step"],
)
def test_training_that_is_wrong_by_a_ten_thousandth_does_not(update, optimizer, request):
    size = f32(1e-4 if "eps" in request.node.name else 1)  # an eps shows on small gradients
    with pytest.raises(check.Difference, match=r"^step \d .* differs from torch by more than rounding"):
        check.training(loop(update), NET, optimizer, [(x * size, labels) for x, labels in BATCHES])


def in_float32(powers):
    """Adam whose hyperparameters, and 1 − βᵗ, are float32 all along: right, and a thousand roundings off where 1 − 0.999ᵗ cancels."""
    lr, b1, b2, eps, one = map(f32, (0.01, 0.9, 0.999, 1e-8, 1))

    def update(p, g, s, t):
        s["m"] = b1 * s.get("m", f32(0)) + (one - b1) * g
        s["v"] = b2 * s.get("v", f32(0)) + (one - b2) * g * g
        c1, c2 = (one - powers(b, f32(t)) for b in (b1, b2))
        return p - lr * (s["m"] / c1) / (np.sqrt(s["v"] / c2) + eps)

    return update


@pytest.mark.parametrize(
    "powers",
    [
        lambda b, t: b**t,
        lambda b, t: np.exp(t * np.log(b)),
        lambda b, t: np.multiply.reduce(np.full(int(t), b)),
    ],
    ids=["power", "exponential", "product"],
)
def test_training_with_hyperparameters_in_float32_agrees(powers):
    batches = [(drawn(9, 6, seed=s), np.arange(9) % 3) for s in range(8)]
    assert check.training(loop(in_float32(powers)), NET, torch_adam, batches) < check.LIMIT / 2


def test_a_loop_that_writes_into_its_arrays_is_told_so():
    """One array under the name of every step has the numbers of the last one; what is written into batches is its own affair."""

    def candidate(copied):
        def run(parameters, batches):
            seen = {}
            for i, (x, labels) in enumerate(batches):
                h = np.tanh(x @ parameters["0.weight"].T + parameters["0.bias"])
                _, vjp = log_softmax(h @ parameters["2.weight"].T + parameters["2.bias"])
                onehot = np.eye(3, dtype=f32)[labels]
                dz = vjp(-onehot / f32(len(labels)))
                dh = dz @ parameters["2.weight"] * (1 - h * h)
                g = {"0.weight": dh.T @ x, "0.bias": dh.sum(0), "2.weight": dz.T @ h, "2.bias": dz.sum(0)}
                for n, p in parameters.items():
                    p -= f32(0.1) * g[n]
                    seen[f"step {i} {n}"] = p.copy() if copied else p
                x *= 0
                labels *= 0
            return seen

        return run

    torch_sgd = lambda p: torch.optim.SGD(p, 0.1)  # noqa: E731
    assert check.training(candidate(True), NET, torch_sgd, BATCHES) < check.LIMIT / 2
    assert BATCHES[0][0].any()
    with pytest.raises(check.Difference, match=r"note +your step 0 .* and step 3 .* are one array, .*: keep copies"):
        check.training(candidate(False), NET, torch_sgd, BATCHES)


def adam_steps(b1=0.9, b2=0.999, lr=0.01):
    def steps(w, grads):
        update, state = adam(lr, b1, b2), {}
        for t, g in enumerate(grads, 1):
            w = update(w, g, state, t)
            yield w

    return steps


def radam_in_float32(w, grads, b1=0.9, b2=0.999):
    """ρ∞ is a number of Python, and exact; ρ is one of float32, and off by 2000 times the rounding of 1 − βᵗ: of the few that are left."""
    at_infinity = 2 / (1 - b2) - 1
    m = v = f32(0)
    for t, g in enumerate(grads, 1):
        m, v = f32(b1) * m + f32(1 - b1) * g, f32(b2) * v + f32(1 - b2) * g * g
        c1, c2 = f32(1) - f32(b1) ** f32(t), f32(1) - f32(b2) ** f32(t)
        rho = f32(at_infinity) - f32(2 * t) * (f32(1) - c2) / c2
        size = f32(1)
        if rho > 5:
            rest = f32(at_infinity / ((at_infinity - 4) * (at_infinity - 2)))
            size = np.sqrt((rho - f32(4)) * (rho - f32(2)) * rest / rho) / (np.sqrt(v / c2) + f32(1e-8))
        w = w - f32(0.01) * (m / c1) * size
        yield w


def test_a_hyperparameter_is_rounded_anew_in_each_use(monkeypatch):
    torch_radam = lambda p: torch.optim.RAdam(p, 0.01)  # noqa: E731
    assert check.optimizer(radam_in_float32, torch_radam, steps=8) < check.LIMIT / 2
    with pytest.raises(check.Difference):
        check.optimizer(lambda w, g: radam_in_float32(w, g, b1=0.9001), torch_radam, steps=8)
    moved = steps._moved
    # ρ∞ − ρ is as good as exact where both have one and the same β
    monkeypatch.setattr(steps, "_moved", lambda x, mode: float(x) if isinstance(x, steps.Rounded) else moved(x, mode))
    with pytest.raises(check.Difference):
        check.optimizer(radam_in_float32, torch_radam, steps=8)


def test_an_optimizer_by_itself_is_held_to_gradients_that_grow():
    """A wrong β₂ is within rounding where gradients are alike, or few: what is remembered long must matter."""
    assert check.optimizer(adam_steps(), torch_adam) < check.LIMIT / 2
    with pytest.raises(
        check.Difference, match=r"step \d\d w differs .*(?s:.*)gradients  \w.*; seed=0, steps=60"
    ) as caught:
        check.optimizer(adam_steps(b2=0.99901), torch_adam, steps=60)
    weights, grads = caught.value.inputs
    assert grads.shape == (60, *weights.shape)
    for wrong in (adam_steps(b1=0.9001), adam_steps(lr=0.010001)):
        with pytest.raises(check.Difference, match="differs from torch by more than rounding"):
            check.optimizer(wrong, torch_adam, steps=12)

    def in_place(w, grads):
        for g in grads:
            w -= f32(0.1) * g
            yield w

    torch_sgd = lambda p: torch.optim.SGD(p, 0.1)  # noqa: E731
    assert check.optimizer(in_place, torch_sgd, steps=5) < check.LIMIT / 2
    for words, wrong in (
        ("gave weights 1 times, for 5 steps", lambda w, g: [w]),
        ("another shape", lambda w, g: [w[:3]] * 5),
    ):
        with pytest.raises(check.Difference, match=words):
            check.optimizer(wrong, torch_sgd, steps=5)


def test_numbers_for_noise_are_made_before_it_is_on():
    """A hyperparameter draws within the program, where a pool that is not there yet would be rounded itself."""
    before = noise._pool().copy()
    noise._pool.cache_clear()
    with noise.Rounding(1) as mode:
        assert mode.draw(()).shape == ()
    assert np.array_equal(noise._pool(), before)


def test_a_candidate_of_a_loop_may_leave_out_a_kind_but_no_tensor():
    def only(*kinds):
        return lambda p, b: {n: a for n, a in loop(adam())(p, b).items() if n.split()[2] in kinds or "0." in kinds}

    check.training(only("0.weight", "0.bias", "2.weight", "2.bias"), NET, torch_adam, BATCHES[:1])
    with pytest.raises(
        check.Difference, match=r"the candidate has no step 0 0\.weight, .*, … \(16 in all\)\n  torch has  step 0"
    ) as caught:
        check.training(lambda p, b: {"step 0 b": p["2.bias"]}, NET, torch_adam, BATCHES)
    assert len(str(caught.value)) < 400
    with pytest.raises(check.Difference, match=r"the candidate has no step 0 2\.bias"):
        check.training(only("0.weight", "0.bias", "2.weight"), NET, torch_adam, BATCHES[:1])


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)

    def forward(self, x, y):
        return (self.line(x) - y).square().mean()


def line_by_hand(parameters, batches):
    w, b = parameters.values()
    seen = {}
    for i, (x, y) in enumerate(batches):
        error = x @ w.T + b - y
        dz = 2 * error / error.size
        w, b = w - f32(0.1) * dz.T @ x, b - f32(0.1) * dz.sum(0)
        seen |= {f"step {i} loss": (error * error).mean(), f"step {i} weight": w, f"step {i} bias": b}
    return seen


def test_the_loss_of_training_is_said_where_it_may_be_another():
    torch_sgd = lambda p: torch.optim.SGD(p, 0.1)  # noqa: E731

    def named(parameters, batches):
        seen = line_by_hand(parameters, batches)
        return {n if "loss" in n else n.replace("step 0 ", "step 0 line."): a for n, a in seen.items()}

    squares = [(drawn(4, 3), drawn(4, 1))]
    check.training(line_by_hand, nn.Linear(3, 1), torch_sgd, squares, F.mse_loss)
    check.training(named, WithLoss(), torch_sgd, squares, None)
    with pytest.raises(
        ValueError,
        match=r"by default, and the targets are of torch\.float32, \(4, 1\) for an output of \(4, 1\).*mse_loss",
    ):
        check.training(line_by_hand, nn.Linear(3, 1), torch_sgd, squares)
    halves = iter([(drawn(4, 3), np.full((4, 2), 0.5, f32))])  # probabilities, as they were asked for
    with pytest.raises(check.Difference, match=r"^the candidate has no step 0 weight"):
        check.training(lambda p, b: {}, nn.Linear(3, 2), torch_sgd, halves, F.cross_entropy)
    with pytest.raises(ValueError, match="at least one batch"):
        check.training(line_by_hand, nn.Linear(3, 1), torch_sgd, [])
    for module, loss, words in ((WithLoss(), F.mse_loss, "'y'"), (nn.Linear(3, 1), None, "forward")):
        with pytest.raises(TypeError, match=words) as caught:
            check.training(named, module, torch_sgd, squares, loss)
        assert "None is for a module that gives it itself, as module(x, y)" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match=r"a tensor of one number, but `loss` gave \(4, 1\)"):
        check.training(line_by_hand, nn.Linear(3, 1), torch_sgd, squares, lambda out, y: out - y)

    def halved(parameters, batches):
        return {n: a / (1 + ("loss" in n)) for n, a in loop(adam())(parameters, batches).items()}

    said = r"note       the loss is torch\.nn\.functional\.cross_entropy, by default; `loss=` sets another"
    weights = lambda p, b: {n: a * 2 for n, a in loop(adam())(p, b).items() if "loss" not in n and "grad" not in n}  # noqa: E731
    for wrong in (halved, weights):
        with pytest.raises(check.Difference, match=rf"(?s)^step 0 .*{said}"):
            check.training(wrong, NET, torch_adam, BATCHES[:1])
    for wrong, given in (
        (halved, (F.cross_entropy,)),
        (loop(adam(lr=0.02)), ()),
    ):  # a loss that was set, one that agrees
        with pytest.raises(check.Difference) as caught:
            check.training(wrong, NET, torch_adam, BATCHES[:1], *given)
        assert "by default" not in str(caught.value)


# -- modules -------------------------------------------------------------------------------------------------------------


def test_a_module_of_needle_against_one_of_torch():
    ours = ndl.nn.Sequential(ndl.nn.Linear(5, 5), ndl.nn.ReLU(), ndl.nn.LayerNorm1d(5), ndl.nn.Linear(5, 3))
    theirs = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 3))
    assert check.module(ours, theirs, (7, 5)) < check.LIMIT / 2
    theirs[2].eps = 1e-3
    with pytest.raises(check.Difference, match=r"^output differs"):
        check.module(ours, theirs, (7, 5))
    with pytest.raises(check.Difference, match="the modules have other names"):
        check.module(ndl.nn.Linear(5, 3), theirs, (7, 5))


def test_buffers_of_a_module_are_compared_too():
    ours, theirs = ndl.nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    with pytest.raises(check.Difference, match=r"^buffer running_var differs"):  # needle's is the biased one
        check.module(ours, theirs, (6, 4))
    ours.eval()
    theirs.eval()
    check.module(ours, theirs, (6, 4))


# -- as a package --------------------------------------------------------------------------------------------------------


def test_importing_check_loads_torch_and_little_else():
    show = """
import sys, torch, numpy.random
before = set(sys.modules)
from oracle import check
print(*{m.split('.')[0] for m in set(sys.modules) - before})
"""
    run = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) - sys.stdlib_module_names <= {"oracle", "msgspec", "torch", "numpy"}


# -- torch itself, on what torch looks at before any operation ------------------------------------------------------------

X3 = torch.from_numpy(drawn(3, 7, 5))


@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(5, 4), nn.GRU(5, 4, bidirectional=True), nn.Conv1d(7, 2, 3), nn.PReLU(), nn.RReLU(), nn.AlphaDropout()],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_a_layer_from_outside_works_as_it_is_and_torch_is_within_rounding(layer):
    """Dtypes must fit before noise sees an operation: parameters and inputs from outside are float64 meanwhile."""

    def run():
        layer.zero_grad()
        out = layer(X3)
        out = out[0] if isinstance(out, tuple) else out
        if out.requires_grad:
            out.square().sum().backward()
        return {"out": out} | {n: p.grad for n, p in layer.named_parameters()}

    found = check.tolerance(run)
    assert max(float(found.share(n, a).max()) for n, a in found.torch.items()) < check.LIMIT / 2
    assert {p.dtype for p in layer.parameters()} | {X3.dtype} == {torch.float32}
    assert not hasattr(X3, "_unit")


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_in_torch_is_within_rounding(mode):
    x = torch.from_numpy(drawn(1, 2, 5, 5))
    found = check.tolerance(lambda: {"y": F.interpolate(x, scale_factor=2.3, mode=mode)})
    assert found.share("y", found.torch["y"]).max() < check.LIMIT / 2


def test_numbers_drawn_in_the_dtype_of_something_else():
    x = torch.from_numpy(drawn(1, 2, 7, 7))

    def run():
        torch.manual_seed(1)
        return {"y": F.fractional_max_pool2d(x * 1, 2, output_size=3)}

    check.same({"y": run()["y"] + 0}, run)
    with pytest.raises(check.Difference):
        check.same({"y": run()["y"] * 1.001}, run)


def test_pytest_shows_the_share_that_a_test_used():
    from types import SimpleNamespace

    from oracle.check import shares

    item = SimpleNamespace(user_properties=[])
    call = shares.pytest_runtest_call(item)
    next(call)
    check.same({"y": np.ones(2)}, lambda: {"y": torch.ones(2)})
    with pytest.raises(StopIteration):
        call.send(None)
    assert item.user_properties == [("share", "0.0 of 16")]

    nothing = SimpleNamespace(user_properties=[])
    call = shares.pytest_runtest_call(nothing)
    next(call)
    shapes = [
        ("b", 2, "d"),
        ("b", 3, "d"),
        ("b", 3, 2),
    ]  # of no columns, 0 / √0 is nan, where torch has 0: nothing is said
    share = check.op(attention(True), F.scaled_dot_product_attention, *shapes, kinds=["normal"], draws=4)
    with pytest.raises(check.Difference):  # as it was meant to
        check.same({"y": np.zeros(2)}, lambda: {"y": torch.ones(2)})
    with pytest.raises(StopIteration):
        call.send(None)
    assert nothing.user_properties == [("share", f"{share:.1f} of 16")]

    report = SimpleNamespace(when="call", passed=True, user_properties=item.user_properties)
    assert shares.pytest_report_teststatus(report) == ("passed", ".", "PASSED (0.0 of 16)")
    assert shares.pytest_report_teststatus(SimpleNamespace(when="call", passed=True, user_properties=[])) is None


class Cube(torch.autograd.Function):
    factor = 3

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        return Cube.factor * g * ctx.saved_tensors[0] ** 2


def test_a_function_of_torch_is_a_candidate(monkeypatch):
    own = check.by_torch(Cube.apply)
    check.op(own, lambda x: x**3, (..., "n"), draws=6)
    monkeypatch.setattr(Cube, "factor", 2)
    with pytest.raises(check.Difference, match=r"^gradient of input 0 differs"):
        check.op(own, lambda x: x**3, (..., "n"), draws=6)
    with pytest.raises(check.Difference, match=r"^gradient of side \(input 0\) differs"):
        check.op(check.by_torch(lambda side: Cube.apply(side)), lambda x: x**3, (2,))


def test_a_module_of_torch_is_a_candidate_in_the_precision_that_is_asked_for():
    slow, fast = nn.Linear(3, 2), nn.Linear(3, 2)
    fast.load_state_dict(slow.state_dict())
    check.op(fast, slow, ("n", 3), draws=6)
    check.op(fast.bfloat16(), slow.bfloat16(), ("n", 3), draws=6, dtype="bfloat16")
    with torch.no_grad():
        fast.bias += 1
    with pytest.raises(check.Difference, match=r"^output differs"):
        check.op(fast, slow, ("n", 3), draws=6, dtype="bfloat16")


@pytest.mark.parametrize("wrong", [False, True])
def test_several_outputs_of_torch_have_their_gradients_by_name_or_in_order_and_whole_numbers_none(wrong):
    weights, ids = drawn(5, 3), np.array([0, 4, 4])

    def looked_up(w, i, twice=1):
        rows = F.embedding(i, w)
        return rows.argmax(-1), rows * 2, (rows * twice).sum(-1)

    def own(w, i):
        rows, twice = w[i], 1.0 + wrong
        return rows.argmax(-1), rows * 2, (rows * twice).sum(-1) - ((twice - 1) * rows).sum(-1).detach()

    named = [lambda w, i, f=f: dict(zip("abc", f(w, i), strict=True)) for f in (own, looked_up)]
    for candidate, torch_fn in ((own, looked_up), named):
        if wrong:
            with pytest.raises(check.Difference, match=r"^gradient of (w \(input 0\)|input 0) "):
                check.op(check.by_torch(candidate), torch_fn, weights, ids)
        else:
            check.op(check.by_torch(candidate), torch_fn, weights, ids)
    check.op(check.by_torch(lambda i: i + 1), lambda i: i + 1, ids)  # there is nothing to be differentiated


def test_a_gradient_that_torch_does_not_make_is_zero():
    with pytest.raises(check.Difference, match=r"None, which means zero"):
        check.op(check.by_torch(lambda x: (x * x).detach()), torch.square, (3,))


def test_two_that_draw_the_same_random_numbers_agree_and_another_mask_is_said_to_be_one():
    check.op(nn.Dropout(0.5), nn.Dropout(0.5), ("n", 4), draws=6)
    for candidate in (lambda x: x, check.by_torch(lambda x: F.dropout(x.flip(-1), 0.5).flip(-1))):
        with pytest.raises(check.Difference, match=r"\n  note +torch_fn draws random numbers: .*\.eval\(\)"):
            check.op(candidate, nn.Dropout(0.5), ("n", 4), draws=6)
    with pytest.raises(check.Difference) as caught:
        check.op(lambda x: x, lambda x: 2 * x, ("n", 4), draws=6)
    assert "random" not in str(caught.value)


def test_torch_without_by_torch_is_told_of_it_and_nobody_else():
    for candidate in (F.gelu, lambda x: x.softmax(-1)):
        with pytest.raises((TypeError, AttributeError)) as caught:
            check.op(candidate, torch.tanh, (2,))
        assert "check.by_torch(candidate)" in caught.value.__notes__[-1]
    with pytest.raises(TypeError) as caught:
        check.op(lambda x: np.tanh(x, 1, 2, 3, 4), torch.tanh, (2,))
    assert "by_torch" not in "".join(caught.value.__notes__)


def test_a_function_without_return_is_no_tensor_of_zeros():
    with pytest.raises(check.Difference, match=r"^the candidate gave None and no output: is there a `return`\?"):
        check.op(lambda x: None, torch.tanh, (2,))


def test_where_torch_raises_nothing_of_the_search_is_shown():
    def broken(x):
        return x.no_such_method()

    with pytest.raises(AttributeError) as caught:
        check.op(np.tanh, broken, ("n",))
    assert not [e for e in caught.traceback if "hypothesis" in str(e.path)]
