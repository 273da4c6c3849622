"""A Sequential of needle's own layers computes a chain on arrays: nobody may notice, but by the clock."""

import contextlib
import copy
import gc
import pickle
import tracemalloc
import weakref

import numpy as np
import pytest

import needle as ndl
from needle import nn, ops


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def block(width=6):
    return nn.Sequential(
        nn.Residual(
            nn.Sequential(
                nn.Linear(width, 4),
                nn.BatchNorm1d(4),
                nn.ReLU(),
                nn.Dropout(0.3),
                nn.Linear(4, width, bias=False),
                nn.LayerNorm1d(width),
            )
        ),
        nn.ReLU(),
    )


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Sigmoid()),
    "written": lambda: nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), nn.LayerNorm1d(5), nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm1d(6)
    ),
    "norms first": lambda: nn.Sequential(nn.LayerNorm1d(6), nn.Residual(nn.LayerNorm1d(6)), nn.Linear(6, 5)),
    "batch norms": lambda: nn.Sequential(
        nn.BatchNorm1d(6),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Residual(nn.Sequential(nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 5))),
        nn.BatchNorm1d(5),
    ),
    "resnet": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.ReLU(), block(), block(), nn.Linear(6, 6)),
    "residuals first": lambda: nn.Sequential(nn.Residual(nn.Residual(nn.Linear(6, 6))), nn.Identity(), nn.Linear(6, 6)),
    "residuals of nothing": lambda: nn.Sequential(
        nn.Linear(6, 6), nn.Residual(nn.Residual(nn.Identity())), nn.Residual(nn.Sequential())
    ),
    "residual of a residual of nothing": lambda: nn.Sequential(nn.Linear(6, 6), half_of_nothing(), nn.Tanh()),
    "residual of a residual of nothing first": lambda: nn.Sequential(half_of_nothing()),
    "residual of a residual of a view": lambda: nn.Sequential(
        nn.Linear(6, 6), half_of_nothing(nn.Flatten()), nn.Tanh()
    ),
    "residual of a residual of a view first": lambda: nn.Sequential(half_of_nothing(nn.Flatten())),
    "residual of a view of a view": lambda: nn.Sequential(
        nn.Linear(6, 6), nn.Residual(nn.Residual(nn.Sequential(nn.Flatten(), nn.Flatten()))), nn.ReLU()
    ),
    "residuals in a row": lambda: nn.Sequential(
        nn.Linear(6, 6), nn.Residual(nn.Sequential(half_of_nothing(), half_of_nothing(), nn.Residual(nn.Tanh())))
    ),
    "residuals alone": lambda: nn.Sequential(nn.Residual(nn.Identity()), nn.Residual(nn.Residual(nn.Tanh()))),
    "wider": lambda: nn.Sequential(nn.Linear(6, 1), nn.Residual(nn.Linear(1, 6)), nn.BatchNorm1d(6)),
    "narrower": lambda: nn.Sequential(nn.Linear(6, 6), nn.Residual(nn.Linear(6, 1)), nn.LayerNorm1d(6)),
    "relus of three widths": lambda: nn.Sequential(
        nn.ReLU(),
        nn.Linear(6, 3),
        nn.ReLU(),
        nn.Linear(3, 6),
        nn.ReLU(),
        nn.Residual(nn.ReLU()),
        nn.Linear(6, 3),
        nn.ReLU(),
    ),
    "two dtypes": lambda: nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6, dtype="float64"), nn.LayerNorm1d(6)
    ),
    "residual of another dtype": lambda: nn.Sequential(nn.Linear(6, 6), nn.Residual(nn.Linear(6, 6, dtype="float64"))),
    "residual of another dtype in the middle": lambda: nn.Sequential(
        nn.Linear(6, 6), nn.Residual(nn.Linear(6, 6, dtype="float64")), nn.Tanh()
    ),
    "layer norm of another dtype": lambda: nn.Sequential(
        nn.Linear(6, 6), nn.LayerNorm1d(6, dtype="float64"), nn.Tanh()
    ),
    "softmax": lambda: nn.Sequential(nn.Linear(6, 6), nn.Softmax(), nn.Linear(6, 6), nn.Softmax(0), nn.Tanh()),
    "images": lambda: nn.Sequential(
        Images(),
        nn.Sequential(
            nn.Conv(1, 3, 3, stride=2),
            nn.ReLU(),
            nn.Residual(nn.Conv(3, 3, 1, bias=False)),
            nn.Flatten(),
            nn.Linear(6, 6),
        ),
    ),
    "a bias that repeats what it is added to": lambda: wide_bias(
        nn.Sequential(Images(), nn.Sequential(nn.Conv(1, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 6)))
    ),
    "tied": lambda: tied(),
    "a weight that is its own bias": lambda: own_bias(
        nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 6), nn.LayerNorm1d(6), nn.BatchNorm1d(6), nn.Linear(6, 6)), 1, 2, 3
    ),
    "tied, and one that is not": lambda: nn.Sequential(*tied().modules, nn.ReLU(), nn.Linear(6, 6)),
    "frozen": lambda: frozen(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Residual(nn.Linear(6, 6)), block()), 3),
    "frozen in the middle": lambda: frozen(nn.Sequential(nn.Linear(6, 6), block(), nn.Linear(6, 6)), 6, first=2),
}


class Images(nn.Module):
    def forward(self, x):
        return x.reshape((x.shape[0], 1, 2, 3))


def half_of_nothing(fn=None):
    return nn.Residual(nn.Sequential(nn.Residual(fn or nn.Identity()), nn.ReLU()))


def tied():
    first = nn.Linear(6, 6)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model.modules[2].weight = model.modules[4].weight = first.weight
    return model


def own_bias(model, *places):
    for place in places:
        model.modules[place].bias = model.modules[place].weight
    return model


def wide_bias(model):
    model.modules[1].modules[0].bias = nn.Parameter(normal(4, 1, 3))
    return model


def frozen(model, last, first=0):
    for p in model.parameters()[first:last]:
        p.requires_grad = False
    return model


def made(name, dtype="float32"):
    np.random.seed(0)
    return MODELS[name]()


def watched(model):
    """Every layer called as a module, and its result kept, as by a user who looks at activations."""
    kept = []
    for part in model.modules_in():
        forward = part.forward

        def keeping(*args, forward=forward):
            kept.append(forward(*args))
            return kept[-1]

        part.forward = keeping
    return model, kept


def step(model, x, times=1, between=None, **how):
    """What a pass leaves behind: the result, all gradients and buffers."""
    np.random.seed(1)
    out = model(x)
    loss = (out * normal(*out.shape, seed=7)).sum()
    if not loss.requires_grad:
        return [out.numpy()]
    for _ in range(times):
        loss.backward(**how)
    grads = [None if t.grad is None else t.grad.numpy() for t in (x, *model.parameters())]
    return [out.numpy(), *grads, *(b.numpy().copy() for b in model.buffers())]


def same(a, b):
    assert len(a) == len(b)
    for p, q in zip(a, b, strict=True):
        assert (p is None) == (q is None)
        if p is not None:
            assert p.dtype == q.dtype
            np.testing.assert_array_equal(p, q)


def given(to_the_input):
    return ndl.Tensor(normal(8, 6), requires_grad=to_the_input)


