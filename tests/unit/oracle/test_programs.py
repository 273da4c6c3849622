"""Programs: every action does what its meaning says, and for every action there is a mistake that shows in it alone."""

from contextvars import copy_context
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import replace

import needle
from needle import autograd
from oracle.blame import culprit, judged, script, suspect
from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import features, fitting, inputs, programs, shrink
from oracle.rules.judge import judge
from oracle.rules.verdict import Divergence
from oracle.runs.draws import draw, fitting_cases
from oracle.systems.foreign import Offer
from oracle.systems.ours import contract
from oracle.trust.faults import FAULTS
from oracle.trust.kill_table import matches

MODEL = (c.Linear(3), c.BatchNorm(), c.Residual((c.Linear(3), c.Dropout(0.25))), c.Linear(3))
BASE = c.ProgramCase(
    model=MODEL, data=c.Data(rows=4, features=3), loss=c.SoftmaxLoss(), optimizer=c.SGD(lr=0.1, momentum=0.9, weight_decay=0.1),
    seed=3, actions=(a.Pass(), a.Step()),
)  # fmt: skip
ADAM = c.Adam(lr=0.1, weight_decay=0.1)
EDITS = features.EDITS[c.ProgramCase]

# action -> a label of the coverage, and the fault that a program with it must show
SHOWN_BY = {
    a.Pass: ("pass, two backward", "program-backward-adds"),
    a.Step: ("step of the second optimizer", "program-second-optimizer-shares"),
    a.ClipNorm: ("clip, max_norm inf", "program-clip-inf-nan"),
    a.Reset: ("reset", "program-reset-zeros"),
    a.Set: ("set weight_decay above 1", "program-decay-at-most-1"),
    a.SetLayer: ("set p of a layer", "program-dropout-p-cached"),
    a.Refuse: ("refuse momentum", "program-momentum-unchecked"),
    a.Freeze: ("freeze", "program-freeze-undone"),
    a.ReplaceData: ("data augmented", "program-augmented-twice"),
    a.ReplaceState: ("velocity array", "program-velocity-array-ignored"),
    a.ReplaceGradient: ("gradient reversed", "program-gradient-reversed-flat"),
    a.NewOptimizer: ("second optimizer SGD", "program-second-optimizer-resets"),
    a.Attach: ("schedule Warmup", "program-warmup-starts-late"),
    a.Advance: ("schedule.step()", "program-schedule-counts-twice"),
    a.PutLayer: ("layer replaced", "program-sequential-put-ignored"),
    a.SwapLayers: ("layers swapped", "program-plan-for-ever"),
    a.Loader: ("batches of a loader, shuffled", "program-loader-own-generator"),
    a.Augment: ("data +=", "program-iadd-twice"),
    a.AddParameter: ("parameter added late", "program-late-parameter-ignored"),
    a.Mode: ("eval a part", "program-eval-part-ignored"),
    a.Evaluate: ("evaluation in between", "program-eval-clears-gradients"),
    a.NoGrad: ("no_grad, exception", "program-no-grad-exception"),
    a.Load: ("state_dict into a fresh model", "program-load-no-buffers"),
    a.Copy: ("pickle", "program-copy-loses-buffers"),
    a.Keep: ("kept numpy", "program-held-data-written"),
    a.Mishap: ("mishap, gradient", "program-misfit-refused-late-sgd"),
    a.Rewind: ("state put back, of optimizers too", "program-put-back-states-stay"),
}


def with_feature(label, case=BASE):
    return EDITS[f"program {label}"](case)


def test_needle_does_what_every_form_of_every_action_means():
    held = (
        "layers in a list",
        "layers in a dict",
        "layers in a ModuleList",
        "same module twice",
        "Residual of a function",
    )
    forms = (*a.EXAMPLES, *held, "a model of tied weights is loaded", *LOADED, *PUT)
    for i, words in enumerate(forms):
        base = replace(BASE, optimizer=ADAM) if i % 3 == 0 else BASE
        verdict = judge(with_feature(words, base), needle, validate=True)
        assert verdict.divergence is None, words
        assert verdict.oracle_errors == [], words
        assert verdict.steps == len(verdict.case.actions), "all of it is judged"


