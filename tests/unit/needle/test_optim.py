"""SGD, Adam and clipping: the rule, the state, and what must stay untouched."""

import copy
import math
import pickle
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from rounding import Rounded, within

import needle as ndl
from needle import nn
from needle.optim import SGD, Adam, Optimizer
from needle.schedules import StepLR


def parameter(*shape, seed=0, dtype="float32"):
    return nn.Parameter(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype=dtype)


def give(p, seed=0, scale=1.0, dtype=None):
    g = np.random.default_rng([99, seed, *p.shape]).standard_normal(p.shape) * scale
    p.grad = ndl.Tensor(g, dtype=dtype or p.dtype, requires_grad=False)
    return p.grad.numpy()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(3, 4), (), (400_003,)], ids=str)
def test_sgd_follows_the_formula(momentum, weight_decay, shape):
    p = parameter(*shape, dtype="float64")
    opt = SGD([p], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    theta, u = p.numpy().copy(), np.zeros(shape)
    assert p not in opt.u
    for i in range(4):
        g = give(p, i)
        before = g.copy()
        opt.step()
        u = momentum * u + (1 - momentum) * (before + weight_decay * theta)
        theta = theta - 0.1 * u
        np.testing.assert_array_equal(g, before)
        assert p.shape == opt.u[p].shape == shape
        np.testing.assert_allclose(opt.u[p].numpy(), u, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(p.numpy(), theta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [SGD, Adam])
def test_state_and_parameters_keep_dtype_and_hold_no_graph(make):
    p = parameter(3)
    opt = make([p], lr=np.float64(0.1), weight_decay=np.float64(0.1))
    for _ in range(2):
        (p * p).sum().backward(create_graph=True)
        g = p.grad
        opt.step()
        assert p.grad is g
        states = [opt.u[p]] if make is SGD else [opt.m[p], opt.v[p]]
        for t in [p, *states]:
            assert t.dtype == np.float32
            assert t.op is None
            assert len(t.inputs) == 0
        assert p.requires_grad
        assert not any(s.requires_grad for s in states)
        opt.reset_grad()
        assert p.grad is None
    give(p, dtype="float64")
    opt.step()
    assert p.dtype == np.float32


def test_parameters_without_gradient_are_skipped():
    p, q = parameter(2), parameter(3)
    opt = SGD([p, q], momentum=0.9, weight_decay=0.5)
    old = q.numpy().copy()
    give(p)
    opt.step()
    assert p in opt.u
    assert q not in opt.u
    np.testing.assert_array_equal(q.numpy(), old)


def test_repeated_parameters_step_once_and_generators_work():
    p, q = parameter(2), parameter(2)
    give(p), give(q)
    SGD((x for x in (p, p, p)), lr=0.5).step()
    SGD([q], lr=0.5).step()
    np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_hyperparameters_can_change_between_steps():
    p = parameter(2, dtype="float64")
    opt = SGD([p], lr=0.1)
    g = give(p)
    for name, lr in (("first", 0.1), ("second", 0.7)):
        before = p.numpy().copy()
        opt.lr = lr
        opt.step()
        np.testing.assert_allclose(before - p.numpy(), lr * g, rtol=1e-12, err_msg=name)


def test_state_can_be_written_into_and_replaced():
    p = parameter(2, dtype="float64")
    opt = SGD([p], lr=1.0, momentum=0.5)
    give(p, scale=0.0)
    opt.step()
    opt.u[p].cached_data[...] = 2.0
    opt.step()
    np.testing.assert_array_equal(opt.u[p].numpy(), [1.0, 1.0])
    mine = ndl.Tensor([8.0, 4.0])
    opt.u[p] = mine
    before = p.numpy().copy()
    opt.step()
    np.testing.assert_array_equal(opt.u[p].numpy(), [4.0, 2.0])
    np.testing.assert_array_equal(mine.numpy(), [8.0, 4.0])
    np.testing.assert_allclose(p.numpy(), before - [4.0, 2.0], rtol=1e-12)
    opt.u[p] = ndl.Tensor([8.0, 4.0], dtype="float32")
    opt.step()
    assert opt.u[p].dtype == np.float64
    p.data = ndl.Tensor([1.0, 1.0])
    opt.step()
    np.testing.assert_array_equal(p.numpy(), [-1.0, 0.0])
    p.cached_data = np.ones(2)
    opt.step()
    np.testing.assert_array_equal(p.numpy(), [0.0, 0.5])


@pytest.mark.parametrize("make", [SGD, Adam])
def test_who_keeps_the_old_array_keeps_the_old_numbers(make):
    p, q = parameter(3), parameter(3, seed=1)
    opt = make([p], lr=0.1)
    give(p)
    opt.step()
    q.data = p.data
    kept, view, copy = p.numpy(), p.data[1:], p.numpy().copy()
    opt.step()
    np.testing.assert_array_equal(kept, copy)
    np.testing.assert_array_equal(view.numpy(), copy[1:])
    np.testing.assert_array_equal(q.numpy(), copy)
    assert (p.numpy() != copy).all()


def test_a_steady_step_writes_in_place():
    p = parameter(3)
    opt = SGD([p], lr=0.1, momentum=0.9)
    give(p)
    opt.step()
    where = p.numpy().ctypes.data, opt.u[p].numpy().ctypes.data
    opt.step()
    assert where == (p.numpy().ctypes.data, opt.u[p].numpy().ctypes.data)


def test_memory_that_cannot_be_written_is_replaced():
    p = parameter(3)
    opt = SGD([p], lr=0.5)
    give(p)
    p.cached_data = np.broadcast_to(np.float32(1), (3,))
    opt.step()
    within(p, 1 - 0.5 * Rounded(p.grad.numpy()))


def test_a_parameter_that_is_a_view_leaves_the_rest_alone():
    whole = np.ones(5, "float32")
    p = parameter(3)
    p.cached_data = whole[1:4]
    give(p)
    SGD([p], lr=0.5).step()
    np.testing.assert_array_equal(whole, np.ones(5))
    within(p, 1 - 0.5 * Rounded(p.grad.numpy()))


def test_one_minus_momentum_is_computed_in_double():
    p = parameter(1)
    opt = SGD([p], momentum=0.999)
    p.grad = ndl.ones(1)
    opt.step()
    assert opt.u[p].numpy()[0] == np.float32(1 - 0.999)


BAD = {
    "lr negative": ({"lr": -0.1}, "lr must be finite and not negative, got lr=-0.1"),
    "lr nan": ({"lr": float("nan")}, "got lr=nan"),
    "lr inf": ({"lr": float("inf")}, "got lr=inf"),
    "lr text": ({"lr": "0.1"}, "got lr='0.1'"),
    "momentum 1": ({"momentum": 1}, r"momentum must be in \[0, 1\), got momentum=1; with 1 .* for ever"),
    "momentum negative": ({"momentum": -0.1}, r"got momentum=-0\.1"),
    "momentum nan": ({"momentum": float("nan")}, "got momentum=nan"),
    "decay negative": ({"weight_decay": -1}, "weight_decay must be finite and at least 0, got weight_decay=-1"),
    "decay inf": ({"weight_decay": float("inf")}, "got weight_decay=inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_hyperparameters_are_checked_at_construction_and_at_the_step(name):
    settings, match = BAD[name]
    p = parameter(2)
    with pytest.raises(ValueError, match="^SGD: .*" + match):
        SGD([p], **settings)
    opt = SGD([p])
    give(p)
    old = p.numpy().copy()
    ((key, value),) = settings.items()
    setattr(opt, key, value)
    with pytest.raises(ValueError, match=match):
        opt.step()
    np.testing.assert_array_equal(p.numpy(), old)
    assert not opt.u


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"beta1": 1.0}, r"Adam: beta1 must be in \[0, 1\), got beta1=1.0"),
        ({"beta2": -1.0}, r"Adam: beta2 must be in"),
        ({"eps": 0.0}, "Adam: eps must be a positive finite number"),
        ({"eps": math.inf}, "Adam: eps must be a positive finite number, got eps=inf"),
        ({"lr": -1.0}, "Adam: lr must be finite and not negative, got lr=-1.0"),
        ({"weight_decay": -1.0}, "Adam: weight_decay must be"),
    ],
    ids=["beta1", "beta2", "eps", "eps inf", "lr", "decay"],
)
def test_adam_checks_its_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        Adam([parameter(1)], **settings)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match=r"SGD: the list of parameters is empty; pass model\.parameters\(\)"):
        SGD([])
    with pytest.raises(TypeError, match="SGD: params must be Parameters, but got str"):
        SGD(["w"])
    with pytest.raises(TypeError, match=r"got one Tensor: use \[tensor\]"):
        SGD(parameter(2))
    with pytest.raises(TypeError, match="a Tensor that needs no gradient"):
        SGD([ndl.ones(2)])
    with pytest.raises(TypeError, match="a Tensor that an op made"):
        SGD([parameter(2) * 2])
    with pytest.raises(TypeError, match="floating dtype, but got int64"):
        SGD([nn.Parameter([1, 2])])
    frozen = parameter(2)
    frozen.requires_grad = False
    SGD([frozen, ndl.Tensor([1.0])]).step()


