"""What the noise needs, point by point: each was a wrong verdict once, and is one again where the point is switched off."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oracle import check
from oracle.check import comparing, measuring, steps
from oracle.systems import aten, noise
from oracle.systems.noise import Refused, Rounding

f32 = np.float32


def agrees(candidate, program):
    """Whether rounding explains all of it."""
    try:
        check.same(candidate, program, report=True)
    except check.Difference:
        return False
    return True


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(f32)


def nobody(ours, peer, truth):
    """torch makes no error that is ours too."""
    return np.zeros(ours.shape, bool)


@pytest.fixture
def off(monkeypatch):
    """Switches a point off: what aten says of an operation is read anew."""

    def switch(owner, name, value):
        monkeypatch.setattr(owner, name, value)
        aten.operation.cache_clear()

    yield switch
    monkeypatch.undo()
    aten.operation.cache_clear()


# -- 1: infinities ------------------------------------------------------------------------------------------------------


def test_an_infinite_mask_stays_infinite_and_a_fault_behind_it_is_found(off):
    x = drawn(3, 4)
    mask = np.where(np.tri(3, 4, dtype=bool), 0, -np.inf).astype(f32)

    def program():
        return {"p": torch.softmax(torch.from_numpy(x) + torch.from_numpy(mask), 1)}

    right = np.exp(x) * np.isfinite(mask)
    right /= right.sum(1, keepdims=True)
    assert agrees({"p": right}, program)
    assert not agrees({"p": right * f32(1.0001)}, program)
    off(Rounding, "rounded", lambda self, t, w: t + t * (self.draw(t.shape) * self.unit * w))
    assert agrees({"p": right * f32(1.0001)}, program), "everything has become nan, and passes"


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        ({"y": np.array([np.nan, 2.0], f32)}, "1 nan"),
        ({"y": np.array([[1.0, 2.0]], f32)}, "has another shape"),
        ({}, "the candidate has no y"),
        ({"y": np.array([1.0, 2.0], f32), "z": np.ones(1)}, "the torch program has no z"),
        ({"y": np.array([1.0, 2.0], np.complex64)}, "y is complex, torch's is real"),
    ],
)
def test_form_comes_before_numbers(candidate, words):
    with pytest.raises(check.Difference, match=words):
        check.same(candidate, lambda: {"y": torch.tensor([1.0, 2.0])})


def test_a_complex_part_that_is_dropped_is_found():
    with pytest.raises(check.Difference, match="y is real, torch's is complex"):
        check.same({"y": np.ones(2, f32)}, lambda: {"y": torch.ones(2, dtype=torch.complex64)})


# -- 2: what rounds nothing, by exact name -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["index_add", "embedding"])
def test_an_operation_is_exempt_by_its_exact_name(off, name):
    x = np.full(3000, 0.1, f32)  # the rounding of one addition is like that of the next
    where = np.zeros(3000, np.int64)

    def program():
        t = torch.from_numpy(x)
        if name == "index_add":
            return {"y": torch.zeros(1).index_add(0, torch.from_numpy(where), t)}
        table = torch.zeros(1, 1, requires_grad=True)
        (F.embedding(torch.from_numpy(where), table)[:, 0] * t).sum().backward()
        return {"y": table.grad[0]}

    one_by_one = np.add.accumulate(x[::-1])[-1:]
    assert agrees({"y": one_by_one}, program)
    off(comparing, "shared_error", nobody)
    assert agrees({"y": one_by_one}, program)
    prefixes = ("index", "embedding", "t", "ge")
    off(aten, "moves", lambda func, n: func.is_view or n in aten.EXACT or n.startswith(prefixes))
    assert not agrees({"y": one_by_one}, program)


# -- 3: fused operations, and long sums ----------------------------------------------------------------------------------


def layer_norm(x):
    mean = np.add.accumulate(x, axis=-1)[..., -1:] / f32(x.shape[-1])
    centred = x - mean
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + f32(1e-5))


def test_a_fused_operation_is_taken_apart(off):
    x = drawn(4, 64) + 100

    def program():
        return {"y": F.layer_norm(torch.from_numpy(x), (64,))}

    assert agrees({"y": layer_norm(x)}, program)
    off(aten, "APART", frozenset())
    off(comparing, "shared_error", nobody)
    off(Rounding, "perturbed", lambda self, value, weight=1.0: value)
    assert not agrees({"y": layer_norm(x)}, program)


def test_the_parts_of_every_fused_operation_are_seen():
    """A decomposition that goes through prims would have no noise inside."""
    x = drawn(6, 8) + 100

    def spread(program):
        found = check.tolerance(lambda: {"y": program(torch.from_numpy(x))})
        return (found.allowed["y"] / check.LIMIT / (np.abs(found.truth["y"]).max() * 2.0**-24)).max()

    assert spread(lambda t: F.layer_norm(t, (8,))) > 50
    assert spread(lambda t: F.group_norm(t, 2)) > 50
    assert spread(lambda t: F.batch_norm(t, None, None, training=True)) > 50
    assert spread(lambda t: t.var(1)) > 50


def test_the_variance_is_written_in_two_passes(off):
    x = drawn(5, 40) + 1000
    # numpy's mean of one row is off by some roundings of 1000, and so are the deviations
    mean = np.add.accumulate(x, axis=1)[:, -1:] / f32(40)
    std = np.sqrt(((x - mean) ** 2).sum(1) / f32(39))

    def program():
        t = torch.from_numpy(x)
        return {"y": (t[:, 0] - t.mean(1)) / t.std(1)}

    candidate = {"y": (x[:, 0] - mean[:, 0]) / std}
    assert agrees(candidate, program)
    on = check.tolerance(lambda: {"y": torch.from_numpy(x).var(1)}).allowed["y"]
    off(aten, "OWN", {})
    assert (check.tolerance(lambda: {"y": torch.from_numpy(x).var(1)}).allowed["y"] < 0.9 * on).all()


@pytest.mark.parametrize("k", [64, 200, 5000])
def test_a_sum_may_be_taken_in_any_order(off, k):
    """Small equal numbers are lost one by one if a large one comes first: nearly the classical bound, for every k."""
    x = np.full(k, 0.75, f32)
    x[0] = 2.0**24
    y = drawn(k, 2)

    def program():
        t = torch.from_numpy(x)
        return {"sum": t.sum(), "product": t @ torch.from_numpy(y), "mean": t.mean()}

    total = np.add.accumulate(x)[-1]
    candidate = {"sum": total, "product": np.add.accumulate(x[:, None] * y)[-1], "mean": total / f32(k)}
    assert total == 2.0**24
    assert agrees(candidate, program)
    off(comparing, "shared_error", nobody)
    assert agrees(candidate, program)
    off(aten, "terms", lambda *_: None)
    assert not agrees(candidate, program)


def test_a_convolution_and_both_its_gradients_have_the_noise_of_their_sums(off):
    x, w = np.abs(drawn(2, 8, 12)) + 1, np.abs(drawn(4, 8, 3, seed=1)) + 1

    def weights():
        tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, w)]
        y = F.conv1d(*tensors)
        return {"y": y} | dict(zip("xw", torch.autograd.grad(y.sum(), tensors), strict=True))

    on = check.tolerance(weights).allowed
    off(aten, "terms", lambda *_: None)
    without = check.tolerance(weights).allowed
    assert all((on[n] / without[n]).mean() > 1.1 for n in on), {n: (on[n] / without[n]).mean() for n in on}


# -- 4: underflow, resizing, factorisations ------------------------------------------------------------------------------


def test_what_is_below_the_smallest_normal_number_is_kept_or_lost(off):
    x = np.full(4, 1e-20, f32)

    def program():
        t = torch.from_numpy(x)
        return {"y": t * t * 1e30}

    assert agrees({"y": np.zeros(4, f32)}, program)
    off(Rounding, "underflown", lambda self, exact, value: value)
    assert not agrees({"y": np.zeros(4, f32)}, program)


def test_resizing_computes_its_positions_in_float32(off):
    x = drawn(1, 1, 1000)
    step = f32(1000) / f32(1537)
    at = np.maximum((np.arange(1537, dtype=f32) + f32(0.5)) * step * f32(1 + 2.0**-23) - f32(0.5), 0)
    low = at.astype(int)
    high, part = np.minimum(low + 1, 999), at - low
    y = x[..., low] * (1 - part) + x[..., high] * part

    def program():
        return {"y": F.interpolate(torch.from_numpy(x), size=1537, mode="linear")}

    assert agrees({"y": y}, program)
    off(Rounding, "positions", lambda self, op, args, kwargs: (args, kwargs))
    assert not agrees({"y": y}, program)


def test_a_factorisation_is_stable_in_norm_and_not_by_elements(off):
    a = np.array([[1e4, 1.0], [1.0, 1e-2]], f32)
    exact = np.linalg.eigvalsh(a.astype(float))
    stable = (exact + np.array([1, -1]) * 1e4 * 2.0**-25).astype(f32)

    def program():
        return {"y": torch.linalg.eigvalsh(torch.from_numpy(a))}

    assert agrees({"y": stable}, program)
    off(Rounding, "in_norm", lambda self, value: value)
    assert not agrees({"y": stable}, program)


# -- 5: unit roundoff travels with the tensor ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_program_that_goes_through_a_lower_precision_is_judged_at_that(off, dtype):
    a, b, c = (torch.from_numpy(drawn(50, seed=s)).to(dtype) for s in range(3))

    def program():
        return {"y": ((a + b) * c).float()}

    candidate = {"y": (a * c + b * c).float()}
    assert agrees(candidate, program)
    assert not agrees({"y": candidate["y"] + 0.1}, program)
    off(Rounding, "unit_of", lambda self, tensors, dtype: self.unit)
    assert not agrees(candidate, program)


def test_a_backward_pass_has_the_precision_of_what_its_gradients_belong_to():
    x, w = drawn(6, 8), drawn(8, 8, seed=1)

    def gradient(order):
        t = torch.from_numpy(x).to(torch.bfloat16).requires_grad_()
        u = torch.from_numpy(w).to(torch.bfloat16)
        y = (t @ u) * 3 if order else t @ (u * 3)
        y.float().square().sum().backward()
        return t.grad.float()

    assert agrees({"g": gradient(0)}, lambda: {"g": gradient(1)})
    assert not agrees({"g": gradient(0) * 1.1}, lambda: {"g": gradient(1)})


# -- 6: counters are exact, hyperparameters are not ----------------------------------------------------------------------


def test_a_counter_is_exact(off):
    def program():
        return {"y": torch.exp(torch.tensor(80.0)) * torch.ones(3)}

    wrong = {"y": np.full(3, np.exp(80.0) * (1 + 2.0**-17), f32)}
    assert not agrees(wrong, program)
    off(Rounding, "counts", lambda self, value: False)
    assert agrees(wrong, program), "the noise of the exponent hides the fault"


def adam_in_float32(parameters, batches):
    p, m, v, seen = dict(parameters), {}, {}, {}
    for i, (x, _) in enumerate(batches):
        g = {"weight": np.ones((x.shape[0], 1), f32).T @ x}
        m["weight"] = f32(0.9) * m.get("weight", 0) + (f32(1) - f32(0.9)) * g["weight"]
        v["weight"] = f32(0.999) * v.get("weight", 0) + (f32(1) - f32(0.999)) * g["weight"] ** 2
        down = [f32(1) - f32(b) ** f32(i + 1) for b in (0.9, 0.999)]
        p["weight"] = p["weight"] - f32(0.01) * (m["weight"] / down[0]) / (np.sqrt(v["weight"] / f32(0.5)) + f32(1e-8))
        seen[f"step {i} weight"] = p["weight"]
    return seen


def test_arithmetic_with_hyperparameters_may_round(off):
    """1 − 0.999 in float32 is off by 10⁻⁵, where nothing else makes up for it."""
    module = torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1e-3)
    batches = [(drawn(5, 4, seed=s), drawn(5, 1)) for s in range(2)]

    class Half(torch.optim.Adam):
        """Adam whose second moment is not brought to its own size, so that what rounds there shows."""

        @torch.no_grad()
        def step(self, closure=None):
            (group,) = self.param_groups
            (b1, b2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                s = self.state[p]
                s["t"] = s.get("t", 0) + 1
                s["m"] = b1 * s.get("m", torch.zeros_like(p)) + (1 - b1) * p.grad
                s["v"] = b2 * s.get("v", torch.zeros_like(p)) + (1 - b2) * p.grad * p.grad
                p -= lr * (s["m"] / (1 - b1 ** s["t"])) / ((s["v"] / 0.5).sqrt() + group["eps"])

    def verdict():
        try:
            check.training(adam_in_float32, module, lambda p: Half(p, 0.01), batches, lambda y, _: y.sum())
        except check.Difference:
            return False
        return True

    assert verdict()
    off(steps, "round_hyperparameters", lambda stepper, mode: None)
    assert not verdict()


# -- 7: random numbers ---------------------------------------------------------------------------------------------------


def test_random_numbers_are_drawn_as_the_float32_program_draws_them(off):
    def program():
        torch.manual_seed(0)
        x = torch.rand(5) + torch.randn(5) + torch.empty(5).uniform_(-1, 1)
        return {"y": F.dropout(x, 0.5) + torch.nn.Linear(3, 5).weight[:, 0]}

    candidate = program()
    assert agrees(candidate, program)
    off(comparing, "shared_error", nobody)
    assert agrees(candidate, program)
    off(aten, "DRAWS", frozenset())
    assert not agrees(candidate, program)


def test_masks_are_equal_in_all_replicas(off):
    def program():
        return {"y": F.dropout(torch.ones(50), 0.5)}

    torch.manual_seed(3)
    right = program()["y"].numpy()
    torch.manual_seed(3)
    assert not agrees({"y": right * f32(1.001)}, program)
    before = torch.get_rng_state()
    off(measuring, "same_random_numbers", lambda: lambda: None)
    torch.set_rng_state(before)
    with pytest.raises(Refused, match="another y when it was called again"):
        agrees({"y": np.zeros(50, f32)}, program)
    off(measuring, "same_again", lambda *given: None)
    torch.set_rng_state(before)
    assert agrees({"y": np.zeros(50, f32)}, program), "anything passes where every replica has a mask of its own"


# -- 8: what selects, and zeros that are no numbers ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta")  # torch's own word
def test_the_largest_by_index_is_exact_also_where_several_are_equal(off):
    x = np.ones(6, f32)

    def program():
        t = torch.from_numpy(x).requires_grad_()
        y = torch.zeros(2).index_reduce(0, torch.tensor([0, 0, 1, 1, 1, 0]), t, "amax")
        return {"g": torch.autograd.grad(y.sum(), t)[0]}

    right = {"g": np.full(6, 1 / 3, f32)}
    wrong = {"g": np.array([1, 0, 1, 0, 0, 0], f32)}
    assert agrees(right, program)
    assert not agrees(wrong, program)
    off(aten.Operation, "rounds_nothing", lambda self, args: self.moves)
    assert agrees(wrong, program)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch calls it where forward mode is first used
def test_zeros_of_forward_mode_are_left_alone(off):
    x = drawn(4)

    def program():
        t = torch.from_numpy(x)
        return {"y": torch.func.jvp(lambda a: torch.tanh(a) * 2 + t, (t,), (torch.ones_like(t),))[1]}

    assert agrees({"y": 2 - 2 * np.tanh(x) ** 2}, program)
    noise, zero = Rounding(1), torch._efficientzerotensor((3,), dtype=torch.float64)
    assert noise.perturbed(zero) is zero, "its numbers stand nowhere: to read them ends the process"
    assert noise.perturbed(torch.ones(3, dtype=torch.float64)).ne(1).all()


# -- tensors without memory have no numbers to look at

BARE = {
    "on the device meta": lambda: torch.ones((3, 3), dtype=torch.float64, device="meta"),
    "zeros of torch's without memory": lambda: torch._efficientzerotensor((3, 3), dtype=torch.float64),
    "empty": lambda: torch.ones((0, 3), dtype=torch.float64),
}


@pytest.mark.parametrize("bare", BARE.values(), ids=BARE)
def test_no_mode_looks_at_numbers_that_stand_nowhere(bare):
    """Calls come to a mode as torch makes them: one that gets such a tensor passes it on and looks at what has numbers alone."""
    tensor, one = bare(), torch.full((3, 3), 7.0, dtype=torch.float64)
    assert not noise.has_numbers(tensor)
    assert noise.has_numbers(one)
    for mode in (noise.Rounding(1), noise.Rounding(None), noise.Operands(1), noise.Largest()):
        out = mode.__torch_dispatch__(torch.ops.aten.cat.default, (), ([tensor, tensor],))
        assert out.shape == (2 * len(tensor), 3)
    noisy, largest, met = noise.Rounding(1), noise.Operands(1), noise.Largest()
    for value in (tensor, one):
        moved = value is one
        assert (noisy.perturbed(value) is not value) == moved
        assert (noisy.in_norm(value) is not value) == moved
        assert (largest._perturbed(value) is not value) == moved
        met.__torch_dispatch__(torch.ops.aten.clone.default, (), (value,))
    assert largest.largest == met.size == 7


def test_a_model_that_is_built_on_the_device_meta_is_followed():
    """Its shapes are computed there, and its numbers come later: noise falls on these alone."""
    x = drawn(4, 3)

    def program():
        with torch.device("meta"):
            layer = torch.nn.Linear(3, 2)
            shape = torch.linalg.inv(layer(torch.ones(2, 3)).exp()).sum(1, keepdim=True).shape
        layer.to_empty(device="cpu")
        torch.nn.init.constant_(layer.weight, 0.3)
        torch.nn.init.zeros_(layer.bias)
        return {"y": layer(torch.from_numpy(x)) * shape[0]}

    right = np.repeat(x.sum(1, keepdims=True) * f32(0.3), 2, 1) * 2
    assert agrees({"y": right}, program)
    assert not agrees({"y": right * f32(1 + 1e-4)}, program)


# -- 9: an error that torch itself makes -----------------------------------------------------------------------------------


def test_an_error_that_torch_shares_is_rounding(off):
    """Where torch's own float32 is off, whoever is off in the same way has no fault that torch would not have."""
    x = drawn(4)

    def program():
        y = torch.from_numpy(x) * 2
        return {"y": y + (1e-3 if y.dtype is torch.float32 else 0)}

    with pytest.raises(check.Difference, match="torch itself"):
        check.same({"y": x * 2 - f32(1e-3)}, program)
    agreement = check.same({"y": x * 2 + f32(1e-3)}, program, report=True)
    assert [f.split(":")[0] for f in agreement.findings] == ["y"], "and it is said of the program"
    off(comparing, "shared_error", nobody)
    assert not agrees({"y": x * 2 + f32(1e-3)}, program)


# -- what looks at dtypes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_eps_of_a_dtype_is_that_of_the_programs_own(off, dtype):
    """In float64, where the truth is computed, it would be 2.2e-16."""
    x = drawn(3, 4).astype(dtype) * np.dtype(dtype).type(1e-4)
    eps = np.finfo(dtype).eps

    def program():
        t = torch.from_numpy(x)
        return {"norm": F.rms_norm(t, (4,)), "clamped": t / t.abs().clamp(min=torch.finfo(t.dtype).eps * 1000)}

    candidate = {
        "norm": x / np.sqrt((x * x).mean(-1, keepdims=True) + eps),
        "clamped": x / np.maximum(abs(x), eps * 1000),
    }
    off(comparing, "shared_error", nobody)
    assert agrees(candidate, program)
    if dtype == "float32":
        off(noise, "_WITH_OWN_EPS", ())
        assert not agrees({"norm": candidate["norm"]}, lambda: {"norm": program()["norm"]})
        off(measuring, "limits_of_float32", nullcontext)
        assert not agrees({"clamped": candidate["clamped"]}, lambda: {"clamped": program()["clamped"]})