def test_every_action_is_in_the_table():
    assert set(SHOWN_BY) == set(a.ACTIONS)


@pytest.mark.parametrize("kind", SHOWN_BY, ids=lambda kind: kind.__name__)
def test_a_mistake_in_an_action_shows_and_has_the_right_suspect(kind):
    label, name = SHOWN_BY[kind]
    fault, case = FAULTS[name], with_feature(label)
    with fault.patch.applied():
        found = copy_context().run(judged, case, needle).divergence
    assert found is not None
    assert matches(fault.suspect, suspect(case, found)), suspect(case, found)
    plain = judged(BASE, needle)
    assert plain.divergence is None


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("layers in a dict", "program-dict-not-found"),
        ("layers in a ModuleList", "program-modulelist-last-not-found"),
        ("layers in a ModuleList", "program-modulelist-backwards"),
        ("same module twice", "program-module-twice-once"),
        ("Residual of a function", "program-residual-function-detached"),
    ],
)
def test_a_mistake_in_how_a_model_is_held_shows(label, name):
    case = with_feature(label, replace(BASE, actions=(a.Pass(), a.Evaluate(), a.Step())))
    with FAULTS[name].patch.applied():
        assert judged(case, needle).divergence is not None


@pytest.mark.parametrize("held", ["sequential", "list", "dict", "ModuleList"])
def test_layers_are_replaced_and_swapped_wherever_a_model_has_them(held):
    """Before and after steps, loads and copies: the names go with the places, and so do gradients and states."""
    model = (c.Linear(3), c.BatchNorm(), c.Linear(3), c.Residual((c.Linear(3), c.Dropout(0.25))), c.BatchNorm())
    after = (a.Pass(), a.Step(), a.Load(True), a.SwapLayers(), a.Copy(), a.Step(), a.PutLayer(2), a.Pass(), a.Step())
    for place in range(len(model)):
        actions = (
            a.Pass(),
            a.Mode(place, False),
            a.Step(),
            a.SwapLayers(place),
            a.PutLayer(place),
            a.Evaluate(),
            *after,
        )
        optimizer = ADAM if place % 2 else BASE.optimizer
        verdict = judged(replace(BASE, model=model, held=held, optimizer=optimizer, actions=actions), needle)
        assert verdict.divergence is None, verdict.divergence
        assert verdict.steps == len(actions)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("pass, a parameter computed", "program-computed-weight-constant"),
        ("pass, input transposed", "program-input-transposed-as-in-memory"),
        ("pass, input strided", "program-input-strided-as-in-memory"),
        ("gradient transposed", "program-gradient-transposed-as-in-memory"),
        ("gradient repeated", "program-gradient-repeated-shared-out"),
        ("data transposed", "program-data-transposed-as-in-memory"),
        ("mishap, walk", "program-interrupted-walk-resets"),
        ("mishap, walk", "program-interrupted-tensor-walk-under-no-grad"),
        ("mishap, walk", "program-interruption-swallowed"),
        ("mishap, cotangent", "program-cotangent-of-another-shape"),
        ("mishap, constant", "program-backward-of-a-constant"),
        ("mishap, changed", "program-changed-data-unnoticed"),
        ("mishap, changed", "program-loaded-data-unnoticed"),
        ("no_grad, forward pass", "program-statistics-with-a-graph-alone"),
        ("kept buffers", "program-statistics-in-place"),
        ("one norm of two evaluates", "program-plan-of-other-modes"),
        ("data part", "program-part-written"),
        ("mishap, gradient", "program-misfit-left-out"),
        ("mishap, name", "program-load-refused-late"),
        ("mishap, shape", "program-load-not-strict"),
        ("mishap, state", "program-state-refused-late"),
        ("state put back", "program-put-back-statistics-stay"),
    ],
)
def test_a_mistake_where_things_lie_otherwise_or_a_call_raises_shows(label, name):
    case = with_feature(label)
    with FAULTS[name].patch.applied():
        found = copy_context().run(judged, case, needle).divergence
    assert found is not None
    assert matches(FAULTS[name].suspect, suspect(case, found)), suspect(case, found)