@pytest.mark.parametrize("make", [SGD, Adam])
def test_bad_gradients_are_found_before_anything_is_updated(make):
    p, q = parameter(2), parameter(3)
    opt = make([p, q])
    old = p.numpy().copy()
    give(p)
    for bad, kind, match in (
        (ndl.ones(2), ValueError, r"p.grad must have the shape \(3,\) of its parameter, but got \(2,\)"),
        (ndl.ones(3, dtype="bool"), TypeError, "must hold numbers, but got dtype bool"),
        (np.ones(3), TypeError, "must be a Tensor or None, but got ndarray"),
    ):
        q.grad = bad
        with pytest.raises(kind, match=match):
            opt.step()
        with pytest.raises(kind, match=match):
            opt.clip_grad_norm()
        np.testing.assert_array_equal(p.numpy(), old)
        assert not (opt.u if make is SGD else opt.m)
    give(q)
    state = opt.u if make is SGD else opt.v
    state[q] = ndl.ones(7)
    with pytest.raises(ValueError, match=r"must have the shape \(3,\) of its parameter, but got \(7,\)"):
        opt.step()
    np.testing.assert_array_equal(p.numpy(), old)
    assert p not in state


def test_clip_grad_norm_edges():
    p = parameter(2)
    opt = SGD([p, p])
    assert opt.clip_grad_norm() == 0.0
    p.grad = ndl.Tensor([3.0, 4.0], dtype="float32")
    assert opt.clip_grad_norm(1.0) == 5.0
    within(p.grad, [3.0, 4.0] * Rounded.of(1 / (5 + 1e-6)))
    p.grad = ndl.Tensor([np.nan, 4.0], dtype="float32")
    assert np.isnan(opt.clip_grad_norm(1.0))
    assert np.isnan(p.grad.numpy()).all()
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"max_norm must be a positive number, got max_norm={bad}"):
            opt.clip_grad_norm(bad)


