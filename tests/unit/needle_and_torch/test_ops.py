"""Every op against its torch twin in float64: values, gradients and second-order gradients."""

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import needle as ndl
from needle import ops


def normal(*shape, seed=0, offset=0.0, scale=1.0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape) * scale + offset


def positive(*shape, seed=0):
    return np.abs(normal(*shape, seed=seed)) + 0.5


def twin_batch_norm(x, w, b, eps=1e-5):
    return F.batch_norm(x, None, None, w, b, True, 0.1, eps)


def twin_layer_norm(x, w, b, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], w, b, eps)


def twin_conv(x, k, stride, padding):
    y = F.conv2d(x.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), stride=stride, padding=padding)
    return y.permute(0, 2, 3, 1)


def twin_put(a, shape, index):
    index = index if isinstance(index, tuple) else (index,)
    index = tuple(torch.as_tensor(i) if isinstance(i, np.ndarray) else i for i in index)
    zeros = torch.zeros(shape, dtype=a.dtype)
    if any(isinstance(i, torch.Tensor) for i in index):
        return zeros.index_put(index, a, accumulate=True)
    zeros[index] = a
    return zeros


def twin_dilate(a, axes, dilation):
    shape = [n * (dilation + 1) if i in axes else n for i, n in enumerate(a.shape)]
    return twin_put(a, shape, tuple(slice(None, None, dilation + 1 if i in axes else 1) for i in range(a.ndim)))


def twin_of_images(g, k, shape, stride, padding):
    """What torch passes back to images: a convolution turned round, with zeros where no window reached."""
    sides = zip(shape[1:3], g.shape[1:3], k.shape[:2], strict=True)
    rest = [n + 2 * padding - (m - 1) * stride - size for n, m, size in sides]
    y = F.conv_transpose2d(g.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), stride=stride)
    y = F.pad(y, (0, rest[1], 0, rest[0]))[:, :, padding : padding + shape[1], padding : padding + shape[2]]
    return y.permute(0, 2, 3, 1)


def twin_of_kernel(x, g, shape, stride, padding):
    """What torch passes back to a kernel: a convolution that is dilated by the stride."""
    y = F.conv2d(x.permute(3, 0, 1, 2), g.permute(3, 0, 1, 2), padding=padding, dilation=stride)
    return y[:, :, : shape[0], : shape[1]].permute(2, 3, 0, 1)


ROWS = np.array([2, 0, 2])
LABELS = np.array([2, 0, 1, 1, 2])


def ops_concatenated(a, b):
    return ops.concatenate([a, b])