@pytest.mark.parametrize("held", ["sequential", "list"])
def test_any_parameter_may_be_computed_in_a_pass(held):
    """Of a layer in a Residual too, of norms, and where a weight is shared; the layer has its own again afterwards."""
    model = (c.Linear(3), c.BatchNorm(), c.Residual((c.Linear(3, tie=0), c.LayerNorm())))
    case = replace(BASE, model=model, held=held)
    for place in range(len(programs.names_of(case))):
        actions = (
            a.Pass(),
            a.Step(),
            a.Pass(computed=place),
            a.Step(),
            a.Freeze(place),
            a.Pass(computed=place),
            a.Copy(),
        )
        verdict = judged(replace(case, actions=(*actions, a.Pass(), a.Step())), needle)
        assert verdict.divergence is None, verdict.divergence
        assert verdict.steps == len(actions) + 2


@pytest.mark.parametrize(
    ("held", "name"), [("ModuleList", "program-modulelist-put-ignored"), ("sequential", "program-sequential-put-twice")]
)
def test_a_layer_that_is_not_put_in_its_place_alone_is_noticed(held, name):
    case = replace(BASE, held=held, actions=(a.PutLayer(0), a.Pass(), a.Step()))
    assert judged(case, needle).divergence is None
    with FAULTS[name].patch.applied():
        found = judged(case, needle).divergence
    assert matches(FAULTS[name].suspect, suspect(case, found)), suspect(case, found)


def test_what_is_tied_or_applied_twice_keeps_its_place():
    tied = (c.Linear(3), c.Linear(3), c.Tanh(), c.Linear(3, tie=1), c.LayerNorm())
    case = replace(BASE, model=tied, again=4)
    assert programs.replaceable(case) == ["0", "2"]
    assert programs.alike(case) == []
    assert programs.alike(replace(BASE, model=(c.Linear(3), c.Linear(3), c.Linear(3), c.Linear(2)))) == [
        ("0", "1"), ("0", "2"), ("1", "2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("in order", "always-shuffles"),
        ("in order", "two-by-default"),
        ("in order", "labels-of-others"),
        ("in order", "float64"),
        ("in order", "asks-for-gradients"),
        ("shuffled", "shuffle-ignored"),
        ("short", "drops-last"),
        ("short", "length-of-whole-batches"),
        ("dropped", "keeps-last"),
    ],
)
def test_a_mistake_in_a_loader_shows(form, name):
    case = with_feature(f"batches of a loader, {form}")
    with FAULTS[f"program-loader-{name}"].patch.applied():
        found = judged(case, needle).divergence
    assert matches("batches of a loader", suspect(case, found)), suspect(case, found)


@pytest.mark.parametrize("loss", [c.SoftmaxLoss(), c.Cotangent(), c.MeanSquare()], ids=lambda loss: type(loss).__name__)
def test_the_passes_after_a_loader_take_its_batches_in_its_order(loss):
    """Also of a second loader, whose rows are in the order of the first already, and in a copy."""
    loaders = (a.Loader("shuffled"), a.Pass(), a.Step(), a.Loader("short"), a.Copy())
    case = replace(
        BASE, loss=loss, actions=(a.Pass(), *loaders, a.Pass(to_input=True), a.Step(), a.Loader("dropped"), a.Pass())
    )
    verdict = judged(case, needle)
    assert verdict.divergence is None
    assert verdict.steps == len(case.actions)
    plain, loaded = inputs.batches(case.training), programs.batches(case)
    assert np.array_equal(plain.x[0], loaded.x[0])
    assert not np.array_equal(plain.x[1:], loaded.x[1:])
    assert set(map(bytes, loaded.x.reshape(-1, 3))) <= set(map(bytes, plain.x.reshape(-1, 3))), "no row is made up"