def test_an_optimizer_in_the_style_of_the_course():
    class Plain(Optimizer):
        def __init__(self, params, lr):
            super().__init__(params)
            self.lr = lr

        def step(self):
            for p in self.params:
                p.data = p.data - self.lr * p.grad.data

    p = parameter(2)
    old = p.numpy().copy()
    opt = Plain([p], 0.5)
    (p * p).sum().backward()
    opt.step()
    opt.reset_grad()
    np.testing.assert_allclose(p.numpy(), 0.0 * old, atol=1e-7)
    assert p.is_leaf()
    assert p.grad is None
    with pytest.raises(NotImplementedError, match=r"Optimizer must define step\(self\)"):
        Optimizer([p]).step()


def test_the_clipped_gradient_of_a_number_stays_an_array():
    p = ndl.nn.Parameter(np.float32(2.0))
    p.grad = ndl.Tensor(np.float32(3.0), requires_grad=False)
    assert ndl.optim.SGD([p]).clip_grad_norm(1.0) == 3.0
    assert type(p.grad.cached_data) is np.ndarray
    assert p.grad.dtype == np.float32


# -- small parameters that share a pool: nobody may notice

SHAPES = [(3, 4), (4,), (1, 5), (), (0, 2), (200, 200), (7,), (2, 3, 2), (130, 130), (1,)]


