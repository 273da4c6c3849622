"""Every rule lets right results pass, and is shown to catch a planted wrong one."""

import contextlib
import types

import numpy as np
import pytest
import torch

import needle
from oracle.blame import judged
from oracle.cases import case as c
from oracle.operations.tape import U
from oracle.rules import compare as cmp
from oracle.rules import torch_update, update
from oracle.rules.domain import out_of_domain
from oracle.rules.update import roundings_apart
from oracle.systems.trace import same_bits
from oracle.trust.faults import FAULTS as CATALOGUE

SGD = c.SGD(lr=0.1, momentum=0.9, weight_decay=0.1)


def train(*model, **changes):
    given = {"data": c.Data(rows=4, features=3), "loss": c.SoftmaxLoss(), "optimizer": SGD, "seed": 2, "steps": 3}
    return c.TrainCase(model=model or (c.Linear(4), c.Tanh(), c.Linear(2)), **(given | changes))


@contextlib.contextmanager
def patched(owner, name, make):
    """owner.name replaced by make(original) for a while."""
    original, inherited = getattr(owner, name), name not in vars(owner)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


def after_step(change):
    """A fault in SGD.step: ``change(optimizer)`` is applied behind the real step."""

    def make(step):
        def wrong(self):
            step(self)
            change(self)

        return wrong

    return patched(needle.optim.SGD, "step", make)


def first(optimizer):
    return optimizer.params[0]


def scale(array, factor):
    array *= np.float32(factor)


def fresh(tensor, change):
    tensor.cached_data = change(tensor.cached_data.copy())


FAULTS = {
    # rule, quantity, the fault
    "forward": ("G", "activation", lambda: patched(needle.ops.Tanh, "compute", lambda f: lambda s, a: f(s, a) * np.float32(1.0001))),
    "backward": ("G", "adjoint", lambda: patched(needle.ops.Tanh, "vjp", lambda f: lambda s, g, *r: f(s, g * np.float32(1.0001), *r))),
    "nan": ("G", "activation", lambda: patched(needle.ops.Tanh, "compute", lambda f: lambda s, a: f(s, a) * np.float32("nan"))),
    "dtype": ("dtype", "activation", lambda: patched(needle.ops.Tanh, "compute", lambda f: lambda s, a: f(s, a.astype("float64")))),
    "shape": ("shape", "loss", lambda: patched(needle.nn.SoftmaxLoss, "forward", lambda f: lambda s, z, y: f(s, z, y).reshape((1,)))),
    "missing gradient": ("missing", "gradient", lambda: patched(
        needle.Tensor, "backward", lambda f: lambda s, *a, **k: (f(s, *a, **k), LAST.clear_first())[0])),
    "in place": ("exact", "gradient after step", lambda: after_step(lambda o: scale(first(o).grad.cached_data, 1.5))),
    "velocity": ("L", "velocity", lambda: after_step(lambda o: fresh(o.u[first(o)], lambda u: u * np.float32(1.00001)))),
    "parameter": ("L", "parameter", lambda: after_step(lambda o: fresh(first(o), lambda p: p + np.float32(1e-5)))),
    "exception": ("exception", "exception in step", lambda: after_step(lambda o: 1 / 0)),
    "order": ("exact", "parameters", lambda: patched(
        needle.nn.Sequential, "parameters", lambda f: lambda s: list(reversed(list(f(s)))))),
}  # fmt: skip


class Last:
    """Remembers the newest optimizer, for the fault that loses a gradient."""

    optimizer = None

    def clear_first(self):
        if self.optimizer is not None:
            self.optimizer.params[0].grad = None


LAST = Last()


@pytest.fixture(autouse=True)
def _remember(monkeypatch):
    make = needle.optim.SGD.__init__

    def remembering(self, *args, **kwargs):
        make(self, *args, **kwargs)
        LAST.optimizer = self

    monkeypatch.setattr(needle.optim.SGD, "__init__", remembering)


def test_the_case_of_these_tests_agrees():
    verdict = judged(train(), needle)
    assert verdict.divergence is None
    assert verdict.oracle_errors == []
    assert verdict.tally.tensors > 100, "what was compared is counted"


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_by_its_rule(name, monkeypatch):
    rule, quantity, plant = FAULTS[name]
    monkeypatch.setattr(needle.ops, "_warned", False)  # what needle would say of it once is no exception here
    with plant():
        found = judged(train(), needle).divergence
    assert found is not None
    assert (found.rule, found.quantity) == (rule, quantity), found.message
    assert judged(train(), needle).divergence is None, "the fault has been taken out again"