def test_a_batch_of_one_row_cannot_be_short():
    with pytest.raises(c.CaseError, match="cannot be short"):
        replace(BASE, model=(c.Linear(2),), data=c.Data(rows=1, features=3), actions=(a.Loader("short"), a.Pass()))


PUT = ("a layer is put in a Sequential", "a layer is put in a ModuleList")
LOADED = ("a schedule is loaded from its state_dict", "a schedule is loaded from a file")
SCHEDULED = [
    ("schedule StepLR", "program-steplr-early"),
    ("schedule StepLR, gamma by default", "program-steplr-linear"),
    ("schedule StepLR, gamma by default", "program-steplr-gamma-half"),
    ("schedule CosineLR", "program-cosine-degrees"),
    ("schedule CosineLR", "program-cosine-lowest-ignored"),
    ("schedule CosineLR, lowest by default", "program-cosine-lowest-default"),
    ("schedule Warmup", "program-warmup-one-ahead"),
    ("schedule Warmup, then StepLR", "program-warmup-then-not-shifted"),
    (LOADED[0], "program-schedule-state-one-less"),
    (LOADED[1], "program-file-schedule-anew"),
]


@pytest.mark.parametrize(("label", "name"), SCHEDULED)
def test_a_mistake_in_a_schedule_shows_and_in_a_script_too(label, name):
    case = with_feature(label)
    with FAULTS[name].patch.applied():
        found = judged(case, needle).divergence
        assert found is not None
        assert matches(FAULTS[name].suspect, suspect(case, found)), suspect(case, found)
        text = script.script(case, found, needle)
        assert script.fails(text)
    assert not script.fails(text), "without the mistake it shows none"


def test_a_schedule_goes_on_from_where_it_was_made_whatever_else_is_done():
    """After its steps; with another lr that a user writes; loaded, where a Warmup has just set 0."""
    attached = (a.Attach("CosineLR", 2, 0.05), a.Attach("StepLR", 1, 0.5), a.Attach("Warmup", 3))
    later = (a.Set("lr", 0.7), a.Advance(), a.Pass(), a.Step(), a.Set("lr", 0.2), a.Advance(), a.Advance(), a.Advance())
    for schedule, name in zip(
        attached, ("cosine-goes-up-again", "steplr-of-now", "schedule-load-leaves-lr"), strict=True
    ):
        case = replace(BASE, actions=(schedule, *later, a.Load(True), a.Pass(), a.Copy(), a.Advance(), a.Step()))
        verdict = judged(case, needle)
        assert verdict.divergence is None
        assert verdict.tally.largest["L schedule"] < 1
        with FAULTS[f"program-{name}"].patch.applied():
            assert judged(case, needle).divergence is not None
    kept = replace(BASE, actions=(a.Attach("StepLR", 1, 0.5), a.Advance(), a.Set("lr", 0.7), a.Advance(), a.Advance()))
    with FAULTS["program-schedule-keeps-lr"].patch.applied():
        assert judged(kept, needle).divergence is not None
    assert judged(kept, needle).divergence is None