def alone(params, settings, gradients):
    """What SGD makes of each parameter by itself."""
    copies = [nn.Parameter(p.numpy()) for p in params]
    each = [SGD([p], **settings) for p in copies]
    for step in gradients:
        for p, opt, g in zip(copies, each, step, strict=True):
            p.grad = None if g is None else ndl.Tensor(g, requires_grad=False)
            opt.step()
    return [p.numpy() for p in copies], [
        opt.u[p].numpy() if p in opt.u else None for p, opt in zip(copies, each, strict=True)
    ]


def gradients_for(params, steps, missing=()):
    return [
        [None if (t, i) in missing else np.random.default_rng([5, t, i]).standard_normal(p.shape).astype(p.dtype)
         for i, p in enumerate(params)]
        for t in range(steps)
    ]  # fmt: skip


def assert_bits(params, opt, expected):
    for p, theta, u in zip(params, *expected, strict=True):
        np.testing.assert_array_equal(p.numpy(), theta)
        assert p.dtype == theta.dtype
        assert (p in opt.u) == (u is not None)
        if u is not None:
            np.testing.assert_array_equal(opt.u[p].numpy(), u)
            assert opt.u[p].dtype == u.dtype


@pytest.mark.parametrize("dtypes", [("float32",), ("float32", "float64"), ("float32", "float32", "float16")], ids=str)
def test_a_pool_gives_the_same_bits_as_every_parameter_by_itself(dtypes):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    params = [parameter(*s, seed=i, dtype=dtypes[i % len(dtypes)]) for i, s in enumerate(SHAPES)]
    # without a gradient now and then: from the start, in between, at the end
    given = gradients_for(params, 6, missing={(0, 1), (1, 1), (3, 0), (3, 6), (5, 9)})
    expected = alone(params, settings, given)
    opt = SGD(params, **settings)
    for step in given:
        for p, g in zip(params, step, strict=True):
            p.grad = None if g is None else ndl.Tensor(g, requires_grad=False)
        opt.step()
    assert_bits(params, opt, expected)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtypes", [("float32",), ("float32", "float64")], ids=str)
def test_adam_in_a_pool_gives_the_same_bits_as_every_parameter_by_itself(dtypes, decay):
    params = [parameter(*s, seed=i, dtype=dtypes[i % len(dtypes)]) for i, s in enumerate(SHAPES)]
    given = gradients_for(params, 9, missing={(0, 1), (1, 1), (3, 0), (3, 6), (5, 9)})
    copies = [nn.Parameter(p.numpy()) for p in params]
    each = [Adam([p], lr=0.1, weight_decay=decay) for p in copies]
    opt = Adam(params, lr=0.1, weight_decay=decay)
    for t, step in enumerate(given):
        if t == 7:  # as one may who goes on with a model trained elsewhere
            opt.t[params[2]] = each[2].t[copies[2]] = 90
        for p, q, one, g in zip(params, copies, each, step, strict=True):
            p.grad = q.grad = None if g is None else ndl.Tensor(g, requires_grad=False)
            one.step()
        opt.step()
    for p, q, one in zip(params, copies, each, strict=True):
        assert opt.t[p] == one.t[q]
        for ours, theirs in ((p, q), (opt.m[p], one.m[q]), (opt.v[p], one.v[q])):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert opt.t[params[2]] == 92


def test_gradients_in_any_memory_layout():
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    params = [parameter(3, 4), parameter(4, 3), parameter(5)]
    given = gradients_for(params, 3)
    expected = alone(params, settings, given)
    opt = SGD(params, **settings)
    for a, b, c in given:
        params[0].grad = ndl.Tensor.make_const(np.asfortranarray(a))
        params[1].grad = ndl.Tensor.make_const(np.repeat(b, 2, axis=1)[:, ::2])
        params[2].grad = ndl.Tensor.make_const(c[::-1].copy()[::-1])
        opt.step()
    assert_bits(params, opt, expected)