@pytest.mark.parametrize("to_the_input", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_chain_gives_the_same_bits_as_its_layers(name, to_the_input):
    model, (other, kept) = made(name), watched(made(name))
    out = model(given(to_the_input))
    assert out._chain is not None or not out.requires_grad
    model = made(name)
    same(step(model, given(to_the_input)), step(other, given(to_the_input)))
    assert kept


@pytest.mark.parametrize("how", [{"retain_graph": True}, {"create_graph": True}])
@pytest.mark.parametrize("name", MODELS)
def test_whoever_wants_more_than_one_backward_gets_the_same_bits_too(name, how):
    other, _ = watched(made(name))
    same(step(made(name), given(True), times=2, **how), step(other, given(True), times=2, **how))


@pytest.mark.parametrize("name", MODELS)
def test_second_derivatives_through_a_chain(name):
    def second(model):
        x = given(True)
        np.random.seed(1)
        (model(x) ** 2).sum().backward(create_graph=True)
        ps = [t for t in (x, *model.parameters()) if t.grad is not None]
        total = sum(((t.grad * normal(*t.shape, seed=3)).sum() for t in ps), ndl.Tensor(0.0, requires_grad=False))
        for t in ps:
            t.grad = None
        total.backward()
        return [None if t.grad is None else t.grad.numpy() for t in ps]

    same(second(made(name)), second(watched(made(name))[0]))


@pytest.mark.parametrize("to_the_input", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_chain_unfolds_into_the_nodes_of_its_layers(name, to_the_input):
    def nodes(model):
        np.random.seed(1)
        return ndl.autograd.find_topo_sort([model(given(to_the_input))])

    ours, theirs = nodes(made(name)), nodes(watched(made(name))[0])
    assert [type(t.op) for t in ours] == [type(t.op) for t in theirs]
    numbers = {t: i for i, t in enumerate(theirs)}
    places = dict(zip(ours, theirs, strict=True))
    for t, u in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(t.numpy(), u.numpy())
        assert [numbers[places[x]] for x in t.inputs] == [numbers[x] for x in u.inputs]
        assert t.requires_grad == u.requires_grad
        assert [x.requires_grad for x in t.inputs] == [x.requires_grad for x in u.inputs]
        assert all(x._number < t._number for x in t.inputs)


def test_a_plain_backward_unfolds_no_chain(monkeypatch):
    monkeypatch.delattr(ndl.chain.Chain, "unfold")  # it would compute once more what was let go of
    out = made("resnet")(given(True))
    assert out._chain is not None
    out.sum().backward()


def test_without_a_graph_there_is_no_chain():
    model = made("resnet")
    with ndl.no_grad():
        out = model(given(True))
    assert out._chain is None
    assert not out.requires_grad
    assert out.op is None
    constant = frozen(made("mlp"), 9)(given(False))
    assert constant._chain is None
    assert constant.is_leaf()


def test_a_sequential_of_nothing_hands_back_what_it_gets():
    x = given(True)
    assert nn.Sequential()(x) is x
    assert nn.Sequential(nn.Identity(), nn.Sequential(nn.Dropout().eval()))(x) is x
    with ndl.no_grad():
        assert nn.Sequential(nn.Identity())(x) is x


def test_a_number_goes_through_a_chain_as_an_array():
    x = ndl.Tensor(2.0, dtype="float32")
    y = nn.Sequential(nn.Tanh(), nn.Softplus(), nn.Residual(nn.Identity()), nn.ReLU(), nn.Sigmoid())(x)
    y.backward(retain_graph=True)
    nodes = ndl.autograd.find_topo_sort([y])
    assert len(nodes) == 6
    for t in (x.grad, *nodes):
        assert type(t.numpy()) is np.ndarray
        assert t.dtype == np.float32
        assert t.shape == ()


def test_evaluation_uses_the_running_statistics_and_lets_gradients_through():
    model, (other, _) = made("resnet"), watched(made("resnet"))
    for m in (model, other):
        step(m, given(False))
        m.eval()
    same(step(model, given(True)), step(other, given(True)))


@pytest.mark.parametrize("free", [True, False])
def test_a_backward_frees_the_chain_unless_told_otherwise(free):
    out = made("mlp")(given(True)).sum()
    out.backward(retain_graph=not free)
    if free:
        with pytest.raises(RuntimeError, match="the graph was already freed by an earlier backward"):
            out.backward()
    else:
        out.backward()


def test_the_backward_of_a_user_is_not_written_into():
    g = ndl.Tensor(normal(8, 6, seed=5))
    before = g.numpy().copy()
    x = given(True)
    model = nn.Sequential(nn.Linear(6, 6), nn.Residual(nn.Residual(nn.Identity())), nn.Residual(nn.Identity()))
    for root in (
        model(x),
        nn.Sequential(nn.Residual(nn.Identity()))(x),
        nn.Sequential(nn.Flatten())(x),
        nn.Sequential(nn.Tanh(), nn.Residual(nn.Flatten()))(x),
    ):
        root.backward(g)
        np.testing.assert_array_equal(g.numpy(), before)
        assert not np.shares_memory(x.grad.numpy(), g.numpy())


@pytest.mark.parametrize(
    ("layer", "shape", "bias"),
    [(nn.Conv(2, 2, 1), (1, 2, 1, 1), (1, 1, 1, 2)), (nn.BatchNorm1d(2).eval(), (1, 2), (1, 2))],
    ids=["conv", "norm"],
)
def test_a_bias_that_gets_the_gradient_as_it_is_gets_an_array_of_its_own(layer, shape, bias):
    layer.bias = nn.Parameter(normal(*bias))
    g = ndl.Tensor(normal(*shape, seed=1))
    nn.Sequential(layer)(ndl.Tensor(normal(*shape))).backward(g)
    np.testing.assert_array_equal(layer.bias.grad.numpy().ravel(), g.numpy().ravel())
    assert not np.shares_memory(layer.bias.grad.numpy(), g.numpy())


def test_a_bias_of_two_norms_that_gets_the_gradient_as_it_is_does_not_change_what_goes_past_them():
    np.random.seed(0)
    first, second = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
    first.bias = second.bias = nn.Parameter(normal(1, 6))
    model = nn.Sequential(nn.Linear(6, 6), nn.Residual(nn.Sequential(first, second)), nn.Tanh()).eval()
    x, other = (ndl.Tensor(normal(1, 6, seed=1)) for _ in range(2))
    same(step(model, x), step(watched(copy.deepcopy(model))[0], other))


def test_the_gradient_of_a_bias_that_is_one_number_is_an_array():
    layer = nn.Conv(2, 2, 1)
    layer.bias = nn.Parameter(np.float32(0.5))
    nn.Sequential(layer)(ndl.Tensor(normal(3, 2, 4, 4))).sum().backward()
    grad = layer.bias.grad.numpy()
    assert type(grad) is np.ndarray
    assert grad == 3 * 2 * 4 * 4


def test_a_kept_gradient_of_the_result():
    out = made("mlp")(given(True))
    out.retain_grad()
    (out * 2).sum().backward()
    np.testing.assert_array_equal(out.grad.numpy(), np.full((8, 6), 2, np.float32))


def test_a_chain_between_other_ops():
    def through(model):
        x = given(True)
        np.random.seed(1)
        h = x * 2
        loss = (model(h) * model(h + 1) + h).sum()
        loss.backward()
        return [loss.numpy(), x.grad.numpy(), *(p.grad.numpy() for p in model.parameters())]

    for name in ("resnet", "residuals first", "residuals alone"):
        same(through(made(name)), through(watched(made(name))[0]))


def test_the_memory_layout_of_gradients_is_the_same():
    """A sum over another layout is rounded in another order."""

    def grads(model, watch):
        np.random.seed(0)
        model = watched(model())[0] if watch else model()
        b, x = nn.Parameter(normal(2)), ndl.Tensor(normal(500, 2), requires_grad=False)
        out = model(ops.transpose(x + b))
        out.backward(ndl.Tensor(normal(2, 500, seed=9)))
        return [b.grad.numpy(), *(p.grad.numpy() for p in model.parameters())]

    for model in (
        lambda: nn.Sequential(nn.Residual(nn.LayerNorm1d(500))),
        lambda: nn.Sequential(nn.Residual(nn.Residual(nn.LayerNorm1d(500)))),
        lambda: nn.Sequential(nn.Tanh(), nn.Residual(nn.LayerNorm1d(500))),
        lambda: nn.Sequential(nn.Tanh(), nn.Residual(nn.Tanh())),
        lambda: nn.Sequential(nn.Tanh(), nn.Residual(nn.Residual(nn.Tanh()))),
        lambda: nn.Sequential(nn.Tanh(), nn.Residual(nn.Sequential(nn.Residual(nn.Tanh()), nn.LayerNorm1d(500)))),
    ):
        same(grads(model, False), grads(model, True))


@pytest.mark.parametrize("place", [0, 2])
def test_a_weight_that_is_computed(place):
    def grads(watch):
        np.random.seed(0)
        model, v = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), nn.Parameter(normal(6, 6))
        model.modules[place].weight = v * 0.5
        if watch:
            watched(model)
        model(given(False)).sum().backward()
        return [v.grad.numpy(), *(p.grad.numpy() for p in (model.modules[2 - place].weight, model.modules[2].bias))]

    same(grads(False), grads(True))


def test_a_weight_that_is_computed_without_a_graph():
    model, x = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), given(False)
    expected = model(x).numpy()
    model.modules[1].weight = model.modules[1].weight * 2
    with ndl.no_grad():
        np.testing.assert_allclose(model(x).numpy(), 2 * expected, rtol=1e-6)


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(6, 6)), nn.Sequential(nn.Tanh(), nn.Linear(6, 6))])
@pytest.mark.parametrize("first", [False, True])
def test_an_input_that_needs_a_gradient_at_one_of_both_times_gets_none(model, first):
    x = given(first)
    y = model(x)
    x.requires_grad = not first
    y.sum().backward()
    assert x.grad is None
    assert all(p.grad is not None for p in model.parameters())


