"""Suspects: for faults planted on purpose, the part of needle to blame, in words and as a key."""

import pickle

import numpy as np
import pytest

import needle
from oracle.blame import culprit, judged, suspect
from oracle.blame.words import clip_words
from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.rules.verdict import Clipping
from oracle.systems.source import line_of
from oracle.trust.faults import FAULTS
from oracle.trust.patches import compute, contribution, vjp, wrap

SGD = c.SGD(lr=0.25, momentum=0.5, weight_decay=0.5)


def train(*model, steps=1, optimizer=SGD, seed=1, loss=None, rows=4, features=3, scale=1.0, **more):
    data = c.Data(rows=rows, features=features, scale=scale)
    return c.TrainCase(
        model=model, data=data, loss=loss or c.SoftmaxLoss(), optimizer=optimizer, seed=seed, steps=steps, **more
    )


def diverged(case):
    found = judged(case, needle).divergence
    assert found is not None, "not detected"
    assert found.suspect is not None
    return found


PLAIN = train(c.Linear(3), c.Tanh(), c.Linear(2), steps=3)
NORMS = train(c.Linear(3), c.BatchNorm(), c.LayerNorm(), c.Linear(3), steps=2)
FAN_OUT = train(c.Linear(3), c.Residual((c.Linear(3), c.Tanh())), steps=2)
ZEROS = train(c.Linear(3, bias=False), c.ReLU(), c.Linear(2), scale=0.0)

PLANTED = [
    ("op forward", compute("Tanh", lambda y, a: y * np.float32(1.001)), PLAIN, "Tanh forward", "needle/ops.py"),
    ("op backward", vjp("Tanh", lambda r, g, y, a: (g * (1 - y),)), PLAIN, "Tanh backward", "needle/ops.py"),
    ("linear, weight", contribution("Linear", lambda g: g / 2, 1), PLAIN, "Linear backward", "needle/ops.py"),
    ("accumulation", FAULTS["add-overwrites"].patch, FAN_OUT, "accumulation of gradients", "needle/autograd.py"),
    ("layer norm", contribution("LayerNorm", lambda g: g * 2, 0), NORMS, "LayerNorm backward", "needle/ops.py"),
    ("batch norm", contribution("BatchNorm", lambda g: g * 2, 1), NORMS, "BatchNorm backward", "needle/ops.py"),
    ("relu at 0", vjp("ReLU", lambda r, g, y, a: (g * (a >= 0),)), ZEROS, "ReLU backward", "needle/ops.py"),
    ("undampened", FAULTS["sgd-undampened-first-step"].patch, PLAIN, "SGD velocity update", "needle/optim.py"),
    ("decay outside", FAULTS["sgd-decay-outside-momentum"].patch, PLAIN, "SGD velocity update", "needle/optim.py"),
    ("clip factor", FAULTS["clip-upwards"].patch, train(c.Linear(2), clip=c.Clip(1000.0)), "clip scaling", "needle/optim.py"),
    ("in place", FAULTS["sgd-decay-in-gradient"].patch, PLAIN, "SGD.step writes into gradients", "needle/optim.py"),
]  # fmt: skip