# name: (ours, torch's, inputs)
CASES = {
    "EWiseAdd": (ops.add, torch.add, [normal(3, 4), normal(3, 4, seed=1)]),
    "EWiseAdd broadcast": (ops.add, torch.add, [normal(3, 1), normal(2, 1, 4)]),
    "EWiseAdd scalars": (ops.add, torch.add, [normal(), normal(3)]),
    "AddScalar": (lambda a: a + 2.5, lambda a: a + 2.5, [normal(3, 4)]),
    "subtract": (lambda a, b: a - b, torch.sub, [normal(3, 4), normal(4)]),
    "1 - x": (lambda a: 1 - a, lambda a: 1 - a, [normal(3, 4)]),
    "x - 1": (lambda a: a - 1, lambda a: a - 1, [normal(3, 4)]),
    "EWiseMul": (ops.multiply, torch.mul, [normal(3, 4), normal(3, 4, seed=1)]),
    "EWiseMul broadcast": (ops.multiply, torch.mul, [normal(1, 4), normal(2, 3, 1)]),
    "MulScalar": (lambda a: -3 * a, lambda a: -3 * a, [normal(3, 4)]),
    "EWiseDiv": (ops.divide, torch.div, [normal(3, 4), positive(4)]),
    "EWiseDiv negative": (ops.divide, torch.div, [normal(1, 4), -positive(3, 1)]),
    "DivScalar": (lambda a: a / 3, lambda a: a / 3, [normal(3, 4)]),
    "1 / x": (lambda a: 1 / a, lambda a: 1 / a, [positive(3, 4)]),
    "EWisePow": (ops.power, torch.pow, [positive(3, 4), normal(3, 4, seed=1)]),
    "EWisePow broadcast": (ops.power, torch.pow, [positive(3, 1), normal(4)]),
    "2 ** x": (lambda a: 2**a, lambda a: 2**a, [normal(3, 4)]),
    "PowerScalar 2": (lambda a: a**2, lambda a: a**2, [normal(3, 4)]),
    "PowerScalar 3": (lambda a: ops.power_scalar(a, 3), lambda a: a**3, [normal(3, 4)]),
    "PowerScalar 1": (lambda a: a**1 * a, lambda a: a**1 * a, [np.array([0.0, 1.0, -2.0])]),
    "PowerScalar 0": (lambda a: a**0 * a, lambda a: a**0 * a, [np.array([0.0, 1.0, -2.0])]),
    "PowerScalar -1.5": (lambda a: a**-1.5, lambda a: a**-1.5, [positive(3, 4)]),
    "Negate": (ops.negate, torch.neg, [normal(3, 4)]),
    "Log": (ops.log, torch.log, [positive(3, 4)]),
    "Exp": (ops.exp, torch.exp, [normal(3, 4)]),
    "ReLU": (lambda a: ops.relu(a) * a, lambda a: torch.relu(a) * a, [np.array([-1.0, 0.0, 2.0])]),
    "Tanh": (ops.tanh, torch.tanh, [normal(3, 4)]),
    "Sigmoid": (ops.sigmoid, torch.sigmoid, [normal(3, 4, scale=3)]),
    "Sigmoid tails": (ops.sigmoid, torch.sigmoid, [np.array([-700.0, -40.0, 0.0, 40.0, 700.0])]),
    "Softplus": (ops.softplus, torch.nn.functional.softplus, [normal(3, 4, scale=3)]),
    "Softplus tails": (ops.softplus, torch.nn.functional.softplus, [np.array([-700.0, -40.0, 0.0, 40.0, 700.0])]),
    "Abs": (lambda a: ops.absolute(a) * a, lambda a: a.abs() * a, [np.array([-2.0, 0.0, -0.0, 3.0])]),
    "Sqrt": (ops.sqrt, torch.sqrt, [positive(3, 4)]),
    "Clip": (lambda a: ops.clip(a, -1, 1) * a, lambda a: a.clamp(-1, 1) * a, [np.array([-2.0, -1.0, 0.5, 1.0, 3.0])]),
    "Clip low": (lambda a: a.clip(0.5), lambda a: a.clamp(0.5), [np.array([-2.0, 0.5, 0.75])]),
    "Clip high": (lambda a: a.clip(high=0.5), lambda a: a.clamp(max=0.5), [np.array([-2.0, 0.5, 0.75])]),
    "Clip crossed": (lambda a: a.clip(2, 0) + a, lambda a: a.clamp(2, 0) + a, [np.array([-2.0, 0.0, 1.0, 2.0, 3.0])]),
    "Maximum": (
        lambda a, b: ops.maximum(a, b) * a,
        lambda a, b: torch.maximum(a, b) * a,
        [np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, -0.0])],
    ),
    "Maximum broadcast": (ops.maximum, torch.maximum, [normal(3, 1), normal(2, 1, 4)]),
    "Minimum": (
        lambda a, b: ops.minimum(a, b) * b,
        lambda a, b: torch.minimum(a, b) * b,
        [np.array([[1.0, 2.0, 3.0]]), np.array([[2.0], [1.0]])],
    ),
    "Minimum zeros": (ops.minimum, torch.minimum, [np.zeros((0, 3)), normal(3)]),
    "Where": (
        lambda a, b: ops.where(np.eye(3) > 0, a * a, b),
        lambda a, b: torch.where(torch.eye(3) > 0, a * a, b),
        [normal(3, 1), normal(2, 1, 3)],
    ),
    "Cast": (lambda a: ops.cast(a * a, "float64"), lambda a: a * a, [normal(3, 4)]),
    "Transpose": (lambda a: ops.transpose(a), lambda a: a.transpose(-1, -2), [normal(2, 3, 4)]),
    "Transpose pair": (lambda a: ops.transpose(a, (-1, 0)), lambda a: a.transpose(-1, 0), [normal(2, 3, 4)]),
    "T": (lambda a: a.T, lambda a: a.T, [normal(3, 4)]),
    "Reshape": (lambda a: a.reshape((4, -1)), lambda a: a.reshape(4, -1), [normal(2, 6)]),
    "BroadcastTo": (lambda a: ops.broadcast_to(a, (2, 3, 4)), lambda a: a.expand(2, 3, 4), [normal(3, 1)]),
    "BroadcastTo scalar": (lambda a: ops.broadcast_to(a, (2, 3)), lambda a: a.expand(2, 3), [normal()]),
    "GetItem slices": (lambda a: a[1:, ::2], lambda a: a[1:, ::2], [normal(3, 4)]),
    "GetItem number": (lambda a: a[-1], lambda a: a[-1], [normal(3, 4)]),
    "GetItem element": (lambda a: a[1, 2], lambda a: a[1, 2], [normal(3, 4)]),
    "GetItem newaxis": (lambda a: a[None, ..., 1], lambda a: a[None, ..., 1], [normal(3, 4)]),
    "GetItem backwards": (lambda a: a[::-1], lambda a: a.flip(0), [normal(3, 4)]),
    "GetItem repeated": (lambda a: a[[2, 0, 2]], lambda a: a[[2, 0, 2]], [normal(3, 4)]),
    "GetItem pairs": (lambda a: a[ROWS, ROWS], lambda a: a[ROWS, ROWS], [normal(3, 4)]),
    "GetItem mask": (lambda a: a[np.eye(3, dtype=bool)], lambda a: a[torch.eye(3) > 0], [normal(3, 3)]),
    "PutItem": (
        lambda a: ops.put_item(a, (5, 4), slice(1, 4)),
        lambda a: twin_put(a, (5, 4), slice(1, 4)),
        [normal(3, 4)],
    ),
    "PutItem repeated": (
        lambda a: ops.put_item(a, (5, 4), ROWS),
        lambda a: twin_put(a, (5, 4), ROWS),
        [normal(3, 4)],
    ),
    "Flip": (lambda a: ops.flip(a, (0, -1)), lambda a: a.flip(0, -1), [normal(2, 3, 4)]),
    "Flip all": (lambda a: ops.flip(a), lambda a: a.flip(0, 1), [normal(2, 3)]),
    "Dilate": (lambda a: ops.dilate(a, (0, 2), 2), lambda a: twin_dilate(a, (0, 2), 2), [normal(2, 3, 2)]),
    "Summation": (lambda a: ops.summation(a), lambda a: a.sum(), [normal(3, 4)]),
    "Summation int": (lambda a: a.sum(-1), lambda a: a.sum(-1), [normal(2, 3, 4)]),
    "Summation tuple": (lambda a: a.sum((0, -1)), lambda a: a.sum((0, -1)), [normal(2, 3, 4)]),
    "Summation none": (lambda a: a.sum(()), lambda a: a * 1, [normal(2, 3)]),
    "mean": (lambda a: a.mean((0, 2)), lambda a: a.mean((0, 2)), [normal(2, 3, 4)]),
    "Max": (lambda a: a.max(1), lambda a: a.amax(1), [normal(2, 3, 4)]),
    "Max ties": (
        lambda a: a.max((0, 1)) ** 2,
        lambda a: a.amax((0, 1)) ** 2,
        [np.array([[2.0, 1.0], [2.0, 2.0]])],
    ),
    "Min": (lambda a: a.min((0, -1)), lambda a: a.amin((0, -1)), [normal(2, 3, 4)]),
    "Min ties": (lambda a: a.min() ** 2, lambda a: a.amin((0, 1)) ** 2, [np.array([[2.0, 3.0], [2.0, 2.0]])]),
    "Var": (lambda a: a.var(), lambda a: a.var(correction=0), [normal(3, 4)]),
    "Var axes": (lambda a: a.var((0, -1), correction=1), lambda a: a.var((0, -1)), [normal(2, 3, 4)]),
    "Var offset": (lambda a: a.var(1), lambda a: a.var(1, correction=0), [normal(3, 4, offset=1e3)]),
    "Var kept": (
        lambda a: a.var(axis=0, keepdims=True),
        lambda a: a.var(0, correction=0, keepdim=True),
        [normal(3, 4)],
    ),
    "LogSumExp": (lambda a: ops.logsumexp(a), lambda a: a.logsumexp((0, 1)), [normal(3, 4, scale=3)]),
    "LogSumExp axis": (lambda a: ops.logsumexp(a, 1), lambda a: a.logsumexp(1), [normal(3, 4, 2)]),
    "LogSumExp axes": (lambda a: ops.logsumexp(a, (0, -1)), lambda a: a.logsumexp((0, -1)), [normal(3, 4, 2)]),
    "LogSumExp large": (
        lambda a: ops.logsumexp(a, 1),
        lambda a: a.logsumexp(1),
        [normal(3, 4, offset=1e3, scale=3)],
    ),
    "LogSoftmax": (ops.logsoftmax, lambda a: F.log_softmax(a, 1), [normal(3, 4, scale=3)]),
    "LogSoftmax large": (ops.logsoftmax, lambda a: F.log_softmax(a, 1), [normal(3, 4, offset=-1e3)]),
    "MatMul": (ops.matmul, torch.matmul, [normal(3, 4), normal(4, 2)]),
    "MatMul batched": (ops.matmul, torch.matmul, [normal(5, 3, 4), normal(5, 4, 2)]),
    "MatMul broadcast": (ops.matmul, torch.matmul, [normal(5, 1, 3, 4), normal(2, 4, 2)]),
    "MatMul matrix right": (ops.matmul, torch.matmul, [normal(5, 3, 4), normal(4, 2)]),
    "MatMul matrix left": (ops.matmul, torch.matmul, [normal(3, 4), normal(5, 4, 2)]),
    "Linear": (ops.linear, lambda x, w, b: x @ w + b, [normal(5, 3), normal(3, 4), normal(1, 4)]),
    "Linear no bias": (ops.linear, torch.matmul, [normal(5, 3), normal(3, 4)]),
    "Linear flat bias": (ops.linear, lambda x, w, b: x @ w + b, [normal(5, 3), normal(3, 4), normal(4)]),
    "Linear batched": (ops.linear, lambda x, w, b: x @ w + b, [normal(2, 5, 3), normal(3, 4), normal(1, 4)]),
    "Linear one row": (ops.linear, lambda x, w, b: (x @ w + b)[0], [normal(3), normal(3, 4), normal(1, 4)]),
    "Conv": (lambda x, k: ops.conv(x, k), lambda x, k: twin_conv(x, k, 1, 0), [normal(2, 5, 4, 3), normal(3, 2, 3, 2)]),
    "Conv padded": (
        lambda x, k: ops.conv(x, k, padding=2),
        lambda x, k: twin_conv(x, k, 1, 2),
        [normal(2, 3, 4, 3), normal(3, 3, 3, 2)],
    ),
    "Conv strided": (
        lambda x, k: ops.conv(x, k, stride=2, padding=1),
        lambda x, k: twin_conv(x, k, 2, 1),
        [normal(2, 6, 5, 3), normal(3, 3, 3, 2)],
    ),
    "Conv 1x1": (
        lambda x, k: ops.conv(x, k, stride=3),
        lambda x, k: twin_conv(x, k, 3, 0),
        [normal(2, 6, 5, 3), normal(1, 1, 3, 2)],
    ),
    "ConvInput": (
        lambda g, k: ops.ConvInput((2, 6, 5, 3), 2, 1)(g, k),
        lambda g, k: twin_of_images(g, k, (2, 6, 5, 3), 2, 1),
        [normal(2, 3, 2, 2), normal(3, 4, 3, 2)],
    ),
    "ConvKernel": (
        lambda x, g: ops.ConvKernel((3, 4, 3, 2), 2, 1)(x, g),
        lambda x, g: twin_of_kernel(x, g, (3, 4, 3, 2), 2, 1),
        [normal(2, 6, 5, 3), normal(2, 3, 2, 2)],
    ),
    "Stack": (
        lambda a, b: ops.stack([a, b, a], -1),
        lambda a, b: torch.stack([a, b, a], -1),
        [normal(2, 3), normal(2, 3, seed=1)],
    ),
    "Concatenate": (
        lambda a, b: ops.concatenate([a, b, a * b.max()], -1),
        lambda a, b: torch.cat([a, b, a * b.amax()], -1),
        [normal(2, 3), normal(2, 5)],
    ),
    "Concatenate one": (lambda a: ops.concatenate([a]) * a, lambda a: a * a, [normal(2, 3)]),
    "Concatenate nothing": (ops_concatenated, lambda a, b: torch.cat([a, b]), [np.zeros((0, 3)), normal(2, 3)]),
    "flatten": (lambda a: a.flatten(1) @ a.flatten(1).T, lambda a: a.flatten(1) @ a.flatten(1).T, [normal(2, 3, 2)]),
    "clone": (lambda a: a.clone() * a, lambda a: a.clone() * a, [normal(2, 3)]),
    "Split": (
        lambda a: ops.split(a, 1)[2] * ops.split(a, 1)[0],
        lambda a: a.unbind(1)[2] * a.unbind(1)[0],
        [normal(2, 3, 4)],
    ),
    "MakeTensorTuple": (
        lambda a, b: ops.make_tuple(a, b)[1] * ops.make_tuple(a, b)[0],
        lambda a, b: a * b,
        [normal(3), normal(3, seed=1)],
    ),
    "TupleGetItem": (
        lambda a: (lambda parts: parts[0] * parts[0] + parts[1])(ops.split(a)),
        lambda a: a[0] * a[0] + a[1],
        [normal(3, 2)],
    ),
    "FusedAddScalars": (
        lambda a: (lambda pair: pair[0] * pair[1])(ops.fused_add_scalars(a, 1.0, -2.0)),
        lambda a: (a + 1) * (a - 2),
        [normal(3)],
    ),
    "BatchNorm": (ops.batch_norm, twin_batch_norm, [normal(6, 3), normal(3), normal(3, seed=1)]),
    "BatchNorm offset": (ops.batch_norm, twin_batch_norm, [normal(6, 3, offset=1e3), normal(3), normal(3)]),
    "LayerNorm": (ops.layer_norm, twin_layer_norm, [normal(6, 3), normal(3), normal(3, seed=1)]),
    "LayerNorm batched": (ops.layer_norm, twin_layer_norm, [normal(2, 4, 3), normal(3), normal(3, seed=1)]),
    "Softmax": (ops.softmax, lambda a: a.softmax(-1), [normal(5, 3)]),
    "Softmax axis": (lambda a: ops.softmax(a, 1), lambda a: a.softmax(1), [normal(2, 3, 4, scale=4)]),
    "Softmax large": (ops.softmax, lambda a: a.softmax(-1), [normal(5, 3, scale=1e3)]),
    "SoftmaxCrossEntropy": (
        lambda z: ops.softmax_cross_entropy(z, ndl.Tensor(LABELS)),
        lambda z: F.cross_entropy(z, torch.as_tensor(LABELS)),
        [normal(5, 3)],
    ),
    "SoftmaxCrossEntropy large": (
        lambda z: ops.softmax_cross_entropy(z, ndl.Tensor(LABELS)),
        lambda z: F.cross_entropy(z, torch.as_tensor(LABELS)),
        [normal(5, 3, scale=1e3)],
    ),
}