def test_what_was_added_past_layers_that_do_nothing_now_is_not_lost():
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.Residual(nn.Sequential(nn.Tanh(), nn.Linear(6, 6)))).eval()
    same(step(model, given(True)), step(watched(copy.deepcopy(model))[0], given(True)))
    model = nn.Sequential(nn.Linear(6, 6), nn.Residual(nn.Sequential(nn.Tanh(), nn.Dropout()))).eval()
    same(step(model, given(True)), step(watched(copy.deepcopy(model))[0], given(True)))


def test_a_rule_that_has_no_gradient_for_a_parameter_leaves_it_without(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    monkeypatch.setattr(ops.BatchNorm, "vjp", lambda self, g, y, needs, *xs: (np.ones(y.shape, y.dtype), None, None))
    model(ndl.Tensor(normal(4, 3))).sum().backward()
    assert [p.grad is not None for p in model.parameters()] == [True, True, False, False]


def test_an_input_that_has_changed_is_read_by_what_is_unfolded_alone():
    """The array that a chain was computed from is kept in it."""
    for model, name in (
        (nn.Sequential(nn.Linear(6, 6)), "Linear"),
        (nn.Sequential(nn.Residual(nn.Tanh()), nn.Linear(6, 6)), "Tanh"),
    ):
        (x, right), outs = (given(True), given(True)), []
        outs = [model(x), model(x)]
        x.data = ndl.Tensor(np.zeros((8, 6), "float32"))
        with pytest.raises(
            RuntimeError, match=rf"a Tensor of shape \(8, 6\) has changed since {name} computed with it"
        ):
            outs[0].sum().backward(create_graph=True)
        outs[1].sum().backward()
        grads = [x.grad.numpy(), *(p.grad.numpy() for p in model.parameters())]
        model(right).sum().backward()
        same(grads, [right.grad.numpy(), *(p.grad.numpy() for p in model.parameters())])


def test_a_deep_chain():
    model = nn.Sequential(*[nn.ReLU() for _ in range(20_000)])
    x = given(True)
    model(x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), (x.numpy() > 0).astype("float32"))
    assert len(ndl.autograd.find_topo_sort([model(x)])) == 20_001


# -- what makes a Sequential call its modules


class Doubled(nn.Module):
    def forward(self, x):
        return x * 2


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Same(nn.Linear):
    """A layer under another name."""


class Called(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) * 2


def test_layers_of_others_are_called():
    x = given(False)
    for double in (Doubled(), OwnLinear(6, 6), Called(6, 6), lambda t: t * 2):
        inner = nn.Sequential(nn.ReLU(), double)
        for model in (inner, nn.Sequential(inner, nn.ReLU()), nn.Sequential(nn.Residual(inner))):
            out = model(x)
            assert out._chain is None
        right = np.maximum(x.numpy(), 0)
        if isinstance(double, nn.Linear):
            right = right @ double.weight.numpy() + double.bias.numpy()
        np.testing.assert_array_equal(inner(x).numpy(), right * 2)
    assert nn.Sequential(Same(6, 6))(x)._chain is not None


def test_a_change_after_the_first_call_counts(monkeypatch):
    x = given(False)
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6)), nn.ReLU(), nn.Residual(nn.Linear(6, 6)))
    first = model.modules[0].modules[0]
    reference = model(x)
    assert reference._chain is not None

    first.forward = lambda t: t * 0
    np.testing.assert_array_equal(model(x).numpy()[0], model(x).numpy()[1])
    del first.forward
    np.testing.assert_array_equal(model(x).numpy(), reference.numpy())

    monkeypatch.setattr(nn.ReLU, "forward", lambda self, t: t * 0)
    assert model(x)._chain is None
    monkeypatch.undo()
    monkeypatch.setattr(nn.Module, "__call__", lambda self, t: self.forward(t) * 1)
    assert model(x)._chain is None
    monkeypatch.undo()
    np.testing.assert_array_equal(model(x).numpy(), reference.numpy())

    bias, first.bias = first.bias, None
    model(x).sum().backward()
    assert bias.grad is None
    first.bias = bias
    weight, first.weight.grad = first.weight, None
    first.weight = nn.Parameter(np.zeros((6, 6), "float32"))
    model(x).sum().backward()
    assert weight.grad is None
    first.weight = weight
    np.testing.assert_array_equal(model(x).numpy(), reference.numpy())

    model.modules[2].fn = nn.Identity()
    half = model(x)
    assert not np.array_equal(half.numpy(), reference.numpy())
    model.modules[0].modules = (nn.Identity(),)
    np.testing.assert_array_equal(model(x).numpy(), 2 * np.maximum(x.numpy(), 0))
    model.modules = [nn.ReLU()]  # a list may change unnoticed
    assert model(x)._chain is None
    model.modules[0] = nn.Tanh()
    np.testing.assert_array_equal(model(x).numpy(), np.tanh(x.numpy()))


def test_a_setting_of_a_norm_that_changes_counts():
    x = given(False)
    model = nn.Sequential(nn.LayerNorm1d(6), nn.Linear(6, 6))
    for change in (lambda norm: setattr(norm, "eps", 2.0), lambda norm: vars(norm).update(eps=3.0)):
        before = model(x).numpy()
        change(model.modules[0])
        assert not np.array_equal(model(x).numpy(), before)
        same(step(model, x), step(watched(copy.deepcopy(model))[0], x))


@pytest.mark.parametrize(("name", "kind"), [("written", ops.LayerNorm), ("batch norms", ops.BatchNorm)])
def test_what_a_node_computes_once_more_changes_no_other_pass(name, kind):
    """A plan has one op for all of its passes, of which none may keep anything."""
    model, x = made(name), given(True)
    state = model.state_dict()

    def anew(**how):
        model.load_state_dict(state)
        return step(model, x, **how)

    right = anew()
    norm = model(x)
    moved = model.state_dict()
    assert isinstance(norm.op, kind)
    norm.op(ndl.ones(*norm.shape), *norm.inputs[1:])
    norm.sum().backward()
    same([*moved.values()], [*model.state_dict().values()])
    same(anew(), right)
    same(anew(retain_graph=True), right)


def set_past_setattr(name, value):
    return lambda norm: vars(norm).update({name: value})


def shares_the_weight_of_the_last(norm):
    norm.weight = norm.bias


def replace_statistics(norm):
    norm.running_mean = ndl.Tensor(normal(5, seed=4), requires_grad=False)


