"""NumPy's own functions, given a Tensor: its result with its gradient, or what to write; never bare numbers by accident.

That is Tensor.__array_function__ and Tensor.__array_ufunc__; and Tensor.__format__, Tensor.__index__ and the like below.
"""

import operator

import numpy as np
import pytest

import needle as ndl
from needle import dispatch, nn

A = np.array([[1.0, -2.0, 3.0], [3.5, 0.5, 2.5]])
ROW = np.array([1.0, 2.0, -1.0])

# name: (of the Tensor or the array)
SAME = {
    "sum": lambda x: np.sum(x),
    "sum axis": lambda x: np.sum(x, axis=0, keepdims=True),
    "mean": lambda x: np.mean(x, 1),
    "max": lambda x: np.max(x, axis=1),
    "amax": lambda x: np.amax(x),
    "min": lambda x: np.min(x, axis=(0, 1)),
    "amin": lambda x: np.amin(x),
    "var": lambda x: np.var(x),
    "var axis": lambda x: np.var(x, axis=1, keepdims=True),
    "var ddof": lambda x: np.var(x, 1, ddof=1),
    "var correction": lambda x: np.var(x, correction=1),
    "abs": lambda x: np.abs(x),
    "fabs": lambda x: np.fabs(x),
    "sqrt": lambda x: np.sqrt(abs(x)),
    "square": lambda x: np.square(x),
    "reciprocal": lambda x: np.reciprocal(x),
    "exp": lambda x: np.exp(x),
    "log": lambda x: np.log(abs(x)),
    "tanh": lambda x: np.tanh(x),
    "negative": lambda x: np.negative(x),
    "positive": lambda x: np.positive(x),
    "maximum": lambda x: np.maximum(x, 0.25),
    "maximum of arrays": lambda x: np.maximum(ROW, x),
    "minimum": lambda x: np.minimum(x, ROW),
    "clip": lambda x: np.clip(x, -1, 2),
    "clip low": lambda x: np.clip(x, 0, None),
    "clip max": lambda x: np.clip(x, max=1.25),
    "clip min": lambda x: np.clip(x, min=1.25),
    "where": lambda x: np.where(x > 0, x, 0.0),
    "where of an array": lambda x: np.where(A < 1, ROW, x),
    "concatenate": lambda x: np.concatenate([x, A, x], axis=1),
    "concatenate rows": lambda x: np.concatenate([x, A]),
    "stack": lambda x: np.stack([x, A], axis=-1),
    "stack matrices": lambda x: np.stack([x, A]),
    "reshape": lambda x: np.reshape(x, (3, -1)),
    "ravel": lambda x: np.ravel(x),
    "copy": lambda x: np.copy(x),
    "transpose": lambda x: np.transpose(x),
    "transpose axes": lambda x: np.transpose(x, (1, 0)),
    "swapaxes": lambda x: np.swapaxes(x, 0, -1),
    "broadcast_to": lambda x: np.broadcast_to(x, (2, 2, 3)),
    "flip": lambda x: np.flip(x, 1),
    "dot": lambda x: np.dot(A.T, x),
    "matmul": lambda x: np.matmul(x, A.T),
    "@": lambda x: A.T @ x,
    "array + x": lambda x: ROW + x,
    "array - x": lambda x: ROW - x,
    "array * x": lambda x: ROW * x,
    "array / x": lambda x: ROW / x,
    "array ** x": lambda x: abs(ROW) ** x,
    "number - x": lambda x: np.float32(2) - x,
    "number without dimensions / x": lambda x: np.array(2.0) / x,
    "add": lambda x: np.add(x, ROW),
    "power": lambda x: np.power(x, 2),
}


@pytest.mark.parametrize("name", SAME)
def test_what_needle_has_too_gives_a_tensor_and_its_gradient(name):
    t = ndl.Tensor(A)
    y, expected = SAME[name](t), SAME[name](A)
    assert type(y) is ndl.Tensor
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-14)
    assert y.shape == np.shape(expected)
    assert y.requires_grad
    y.sum().backward()
    step = 1e-6 * np.random.default_rng(0).standard_normal(A.shape)
    moved = (np.sum(SAME[name](A + step)) - np.sum(SAME[name](A - step))) / 2
    np.testing.assert_allclose((t.grad.numpy() * step).sum(), moved, rtol=1e-5, atol=1e-9)
    constant = SAME[name](ndl.Tensor(A, requires_grad=False))
    assert type(constant) is ndl.Tensor
    assert not constant.requires_grad


def test_every_function_of_the_table_is_tried(monkeypatch):
    tried = set()
    for table in (dispatch._FUNCTIONS, dispatch._UFUNCS):
        for key, mine in list(table.items()):

            def spied(*args, key=key, mine=mine, **kwargs):
                tried.add(key)
                return mine(*args, **kwargs)

            monkeypatch.setitem(table, key, spied)
    for function in SAME.values():
        function(ndl.Tensor(A))
    for how in COMPARISONS:
        how(ROW, ndl.Tensor(A))
    assert tried == {*dispatch._FUNCTIONS, *dispatch._UFUNCS}


COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("how", COMPARISONS)
def test_an_array_on_the_left_of_a_comparison(how):
    y = how(ROW, ndl.Tensor(A))
    assert type(y) is ndl.Tensor
    np.testing.assert_array_equal(y.numpy(), how(ROW, A))


NO_GRADIENT = {
    "argmax": lambda x: np.argmax(x, axis=1),
    "argmax of all": lambda x: np.argmax(x),
    "argmin": lambda x: np.argmin(x),
    "argsort": lambda x: np.argsort(x, axis=0),
    "shape": lambda x: np.shape(x),
    "size": lambda x: np.size(x),
    "zeros_like": lambda x: np.zeros_like(x),
    "isfinite": lambda x: np.isfinite(x),
    "sign": lambda x: np.sign(x),
    "where": lambda x: np.where(x > 0)[1],
    "nonzero": lambda x: np.nonzero(x)[0],
    "any": lambda x: np.any(x > 2),
    "allclose": lambda x: np.allclose(x, [x, x][0]),
    "array_equal": lambda x: np.array_equal(x, A),
}


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_what_no_gradient_passes_through_is_what_numpy_gives(name):
    y, expected = NO_GRADIENT[name](ndl.Tensor(A)), NO_GRADIENT[name](A)
    assert type(y) is type(expected)
    np.testing.assert_array_equal(y, expected)