def test_rule_t_alone_catches_a_wrong_expectation(monkeypatch):
    """If our own idea of the update were wrong and needle made the same mistake, torch's optimizer would tell."""
    right = update.expected_update

    def wrong(case, lr, p, g, old, t, k):
        return right(case, lr * 1.01, p, g, old, t, k)

    for rule in (update, torch_update):
        monkeypatch.setattr(rule, "expected_update", wrong)

    def make(step):
        def faster(self):
            self.lr *= 1.01
            step(self)
            self.lr /= 1.01

        return faster

    with patched(needle.optim.SGD, "step", make):
        found = judged(train(), needle).divergence
    assert found is not None
    assert found.rule == "T"


def test_rule_t_knows_by_how_much_the_norm_of_torch_is_off(monkeypatch):
    """As in the case 8bb348d7, where it was 52 roundings; what needle's own factor is off by is another matter."""
    case = train(clip=c.Clip(max_norm=0.01))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", off_by(64 * U))
    assert judged(case, needle).divergence is None

    def make(clip):
        def clip_grad_norm(self, max_norm=0.25):
            return clip(self, max_norm * (1 + 64 * U))

        return clip_grad_norm

    with patched(needle.optim.Optimizer, "clip_grad_norm", make):
        found = judged(case, needle, peer_too=False).divergence
    assert found is not None
    assert found.rule == "L"