NORM_CHANGES = {
    "evaluates": nn.Module.eval,
    "evaluates, past setattr": set_past_setattr("training", False),
    "a mode that is no bool": set_past_setattr("training", 0),
    "momentum": lambda norm: setattr(norm, "momentum", 0.5),
    "momentum, past setattr": set_past_setattr("momentum", np.float32(0.25)),
    "eps": lambda norm: setattr(norm, "eps", 2.0),
    "eps, past setattr": set_past_setattr("eps", 2.0),
    "weight": lambda norm: setattr(norm, "weight", nn.Parameter(normal(5))),
    "weight, past setattr": lambda norm: vars(norm).update(weight=nn.Parameter(normal(5))),
    "bias, past setattr": lambda norm: vars(norm).update(bias=nn.Parameter(normal(5))),
    "data": lambda norm: setattr(norm.weight, "data", ndl.Tensor(normal(5))),
    "frozen weight": lambda norm: setattr(norm.weight, "requires_grad", False),
    "frozen bias": lambda norm: setattr(norm.bias, "requires_grad", False),
    "one for both": shares_the_weight_of_the_last,
    "statistics": replace_statistics,
    "another dtype": lambda norm: setattr(norm, "weight", nn.Parameter(normal(5).astype("float64"))),
    "called": lambda norm: setattr(norm, "forward", lambda x, forward=norm.forward: forward(x) * 2),
    "what follows": lambda norm: setattr(norm, "_follow", lambda mean, var: norm.running_mean.data.numpy().fill(7)),
}


@pytest.mark.parametrize("of", ["all", "one"])
@pytest.mark.parametrize("change", NORM_CHANGES)
def test_a_batch_norm_that_changes_between_passes_does_what_it_does_alone(change, of, monkeypatch):
    """Its running statistics, too: they move once in a pass, whatever is then done with the graph."""
    monkeypatch.setattr(ops, "_warned", True)  # of float64
    results = []
    for watch in (False, True):
        model = made("batch norms")
        last = model.modules[4]
        norms = [last, model.modules[3].fn.modules[0]] if of == "all" else [last]
        if watch:
            watched(model)
        results.append([])
        for change_now in (None, NORM_CHANGES[change]):
            for norm in norms if change_now else []:
                change_now(norm)
            for how in ({}, {"retain_graph": True}, {"create_graph": True}):
                results[-1] += step(model, given(True), times=1 + bool(how), **how)
                model.zero_grad()
            with ndl.no_grad():
                results[-1] += [model(given(False)).numpy(), *(b.numpy().copy() for b in model.buffers())]
            assert watch or change_now or "_follow(" in model._plan.code.source
        model.train()
        results[-1] += step(model, given(False))
        assert watch or change in ("another dtype", "called") or "_follow(" in model._plan.code.source
    same(*results)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
@pytest.mark.parametrize("rows", [2, 8, ops._LONG + 6])
def test_batches_of_every_kind_are_normalised_the_way_that_is_theirs(rows, dtype, monkeypatch):
    monkeypatch.setattr(ops, "_warned", True)  # of float64
    x = ndl.Tensor((4 * normal(rows, 6)).astype(dtype), requires_grad=dtype != "int64")
    model, (other, _) = made("batch norms"), watched(made("batch norms"))
    for _ in range(2):
        same(step(model, x), step(other, x))
    assert ("plain" in vars(model._plan.code)) == (dtype != "float32")


def test_a_batch_of_one_is_refused_by_its_layer_and_moves_nothing():
    model = nn.Sequential(nn.Linear(6, 5), nn.Residual(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5))))
    before = model.state_dict()
    for mode in (contextlib.nullcontext(), ndl.no_grad()):
        for rows in (1, 0):
            x = ndl.Tensor(np.zeros((rows, 6), "float32"))
            with (
                mode,
                pytest.raises(ValueError, match=r"^layer 1.fn.1, BatchNorm1d\(5, .*: .* at least 2 rows in training"),
            ):
                model(x)
    same([*before.values()], [*model.state_dict().values()])
    assert "_follow(" in model._plan.code.source
    assert model.eval()(ndl.ones(1, 6)).shape == (1, 5)


def test_whoever_trains_and_evaluates_in_turn_has_the_code_of_both():
    model = made("resnet")
    codes = []
    for _ in range(3):
        for mode in (True, False):
            model.train(mode)(given(False))
            codes.append(model._plan.code)
    assert codes[:2] == codes[2:4] == codes[4:]
    assert ["_follow(" in code.source for code in codes[:2]] == [True, False]
    for norm in (m for m in model.modules_in() if isinstance(m, nn.BatchNorm1d)):
        norm.train()
        model(given(False))
        assert len(model._plan.codes) == 2


def test_a_written_norm_needs_no_more_memory_than_one_that_is_called():
    model = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64))
    x = ndl.Tensor(normal(500, 6), requires_grad=False)

    def peaks():
        model(x).sum().backward()
        model.zero_grad()
        gc.collect()
        tracemalloc.start()
        try:
            out = model(x)
            ahead = tracemalloc.get_traced_memory()
            out.sum().backward()
            model.zero_grad()
            return *ahead, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def called():
        plan = model._plan
        plan.code, written = plan.code.plain, plan.code
        found = peaks()
        plan.code = written
        return found

    written = peaks()
    assert "_follow(" in model._plan.code.source
    for ours, theirs in zip(written, called(), strict=True):
        assert ours <= theirs + 4096  # a frame, or a list, more or less; an array of this model takes 128,000


def test_copies_have_plans_of_their_own():
    model = made("resnet")
    model(given(False))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for p in other.parameters():
            p.data = ndl.Tensor(np.zeros(p.shape, "float32"))
        np.testing.assert_array_equal(other(given(False)).numpy(), np.zeros((8, 6)))
        other.modules[5].bias.data = ndl.Tensor(np.ones((1, 6), "float32"))
        np.testing.assert_array_equal(other(given(False)).numpy(), np.ones((8, 6)))
    assert model(given(False)).numpy().any()


def test_errors_are_those_of_the_layers():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    with pytest.raises(ValueError, match=r"linear needs \(..., in\) @ \(in, out\), but got \(8, 5\) @ \(6, 5\)"):
        model(ndl.Tensor(normal(8, 5)))
    with pytest.raises(ValueError, match="BatchNorm1d needs at least 2 rows"):
        model(ndl.Tensor(normal(1, 6)))
    with pytest.raises(ValueError, match=r"layer 1, LayerNorm1d\(6, .*: layer_norm needs .*, but got \(8, 5\), "):
        nn.Sequential(nn.Linear(6, 5), nn.LayerNorm1d(6))(ndl.Tensor(normal(8, 6)))
    with pytest.raises(TypeError, match="Linear takes needle Tensors, but got ndarray"):
        model(normal(8, 6))
    for layer in (nn.BatchNorm1d(6), nn.BatchNorm1d(6).eval(), nn.Flatten(), nn.Dropout()):
        with pytest.raises(TypeError, match="takes needle Tensors, but got ndarray"):
            layer(normal(8, 6))
    model.modules[0].weight = normal(6, 5)
    with pytest.raises(TypeError, match="Linear takes needle Tensors, but got ndarray"):
        model(ndl.Tensor(normal(8, 6)))
    empty = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    empty.modules[0].weight = nn.Parameter(np.zeros((0, 5), "float32"))
    with pytest.raises(ValueError, match=r"linear needs \(..., in\) @ \(in, out\), but got \(8, 5\) @ \(0, 5\)"):
        empty(ndl.Tensor(normal(8, 5)))
    narrower = nn.Residual(nn.Linear(6, 1))  # and yet what comes of it is as wide as what went in
    for first in (nn.Linear(6, 6), nn.Identity()):
        with pytest.raises(ValueError, match=r"linear needs \(..., in\) @ \(in, out\), but got \(8, 6\) @ \(1, 6\)"):
            nn.Sequential(first, narrower, nn.Linear(1, 6))(ndl.Tensor(normal(8, 6)))


