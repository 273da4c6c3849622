"""The benchmark computes what it claims to time, and says so when it does not. Nothing here is timed."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rounding import Rounded, U, within

import needle as ndl
from needle import ops
from oracle.bench import cli, extras, history, measure, report
from oracle.bench.measure import Spread, Timing
from oracle.bench.peers import BUILDERS
from oracle.memory import blas
from oracle.systems import by_hand as limit
from oracle.systems.workloads import WORKLOADS

ROOT = Path(__file__).parents[3]

SMALL = {
    "W1": WORKLOADS["W1"],
    "W2": replace(WORKLOADS["W2"], widths=(20, 12, 5), batch=9),
    "W3b": replace(WORKLOADS["W3b"], widths=(20, 12, 5), batch=9),
    "W3l": replace(WORKLOADS["W3l"], widths=(20, 12, 5), batch=9),
    "W4": replace(WORKLOADS["W4"], widths=(20, 12, 12, 5), batch=9),
    "W5": replace(WORKLOADS["W5"], widths=(16,) * 21),
    "W6": replace(WORKLOADS["W6"], widths=(3, limit.BLOCK)),  # more than one block, the last one short
}


@pytest.mark.parametrize("key", SMALL)
@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
def test_limit_needle_and_torch_train_alike(key, fused):
    workload = SMALL[key].for_check()
    names = ("limit", "needle", "torch fused" if fused else "torch")
    measure.check(workload, measure.build(workload, names), steps=8)


@pytest.mark.parametrize("key", ["W3b", "W3l"])
def test_with_dropout_limit_and_needle_draw_the_same_masks(key):
    """Both draw np.random.rand(n, d) <= keep, so from one seed they train alike. One mask element drawn otherwise
    changes the loss by 1e-2.
    """
    trainer = BUILDERS["limit"](SMALL[key])
    np.random.seed(3)
    losses = [trainer.run(1) for _ in range(5)]
    within(losses, trained_with_noise(SMALL[key], 5, lambda trainer, losses: losses))


def test_the_running_statistics_of_the_limit_follow_needles():
    workload = SMALL["W3b"].for_check()
    by_hand = limit.build(workload)
    by_hand.run(4)
    norms = [norm for block in by_hand.net.blocks for norm in (block[1], block[5])]
    running = [row for norm in norms for row in norm.running]
    assert len(running) == 12
    buffers = trained_with_noise(
        workload, 4, lambda trainer, _: np.concatenate([b.numpy().ravel() for _, b in trainer.model.named_buffers()])
    )
    within(np.concatenate([np.ravel(row) for row in running]), buffers)


def trained_with_noise(workload, steps, result):
    """What ``result(trainer, losses)`` is after some steps of needle, and what rounding may make of it.

    As in rule G: 16 times the most that it moves when the parameters are off by up to 2 units roundoff at each step.
    """

    def run(noise):
        trainer = BUILDERS["needle"](workload)
        np.random.seed(3)
        losses = []
        for _ in range(steps):
            for p in trainer.model.parameters() if noise else ():
                p.cached_data = (p.numpy() * (1 + 2 * U * noise.uniform(-1, 1, p.shape))).astype(p.dtype)
            losses.append(trainer.run(1))
        return np.asarray(result(trainer, losses), float)

    exact = run(None)
    moved = np.max([np.abs(run(np.random.default_rng(seed)) - exact) for seed in range(7)], axis=0)
    assert moved.any()
    return Rounded(exact, 16 * (moved + U * np.abs(exact)))


@pytest.mark.parametrize(
    ("test", "owner", "method"),
    [
        (lambda: test_with_dropout_limit_and_needle_draw_the_same_masks("W3b"), ops.BatchNorm, "compute"),
        (lambda: test_with_dropout_limit_and_needle_draw_the_same_masks("W3l"), ops.LayerNorm, "compute"),
        (test_the_running_statistics_of_the_limit_follow_needles, ops.Linear, "compute"),
    ],
)
def test_a_small_error_is_not_taken_for_rounding(test, owner, method, monkeypatch):
    """All values of an op in needle are too large by 1,000 roundings."""
    test()
    old = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda *args: old(*args) * np.float32(1 + 1000 * U))
    with pytest.raises(AssertionError):
        test()


def plant(monkeypatch, what):
    """One mistake in the hand-written loops."""
    if what == "no decay":
        flat = limit.Flat.__init__
        monkeypatch.setattr(
            limit.Flat, "__init__", lambda self, start, w: flat(self, start, replace(w, weight_decay=0.0))
        )
    elif what == "first step not dampened":
        update = limit.Flat.update

        def undampened(self):
            if not self.u.any():
                self.u[...] = self.g
            update(self)

        monkeypatch.setattr(limit.Flat, "update", undampened)
    elif what == "ReLU passes gradients at negative inputs":
        monkeypatch.setattr(limit.Relu, "backward", lambda self, h, g, g_bits: None)
    elif what == "norm without the mean of the gradient":
        init = limit.BatchNorm.__init__

        def planted(self, *args):
            init(self, *args)
            self.share = limit.ZERO

        monkeypatch.setattr(limit.BatchNorm, "__init__", planted)
    elif what == "loss off by a factor":
        loss = limit.SoftmaxLoss.__call__
        monkeypatch.setattr(limit.SoftmaxLoss, "__call__", lambda *args: loss(*args) * np.float32(1.001))


@pytest.mark.parametrize(
    "what",
    [
        "no decay",
        "first step not dampened",
        "ReLU passes gradients at negative inputs",
        "norm without the mean of the gradient",
        "loss off by a factor",
    ],
)
def test_the_check_catches_a_wrong_limit(monkeypatch, what):
    plant(monkeypatch, what)
    workload = SMALL["W3b"].for_check()
    with pytest.raises(measure.Disagreement, match=r"^W3b: limit and torch part at step [0-4]: "):
        measure.check(workload, measure.build(workload, ("torch", "limit")))


def test_a_disagreement_ends_the_run_before_anything_is_timed(monkeypatch, tmp_path, capsys):
    from oracle.bench import session

    plant(monkeypatch, "no decay")
    monkeypatch.setattr(measure, "interleave", lambda *_: pytest.fail("timed"))
    options = cli.parser().parse_args(["--workloads", "w1", "--quick", "--out", str(tmp_path)])
    assert session.run(options) == 1
    assert "Not timed" in (err := capsys.readouterr().err)
    assert "W1: " in err
    assert " part at step 0: " in err


def test_an_interrupt_prints_and_writes_what_was_measured(monkeypatch, tmp_path, capsys):
    from oracle.bench import session

    interleave = measure.interleave

    def interrupted(contestants, rounds, burst, tick, timing):
        interleave(contestants, 1, burst, tick, timing)
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "interleave", interrupted)
    options = cli.parser().parse_args(["--workloads", "W1,W6", "--quick", "--out", str(tmp_path)])
    assert session.run(options) == 130
    out = capsys.readouterr().out
    assert "W1  MLP 8-16-4" in out
    assert "W6  SGD alone" not in out
    assert "interrupted" in out
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["complete"] is False
    assert found["workloads"]["W1"]["rounds"] == 1


@pytest.fixture
def results():
    def timing(**costs):
        cpu = {name.replace("_", " "): [cost * 1e-6 * k for k in (1, 2, 3)] for name, cost in costs.items()}
        return Timing(cpu, cpu)

    pair = timing(needle=3.0, torch=4.0, numpy=2.0)
    return report.Results(
        threads=1,
        rounds=3,
        burst=0.01,
        names=["limit", "needle", "torch", "torch fused"],
        workloads={
            "W1": timing(limit=20, needle=30, torch=300, torch_fused=250),
            "W6": timing(limit=100, needle=110, torch=90, torch_fused=50),
            "W2": Timing(),  # interrupted before its first round ended
        },
        extras=report.Extras(
            import_time=timing(numpy=70e3, needle=80e3),
            ops={"x + y": pair},
            heap={"needle": {"peak": 2**20, "tool": "memray", "cycles": 0}},
            depth={d: timing(needle=3.0 * d, torch=4.0 * d**2) for d in (100, 1000)},
            width={w: timing(limit=1.0 * w, needle=2.0 * w, torch=3.0 * w) for w in (1, 10)},
            second=timing(**{f"{n}_{m}": 2.0 for n in ("needle", "torch") for m in ("first", "graph", "second")}),
            adam={"W1": timing(needle=10.0, torch=100.0, torch_fused=40.0)},
        ),
    )


def test_ratios_are_taken_within_a_round():
    timing = Timing({"a": [1.0, 10.0, 3.0], "b": [2.0, 20.0, 1.0]})
    assert timing.ratio("a", "b") == Spread(0.5, 0.5, 3.0)


def test_the_table_shows_ratios_targets_and_a_clear_mark(results):
    results.complete = False
    console = Console(width=report.WIDTH, record=True, file=io.StringIO())
    report.terminal(results, console)
    lines = console.export_text().splitlines()
    (w1,) = (line for line in lines if line.lstrip().startswith("W1  MLP"))
    assert "1.50 (1.50–1.50) ≤ 1.95 ✓" in w1
    assert "0.10 (0.10–0.10) ≤ 0.15 ✓" in w1
    assert "15.0 (15.0–15.0)" in w1
    (w6,) = (line for line in lines if line.lstrip().startswith("W6  SGD"))
    assert "1.10 (1.10–1.10) ≤ 1.05 ✗" in w6
    text = "\n".join(lines)
    assert f"BLAS kernel {blas.read_back()}." in " ".join(text.split())
    assert "A target is what the calls to NumPy that the gradient rules need cost" in " ".join(text.split())
    assert "W2  MLP" not in text
    assert "interrupted" in text
    assert "import       needle / numpy 1.14 (1.14–1.14), numpy 140 ms  ≤ 1.3 ✓" in text
    assert "1.00 MiB (memray), 0 objects left to the cycle collector  ≤ 1.15 MiB ✓" in text
    assert "slope 1.00)  ≤ 1.1 ✓" in text
    assert "parameters of W1: needle 20 µs; needle / torch 0.10 (0.10–0.10), / torch fused 0.25 (0.25–0.25)" in text


def test_json_svg_and_page_are_written(results, tmp_path):
    report.write(results, tmp_path / "deep")
    found = json.loads((tmp_path / "deep/bench.json").read_text())
    assert (found["format"], found["kind"], found["complete"]) == (1, "bench", True)
    assert found["environment"]["numpy"] == np.__version__
    assert found["environment"]["threads"] == 1
    assert list(found["workloads"]) == ["W1", "W6"]
    w6 = found["workloads"]["W6"]
    assert w6["over_limit"]["needle"] == pytest.approx({"median": 1.1, "low": 1.1, "high": 1.1})
    assert (w6["over_limit_target"], w6["over_limit_met"], w6["over_torch_met"]) == (1.05, False, False)
    assert found["import"]["met"] is True
    assert found["depth"]["needle"]["slope"] == pytest.approx(1)
    assert found["depth"]["torch"]["slope"] == pytest.approx(2)
    assert found["adam"]["seconds"]["W1"]["needle"]["median"] == pytest.approx(20e-6)
    image = (tmp_path / "deep/bench.svg").read_text()
    page = (tmp_path / "deep/bench.html").read_text()
    assert "</svg>" in image
    assert page.count("<svg") == 2
    assert "✗ missed" in page
    for outside in ("src=", "<link", "@import"):
        assert outside not in page


def test_every_run_is_a_point_of_the_trend_among_those_that_it_can_be_compared_with(results, tmp_path, monkeypatch):
    report.write(results, tmp_path)
    assert "Run after run" not in (tmp_path / "bench.html").read_text()  # one point is no trend
    results.workloads["W1"].cpu["needle"] = [2 * cost for cost in results.workloads["W1"].cpu["needle"]]
    report.write(results, tmp_path)
    with (tmp_path / history.NAME).open("a") as file:
        file.write("no line of JSON\n")
    assert (tmp_path / "bench.html").read_text().count("Run after run") == 1
    runs = history.read(tmp_path)
    assert [run["over_limit"]["W1"] for run in runs] == [[1.5, 1.5, 1.5], [3.0, 3.0, 3.0]]
    assert runs[1]["on"] == [report.environment(1)[name] for name in history.SAME] + [0.01]
    assert history.trends(runs)["W6"] == [[1.1, 1.1, 1.1]] * 2

    monkeypatch.setattr(blas, "read_back", lambda: "another kernel")
    results.complete = False
    report.write(results, tmp_path)
    assert len(history.read(tmp_path)) == 2  # a run that was interrupted is none of the file
    results.complete = True
    report.write(results, tmp_path)
    assert history.trends(history.read(tmp_path)) == {"W1": [[3.0, 3.0, 3.0]], "W6": [[1.1, 1.1, 1.1]]}
    assert "Run after run" not in (tmp_path / "bench.html").read_text()
    monkeypatch.setattr(history, "MOST", 3)
    report.write(results, tmp_path)
    assert len((tmp_path / history.NAME).read_text().splitlines()) == 3
    assert not history.trends([])


@pytest.mark.parametrize(
    ("flags", "there", "timed", "said"),
    [
        ([], {"jax"}, ["JAX"], ""),
        ([], {"mygrad"}, [], ""),
        (["--peers", "torch"], {"jax"}, [], ""),
        (["--peers", "all"], {"jax", "autograd"}, ["HIPS autograd", "JAX"], "MyGrad is not installed and left out"),
    ],
)
def test_jax_is_timed_where_it_is_installed(flags, there, timed, said, tmp_path, capsys, monkeypatch):
    from oracle.bench import session

    monkeypatch.setattr(session.importlib.util, "find_spec", lambda module: module in there or None)
    monkeypatch.setattr(report, "write", lambda results, folder: None)
    monkeypatch.setattr(report, "terminal", lambda results, console: print(results.names[4:]))
    options = cli.parser().parse_args([*flags, "--workloads", "none", "--out", str(tmp_path)])
    assert session.run(options) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == str(timed)
    assert err.partition(" (")[0].strip() == said


def test_adam_is_not_timed_where_needle_and_torch_part(monkeypatch):
    assert set(extras.adam_alone(1, 1e-4, lambda: None)) == set(extras.ADAM)
    step = ndl.optim.Adam.step

    def faster(self):
        self.lr = 1.01e-3
        step(self)

    monkeypatch.setattr(ndl.optim.Adam, "step", faster)
    monkeypatch.setattr(extras, "interleave", lambda *_: pytest.fail("timed"))
    with pytest.raises(measure.Disagreement, match="Adam on the parameters of W1"):
        extras.adam_alone(1, 1e-4, lambda: None)


def test_a_burst_interrupted_in_its_round_counts_for_nobody():
    calls = []

    def run(n):
        calls.append(n)
        if len(calls) > 60:
            raise KeyboardInterrupt

    def busy(n):
        run(n)
        for _ in range(n * 20_000):
            pass

    timing = Timing()
    with pytest.raises(KeyboardInterrupt):
        measure.interleave({"a": busy, "b": busy}, 1000, 1e-4, timing=timing)
    assert timing.rounds == len(timing.cpu["a"]) == len(timing.cpu["b"]) > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workloads", "W9"], "'W9' is not one of W1, W2"),
        (["--rounds", "0"], "'0' is not a whole number of at least 1"),
        (["--threads", "two"], "'two' is not a whole number"),
        (["--peers", "tensorflow"], "invalid choice"),
        (["--extras", "imports"], "'imports' is not one of import"),
        (["--frobnicate"], "unrecognized arguments"),
        (["--against", "HEAD", "--extras", "ops"], "without --extras and --peers"),
    ],
)
def test_bad_flags_are_usage_errors(capsys, flags, words):
    with pytest.raises(SystemExit) as exit_:
        cli.main(flags)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def test_the_command_line_knows_every_workload():
    assert tuple(WORKLOADS) == cli.WORKLOADS


def test_the_command_runs_silently_when_redirected(tmp_path):
    """In a process of its own: threads come from the environment of a fresh process."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "oracle.bench",
            "--workloads",
            "W1",
            "--quick",
            "--rounds",
            "2",
            "--out",
            tmp_path,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "\x1b" not in run.stdout
    assert "W1  MLP 8-16-4" in run.stdout
    assert json.loads((tmp_path / "bench.json").read_text())["workloads"]["W1"]["rounds"] == 2


def test_importing_the_benchmark_loads_no_library():
    def loaded(package):
        show = f"import sys, {package}; print(*{{m.split('.')[0] for m in sys.modules}})"
        run = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)
        return set(run.stdout.split()) - set(sys.stdlib_module_names) - {"oracle"}

    assert loaded("oracle.bench") <= loaded("oracle")
    assert not loaded("oracle.bench") & {"jax", "mygrad", "autograd"}


def test_depth_counts_as_linear_by_its_slope():
    timings = {d: Timing({"needle": [d * 2e-6]}) for d in extras.DEPTHS}
    assert extras.Linearity.of(timings, "needle") == extras.Linearity(pytest.approx(1), pytest.approx(1))