def test_a_schedule_that_needle_would_refuse_cannot_exist():
    with pytest.raises(c.CaseError, match="has no then"):
        a.Attach("StepLR", then="CosineLR")
    with pytest.raises(c.CaseError, match="has no value"):
        a.Attach("Warmup", value=0.5)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("set momentum of a layer", "program-bn-momentum-cached"),
        ("set eps of a layer", "program-bn-eps-cached"),
        ("set eps of a layer", "program-ln-eps-cached"),
        ("a file into a fresh model", "program-file-half"),
        ("a file into a fresh model", "program-file-no-buffers"),
        ("a file into a fresh model and optimizer", "program-file-no-state"),
        ("a file into a fresh model and optimizer", "program-file-no-random-state"),
        ("pass, gradients with a graph", "program-state-carries-graph"),
        ("pass, gradients with a graph", "program-graph-gradient-skipped"),
        ("state_dict into a fresh model", "program-load-unties"),
        ("layer replaced", "program-sequential-slice-copies"),
        ("data +=", "program-iadd-always"),
        ("data -=", "program-isub-reversed"),
        ("data -=", "program-isub-in-place"),
        ("data /=", "program-itruediv-multiplies"),
        ("data **=", "program-ipow-once"),
        ("data @=", "program-imatmul-transposed"),
        ("data [...] =", "program-setitem-taken"),
        ("data masked by > and <", "program-gt-turned"),
        ("data masked by >= and <=", "program-ge-turned"),
        ("data masked by > and <", "program-lt-turned"),
        ("data masked by >= and <=", "program-le-turned"),
        ("data masked by == and !=", "program-eq-turned"),
        ("data masked by == and !=", "program-ne-turned"),
        ("train(False)", "program-train-false-trains"),
        ("reset by zero_grad", "program-zero-grad-first-alone"),
        ("reset by the model", "program-module-zero-grad-own"),
    ],
)
def test_a_mistake_that_only_this_form_of_an_action_shows(label, name):
    model = (c.Linear(3), c.LayerNorm(), c.ReLU(), c.Linear(3, tie=0), c.Branch((c.Tanh(),), (), "multiply"))
    base = replace(BASE, model=model) if name in ("program-ln-eps-cached", "program-load-unties") else BASE
    case = with_feature(label, base)
    assert judged(case, needle).divergence is None
    with FAULTS[name].patch.applied():
        assert judged(base, needle).divergence is None
        found = judged(case, needle).divergence
    assert found is not None
    assert matches(FAULTS[name].suspect, suspect(case, found)), suspect(case, found)


def test_no_verdict_is_given_where_rounding_takes_a_branch():
    """The second Linear gives 0 in theory and anything around it in float32; nobody sees which side its ReLU took."""
    case = replace(BASE, model=(c.LayerNorm(), c.Linear(3), c.BatchNorm(eps=1e-8), c.ReLU(), c.Linear(2)))
    constant = replace(case, data=c.Data(rows=4, features=1))
    assert judged(constant, needle).out_of_domain
    assert not judged(case, needle).out_of_domain
    assert judged(case, needle).divergence is None is judged(constant, needle).divergence


def test_a_program_shrinks_to_its_fewest_actions():
    case = with_feature("set weight_decay above 1", with_feature("pickle", with_feature("kept data")))
    assert len(case.actions) > 8
    with FAULTS["program-decay-at-most-1"].patch.applied():
        wanted = culprit(case, judged(case, needle).divergence)

        def fails(smaller):
            found = judged(smaller, needle).divergence
            return found is not None and culprit(smaller, found) == wanted

        smallest = shrink.shrink(case, fails)
    kinds = [type(action) for action in smallest.actions]
    # with or without a pass: the decay needs a gradient, whoever has made it
    assert len(kinds) == 3
    assert kinds[-1] is a.Step
    assert a.Set in kinds


def test_what_is_wrong_with_an_optimizer_is_put_into_words():
    case = replace(BASE, actions=(a.Pass(), a.Step(), a.Set("lr", 0.3), a.Pass(), a.Step()))
    with FAULTS["sgd-lr-captured"].patch.applied():
        found = judged(case, needle).divergence
    assert "the learning rate is stale: 0.1, not 0.3" in suspect(case, found)


def test_no_grad_that_is_never_left_ends_with_its_program():
    with FAULTS["program-no-grad-exception"].patch.applied():
        assert judge(with_feature("no_grad, exception"), needle).divergence is not None
    assert autograd._is_recording()


def test_a_seed_gives_the_same_programs_and_no_two_alike():
    one, two = draw("program", 16, 4), draw("program", 16, 4)
    assert one == two
    assert len({case.digest for case in one}) == 16
    assert draw("program", 16, 5) != one