def test_a_chain_keeps_no_more_than_the_rules_read():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 6), nn.LayerNorm1d(6))
    chain = model(given(False))._chain
    records = chain.plan.records(chain.born, chain.kept)
    kept = [(type(op).__name__, x is not None, y is not None) for op, _, _, x, y in records]
    assert kept == [
        ("Linear", True, False),
        ("BatchNorm", False, False),
        ("ReLU", False, True),
        ("Linear", True, False),
        ("LayerNorm", False, False),
    ]


def test_a_chain_keeps_no_integers_of_which_it_has_made_fractions():
    chain = nn.Sequential(nn.Tanh(), nn.Linear(6, 5))(ndl.Tensor(np.eye(8, 6, dtype="int64")))._chain
    records = chain.plan.records(chain.born, chain.kept)
    assert [(type(op).__name__, x is not None, y is not None) for op, _, _, x, y in records] == [
        ("Tanh", False, True),
        ("Linear", True, False),
    ]


SOURCE = """\
def forward(x, born, sources):
    x0 = x
    x = x.dot(weight0.cached_data)
    _add(x, bias0.cached_data, x)
    if born > 0 and (weight0.requires_grad or bias0.requires_grad): born = 0
    past0 = x
    relu_of_5 = _zeros(x.shape, x.dtype) if x.size <= _ZEROS else 0
    x = _maximum(x, relu_of_5)
    y2 = x
    x, born, x3 = _several(dropout3(x), x, born, 3, sources)
    z, x = x, _asarray(_add_up.compute(x, past0))
    x4 = None if z.shape == past0.shape and z.dtype is past0.dtype else (z, past0)
    del z, past0
    return x, born, [x0, y2, x3, x4]


def result(x):
    x = x.dot(weight0.cached_data)
    _add(x, bias0.cached_data, x)
    past0 = x
    relu_of_5 = _zeros(x.shape, x.dtype) if x.size <= _ZEROS else 0
    x = _maximum(x, relu_of_5)
    x, *_ = _several(dropout3(x), x, -1, 3, None)
    z, x = x, _asarray(_add_up.compute(x, past0))
    del z, past0
    return x


def backward(g, kept, born, adjoints, give):
    take, waiting = kept.pop, []
    row_of_sums = _row_of_sums_like(g)
    g, past0 = _apart(g, born < 1, *(take() or (g, g)))
    g = _undo(take(), g, give)
    if born == 3: return []
    y = take()
    dx = (y != _ZERO).astype(g.dtype)
    g = _multiply(dx, g, dx)
    del dx
    del y
    waiting = [past0, *waiting]
    del past0
    if waiting: g, waiting = _sum([*waiting, g]), []
    x = take()
    if weight0.requires_grad: adjoints[weight0] = x.T.dot(g)
    if bias0.requires_grad: adjoints[bias0] = row_of_sums(g)
    if born == 0: return []
    g = g.dot(weight0.cached_data.T)
    del x
    return [*waiting, g]
"""


def test_a_plan_shows_what_it_calls():
    model = nn.Sequential(nn.Linear(6, 5), nn.Residual(nn.Sequential(nn.ReLU(), nn.Dropout())))
    model(given(False))
    assert model._plan.code.source == SOURCE
    assert not hasattr(model._plan.code, "way_back")


LONG = ops._LONG + 6


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
@pytest.mark.parametrize("shape", [(8, 6), (2, 4, 6), (LONG, 6), (1 + ops._ZEROS // 6, 6), (6,)], ids=str)
@pytest.mark.parametrize(
    "name", ["mlp", "written", "residuals first", "frozen", "tied", "one-dimensional bias", "no bias", "two dtypes"]
)
def test_rows_of_every_kind_go_the_way_that_is_theirs(name, shape, dtype, monkeypatch):
    """What is written down is for matrices of float32; a long one is added up, and a large one compared, otherwise."""
    made = {
        **MODELS,
        "frozen": lambda: frozen(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Residual(nn.Linear(6, 6))), 3),
        "one-dimensional bias": lambda: flat_bias(MODELS["mlp"]()),
        "no bias": lambda: nn.Sequential(
            nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 6, bias=False), nn.ReLU()
        ),
    }[name]
    x = ndl.Tensor((4 * normal(*shape)).astype(dtype), requires_grad=dtype != "int64")
    monkeypatch.setattr(ops, "_warned", True)  # of float64

    def grads(watch):
        np.random.seed(0)
        model = made()
        return step(watched(model)[0] if watch else model, x), model

    (ours, model), (theirs, _) = grads(False), grads(True)
    same(ours, theirs)
    code = model._plan.code
    usual = code.widths == shape[1:] and dtype == "float32"
    assert usual == (len(shape) == 2 and dtype == "float32" and name not in ("one-dimensional bias", "two dtypes"))
    assert ("forward" in vars(code)) == (usual or code.widths is None)
    assert ("plain" in vars(code)) == (not usual and code.widths is not None)


def test_what_follows_a_batch_norm_of_float64_is_of_float64_too(monkeypatch):
    monkeypatch.setattr(ops, "_warned", True)  # of float64
    np.random.seed(0)
    model = nn.Sequential(
        nn.Linear(6, 6), nn.ReLU(), nn.BatchNorm1d(6, dtype="float64"), nn.Linear(6, 6), nn.ReLU(), nn.LayerNorm1d(6)
    )
    other, _ = watched(copy.deepcopy(model))
    same(step(model, given(True)), step(other, given(True)))
    assert model._plan.code.widths is None


def flat_bias(model):
    model.modules[0].bias = nn.Parameter(model.modules[0].bias.numpy()[0])
    return model


@pytest.mark.parametrize("rule", ["compute", "vjp"])
@pytest.mark.parametrize("op", [ops.Linear, ops.ReLU, ops.Tanh, ops.LayerNorm, ops.BatchNorm])
def test_an_op_that_was_changed_is_called(op, rule, monkeypatch):
    """Before the first call of a model and after it."""
    name = "batch norms" if op is ops.BatchNorm else "written"
    model, x = made(name), given(True)
    state = model.state_dict()
    step(model, x)
    old = getattr(op, rule)

    def changed(*args):
        y = old(*args)
        return y * np.float32(2) if rule == "compute" else tuple(c * 2 if c is not None else c for c in y)

    monkeypatch.setattr(op, rule, changed)
    model.load_state_dict(state)
    found = step(model, x)  # now, because an attribute that is set has every plan made anew, and a new module sets some
    right = step(watched(made(name))[0], x)
    same(found, right)
    same(step(made(name), x), right)
    monkeypatch.undo()
    model.load_state_dict(state)
    same(step(model, x), step(watched(made(name))[0], x))
    assert not np.array_equal(step(model, x)[1], right[1])


def test_gradients_have_the_dtype_of_their_parameters_behind_an_op_that_was_changed_to_give_another(monkeypatch):
    compute = ops.Sigmoid.compute
    monkeypatch.setattr(ops.Sigmoid, "compute", lambda self, a: compute(self, a).astype("float64"))
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())
    out = model(given(False))
    assert out.dtype == np.float64
    out.sum().backward()
    assert [p.grad.dtype for p in model.parameters()] == [np.float32, np.float32]


@pytest.mark.parametrize(
    ("answer", "kind", "match"),
    [
        ((None, None), ValueError, "one gradient per input: 3, but got 2"),
        (None, TypeError, "a tuple with one gradient"),
    ],
    ids=["short", "none"],
)
def test_a_rule_that_answers_with_too_little_is_refused(answer, kind, match, monkeypatch):
    monkeypatch.setattr(ops.BatchNorm, "vjp", lambda self, g, y, needs, *xs: answer)
    loss = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))(ndl.ones(4, 3)).sum()
    with pytest.raises(kind, match=f"BatchNorm.vjp must return {match}"):
        loss.backward()