def close(ours, theirs, what):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape, what
    assert ours.dtype == theirs.dtype, what
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-10, err_msg=what)


@pytest.fixture(params=CASES, ids=str)
def case(request):
    ours, theirs, arrays = CASES[request.param]
    xs = [ndl.Tensor(a) for a in arrays]
    ts = [torch.tensor(a, requires_grad=True) for a in arrays]
    for x in xs:
        x.cached_data.flags.writeable = False  # an op that writes into its input fails
    return ours, theirs, xs, ts


def test_value_and_gradient(case):
    ours, theirs, xs, ts = case
    y, t = ours(*xs), theirs(*ts)
    close(y, t, "value")
    g = normal(*y.shape, seed=7)
    out_grad = ndl.Tensor(g)
    out_grad.cached_data.flags.writeable = False
    y.backward(out_grad)
    for i, (x, expected) in enumerate(zip(xs, torch.autograd.grad(t, ts, torch.tensor(g)), strict=True)):
        close(x.grad, expected, f"gradient {i}")
        assert x.grad.op is None
        assert not x.grad.requires_grad
        assert x.grad.cached_data.flags.carray
        assert x.grad.cached_data.base is None
        assert x.grad.cached_data is not out_grad.cached_data


def test_second_order(case):
    ours, theirs, xs, ts = case
    y, t = ours(*xs), theirs(*ts)
    g = normal(*y.shape, seed=7)
    cotangent, torch_cotangent = ndl.Tensor(g), torch.tensor(g, requires_grad=True)
    y.backward(cotangent, create_graph=True)
    first = torch.autograd.grad(t, ts, torch_cotangent, create_graph=True)
    grads = [x.grad for x in xs]
    for i, (ours_i, theirs_i) in enumerate(zip(grads, first, strict=True)):
        close(ours_i, theirs_i, f"gradient {i}")
    directions = [normal(*x.shape, seed=8 + i) for i, x in enumerate(xs)]
    total = ndl.Tensor(np.zeros(()))
    for gradient, direction in zip(grads, directions, strict=True):
        total = total + (gradient * ndl.Tensor(direction, requires_grad=False)).sum()
    for x in xs:
        x.grad = None
    total.backward()
    torch_total = sum((a * torch.tensor(d)).sum() for a, d in zip(first, directions, strict=True))
    expected = torch.autograd.grad(torch_total, [*ts, torch_cotangent], allow_unused=True)
    for i, (x, e) in enumerate(zip([*xs, cotangent], expected, strict=True)):
        if e is None:
            assert x.grad is None or not x.grad.numpy().any(), f"second-order gradient {i}"
        else:
            ours_i = x.grad if x.grad is not None else ndl.zeros_like(x)
            close(ours_i, e, f"second-order gradient {i}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_a_gradient_with_a_graph_has_the_same_bits_as_one_without(name, dtype):
    ours, _, arrays = CASES[name]
    gradients = []
    for create_graph in (False, True):
        xs = [ndl.Tensor(a, dtype=dtype) for a in arrays]
        y = ours(*xs)
        y.backward(ndl.Tensor(normal(*y.shape, seed=7), dtype=dtype), create_graph=create_graph)
        gradients.append([x.grad.numpy() for x in xs])
    for plain, with_graph in zip(*gradients, strict=True):
        np.testing.assert_array_equal(plain, with_graph)


@pytest.mark.parametrize("name", [name for name, (_, _, arrays) in CASES.items() if len(arrays) > 1])
def test_beside_a_constant_the_gradients_of_the_others_are_the_same(name):
    ours, _, arrays = CASES[name]

    def gradients(constant):
        xs = [ndl.Tensor(a, requires_grad=i != constant) for i, a in enumerate(arrays)]
        y = ours(*xs)
        y.backward(ndl.Tensor(normal(*y.shape, seed=7)))
        return [x.grad for x in xs]

    every = gradients(None)
    for constant in range(len(arrays)):
        for i, (grad, expected) in enumerate(zip(gradients(constant), every, strict=True)):
            if i == constant:
                assert grad is None
            else:
                np.testing.assert_array_equal(grad.numpy(), expected.numpy())


@pytest.mark.parametrize(
    "name", ["Sqrt", "Var", "Var axes", "Abs", "Clip", "Maximum", "Minimum", "Where", "Min", "Concatenate"]
)
def test_third_order(name):
    """Of the cube of an op, so that none of its derivatives is a constant."""
    ours, theirs, arrays = CASES[name]
    x, t = ndl.Tensor(arrays[0]), torch.tensor(arrays[0], requires_grad=True)
    y = (ours(x, *map(ndl.Tensor, arrays[1:])) ** 3).sum()
    z = (theirs(t, *map(torch.tensor, arrays[1:])) ** 3).sum()
    for order in range(3):
        y.backward(create_graph=True)
        (grad,) = torch.autograd.grad(z, t, create_graph=True)
        close(x.grad, grad, f"derivative {order + 1}")
        y, z, x.grad = (x.grad**2).sum(), (grad**2).sum(), None


def test_every_op_has_a_case():
    classes = {n for n, c in vars(ops).items() if inspect.isclass(c) and issubclass(c, ndl.Op)}
    classes -= {"TensorOp", "TensorTupleOp"}
    assert classes <= {name.split(" ")[0] for name in CASES}


def test_softmax_gradient_of_logits_in_fortran_order():
    z = np.asfortranarray(normal(5, 3))
    x = ndl.Tensor.make_const(z, requires_grad=True)
    ops.softmax_cross_entropy(x, ndl.Tensor(LABELS)).backward()
    t = torch.tensor(z, requires_grad=True)
    F.cross_entropy(t, torch.as_tensor(LABELS)).backward()
    close(x.grad, t.grad, "gradient")


def test_power_at_zero_has_the_limits_of_torch():
    a, b = np.array([0.0, 0.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0, 0.0])
    x, e = ndl.Tensor(a), ndl.Tensor(b)
    (x**e).backward()
    tx, te = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    (tx**te).sum().backward()
    close(x.grad, tx.grad, "base")
    close(e.grad, te.grad, "exponent")


def test_gradients_at_nan_and_infinity_are_those_of_torch():
    values, other = np.array([np.nan, np.inf, -np.inf, 1.0, 0.0]), np.array([1.0, 1.0, 1.0, np.nan, np.inf])
    for name, mine, theirs in [
        ("abs", ndl.absolute, torch.abs),
        ("clip", lambda x: x.clip(0, 2), lambda x: x.clamp(0, 2)),
        ("maximum", lambda x: ndl.maximum(x, other), lambda x: torch.maximum(x, torch.tensor(other))),
        ("minimum", lambda x: ndl.minimum(other, x), lambda x: torch.minimum(torch.tensor(other), x)),
        ("where", lambda x: ndl.where(x > 0, x, 0.0), lambda x: torch.where(x > 0, x, 0.0)),
    ]:
        x, t = ndl.Tensor(values), torch.tensor(values, requires_grad=True)
        y, z = mine(x), theirs(t)
        np.testing.assert_array_equal(y.numpy(), z.detach().numpy(), err_msg=name)
        y.backward()
        z.sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), t.grad.numpy(), err_msg=name)