HELD = {
    "the array": lambda p, opt: p.numpy(),
    "a part of the array": lambda p, opt: p.numpy()[1:],
    "the data": lambda p, opt: p.data,
    "a part of the data": lambda p, opt: p.data[1:],
    "another tensor on it": lambda p, opt: ndl.Tensor(p),
    "the velocity": lambda p, opt: opt.u[p],
    "the array of the velocity": lambda p, opt: opt.u[p].numpy(),
    "a part of the velocity": lambda p, opt: opt.u[p].numpy()[1:],
}


@pytest.mark.parametrize("name", HELD)
def test_who_holds_a_part_of_a_pool_keeps_the_old_numbers(name):
    settings = {"lr": 0.1, "momentum": 0.9}
    params = [parameter(3, seed=i) for i in range(3)]
    given = gradients_for(params, 5)
    expected = alone(params, settings, given)
    opt = SGD(params, **settings)
    kept = []
    for t, step in enumerate(given):
        for p, g in zip(params, step, strict=True):
            p.grad = ndl.Tensor(g, requires_grad=False)
        opt.step()
        if t in (0, 1, 3):
            thing = HELD[name](params[1], opt)
            kept.append((thing, np.array(thing)))
    assert_bits(params, opt, expected)
    for thing, before in kept:
        np.testing.assert_array_equal(np.asarray(thing), before)


def test_a_steady_pool_stays_where_it_is_and_moves_when_its_members_do():
    p, q, r = (parameter(3, seed=i) for i in range(3))
    opt = SGD([p, q, r], lr=0.1, momentum=0.9)

    def places():
        return [t.numpy().ctypes.data for t in (p, q, r, opt.u[p], opt.u[q], opt.u[r])]

    def step():
        for t in (p, q, r):
            give(t)
        opt.step()

    step()
    first = places()
    assert first[1] - first[0] == first[2] - first[1] == p.numpy().nbytes
    for _ in range(3):
        step()
        assert places() == first
    q.data = ndl.Tensor([1.0, 2.0, 3.0], dtype="float32")
    expected = q.numpy() - 0.1 * (0.9 * Rounded(opt.u[q].numpy()) + (1 - 0.9) * Rounded(give(q)))
    step()
    within(q, expected)
    mine = ndl.Tensor([5.0, 5.0, 5.0], dtype="float32")
    opt.u[r] = mine
    step()
    np.testing.assert_array_equal(mine.numpy(), [5.0, 5.0, 5.0])
    within(opt.u[r], 0.9 * Rounded([5.0] * 3) + (1 - 0.9) * Rounded(r.grad.numpy()))
    moved = places()
    step()
    assert places() == moved


def test_a_steady_step_allocates_nothing_that_is_large():
    params = [parameter(100, 3, seed=i) for i in range(50)]
    opt = SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)
    for p in params:
        give(p)
    for _ in range(3):
        opt.step()
    tracemalloc.start()
    try:
        opt.step()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        opt.step()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 100 * 50  # lists of the parameters; the smallest array of numbers would be 60,000 bytes
    assert after - before < 1000