def test_a_wrong_line_is_noticed(monkeypatch):
    """Of every op that is written down; or else the comparisons here compare nothing."""
    assert {kind for kind in vars(ops).values() if "written" in getattr(kind, "__dict__", ())} == {
        *(ops.Linear, ops.ReLU, ops.Tanh, ops.LayerNorm, ops.BatchNorm)
    }
    for op in (ops.Linear, ops.ReLU, ops.Tanh, ops.LayerNorm, ops.BatchNorm):
        name = "batch norms" if op is ops.BatchNorm else "written"
        right = step(made(name), given(True))
        right_lines = op.written
        ahead, back, operands, once, first = (
            getattr(right_lines, part) for part in ("ahead", "back", "operands", "once", "first")
        )
        wrong = [{"ahead": (*ahead[:-1], f"{ahead[-1]}; x *= 2")}, {"back": (*back, "g = g * 2")}]
        wrong += [{"operands": (*operands[:i], f"2 * {operands[i]}", *operands[i + 1 :])} for i in range(len(operands))]
        wrong += [{"once": f"1 + ({once})"}] * bool(once)
        wrong += [{"first": (*first, "dw = dw * 2")}] * bool(first)
        wrong += [{"ahead": ahead[:i] + ahead[i + 1 :]} for i, line in enumerate(ahead) if "_follow" in line]
        wrong += [{"ahead": (*ahead, line)} for line in ahead if "_follow" in line]
        for lines in wrong:
            monkeypatch.setattr(op, "written", right_lines._replace(**lines))
            found = step(made(name), given(True))
            monkeypatch.undo()
            assert any(not np.array_equal(a, b) for a, b in zip(found, right, strict=True)), lines


def test_models_of_one_form_share_their_code_and_nothing_else():
    x = given(True)
    first, second = made("mlp"), MODELS["mlp"]()
    for model in (first, second):
        model(x).sum().backward()
    ours, theirs = first._plan.code, second._plan.code
    assert ours.forward.__code__ is theirs.forward.__code__
    assert ours.backward.__code__ is theirs.backward.__code__
    assert first.modules[0].weight.grad is not second.modules[0].weight.grad
    np.testing.assert_array_equal(second(x).numpy(), step(watched(second)[0], x)[0])
    assert not np.array_equal(first(x).numpy(), second(x).numpy())


def test_an_error_far_down_names_its_layer_with_and_without_a_graph():
    inner = nn.Sequential(nn.ReLU(), nn.Residual(nn.Sequential(nn.Dropout(), nn.Linear(5, 6))))
    model = nn.Sequential(nn.Linear(6, 6), nn.Residual(nn.Tanh()), inner)
    for mode in (contextlib.nullcontext(), ndl.no_grad()):
        with mode, pytest.raises(ValueError, match=r"^layer 2.1.fn.1, Linear\(5, 6\): linear needs"):
            model(given(False))
    inner.modules[1].fn.modules = (nn.Linear(6, 5), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"^layer 2.1.fn.1, BatchNorm1d\(4"):
        model(given(False))
    inner.modules[1].fn.modules = (nn.Linear(6, 5),)
    with pytest.raises(ValueError, match=r"^layer 2.1, .*: add: shapes \(8, 5\) and \(8, 6\) do not broadcast"):
        model(given(False))


def test_modules_may_pass_on_other_things_than_tensors():
    class Two(nn.Module):
        def forward(self, x):
            return x, ops.relu(x)

    class Join(nn.Module):
        def forward(self, both):
            return both[0] + both[1]

    net = nn.Sequential(nn.Linear(6, 6), Two(), Join(), nn.ReLU())
    net(given(False)).backward()
    assert net.modules[0].weight.grad.shape == (6, 6)


def test_a_subclass_of_an_op_with_a_rule_of_its_own_reads_what_it_likes():
    class Leaky(ops.ReLU):
        def vjp(self, g, y, needs, a):
            return (g * np.where(a > 0, 1, 0.5).astype(a.dtype),)

    class Other(ops.ReLU):
        """The base's rule, which needs no more than the base's."""

    assert Leaky.reads_inputs
    assert not Other.reads_inputs


@pytest.mark.parametrize("make", [ops.BatchNorm, ops.LayerNorm])
def test_a_norm_that_is_called_twice_keeps_for_neither_call(make):
    a, b = normal(6, 4), normal(6, 4, seed=1)
    w, c = normal(4), normal(4, seed=2)

    def grads(first, second):
        xs = [ndl.Tensor(a), ndl.Tensor(b)]
        ys = [op(x, ndl.Tensor(w), ndl.Tensor(c)) for op, x in zip((first, second), xs, strict=True)]
        ((ys[0] * a).sum() + (ys[1] * b).sum()).backward()
        return [x.grad.numpy() for x in xs]

    op = make(1e-5)
    for once, twice in zip(grads(make(1e-5), make(1e-5)), grads(op, op), strict=True):
        np.testing.assert_array_equal(once, twice)


SAMPLES = {
    "EWiseAdd": (ops.EWiseAdd(), 2),
    "AddScalar": (ops.AddScalar(2.0), 1),
    "MulScalar": (ops.MulScalar(2.0), 1),
    "DivScalar": (ops.DivScalar(2.0), 1),
    "Negate": (ops.Negate(), 1),
    "ReLU": (ops.ReLU(), 1),
    "Tanh": (ops.Tanh(), 1),
    "Sigmoid": (ops.Sigmoid(), 1),
    "Softmax": (ops.Softmax(), 1),
    "Softplus": (ops.Softplus(), 1),
    "Abs": (ops.Abs(), 1),
    "Sqrt": (ops.Sqrt(), 1),
    "Clip": (ops.Clip(-0.5, 0.5), 1),
    "Maximum": (ops.Maximum(), 2),
    "Minimum": (ops.Minimum(), 2),
    "Var": (ops.Var(0), 1),
    "Exp": (ops.Exp(), 1),
    "EWiseMul": (ops.EWiseMul(), 2),
    "MatMul": (ops.MatMul(), 2),
    "Linear": (ops.Linear(), 2),
    "BatchNorm": (ops.BatchNorm(), 3),
    "LayerNorm": (ops.LayerNorm(), 3),
}


def test_every_op_that_claims_not_to_read_is_tested():
    claims = {n for n, kind in vars(ops).items() if isinstance(kind, type) and issubclass(kind, ndl.Op)}
    claims = {n for n in claims if not (getattr(ops, n).reads_inputs and getattr(ops, n).reads_result)}
    assert claims == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_rule_does_not_look_at_what_its_op_claims_not_to_read(name):
    op, count = SAMPLES[name]
    xs = [normal(4, 4, seed=i) if i == 0 or count == 2 else normal(4, seed=i) for i in range(count)]
    xs[0] = np.abs(xs[0]) if name == "Sqrt" else xs[0]
    y = op.compute(*xs)
    g = normal(*y.shape, seed=9)
    needs = [True] * count
    right = op.vjp(g, y, needs, *xs)
    if not op.reads_inputs:
        xs[0] = np.full_like(xs[0], np.nan)  # the first alone may be an intermediate result that is let go of
    if not op.reads_result:
        y = np.full_like(y, np.nan)
    for a, b in zip(right, op.vjp(g, y, needs, *xs), strict=True):
        np.testing.assert_array_equal(a, b)


# -- a plan looks


class Scaled(nn.Linear):
    """A weight that is computed at each look."""

    scale = 1.0

    @property
    def weight(self):
        return self.held * self.scale

    @weight.setter
    def weight(self, value):
        self.held = value


class Looked(nn.Linear):
    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        return found * self.__dict__.get("factor", 1) if name == "weight" else found


class Missing(nn.Linear):
    def __init__(self, *features):
        super().__init__(*features)
        self.held = self.__dict__.pop("weight")

    def __getattr__(self, name):
        if name != "weight":
            raise AttributeError(name)
        return self.held * self.__dict__.get("factor", 1)


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def change_by_the_class(layer):
    type(layer).scale = 3.0


def change_past_setattr(layer):
    vars(layer)["factor"] = 3.0


