"""needle's schedules beside torch's."""

import pytest
import torch

from needle import nn, optim
from needle.schedules import CosineLR, StepLR, Warmup

STEPS = 20
U = 2.0**-53
T = torch.optim.lr_scheduler
PAIRS = {
    "StepLR": (lambda o: StepLR(o, 3, gamma=0.7), lambda o: T.StepLR(o, 3, gamma=0.7)),
    "CosineLR": (lambda o: CosineLR(o, STEPS, lowest=0.01), lambda o: T.CosineAnnealingLR(o, STEPS, eta_min=0.01)),
    "Warmup": (lambda o: Warmup(o, 4), lambda o: T.LambdaLR(o, lambda t: min(1.0, t / 4))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_rates_are_those_of_torch(name):
    """torch goes from rate to rate, three operations a step; each of them, and each of needle's, rounds once."""
    ours = optim.SGD([nn.Parameter([1.0])], lr=0.3)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    make, make_peer = PAIRS[name]
    schedule, peer = make(ours), make_peer(theirs)
    for t in range(STEPS + 1):
        assert ours.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=0, abs=0.3 * (4 * t + 8) * U), t
        schedule.step()
        theirs.step()
        peer.step()