def off_by(share):
    """torch's clip_grad_norm_ with a norm that is off."""

    def clip_grad_norm_(parameters, max_norm):
        norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in parameters)) * (1 + share)
        for p in parameters:
            p.grad *= (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    return clip_grad_norm_


def test_how_many_roundings_numbers_are_apart():
    value, right = np.array([1 + 8 * U, 1.0, 0.0, np.inf, np.nan]), np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    assert roundings_apart(value, right).tolist() == [8.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("optimizer", [SGD, c.SGD(lr=0.1), c.Adam(), c.Adam(weight_decay=0.5)])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("parameter", [0, 3, 4])
def test_a_parameter_that_misses_a_step_is_left_alone_and_goes_on_from_there(optimizer, step, parameter):
    case = train(optimizer=optimizer, steps=4, gap=c.Gap(step, parameter))
    verdict = judged(case, needle)
    assert verdict.divergence is None
    assert verdict.oracle_errors == []
    kind = type(optimizer).__name__.lower()
    for fault in {"sgd": ("sgd-skipped-coasts",), "adam": ("adam-t-of-all", "adam-run-mixed")}[kind]:
        if (kind == "adam" and step == 3) or (kind == "sgd" and optimizer.momentum is None):
            continue  # the count matters afterwards, and without momentum torch has no velocity to go on with
        with CATALOGUE[fault].patch.applied():
            found = judged(case, needle).divergence
        assert found is not None, fault
        assert (found.rule, found.quantity) == ("L", "parameter")


def test_rounding_that_needle_and_torch_share_is_no_divergence_but_an_error_of_one_of_them_is():
    """Also the cases 5661d992 and 1e54ae54: 64 equal rows that round alike."""
    truth, ours = np.zeros(5), np.array([4.0, 4.0, 4.0, 4.0, np.nan])
    peer = np.array([4.0, 2.0, 1.9, -4.0, np.nan])
    assert cmp.made_by_both(ours, peer, truth).tolist() == [True, True, False, False, False]


def test_where_torch_alone_overflows_the_truth_decides():
    """34 ** 25 is a float32 number, and 26 times it is none: torch multiplies that with a gradient of 0."""

    def judge(wrong):
        vjp = needle.ops.EWisePow.vjp
        with patched(needle.ops.EWisePow, "vjp", lambda _: lambda s, g, *rest: (wrong(vjp(s, g, *rest)[0]), None)):
            return judged(case, needle).divergence

    base, exponent = (c.Operand((2,), values) for values in ((34.0, 2.0), (26.0, 3.0)))
    case = c.OpCase("power", (base, exponent), cotangent=(0.0, 1.0), constants=(1,))
    assert judge(lambda da: da) is None
    assert judge(lambda da: da + np.float32(1)).rule == "nonfinite"


@pytest.mark.parametrize("factor", [1 + 2.0**-k for k in (8, 14, 18)])
def test_rule_l_sees_small_errors_of_a_velocity(factor):
    with after_step(lambda o: [fresh(u, lambda a: a * np.float32(factor)) for u in o.u.values()]):
        found = judged(train(), needle).divergence
    assert found is not None
    assert found.quantity == "velocity"


def test_an_array_kept_from_an_earlier_step_must_not_change():
    kept = []

    def make(step):
        def wrong(self):
            step(self)
            for array in kept:
                array += 1
            kept[:] = [p.grad.cached_data for p in self.params if p.grad is not None]

        return wrong

    with patched(needle.optim.SGD, "step", make):
        found = judged(train(), needle).divergence
    assert found is not None
    assert found.quantity == "kept"


@pytest.mark.parametrize(
    ("target", "fault", "quantity"),
    [
        ("BatchNorm1d", lambda f: lambda s, x: (scale(s.running_mean.cached_data, 1.01), f(s, x))[1], "untouched"),
        ("Dropout", lambda f: lambda s, x: (np.random.rand(), f(s, x))[1], "activation"),
    ],
)
def test_evaluation_leaves_things_alone(target, fault, quantity):
    case = train(c.BatchNorm(), c.Dropout(0.5), c.Linear(2))
    with patched(getattr(needle.nn, target), "forward", fault):
        found = judged(case, needle).divergence
    assert found is not None
    assert found.quantity in (quantity, "evaluation", "buffer")


def test_nothing_is_compared_beyond_the_domain_but_it_is_counted():
    case = train(c.Ops((c.OpStep("mul_scalar", (0,), {"c": 1e20}),)), c.Linear(2))
    verdict = judged(case, needle)
    assert (verdict.divergence, verdict.out_of_domain, verdict.steps) == (None, 1, 0)


def test_what_overflows_inside_a_layer_ends_the_domain_too():
    """log(exp(200)) is 200, and infinite in float32; torch's is too."""
    inner = (c.OpStep("mul_scalar", (0,), {"c": 0.0}), c.OpStep("add_scalar", (1,), {"c": 200.0}))
    case = train(c.Ops((*inner, c.OpStep("exp", (2,)), c.OpStep("log", (3,)))), c.Linear(2))
    verdict = judged(case, needle)
    assert (verdict.divergence, verdict.oracle_errors) == (None, [])
    assert (verdict.out_of_domain, verdict.steps) == (1, 0)


def constant_columns(*model, **changes):
    return train(
        *model, **{"data": c.Data(rows=33, features=4, offset=-1000.0, repeated_rows=True), "steps": 2} | changes
    )


def times(factor):
    return c.Ops((c.OpStep("mul_scalar", (0,), {"c": factor}),))


def test_nothing_is_compared_where_rounding_alone_decides():
    """A norm makes 0 of constant columns in theory, and last bits times 316 in float32; what is made of those is chance."""
    plain = judged(constant_columns(c.BatchNorm()), needle, validate=True)
    assert (plain.divergence, plain.oracle_errors, plain.out_of_domain, plain.steps) == (None, [], 0, 2)
    chance = judged(constant_columns(c.BatchNorm(), times(1e4)), needle, validate=True)
    assert (chance.divergence, chance.oracle_errors, chance.out_of_domain, chance.steps) == (None, [], 1, 0)


def test_where_rounding_is_large_but_decides_nothing_needle_is_judged():
    """Noise of 1 and more in numbers of 1e7: that is precision, not chance."""
    large = constant_columns(c.Linear(4), times(1e4), times(1e-4))
    assert judged(large, needle).steps == 2
    with patched(needle.ops.MulScalar, "compute", lambda f: lambda s, a: f(s, a) * np.float32(1 + 2**-12)):
        assert judged(large, needle).divergence is not None


def test_a_norm_over_a_single_number_may_round_as_x_inv_minus_mean_inv():
    """A LayerNorm over one feature gives its bias: exactly, or, as torch has it, but for the rounding of x/√eps."""
    case = constant_columns(c.Linear(1), c.LayerNorm(), c.Linear(3), keep_init=True)
    verdict = judged(case, needle, validate=True)
    assert (verdict.divergence, verdict.oracle_errors, verdict.steps) == (None, [], 2)

    def offset(share):
        """The output of needle's LayerNorm, off by a share of |x|/√eps."""
        return lambda f: lambda s, x, w, b: f(s, x, w, b) + np.float32(share * np.abs(x).max() / 1e-5**0.5)

    with patched(needle.ops.LayerNorm, "compute", offset(2.0**-24)):
        assert judged(case, needle).divergence is None
    with patched(needle.ops.LayerNorm, "compute", offset(2.0**-18)):
        assert judged(case, needle).divergence is not None


def test_forms_are_compared_before_values():
    right = np.zeros((2, 3), dtype=np.float32)
    assert cmp.check_form(0, "gradient", "w", right, (2, 3), "float32") is None
    for wrong, rule in [(None, "missing"), (right[:1], "shape"), (right.T, "shape"), (right.astype(float), "dtype")]:
        found = cmp.check_form(0, "gradient", "w", wrong, (2, 3), "float32")
        assert found is not None
        assert found.rule == rule


def test_the_share_of_a_missing_number_is_infinite():
    truth = np.ones((8, 1, 2))
    assert np.isinf(cmp.share_g(np.array([[1.0, np.nan]]), truth)[0, 1])
    assert np.isinf(cmp.share_g(np.array([[np.inf, 1.0]]), truth)[0, 0])
    assert cmp.share_g(np.ones((1, 2)), truth).max() == 0


def test_tensors_side_by_side_are_judged_as_each_alone():
    rng = np.random.RandomState(0)
    shapes, steps = [(3, 4), (), (5,), (2, 1)], 3
    exact = [rng.standard_normal((1, steps, *s)) * 10.0**i for i, s in enumerate(shapes)]
    truth = [x + np.concatenate([0 * x, *[1e-6 * rng.standard_normal(x.shape) for _ in range(7)]]) for x in exact]
    truth[3] = truth[3][:1]  # exact in all replicas, and kept as one
    ours = [(x[0] + 1e-6 * rng.standard_normal(x[0].shape)).astype(np.float32) for x in truth]
    joined = cmp.Joined([("activation", str(i)) for i in range(4)], shapes)
    together = joined.replicas(truth, steps)
    allowed = cmp.G_LIMIT * cmp.tolerance(together, joined)
    share = cmp.share_of(joined.steps([[o[t] for o in ours] for t in range(steps)]), together[0], allowed)
    for i, shape in enumerate(shapes):
        alone = cmp.share_g(ours[i], truth[i])
        for t in range(steps):
            assert np.array_equal(joined.part(share[t], i), alone[t])
            assert joined.part(share[t], i).shape == shape
        assert np.array_equal(joined.largest(share)[:, i], alone.reshape(steps, -1).max(axis=1))
    assert [joined.tensor(e) for e in (0, 11, 12, 13, 17, 18, 19)] == [0, 0, 1, 2, 2, 3, 3]


def test_one_wrong_tensor_among_many_is_named():
    """All tensors of a step are compared at once; a wrong form of one must not hide a wrong value of another."""

    def wrong(optimizer):
        fresh(optimizer.params[1], lambda a: a[0])
        scale(optimizer.params[2].cached_data, 1.01)

    with after_step(wrong):
        verdict = judged(train(), needle)
    assert verdict.divergence is not None
    assert (verdict.divergence.place, verdict.divergence.rule) == ("parameter 0.bias", "shape")

    def slightly(optimizer):
        scale(optimizer.params[2].cached_data, 1.01)

    with after_step(slightly):
        found = judged(train(), needle).divergence
    assert found is not None
    assert (found.step, found.quantity, found.name) == (0, "parameter", "2.weight")


def test_equal_bits():
    a = np.array([1.0, np.nan, 0.0])
    assert same_bits(a, a.copy())
    assert not same_bits(a, np.array([1.0, np.nan, 1e-45]))
    assert not same_bits(a, a[:2])
    assert not same_bits(a[:1], np.ones((1, 1)))


def test_every_moment_is_counted_once():
    verdict = judged(train(), needle, validate=True)
    parts = {"inputs", "needle", "torch", "observing", "truth", "rules", "OP", "validation"}
    assert set(verdict.seconds) == parts
    assert all(spent >= 0 for spent in verdict.seconds.values())
    operation = c.OpCase("exp", (c.Operand((2,), (0.0, 1.0)),))
    assert set(judged(operation, needle).seconds) == {"observing", "needle", "torch", "truth", "rules"}


def test_another_needle_is_judged_by_what_it_does():
    """The package under test is an argument; a copy with its own fault is judged on its own."""
    other = types.SimpleNamespace(**{n: getattr(needle, n) for n in dir(needle) if not n.startswith("__")})
    other.exp = lambda x: needle.exp(x) * 1.01
    case = train(c.Linear(4), c.Ops((c.OpStep("exp", (0,)),)), c.Linear(2))
    assert judged(case, needle).divergence is None
    found = judged(case, other).divergence
    assert found is not None
    assert found.place.startswith("activation 1")


def test_a_step_that_is_no_number_says_nothing_about_the_others():
    """Rounding alone decides in the first step, the second is sound, and the third overflows."""
    rng = np.random.default_rng(0)
    logits = np.zeros((8, 3, 2, 2))
    logits[1:, 0] = rng.normal(size=(7, 2, 2)) * 3
    logits[1:, 1] = rng.normal(size=(7, 2, 2)) * 1e-6
    logits[:, 2] = np.nan
    assert out_of_domain({"activation": {"2": logits}}, "2").tolist() == [True, False, True]
    assert out_of_domain({"activation": {"2": logits[:, :2]}}, "2").tolist() == [True, False]
