"""Learning rates as functions of the step."""

import math

import pytest

from needle import nn, optim
from needle.schedules import CosineLR, Schedule, StepLR, Warmup


def sgd(lr=0.5):
    return optim.SGD([nn.Parameter([1.0])], lr=lr)


def rates(optimizer, schedule, n):
    found = []
    for _ in range(n):
        found.append(optimizer.lr)
        schedule.step()
    return found


def test_step():
    optimizer = sgd()
    assert rates(optimizer, StepLR(optimizer, 3, gamma=0.5), 8) == [0.5] * 3 + [0.25] * 3 + [0.125] * 2


def test_cosine_goes_down_and_stays_there():
    optimizer = sgd()
    found = rates(optimizer, CosineLR(optimizer, 4, lowest=0.25), 7)
    half = math.sqrt(0.5)
    expected = [0.5, 0.375 + 0.125 * half, 0.375, 0.375 - 0.125 * half, 0.25, 0.25, 0.25]
    assert found == pytest.approx(expected, rel=4e-16)
    assert found[4:] == [0.25] * 3
    assert found == sorted(found, reverse=True)


def test_warm_up_begins_at_zero_and_hands_over():
    optimizer = sgd()
    assert rates(optimizer, Warmup(optimizer, 4), 7) == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    optimizer = sgd()
    schedule = Warmup(optimizer, 2, then=StepLR(optimizer, 2, gamma=0.5))
    assert rates(optimizer, schedule, 7) == [0.0, 0.25, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_a_warm_up_of_a_warm_up_still_knows_the_rate():
    optimizer = sgd()
    schedule = Warmup(optimizer, 2, then=Warmup(optimizer, 2))
    assert rates(optimizer, schedule, 6) == [0.0, 0.25, 0.0, 0.25, 0.5, 0.5]


def test_the_optimizer_takes_the_rate_at_its_next_step():
    p = nn.Parameter([1.0])
    optimizer = optim.SGD([p], lr=0.5)
    schedule = Warmup(optimizer, 2)
    found = []
    for _ in range(3):
        (p * 1.0).backward()
        optimizer.step()
        schedule.step()
        found.append(p.item())
    assert found == [1.0, 0.75, 0.25]


def test_a_schedule_of_ones_own():
    class Half(Schedule):
        def lr_at(self, t):
            return self.base / (t + 1)

    optimizer = sgd(1.0)
    schedule = Half(optimizer)
    assert rates(optimizer, schedule, 4) == [1.0, 1 / 2, 1 / 3, 1 / 4]
    assert repr(schedule) == "Half(base=1.0, t=4)"
    other = sgd(0.125)
    Half(other).load_state_dict(schedule.state_dict())
    assert other.lr == 1 / 5
    with pytest.raises(NotImplementedError, match=r"Schedule must define lr_at\(self, t\)"):
        Schedule(optimizer).step()


def test_a_state_is_put_back_and_the_rate_with_it():
    optimizer = sgd()
    schedule = Warmup(optimizer, 2, then=CosineLR(optimizer, 5))
    rates(optimizer, schedule, 4)
    state = schedule.state_dict()
    expected = rates(optimizer, schedule, 6)
    other = sgd(0.125)
    again = Warmup(other, 2, then=CosineLR(other, 5))
    again.load_state_dict(state)
    assert rates(other, again, 6) == expected
    for key in state:
        with pytest.raises(KeyError, match=f"missing .'{key.removeprefix('then.')}'"):
            again.load_state_dict({name: value for name, value in state.items() if name != key})
    with pytest.raises(KeyError, match=r"unknown \['more'\]"):
        again.load_state_dict({**state, "more": 1})


def test_a_warm_up_alone_is_put_back_too():
    optimizer = sgd()
    schedule = Warmup(optimizer, 4)
    schedule.step()
    state = schedule.state_dict()
    assert state == {"schedule": "Warmup", "base": 0.5, "t": 1, "steps": 4}
    other = sgd(0.25)
    Warmup(other, 4).load_state_dict(state)
    assert other.lr == 0.125
    with pytest.raises(TypeError, match=r"takes what state_dict\(\) has returned, but got int"):
        Warmup(other, 4).load_state_dict(4)


def test_a_schedule_shows_its_settings():
    optimizer = sgd()
    assert repr(StepLR(optimizer, 3)) == "StepLR(step_size=3, gamma=0.1, base=0.5, t=0)"
    schedule = Warmup(optimizer, 3, then=CosineLR(optimizer, 5))
    schedule.step()
    assert repr(schedule) == "Warmup(steps=3, then=CosineLR(steps=5, lowest=0.0, base=0.5, t=0), base=0.5, t=1)"


def stepped(optimizer):
    schedule = StepLR(optimizer, 1)
    schedule.step()
    return schedule


WRONG = {
    "the model": (lambda o: StepLR(nn.Linear(1, 1), 1), TypeError, "StepLR takes an optimizer .* but got Linear"),
    "the class": (lambda o: StepLR(optim.SGD, 1), TypeError, "StepLR takes an optimizer .* but got the class SGD"),
    "no steps": (lambda o: StepLR(o, 0), ValueError, "StepLR: step_size must be at least 1, got step_size=0"),
    "no cosine": (lambda o: CosineLR(o, 0), ValueError, "CosineLR: steps must be at least 1, got steps=0"),
    "half steps": (lambda o: CosineLR(o, 2.5), TypeError, r"CosineLR: steps must be an integer, got steps=2\.5"),
    "gamma": (
        lambda o: StepLR(o, 1, gamma=-1),
        ValueError,
        "StepLR: gamma must be finite and not negative, got gamma=-1",
    ),
    "gamma text": (lambda o: StepLR(o, 1, gamma="x"), ValueError, "StepLR: gamma must be finite .* got gamma='x'"),
    "lowest": (
        lambda o: CosineLR(o, 1, lowest=math.nan),
        ValueError,
        "CosineLR: lowest must be finite .* got lowest=nan",
    ),
    "warm-up": (lambda o: Warmup(o, -1), ValueError, "Warmup: steps must be at least 1, got steps=-1"),
    "then": (lambda o: Warmup(o, 1, then=0.5), TypeError, "Warmup: then must be a schedule or None, but got float"),
    "then's optimizer": (lambda o: Warmup(o, 1, then=StepLR(sgd(), 1)), ValueError, "a schedule of the same optimizer"),
    "then has stepped": (lambda o: Warmup(o, 1, then=stepped(o)), ValueError, "that has not stepped yet"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_makes_no_sense_is_refused_by_name(what):
    make, kind, match = WRONG[what]
    with pytest.raises(kind, match=match):
        make(sgd())


def test_a_step_whose_rule_raises_has_not_been_counted():
    class UpToTwo(Schedule):
        def lr_at(self, t):
            return {1: 0.5, 2: 0.25}[t]

    optimizer = sgd()
    schedule = UpToTwo(optimizer)
    schedule.step()
    schedule.step()
    with pytest.raises(KeyError):
        schedule.step()
    assert (schedule.t, optimizer.lr) == (2, 0.25)