def test_a_state_that_does_not_fit_leaves_a_pool_as_it_was():
    params = [parameter(3, seed=0), parameter(300, 300), parameter(3, seed=1)]
    opt = SGD(params, lr=0.1)
    for p in params:
        give(p)
    opt.step()
    old = [p.numpy().copy() for p in params]
    for p in params:
        opt.u[p], kept = ndl.ones(7), opt.u[p]
        with pytest.raises(ValueError, match=r"must have the shape .* of its parameter, but got"):
            opt.step()
        opt.u[p] = kept
    for p, before in zip(params, old, strict=True):
        np.testing.assert_array_equal(p.numpy(), before)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))], ids=["copy", "pickle"]
)
def test_a_copy_of_model_and_optimizer_trains_by_itself(copied):
    def train(model, opt):
        for t in range(3):
            opt.reset_grad()
            (model(ndl.Tensor(np.full((2, 4), 0.5 + t, "float32"))) * 2).sum().backward()
            opt.step()
        return [p.numpy().copy() for p in model.parameters()]

    np.random.seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    opt = SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, opt)
    before = [p.numpy().copy() for p in model.parameters()]
    twin, twin_opt = copied((model, opt))
    changed = train(twin, twin_opt)
    for p, old, new in zip(model.parameters(), before, changed, strict=True):
        np.testing.assert_array_equal(p.numpy(), old)
        assert (new != old).any()
    for a, b in zip(train(model, opt), changed, strict=True):
        np.testing.assert_array_equal(a, b)


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
        (test_memory_that_cannot_be_written_is_replaced, "step"),
        (test_a_parameter_that_is_a_view_leaves_the_rest_alone, "step"),
        (test_clip_grad_norm_edges, "clip_grad_norm"),
    ],
)
def test_a_small_error_is_not_taken_for_rounding(test, method, monkeypatch):
    test()
    monkeypatch.setattr(SGD, method, off(getattr(SGD, method)))
    with pytest.raises(AssertionError):
        test()


@pytest.mark.parametrize("given", [np.float64, np.float16, np.int64])
def test_a_velocity_of_another_dtype_goes_through_a_state_dict_as_the_next_step_would_take_it(given):
    one, two = parameter(2), parameter(2)
    sgd, other = SGD([one], momentum=0.5), SGD([two], momentum=0.5)
    sgd.u[one] = ndl.Tensor(np.array([3, -2], given), requires_grad=False)
    other.load_state_dict(sgd.state_dict())
    for p, optimizer in ((one, sgd), (two, other)):
        give(p)
        optimizer.step()
    assert sgd.u[one].dtype == other.u[two].dtype == np.float32
    assert np.array_equal(sgd.u[one].numpy(), other.u[two].numpy())


# -- several runs: none of them may be forgotten

MIXED = ["float32", "float32", "float64", "float64", "float32"]  # two, two, and one by itself


def mixed(make, **settings):
    params = [parameter(2, seed=i, dtype=dtype) for i, dtype in enumerate(MIXED)]
    opt = make(params, **settings)
    for p in params:
        p.grad = ndl.ones(2, dtype=p.dtype)
    opt.step()
    return params, opt


@pytest.mark.parametrize("which", range(len(MIXED)))
@pytest.mark.parametrize("what", ["parameter", "velocity", "array of the velocity"])
def test_what_is_replaced_while_somebody_holds_the_old_one_is_noticed(what, which):
    """As many hold the old one as before: only a look at each array and each state tells."""
    params, opt = mixed(SGD, lr=0.5, momentum=0.5)
    p = params[which]
    opt.u[p].cached_data[...] = 2.0
    theta, velocity, new = p.numpy().copy(), 2.0, ndl.Tensor([8.0, 8.0], dtype=p.dtype, requires_grad=False)
    if what == "parameter":
        held: object = p.numpy()
        p.data = new
        theta = np.full_like(theta, 8)
    elif what == "velocity":
        held, velocity = opt.u[p], 8.0
        opt.u[p] = new
    else:
        held, velocity = opt.u[p].numpy(), 8.0
        opt.u[p].data = new
    del new
    before = np.array(held)
    opt.step()
    np.testing.assert_array_equal(np.asarray(held), before)
    np.testing.assert_array_equal(opt.u[p].numpy(), 0.5 * velocity + 0.5)
    np.testing.assert_array_equal(p.numpy(), theta - opt.u[p].numpy() * p.dtype.type(0.5))


@pytest.mark.parametrize("which", range(len(MIXED)))
@pytest.mark.parametrize("make", [SGD, Adam])
def test_who_holds_an_array_of_any_run_keeps_the_old_numbers(make, which):
    params, opt = mixed(make, lr=0.5)
    p = params[which]
    held = [p.numpy(), (opt.u if make is SGD else opt.v)[p].numpy()[1:]]
    before = [array.copy() for array in held]
    theta = p.numpy().copy()
    opt.step()
    for array, old in zip(held, before, strict=True):
        np.testing.assert_array_equal(array, old)
    assert (p.numpy() != theta).all()