def replace_weight(layer):
    vars(layer)["weight"] = nn.Parameter(layer.weight.numpy() * 2)


def replace_bias(layer):
    vars(layer)["bias"] = nn.Parameter(layer.bias.numpy() + 2)


def drop_bias(layer):
    vars(layer)["bias"] = None


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Scaled, change_by_the_class),
        (Looked, change_past_setattr),
        (Missing, change_past_setattr),
        (Own, replace_weight),
        (nn.Linear, replace_weight),
        (nn.Linear, replace_bias),
        (nn.Linear, drop_bias),
    ],
)
@pytest.mark.parametrize("features", [1, 5])
def test_a_layer_computes_in_a_sequential_what_it_computes_alone(kind, change, features, monkeypatch):
    monkeypatch.setattr(Scaled, "scale", 1.0)
    layer = kind(6, features)
    model = nn.Sequential(nn.ReLU(), nn.Residual(nn.Sequential(layer, nn.Linear(features, 6))))
    x = ndl.Tensor(normal(8, 6))

    def alone():
        inner = ops.relu(x)
        return (model.modules[1].fn.modules[1](layer(inner)) + inner).numpy()

    for _ in range(2):
        np.testing.assert_array_equal(model(x).numpy(), alone())
    before = alone()
    change(layer)
    assert not np.array_equal(alone(), before)
    np.testing.assert_array_equal(model(x).numpy(), alone())
    model(x).sum().backward()
    for p in model.parameters():
        assert p.grad is not None


@pytest.mark.parametrize("equal", [False, True])
def test_the_gradient_goes_to_the_weight_that_stands_there_now(equal):
    layer = nn.Linear(1, 1)
    model = nn.Sequential(layer, nn.ReLU())
    model(ndl.Tensor([[1.0]], dtype="float32"))
    first = layer.weight
    vars(layer)["weight"] = second = nn.Parameter(np.abs(first.numpy()) if not equal else first.numpy())
    (model(ndl.Tensor([[1.0]], dtype="float32")) + layer.weight).backward()
    assert first.grad is None
    assert second.grad is not None


def test_containers_are_looked_at_too():
    x = ndl.Tensor(normal(8, 6))
    model = nn.Sequential(nn.Residual(nn.Tanh()), nn.Sequential(nn.ReLU()))
    model(x)
    vars(model.modules[0])["fn"] = nn.Identity()
    np.testing.assert_array_equal(model(x).numpy(), np.maximum(2 * x.numpy(), 0))
    vars(model.modules[1])["modules"] = (nn.Tanh(),)
    np.testing.assert_array_equal(model(x).numpy(), np.tanh(2 * x.numpy()))
    vars(model)["modules"] = (nn.ReLU(),)
    np.testing.assert_array_equal(model(x).numpy(), np.maximum(x.numpy(), 0))

    class Doubling(nn.Residual):
        @property
        def fn(self):
            return nn.Identity()

        @fn.setter
        def fn(self, value):
            pass

    np.testing.assert_array_equal(nn.Sequential(Doubling(nn.Tanh()))(x).numpy(), 2 * x.numpy())


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm1d])
def test_third_derivatives_go_through(norm):
    np.random.seed(0)
    wide = {"dtype": "float64"}
    inner = nn.Sequential(nn.Linear(4, 4, **wide), norm(4, **wide), nn.Sigmoid())
    model = nn.Sequential(nn.Linear(3, 4, **wide), nn.Tanh(), nn.Residual(inner), nn.Linear(4, 2, **wide))

    def one_by_one(x):
        first, tanh, _, last = model.modules
        x = tanh(first(x))
        y = x
        for layer in inner.modules:
            y = layer(y)
        return last(y + x)

    found = []
    for forward in (model, one_by_one):
        x = ndl.Tensor(np.random.RandomState(1).randn(5, 3))
        found.append([])
        y = (forward(x) ** 2).sum()
        for _ in range(3):
            y.backward(create_graph=True)
            gradients = [x.grad, *(p.grad for p in model.parameters())]
            found[-1].append([g.numpy().copy() for g in gradients])
            y = sum((g * g).sum() for g in gradients)
        for tensor in (x, *model.parameters()):
            tensor.grad = None
    for chained, plain in zip(*found, strict=True):
        for a, b in zip(chained, plain, strict=True):
            np.testing.assert_array_equal(a, b)
    assert found[0][2][0].any()