REFUSED = {
    "std": (
        lambda x: np.std(x),
        r"np.std of a Tensor .* as in t.var\(\).sqrt\(\), or take the numbers alone, t.numpy\(\)",
    ),
    "median": (lambda x: np.median(x), "np.median of a Tensor that requires a gradient would lose the gradient"),
    "norm": (lambda x: np.linalg.norm(x), r"np.linalg.norm of a Tensor .* as in \(t \* t\).sum\(\).sqrt\(\)"),
    "sin": (lambda x: np.sin(x), "np.sin of a Tensor"),
    "inside a list": (lambda x: np.vstack([A, x]), "np.vstack of a Tensor .* needle.concatenate"),
    "by name": (lambda x: np.prod(a=x), "np.prod of a Tensor .* as in needle.exp"),
    "reduce": (lambda x: np.add.reduce(x), "np.add.reduce of a Tensor"),
    "out": (lambda x: np.add(x, 1.0, out=np.zeros(A.shape)), "np.add of a Tensor"),
    "arctan2 in place": (lambda x: np.arctan2(y := A.copy(), x, out=y), "np.arctan2 of a Tensor"),
    "two of them": (lambda x: np.modf(x, out=(np.zeros(A.shape), np.zeros(A.shape))), "np.modf of a Tensor"),
    "where=": (lambda x: np.exp(x, where=A > 0), "np.exp of a Tensor"),
    "permuted": (lambda x: np.transpose(x, (0, 1)), r"with axes=\(0, 1\) is not in needle: swap pairs of axes"),
    "sum dtype": (lambda x: np.sum(x, dtype="float32"), "sum of a Tensor takes axes"),
    "text": (lambda x: np.array(["a"]) + x, "all returned NotImplemented"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_lose_the_gradient_says_what_to_write(name):
    function, match = REFUSED[name]
    with pytest.raises(TypeError, match=match):
        function(ndl.Tensor(A))


@pytest.mark.parametrize(
    "name", ["std", "median", "norm", "sin", "reduce", "inside a list", "by name", "arctan2 in place", "two of them"]
)
def test_constants_have_no_gradient_to_lose(name):
    function, _ = REFUSED[name]
    np.testing.assert_array_equal(function(ndl.Tensor(A, requires_grad=False)), function(A))
    with ndl.no_grad():
        np.testing.assert_array_equal(function(ndl.Tensor(A)), function(A))


def test_an_array_that_a_tensor_is_added_to():
    """With a gradient it becomes a Tensor, as every name does on the left of ``+=``; numbers are added in place."""
    array = kept = np.zeros(3)
    array += ndl.Tensor(ROW)
    assert type(array) is ndl.Tensor
    assert array.requires_grad
    assert not kept.any()
    array = kept
    array += ndl.Tensor(ROW, requires_grad=False)
    assert array is kept
    np.testing.assert_array_equal(kept, ROW)


def test_a_parameter_is_a_tensor_here_too():
    p = nn.Parameter(A)
    y = np.sum(ROW * p)
    y.backward()
    np.testing.assert_array_equal(p.grad.numpy(), np.broadcast_to(ROW, A.shape))


def test_explicit_conversions_are_as_they_were():
    t = ndl.Tensor(A)
    for array in (np.asarray(t), np.array(t), t.numpy()):
        assert type(array) is np.ndarray
        np.testing.assert_array_equal(array, A)
    np.testing.assert_allclose(t, A)
    np.testing.assert_array_equal(t, A)
    assert np.mean([t.sum(), t.mean()]) == pytest.approx((A.sum() + A.mean()) / 2)  # a list is no Tensor


# -- numbers, text and elements


def test_one_element_is_a_number_where_python_asks_for_one():
    loss = ndl.Tensor(np.float32(0.12345), requires_grad=True)
    assert f"{loss:.3f}" == "0.123"
    assert f"{loss:>8.2e}" == "1.23e-01"
    assert f"{loss}" == str(loss) == "0.12345"
    assert float(loss) == pytest.approx(0.12345)
    assert int(ndl.Tensor([[7.9]])) == 7
    assert f"{ndl.Tensor([5]):03d}" == "005"
    assert f"{ndl.Tensor([1.0, 2.0])}" == "[1. 2.]"
    assert "abc"[ndl.Tensor([0.0, 3.0, 1.0]).argmax()] == "b"
    assert list(range(ndl.Tensor(3))) == [0, 1, 2]


def test_places_with_and_without_the_axis():
    t = ndl.Tensor(A)
    for mine, method, of_numpy in ((ndl.argmax, t.argmax, np.argmax), (ndl.argmin, t.argmin, np.argmin)):
        for axis in (None, 0, -1):
            expected = of_numpy(A, axis, keepdims=True)
            np.testing.assert_array_equal(mine(t, axis, keepdims=True).numpy(), expected, strict=True)
            np.testing.assert_array_equal(method(axis, keepdims=True).numpy(), expected, strict=True)
            np.testing.assert_array_equal(method(axis=axis).numpy(), of_numpy(A, axis))


def test_smallest_elements_with_and_without_the_axis():
    for axis in (None, 0, -1, (0, 1)):
        y = ndl.Tensor(A).min(axis=axis, keepdims=True)
        np.testing.assert_array_equal(y.numpy(), A.min(axis, keepdims=True), strict=True)


def test_elements_are_not_assigned():
    t = ndl.Tensor(A)
    with pytest.raises(TypeError, match="cannot be assigned, because gradients are those of the numbers"):
        t[0] = 1
    with pytest.raises(TypeError, match="cannot be assigned"):
        t[0] += 1


def test_tolist():
    assert ndl.Tensor(A).tolist() == A.tolist()
    assert ndl.Tensor(2).tolist() == 2
    assert type(ndl.Tensor(np.float32(2)).tolist()) is float


def test_a_large_tensor_is_summarised_and_says_its_shape():
    text = repr(ndl.Tensor(np.zeros((200, 100), np.float32)))
    assert len(text) < 500
    assert "..." in text
    assert text.endswith("shape=(200, 100), dtype=float32, requires_grad=True)")
    assert repr(ndl.Tensor(np.zeros(1000), requires_grad=False)).count("0.") == 1000
    assert "shape" not in repr(ndl.Tensor(A))


def test_a_clone_has_numbers_of_its_own():
    t = ndl.Tensor(A)
    copy = t.clone()
    copy.numpy()[0] = 9
    np.testing.assert_array_equal(t.numpy(), A)
    (copy * 2).sum().backward()
    np.testing.assert_array_equal(t.grad.numpy(), np.full(A.shape, 2))
    assert not t.detach().clone().requires_grad


@pytest.mark.parametrize("args", [(), (1,), (0, 1), (-2,), (1, -2)])
def test_flatten(args):
    import math

    x = np.arange(24.0).reshape(2, 3, 4)
    first, last = (range(3)[axis] for axis in (*args, *(0, -1)[len(args) :]))
    shape = (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])
    np.testing.assert_array_equal(ndl.Tensor(x).flatten(*args).numpy(), x.reshape(shape))
    assert ndl.Tensor(x).flatten(start=1, end=2).shape == (2, 12)
    assert ndl.Tensor(3.0).flatten().shape == (1,)
    assert ndl.Tensor(np.zeros((2, 0, 3))).flatten(1).shape == (2, 0)


def test_the_condition_is_the_one_of_the_forward_pass():
    t, mask = ndl.Tensor(ROW), ROW > 0
    y = ndl.where(mask, t, 0.0)
    mask[:] = False
    y.sum().backward()
    np.testing.assert_array_equal(t.grad.numpy(), [1, 1, 0])


def test_a_fraction_as_correction():
    t = ndl.Tensor(ROW)
    np.testing.assert_allclose(t.var(correction=1.5).numpy(), np.var(ROW, ddof=1.5), rtol=1e-15)
    t.var(correction=1.5).backward()
    np.testing.assert_allclose(t.grad.numpy(), 2 * (ROW - ROW.mean()) / 1.5, rtol=1e-14)


def test_the_root_has_an_infinite_slope_at_zero():
    x = ndl.Tensor([0.0, 4.0])
    with np.errstate(divide="ignore"):
        ndl.sqrt(x).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [np.inf, 0.25])
