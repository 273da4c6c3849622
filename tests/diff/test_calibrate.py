"""Correct variants of needle are not flagged; what is written about them is what was seen."""

import json

import numpy as np
import pytest

import needle
from oracle.blame import judged
from oracle.cases import case as c
from oracle.runs.draws import draw
from oracle.trust import calibrate
from oracle.trust.faults import FAULTS
from oracle.trust.rewrites import REWRITES

CASES = [*draw("train", 10, 11), *draw("op", 30, 11)]


@pytest.mark.parametrize("variant", calibrate.VARIANTS, ids=lambda v: v.name)
def test_a_correct_variant_is_not_flagged(variant):
    with variant.patch.applied():
        found = [(c.describe(case), judged(case, needle, peer_too=False).divergence) for case in CASES]
    assert [(case, d.message) for case, d in found if d is not None] == []


def test_variants_compute_something_else():
    """A variant that never runs would be calibrated for nothing: at least the last bits differ."""
    wanted = [k for k in CASES if isinstance(k, c.TrainCase) and isinstance(k.loss, c.SoftmaxLoss) and k.steps > 1]

    def shares():
        return [judged(case, needle, peer_too=False).tally.largest for case in wanted]

    usual = shares()
    for variant in calibrate.VARIANTS:
        if variant.name in ("sequential sums", "unfused SoftmaxCrossEntropy", "all unfused and sequential"):
            with variant.patch.applied():
                assert shares() != usual, variant.name


def bits():
    """What a few layers and operations give, and pass back."""
    rng = np.random.RandomState(0)
    x, w, b = (needle.Tensor(rng.randn(*shape).astype(np.float32)) for shape in ((37, 19), (19, 7), (1, 7)))
    image, kernel = (needle.Tensor(rng.randn(*shape).astype(np.float32)) for shape in ((2, 6, 6, 3), (3, 3, 3, 4)))
    made = [x @ w, needle.ops.linear(x, w, b), needle.conv(image, kernel, 1, 1), needle.logsumexp(x, 1)]
    made += [needle.softplus(x), needle.sigmoid(x), needle.tanh(x)]
    for layer in (needle.nn.BatchNorm1d(19), needle.nn.LayerNorm1d(19), needle.nn.Dropout(0.3)):
        np.random.seed(1)
        y = layer(x)
        (y * y * x).sum().backward()
        made += [y, x.grad]
    loss = needle.nn.SoftmaxLoss()(x, [i % 19 for i in range(37)])
    loss.backward()
    return [v.numpy().tobytes() for v in (*made, loss, x.grad)]


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_gives_other_bits(name):
    usual = bits()
    with REWRITES[name].applied():
        assert bits() != usual


def test_alarms_are_counted_and_written(tmp_path, monkeypatch):
    wrong = calibrate.Variant("wrong", FAULTS["sgd-undampened"].patch)
    monkeypatch.setattr(calibrate, "VARIANTS", (wrong,))
    monkeypatch.setattr(calibrate.report, "LATEST", tmp_path)
    monkeypatch.setattr(calibrate, "shard_cases", lambda seed, index: CASES[:10])
    outcome = calibrate.run_shard(0, 0, 0)
    assert outcome.alarms
    assert outcome.tally.tensors > 100
    assert "SGD velocity" in outcome.alarms[0].suspect
    data = calibrate.to_json([outcome], 0)
    assert json.loads(json.dumps(data, default=str))["false_alarms"] == len(outcome.alarms)
    assert f"false alarms: **{len(outcome.alarms)}**" in calibrate.markdown([outcome], 0)


def test_a_model_that_trains_nothing_is_no_case():
    frozen = (c.Linear(1, frozen=True), c.Linear(1, bias=False, tie=0))
    with pytest.raises(c.CaseError, match="parameter to train"):
        c.TrainCase(model=frozen, data=c.Data(rows=1, features=1), loss=c.SoftmaxLoss(), optimizer=c.SGD(), seed=0)
    assert c.trains((c.Linear(1, frozen=True), c.Linear(1, tie=0)))  # its bias is its own