def test_a_model_that_has_run_dies_without_the_collector():
    """The plan that a Sequential keeps holds on to its modules, and not to the Sequential: no circle."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Residual(nn.Linear(2, 2))), nn.BatchNorm1d(2))
    model(ndl.Tensor(np.ones((3, 2), dtype="float32"))).sum().backward()
    parts = [weakref.ref(m) for m in (model, model.modules[1], model.modules[0].weight)]
    gc.disable()
    try:
        del model
        assert [part() for part in parts] == [None, None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("cls", [nn.Linear, nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_a_method_of_any_class_counts_when_it_is_replaced(monkeypatch, cls, name):
    x = given(False)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Tanh())
    assert model(x)._chain is not None
    monkeypatch.setattr(cls, name, lambda self, t: t * 0 - 3)
    assert model(x)._chain is None
    after = {nn.Linear: np.tanh(0.0), nn.ReLU: np.tanh(np.float32(-3)), nn.Tanh: -3.0}[cls]
    np.testing.assert_allclose(model(x).numpy(), np.full((8, 6), after), rtol=1e-6)


def test_what_is_written_past_setattr_counts():
    x = given(False)
    model = nn.Sequential(nn.Linear(6, 6), nn.Residual(nn.Sequential(nn.ReLU())))
    before = model(x).numpy()
    linear, residual = model.modules
    vars(linear)["bias"] = None
    np.testing.assert_array_equal(
        model(x).numpy(),
        2 * np.maximum(x.numpy() @ linear.weight.numpy(), 0) + np.minimum(x.numpy() @ linear.weight.numpy(), 0),
    )
    assert not np.array_equal(model(x).numpy(), before)
    vars(residual.fn)["modules"] = (nn.Tanh(),)
    z = x.numpy() @ linear.weight.numpy()
    np.testing.assert_allclose(model(x).numpy(), z + np.tanh(z), rtol=1e-6)


class Looked(nn.Linear):
    """Its weight is another one at each look."""

    scale = 1.0

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        return value * Looked.scale if name == "weight" else value


def test_attributes_that_are_computed_at_each_look_are_not_planned_with(monkeypatch):
    x = given(False)
    model = nn.Sequential(Looked(6, 6, bias=False), nn.ReLU())
    before = model(x).numpy()
    monkeypatch.setattr(Looked, "scale", 2.0)
    np.testing.assert_array_equal(model(x).numpy(), 2 * before)


class LookedAt(nn.Sequential):
    """Its modules are computed at each look."""

    reverses = False

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        return value[::-1] if name == "modules" and LookedAt.reverses else value


def test_modules_that_are_computed_at_each_look_are_not_planned_with(monkeypatch):
    x = given(False)
    model = LookedAt(nn.ReLU(), nn.Tanh())
    np.testing.assert_array_equal(model(x).numpy(), np.tanh(np.maximum(x.numpy(), 0)))
    monkeypatch.setattr(LookedAt, "reverses", True)
    np.testing.assert_array_equal(model(x).numpy(), np.maximum(np.tanh(x.numpy()), 0))


def test_a_plan_is_kept_for_as_long_as_it_holds():
    model = made("resnet")
    model(given(False))
    plan = model._plan
    model(given(False))
    assert model._plan is plan
    model.modules[5].bias = nn.Parameter(ndl.Tensor(np.ones((1, 6), "float32")))
    model(given(False))
    assert model._plan is not plan


class Backwards(nn.Module):
    """Holds modules like a Sequential, and does something else with them."""

    def __init__(self, *modules):
        super().__init__()
        self.modules = modules

    def forward(self, x):
        for module in reversed(self.modules):
            x = module(x)
        return x


def test_only_a_sequential_is_taken_for_one():
    x = given(False)
    model = nn.Sequential(Backwards(nn.ReLU(), nn.Tanh()), nn.Identity())
    np.testing.assert_array_equal(model(x).numpy(), np.maximum(np.tanh(x.numpy()), 0))


@pytest.mark.parametrize("shared", ["weight", "bias"])
def test_layers_that_share_one_parameter_alone_give_it_the_gradients_of_both(shared):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    setattr(second, shared, getattr(first, shared))
    x, g = ndl.Tensor(normal(4, 3)), ndl.Tensor(normal(4, 3, seed=1))
    grads = []
    for model in (nn.Sequential(first, nn.Tanh(), second), lambda x: second(ops.tanh(first(x)))):
        model(x).backward(g)
        grads.append([p.grad.numpy() for p in dict.fromkeys([first.weight, first.bias, second.weight, second.bias])])
    for in_a_chain, called in zip(*grads, strict=True):
        np.testing.assert_array_equal(in_a_chain, called)


@pytest.mark.parametrize(("op", "layer"), [(ops.ReLU, nn.ReLU), (ops.Tanh, nn.Tanh), (ops.Linear, None)])
def test_a_gradient_rule_that_is_replaced_alone_counts_from_then_on(op, layer, monkeypatch):
    model = nn.Sequential(nn.Linear(3, 3), *([layer()] if layer else []), nn.Linear(3, 2))
    x = ndl.Tensor(normal(4, 3))
    model(x).sum().backward()
    assert np.any(x.grad.numpy())
    right = op.vjp
    monkeypatch.setattr(
        op, "vjp", lambda self, *given: tuple(None if c is None else c * 0 for c in right(self, *given))
    )
    model(x).sum().backward()
    assert not np.any(x.grad.numpy())


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_an_operand_that_was_computed_passes_its_gradient_on(name):
    """Of a Linear behind which, and before which, nothing else needs one."""
    layer = nn.Linear(3, 3)
    start = ndl.Tensor(normal(*getattr(layer, name).shape))
    for p in (layer.weight, layer.bias):
        p.requires_grad = False
    setattr(layer, name, start * 2)
    x, g = ndl.Tensor(normal(4, 3), requires_grad=False), ndl.Tensor(normal(4, 3, seed=1))
    nn.Sequential(layer, nn.Identity())(x).backward(g)
    expected = x.numpy().T @ g.numpy() if name == "weight" else g.numpy().sum(0, keepdims=True)
    np.testing.assert_allclose(start.grad.numpy(), 2 * expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_parameter_that_alone_is_not_frozen_gets_its_gradient(name):
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2))
    x = ndl.Tensor(normal(4, 3), requires_grad=False)
    model(x).sum().backward()
    expected = getattr(layer, name).grad.numpy()
    model.zero_grad()
    for p in model.parameters():
        p.requires_grad = p is getattr(layer, name)
    model(x).sum().backward()
    assert [p.grad is not None for p in model.parameters()] == [p.requires_grad for p in model.parameters()]
    np.testing.assert_array_equal(getattr(layer, name).grad.numpy(), expected)


class EvaluatesAlways(nn.BatchNorm1d):
    training = False


def test_a_norm_that_has_its_mode_from_its_class():
    norm = EvaluatesAlways(3)
    vars(norm).pop("training", None)
    model = nn.Sequential(nn.Linear(3, 3), norm)
    x = ndl.Tensor(np.arange(12, dtype="float32").reshape(4, 3))
    assert model(x).numpy().tobytes() == norm(model.modules[0](x)).numpy().tobytes()
    model(x).sum().backward()
    assert norm.bias.grad.numpy().tolist() == [4, 4, 4]


def test_a_weight_without_dimensions_is_refused_by_its_shape():
    norm = nn.LayerNorm1d(3)
    norm.weight = nn.Parameter(np.float32(1))
    with pytest.raises(ValueError, match=r"weight \(d,\) and bias \(d,\), but got \(2, 3\), \(\), \(3,\)"):
        nn.Sequential(norm)(ndl.Tensor(np.ones((2, 3), "float32")))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (None, "BatchNorm takes needle Tensors, but got NoneType"),
        (nn.Parameter(np.float32(1)), r"batch_norm needs .*, but got \(2, 3\), \(\), \(3,\)"),
    ],
    ids=["none", "without dimensions"],
)
def test_a_norm_whose_weight_is_none_says_so_itself(weight, message):
    norm = nn.BatchNorm1d(3)
    norm.weight = weight
    with pytest.raises((TypeError, ValueError), match=f"layer 1, BatchNorm1d.*: {message}"):
        nn.Sequential(nn.Linear(3, 3), norm)(ndl.Tensor(normal(2, 3)))


def test_a_norm_of_another_width_than_its_weight_says_so_itself():
    norm = nn.BatchNorm1d(3)
    norm.dim = 4
    with pytest.raises(ValueError, match=r"BatchNorm1d\(4\) needs shape \(batch, 4\), but got \(2, 3\)"):
        nn.Sequential(nn.Linear(3, 3), norm)(ndl.Tensor(normal(2, 3)))


class OfTheHalf(nn.BatchNorm1d):
    """Computes its weight at each look."""

    @property
    def weight(self):
        return self.half * 2

    @weight.setter
    def weight(self, value):
        self.half = value


def test_a_norm_that_computes_its_weight():
    norm = OfTheHalf(3)
    model = nn.Sequential(nn.Linear(3, 3), norm)
    x = ndl.Tensor(normal(4, 3))
    for value in (1, 3):
        norm.half.data = ndl.Tensor(np.full(3, value, "float32"))
        assert model(x).numpy().tobytes() == norm(model.modules[0](x)).numpy().tobytes()


def test_a_norm_behind_layers_that_do_not_fit():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 6), nn.BatchNorm1d(6))
    with pytest.raises(ValueError, match=r"linear needs \(..., in\) @ \(in, out\), but got \(2, 4\) @ \(5, 6\)"):
        model(ndl.Tensor(normal(2, 3)))


def test_a_layer_in_double_precision_is_noticed_in_the_next(monkeypatch):
    monkeypatch.setattr(ops, "_warned", False)
    norm = nn.BatchNorm1d(4, dtype="float64")
    norm.eval()  # computes its ops at each call
    with pytest.warns(ndl.PrecisionWarning, match=r"shape \(2, 4\) goes into a layer with float32 weights"):
        nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2))(ndl.Tensor(normal(2, 3)))


def test_without_a_graph_norms_keep_nothing():
    rows, depth = 10_000, 40
    # Rows of two numbers: what each is scaled by takes half as much memory as they do.
    model = nn.Sequential(nn.Linear(2, 2), *(nn.LayerNorm1d(2) for _ in range(depth)))
    x = ndl.Tensor(normal(rows, 2))
    with ndl.no_grad():
        model(x)
        tracemalloc.start()
        try:
            model(x)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert "._normalised(" in model._plan.code.source
    assert peak < depth / 2 * rows * 4


def test_a_rule_that_answers_with_lists(monkeypatch):
    tanh, norm = ops.Tanh.vjp, ops.LayerNorm.vjp
    monkeypatch.setattr(ops.Tanh, "vjp", lambda *given: tuple(d.tolist() for d in tanh(*given)))
    monkeypatch.setattr(ops.LayerNorm, "vjp", lambda *given: tuple(d.tolist() for d in norm(*given)))
    layers = nn.Sigmoid(), nn.LayerNorm1d(6), nn.Tanh()
    x, found = ndl.Tensor(normal(4, 6)), []
    for model in (nn.Sequential(*layers), lambda x: layers[2](layers[1](layers[0](x)))):
        model(x).sum().backward()
        tensors = x, layers[1].weight, layers[1].bias
        found.append([t.grad.numpy() for t in tensors])
        for t in tensors:
            t.grad = None
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == np.float32
        assert ours.tobytes() == theirs.tobytes()