@pytest.mark.parametrize("make", [SGD, Adam])
def test_steady_runs_stay_where_they_are(make):
    params, opt = mixed(make, lr=0.5)

    def places():
        states = [getattr(opt, name) for name in opt._states]
        return [t.numpy().ctypes.data for p in params for t in (p, *(state[p] for state in states))]

    seen = []
    for _ in range(3):
        opt.step()
        seen.append(places())
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("make", [SGD, Adam])
def test_what_is_kept_may_be_handed_over_to_another_parameter(make):
    p, q = parameter(2), parameter(2, seed=1)
    opt = make([p, q], lr=0.5)
    give(p)
    opt.step()
    for name in (*opt._counts, *opt._states):
        getattr(opt, name)[q] = getattr(opt, name).pop(p)
    p.grad, theta, other = None, p.numpy().copy(), q.numpy().copy()
    give(q, seed=1)
    opt.step()
    np.testing.assert_array_equal(p.numpy(), theta)
    assert (q.numpy() != other).all()


@pytest.mark.parametrize(
    ("sizes", "because"),
    [
        ([100_000] * 4, "large ones work in blocks, where they are"),
        ([100_000, 3] * 4, "a small one does not make a large one move"),
        ([3, 100_000] * 4, "a small one does not make a large one move"),
        ([15_000] * 20, "a run ends before it is large"),
        ([8_000] * 40, "a run ends before it is large"),
    ],
    ids=str,
)
def test_a_step_keeps_little_beside_its_states(sizes, because):
    """An eighth of what the parameters take, or two of the runs of small ones."""
    tracemalloc.start()
    try:
        params = [nn.Parameter(np.ones(size)) for size in sizes]
        opt = SGD(params)
        for p in params:
            p.grad = ndl.Tensor.make_const(np.broadcast_to(1.0, p.shape))
        before = tracemalloc.get_traced_memory()[0]
        opt.step()
        opt.step()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    numbers = 8 * sum(sizes)
    assert numbers < kept < 1.2 * numbers, because


def test_a_pickle_holds_every_number_once():
    params = [parameter(100, 20, seed=i) for i in range(5)]
    opt = SGD(params)
    for p in params:
        give(p)
    opt.step()
    opt.reset_grad()
    numbers = 2 * sum(p.numpy().nbytes for p in params)
    assert numbers < len(pickle.dumps(opt)) < 1.2 * numbers


# -- numbers at the edges


@pytest.mark.parametrize("make", [SGD, Adam])
def test_without_weight_decay_a_parameter_may_be_infinite(make):
    p = nn.Parameter([-math.inf, 1.0])
    opt = make([p], lr=0.5)
    p.grad = ndl.ones(2)
    opt.step()
    assert p.numpy()[0] == -math.inf
    assert 0 <= p.numpy()[1] < 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_adam_rounds_each_number_once_to_the_dtype_of_the_parameter(dtype):
    number = np.dtype(dtype).type
    p = parameter(50, dtype=dtype)
    opt = Adam([p], lr=0.1, eps=1e-3)
    theta, m, v = p.numpy().copy(), np.zeros(50, dtype), np.zeros(50, dtype)
    for t in (1, 2, 3):
        g = give(p, seed=t).copy()
        opt.step()
        m = m * number(0.9) + g * number(1 - 0.9)
        v = v * number(0.999) + g * number(1 - 0.999) * g
        d = np.sqrt(v) / number(math.sqrt(1 - 0.999**t)) + number(1e-3)
        theta = theta - m / d * number(0.1 / (1 - 0.9**t))
        np.testing.assert_array_equal(p.numpy(), theta)