def test_logsumexp_of_infinities():
    x = np.array([[-np.inf, 0.0], [-np.inf, -np.inf], [np.inf, 1.0]])
    ours = ops.logsumexp(ndl.Tensor(x), 1).numpy()
    np.testing.assert_array_equal(ours, torch.tensor(x).logsumexp(1).numpy())


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "uint64", "float32"])
def test_labels_of_any_integer_kind(dtype):
    z = ndl.Tensor(normal(5, 3))
    labels = ndl.Tensor(LABELS, dtype=dtype)
    loss = ops.softmax_cross_entropy(z, labels)
    loss.backward()
    assert labels.grad is None
    expected = F.cross_entropy(torch.tensor(z.numpy()), torch.as_tensor(LABELS))
    close(loss, expected, "loss")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of inf - inf
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, 1e308])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("of", ["x", "kernel", "cotangent of dx", "cotangent of dk"])
def test_what_a_convolution_leaves_out_is_no_factor_of_zero(of, stride, special):
    """0 · inf is nan: in pixels that no window reaches under some place of the kernel, and in those that a stride leaves out."""
    x, k = normal(2, 8, 7, 2), normal(2, 3, 2, 2, seed=1)  # torch's float32 kernels do make nan of some
    along = [normal(*a.shape, seed=5) for a in (x, k)]
    if of == "x":
        x[0, 2, 1, 0] = x[1, 7, 6, 1] = special
    elif of == "kernel":
        k[1, 0, 0, 1] = special
    else:
        along[of == "cotangent of dk"][0, 1, 1, 0] = special
    padding = 2 if of == "x" else 0  # its zeros are factors
    g = normal(2, *((n + 2 * padding - m) // stride + 1 for n, m in zip((8, 7), (2, 3), strict=True)), 2, seed=3)
    xs, ts = [ndl.Tensor(a) for a in (x, k, g)], [torch.tensor(a, requires_grad=True) for a in (x, k, g)]
    y = ops.conv(*xs[:2], stride=stride, padding=padding)
    t = twin_conv(*ts[:2], stride, padding)
    y.backward(xs[2], create_graph=True)
    first = torch.autograd.grad(t, ts[:2], ts[2], create_graph=True)
    ours = [v.grad for v in xs[:2]]
    for v in xs:
        v.grad = None
    found = [y, *ours]
    expected = [t, *first]
    if "cotangent" in of:
        i = int(of == "cotangent of dk")
        ours[i].backward(ndl.Tensor(along[i]))
        found = [xs[1 - i].grad, xs[2].grad]
        expected = torch.autograd.grad(first[i], [ts[1 - i], ts[2]], torch.tensor(along[i]))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-9, atol=1e-10)