@pytest.mark.parametrize(("patch", "case", "what", "file"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_a_planted_fault_is_named_with_its_line(patch, case, what, file):
    with patch.applied():
        found = diverged(case)
    assert found.suspect.what == what
    assert found.suspect.line.startswith(f"{file}:")
    assert what in suspect(case, found)
    assert culprit(case, pickle.loads(pickle.dumps(found))) == culprit(case, found)


def test_a_fault_of_a_layer_leaves_a_consistent_tape():
    def scaled(old):
        def forward(self, x):
            return old(self, x) * 1.5 if self.training else x

        return forward

    with wrap("nn.Dropout.forward", scaled).applied():
        found = diverged(train(c.Linear(3), c.Dropout(0.5), c.Linear(2), rows=8))
    assert found.suspect.what == "Dropout forward in training mode"
    assert "every node of the tape is right" in found.suspect.known
    assert found.suspect.line.startswith("needle/nn.py:")


def test_where_an_op_is_not_known_nobody_says_that_the_graph_is_wrong():
    class Affine(needle.ops.TensorOp):
        def compute(self, x, weight, bias):
            return x @ weight + bias

        def vjp(self, g, y, needs, x, weight, bias):
            return g @ weight.T, x.T @ g, g.sum(0, keepdims=True) * 2

    def own(old):
        return lambda self, x: Affine()(x, self.weight, self.bias)

    with wrap("nn.Linear.forward", own).applied():
        found = diverged(train(c.Linear(2), loss=c.WeightedSum()))
    assert found.suspect.what == "Linear backward"
    assert "but for 1 that it does not know" in found.suspect.known


def test_running_statistics_in_the_wrong_mode_are_a_matter_of_the_layer():
    def forward(old):
        def changed(self, x):
            if self.training:
                return old(self, x)
            self.training = True
            try:
                return old(self, x)
            finally:
                self.training = False

        return changed

    with wrap("nn.BatchNorm1d.forward", forward).applied():
        found = diverged(train(c.BatchNorm(), c.Linear(2), keep_init=True))
    assert found.suspect.what == "BatchNorm forward in evaluation mode"


def test_a_mode_that_does_not_reach_a_layer_is_blamed_on_the_switch():
    def shallow(self):
        self.training = False
        return self

    with wrap("nn.Module.eval", lambda old: shallow).applied():
        found = diverged(train(c.BatchNorm(), c.Linear(2), keep_init=True))
    assert found.suspect.what == "Module.eval"
    assert found.suspect.line.startswith("needle/nn.py:")


@pytest.mark.parametrize(
    ("name", "words", "case"),
    [
        ("sgd-undampened-first-step", "undampened", PLAIN),
        ("sgd-decay-outside-momentum", "decay is outside the momentum", PLAIN),
        ("sgd-decay-sign", "wrong sign", PLAIN),
        ("sgd-decay-doubled", "counts twice", PLAIN),
        ("sgd-lr-captured", "stale", train(c.Linear(2), steps=3, lr_changes=(c.LrChange(1, 0.125),))),
        ("sgd-velocity-by-gradient", "taken as zero", PLAIN),
        ("sgd-nesterov", "Nesterov", PLAIN),
        ("sgd-ascent", "uphill", PLAIN),
        ("adam-no-correction", "no bias correction", train(c.Linear(2), optimizer=c.Adam())),
        ("adam-eps-in-root", "inside the square root", train(c.Linear(2), optimizer=c.Adam(eps=0.5))),
        ("adam-t-stuck", "step counter is 1", train(c.Linear(2), steps=3, optimizer=c.Adam())),
        ("clip-per-parameter", "own norm", train(c.Linear(2), clip=c.Clip(0.01))),
        ("clip-no-root", "without the root", train(c.Linear(2), clip=c.Clip(0.01))),
    ],
)
def test_the_numbers_of_an_optimizer_say_which_mistake_it_is(name, words, case):
    with FAULTS[name].patch.applied():
        assert words in diverged(case).suspect.words


@pytest.mark.parametrize(
    ("name", "words", "case"),
    [
        ("sgd-default-lr", ["the velocity is divided by 1 − β", "as if the learning rate were 0.1, not 0.01"],
         train(c.Linear(3), optimizer=c.SGD(momentum=0.9), steps=2)),
        ("program-lr-zero-default", ["the learning rate is stale: 0.01, not 0", "the learning rate is the default: 0.01, not 0"],
         c.ProgramCase(model=(c.Linear(3),), data=c.Data(rows=4, features=3), loss=c.SoftmaxLoss(), optimizer=c.SGD(), seed=3,
                       actions=(a.Pass(), a.Step(), a.Set("lr", 0.0), a.Pass(), a.Step()))),
    ],
)  # fmt: skip
def test_all_that_explains_the_numbers_is_told(name, words, case):
    with FAULTS[name].patch.applied():
        found = diverged(case).suspect
    assert [e.words for e in found.explanations] == words
    assert found.words == f"several explanations fit: {' / '.join(words)}"


def test_a_norm_is_explained_by_what_gives_it_and_not_by_what_comes_near():
    raw = {"0.weight": np.array([[0.1, 0.2], [0.3, -0.7]]), "0.bias": np.array([[0.1, 1.7]])}
    half = {name: g.astype(np.float16).astype(np.float64) for name, g in raw.items()}

    def words(gradients, off=0.0):
        norm = np.sqrt(sum(float((g * g).sum()) for g in gradients.values())) + off
        return [
            e.words
            for e in clip_words(train(c.Linear(2), clip=c.Clip(0.25)), "clip norm", Clipping(raw, {}, norm, "norm"))
        ]

    assert words(half) == ["the gradients are rounded to float16"]
    assert words({**raw, "0.bias": half["0.bias"]}) == ["the gradient of 0.bias is rounded to float16"]
    assert words(raw, 1e-6) == ["1e-6 is a part of it"]
    many = {f"{i}.weight": np.full((1, 2), 0.3 + 0.1 * i) for i in range(6)}
    first = float(np.sqrt(sum(float((g * g).sum()) for g in list(many.values())[:4])))
    found = clip_words(train(c.Linear(2), clip=c.Clip(0.25)), "clip norm", Clipping(many, {}, first, "norm"))
    assert [e.words for e in found] == ["only the first 4 of 6 gradients count"]
    assert words(raw, 1.5e-3) == words(raw, 2.2e-6) == []


def test_one_fault_has_one_key_wherever_it_shows():
    cases = [
        PLAIN,
        FAN_OUT,
        c.OpCase(op="tanh", operands=(c.Operand((3,), (0.5, 1.0, -1.0)),)),
        c.SecondOrderCase(model=(c.Linear(2), c.Tanh()), data=c.Data(rows=3, features=2), loss=c.MeanSquare(), seed=1),
    ]
    keys = set()
    with compute("Tanh", lambda y, a: y * np.float32(1.01)).applied():
        for case in cases:
            keys.add(culprit(case, diverged(case)))
    assert keys == {"Tanh forward"}


def test_different_faults_have_different_keys():
    keys = set()
    for _, patch, case, *_ in PLANTED:
        with patch.applied():
            keys.add(culprit(case, diverged(case)))
    # undampened and decay outside are both the velocity's; their words tell them apart
    assert len(keys) == len(PLANTED) - 1


def test_a_shared_reduction_is_one_fault():
    keys = set()
    with FAULTS["broadcast-mean"].patch.applied():
        for op in ("add", "multiply", "divide"):
            values = (1.0, 2.0, 4.0)
            case = c.OpCase(
                op=op, operands=(c.Operand((2, 3), values * 2), c.Operand((3,), values)), cotangent=(1.0, 2.0, 5.0)
            )
            keys.add(culprit(case, diverged(case)))
    assert len(keys) == 1


def test_an_exception_names_the_op_at_work():
    def broken(self, a):
        raise ZeroDivisionError("planted")

    with wrap("ops.Tanh.compute", lambda old: broken).applied():
        found = diverged(PLAIN)
    assert found.suspect.what == "Tanh forward"


def test_both_verdicts_are_kept_where_they_differ():
    with vjp("Tanh", lambda r, g, y, a: (g * (1 - y),)).applied():
        found = diverged(train(c.Linear(3), c.Residual((c.Tanh(),))))
    assert found.suspect.what == "Tanh backward"
    assert found.suspect.operator.startswith("Tanh backward")
    assert found.suspect.tensor == "Residual backward"


def test_the_line_is_that_of_the_definition():
    assert line_of(needle, "ops.Tanh", "compute").startswith("needle/ops.py:")
    assert line_of(needle, "ops.Tanh", "nothing", "vjp").startswith("needle/ops.py:")
    assert line_of(needle, "ops.Nothing", "compute") == ""
    assert line_of(None, "ops.Tanh", "compute") == ""