@pytest.mark.parametrize("g", [3.5e-18, 5e20])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_second_moment_that_is_in_range_gets_there(g, weight_decay):
    """g² is not, (1 - β2) g² just is: at both ends of float32."""
    p = nn.Parameter([0.0], dtype="float32")
    opt = Adam([p], weight_decay=weight_decay)
    p.grad = ndl.Tensor([g], dtype="float32")
    opt.step()
    np.testing.assert_allclose(opt.v[p].numpy().astype(float), (1 - 0.999) * float(np.float32(g)) ** 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("given", ["float64", "int64"])
@pytest.mark.parametrize("make", [SGD, Adam])
def test_a_gradient_of_another_dtype_is_as_one_in_the_dtype_of_its_parameter(make, given, dtype):
    p, q = parameter(50, dtype=dtype), parameter(50, dtype=dtype)
    opt, other = make([p], lr=0.1), make([q], lr=0.1)
    if make is Adam:
        opt.eps = other.eps = 1e-3  # the default is 0 in float16, and some of the whole numbers are too
    for t in range(3):
        g = give(p, seed=t, scale=30, dtype="float64").astype(given)
        p.grad = ndl.Tensor(g, dtype=given, requires_grad=False)
        q.grad = ndl.Tensor(g.astype(dtype), requires_grad=False)
        assert opt.clip_grad_norm(1e9) == other.clip_grad_norm(1e9)
        assert p.grad.dtype == given  # not scaled, and so not replaced
        opt.step(), other.step()
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    assert opt.clip_grad_norm(0.5) == other.clip_grad_norm(0.5)
    assert p.grad.dtype == q.grad.dtype == dtype
    np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())


def test_a_gradient_is_replaced_only_if_the_factor_is_below_1():
    p = parameter(2)
    p.grad = g = ndl.Tensor([0.0, 0.0], dtype="float32")
    opt = SGD([p])
    assert opt.clip_grad_norm(1e-6) == 0  # 1e-6 / (0 + 1e-6) is 1
    assert p.grad is g
    assert opt.clip_grad_norm(9e-7) == 0
    assert p.grad is not g


# -- states that the user has put there, or taken


def test_a_state_may_be_put_there_as_a_list_or_come_out_of_an_op():
    p = parameter(2, dtype="float64")
    opt = SGD([p], momentum=0.5)
    give(p, scale=0.0)
    opt.u[p] = [8.0, 4.0]
    opt.step()
    np.testing.assert_array_equal(opt.u[p].numpy(), [4.0, 2.0])
    expected = p.numpy() * 2
    opt.u[p] = p * 4.0
    opt.step()
    np.testing.assert_array_equal(opt.u[p].numpy(), expected)
    assert opt.u[p].op is None
    assert not opt.u[p].inputs
    assert not opt.u[p].requires_grad


def test_a_state_dict_may_be_written_into():
    p = parameter(2)
    opt = SGD([p])
    give(p)
    opt.step()
    before = opt.u[p].numpy().copy()
    opt.state_dict()["u.0"][...] = 7
    np.testing.assert_array_equal(opt.u[p].numpy(), before)


def test_a_state_dict_with_an_unknown_name_is_refused():
    opt = SGD([parameter(2)])
    with pytest.raises(KeyError, match=r"SGD.load_state_dict: missing \[\], unknown \['u.1', 'nesterov'\]"):
        opt.load_state_dict({**opt.state_dict(), "u.1": np.ones(2), "nesterov": 1})


@pytest.mark.parametrize(
    "make",
    [np.array, np.float32, lambda x: ndl.Tensor(x, requires_grad=False), Fraction],
    ids=["array", "float32", "Tensor", "Fraction"],
)
def test_a_learning_rate_that_is_a_number_of_any_kind_is_one_in_a_state(make):
    """What its owner writes into it later changes no state, and a state can be put back."""
    given = make(0.5)
    optimizer = SGD([nn.Parameter([1.0])], lr=given)
    schedule, state = StepLR(optimizer, 1, 0.5), optimizer.state_dict()
    if isinstance(given, np.ndarray):
        given[()] = 4.0
    assert [type(state["lr"]), state["lr"], schedule.base] == [float, 0.5, 0.5]
    optimizer.load_state_dict(state)
    schedule.step()
    assert optimizer.lr == 0.25


def test_a_whole_number_as_a_setting_is_saved_as_one():
    optimizer = ndl.optim.SGD([nn.Parameter(np.ones(2, "float32"))], lr=1)
    assert type(optimizer.state_dict()["lr"]) is int