@pytest.mark.parametrize(
    "change",
    [
        {"model": (c.Residual((c.Branch((), ()),)), c.Linear(2))},  # no pickle takes what stands deeper
        {"model": (c.Linear(3), c.Linear(3, tie=0)), "again": 1},
        {"model": (c.Linear(3, frozen=True), c.Linear(2))},
        {"again": 1},  # a BatchNorm has a state
        {"model": (c.Linear(3), c.Linear(2)), "again": 0},
    ],
)
def test_a_program_that_cannot_be_judged_cannot_exist(change):
    with pytest.raises(c.CaseError):
        replace(BASE, **change)


def test_set_and_refuse_are_opposites():
    with pytest.raises(c.CaseError, match="Refuse"):
        a.Set("momentum", 1.0)
    with pytest.raises(c.CaseError, match="must not be refused"):
        a.Refuse("lr", 0.5)


def test_a_needle_of_the_course_gets_the_actions_that_the_course_has():
    """Others of a program are left out; where a state cannot be found, training runs stand in its place, as many."""
    lacking = Offer(left_open=fitting.LEFT_OPEN).lacking
    cases = fitting_cases("program", 40, 5, lacking, 0)
    actions = [action for case in cases for action in case.actions]
    assert len(cases) == 40
    assert {type(action) for action in actions} == {
        a.Pass,
        a.Step,
        a.ClipNorm,
        a.Set,
        a.NewOptimizer,
        a.Mode,
        a.Evaluate,
    }
    assert not any(action.constant for action in actions if isinstance(action, a.Evaluate))
    assert {case.held for case in cases} == {"sequential", "list", "dict"}
    assert not any(action.by_train for action in actions if isinstance(action, a.Mode))
    lesser = fitting_cases("program", 8, 5, lacking | {"optimizer clipping", "setting SGD.lr"}, 0)
    assert not any(isinstance(action, a.ClipNorm) for case in lesser for action in case.actions)
    assert all(
        isinstance(case, c.TrainCase) for case in fitting_cases("program", 8, 5, lacking | {fitting.PROGRAMS}, 0)
    )
    (design,) = (d for d in contract.BY_DESIGN if d.matter == "programs of a user")
    assert design.seen(SimpleNamespace()), "of every needle that is not ours"


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("set weight_decay above 1", "program-decay-at-most-1"),
        ("clip, max_norm three", "program-clip-at-most-1"),
        ("refuse momentum", "program-momentum-unchecked"),
        ("gradient strided", "program-gradient-strided-flat"),
        ("freeze", "program-freeze-undone"),
        ("parameter added late", "program-late-parameter-ignored"),
        ("state_dict into a fresh model and optimizer", "program-optimizer-state-lost"),
        ("deepcopy", "program-copy-takes-runs"),
        ("mishap, gradient", "program-misfit-refused-late-sgd"),
        ("mishap, shape", "program-load-refused-late"),
        ("mishap, state", "program-state-refused-late"),
        ("state put back", "program-put-back-statistics-stay"),
        ("data transposed", "program-data-transposed-as-in-memory"),
    ],
)
def test_the_script_is_the_list_of_actions_and_shows_the_mistake(label, name):
    case = with_feature(label)
    with FAULTS[name].patch.applied():
        found = judged(case, needle).divergence
        text = script.script(case, found, needle)
        assert script.fails(text)
    assert not script.fails(text), "without the mistake it shows none"
    assert all(f"# {i}: {action.text}" in text for i, action in enumerate(case.actions[: found.step + 1]))


def test_a_script_can_be_written_of_every_form_of_every_action():
    for words in (*a.EXAMPLES, "layers in a list", "same module twice", "Residual of a function", *LOADED, *PUT):
        case = with_feature(words)
        found = Divergence(len(case.actions) - 1, "parameter", "0.weight", "L", "", (0, 0), 0.0, None, 1e3, allowed=0.0)
        assert script.fails(script.script(case, found, needle)), "the number is not 1000"


def test_an_action_with_settings_has_simpler_ones_and_a_text():
    action = a.NewOptimizer(settings={"lr": 0.5})
    assert a.NewOptimizer() in list(action.simpler())
    assert a.NewOptimizer().text == "NewOptimizer()"
    assert "lr" in action.text
