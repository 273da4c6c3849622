"""The baseline and the report, without measuring anything."""

import msgspec
import pytest

pytest.importorskip("memray")

from oracle.memory import baseline, report
from oracle.memory.gates import Row, judge
from oracle.memory.panel import PANEL
from oracle.memory.probe import STEPS, Measured, Site
from oracle.runs import memory as session

KEY = {"python": "3.11.7", "kernel": "Haswell", "allocators": "malloc"}


def measured(peak=1000, **changes):
    flat = [500] * (STEPS + 1)
    m = Measured(flat, [5] * len(flat), [0] * len(flat), [0] * len(flat), 0, peak, 500, 7.5)
    return msgspec.structs.replace(m, **changes)


def run_of(folder, **changes):
    plan = session.Plan(cases=0, seed=0, workers=1, folder=folder, baseline=folder / "memory.json")
    run = session.Run(plan, KEY, "abc1234")
    run.rows = [Row("MLP", PANEL["MLP"], panel=True, runs={"malloc": measured(**changes), "python": measured()})]
    return run


def accept(run):
    row = run.rows[0]
    baseline.accept(run.plan.baseline, run.key, {row.name: (row.case.digest, row.main)})


def test_memory_check_the_same_numbers_pass_and_others_fail_under_the_same_key(tmp_path):
    accept(run_of(tmp_path))
    same, more = run_of(tmp_path), run_of(tmp_path, peak=1001)
    for run in (same, more):
        session._compare(run)
    assert same.exit_code == 0
    assert more.exit_code == 1
    assert "peak 1,000 → 1,001 B, +1 (x1.001)" in report.block(more.rows[0])


@pytest.mark.parametrize(("what", "old"), [("python", "3.11.7"), ("kernel", "Haswell")])
def test_memory_check_under_another_key_only_ratios_are_shown(tmp_path, what, old):
    accept(run_of(tmp_path))
    other = run_of(tmp_path, peak=2000)
    other.key = {**KEY, what: "another"}
    session._compare(other)
    assert other.exit_code == 0
    assert report.cells(other.rows[0])[-2:] == ["peak x2.000", "ok"]
    assert f"the baseline was made with {what} {old}: ratios only, gate D is not judged" in report.markdown(other)
    assert "`nox -s memory -- --panel-only --accept` adds an entry for this key" in report.markdown(other)


def test_memory_check_under_another_kernel_the_other_gates_are_judged(tmp_path):
    accept(run_of(tmp_path))
    other = run_of(tmp_path, live=[500 + t for t in range(STEPS + 1)])
    other.key = {**KEY, "kernel": "another"}
    session._compare(other)
    assert other.exit_code == 1
    assert set(other.rows[0].failures) == {"C"}


def test_memory_check_the_entry_to_look_at_is_the_nearest(tmp_path):
    path = tmp_path / "memory.json"
    near, far = {**KEY, "kernel": "SkylakeX"}, {"python": "3.10.0", "kernel": "SkylakeX", "allocators": "python"}
    for key in (near, far):
        baseline.accept(path, key, {})
    assert baseline.entry_for(baseline.read(path), KEY)[0].key == near
    baseline.accept(path, KEY, {})
    assert baseline.entry_for(baseline.read(path), KEY)[1]
    baseline.accept(path, near, {})
    assert [e.key for e in baseline.read(path).entries] == [near, far, KEY]


def test_memory_check_the_number_that_fails_is_the_one_that_is_marked_with_the_way_out(tmp_path, capsys):
    accept(run_of(tmp_path))
    run = run_of(tmp_path, peak=999, allocations=7.6)
    session._compare(run)
    cells = dict(zip(report.HEADINGS, report.cells(run.rows[0]), strict=True))
    assert [name for name, text in cells.items() if text.endswith("!")] == ["allocs"]
    assert cells["allocs"] == "7.6!"
    assert cells["baseline"] == "allocs x1.013"
    assert cells["verdict"] == "FAILS D"
    assert "less     peak 1,000 → 999 B, -1 (x0.999)" in report.block(run.rows[0])
    assert "is better than the baseline" not in report.markdown(run)
    assert run.rows[0].failures == {"D": "allocations per step 7.5 → 7.6, +0.1 (x1.013)"}
    assert "way out  none of it is meant: mend needle; it is: `nox -s memory -- --panel-only --accept`" in report.block(
        run.rows[0]
    )
    assert run.exit_code == 1
    page = report.html(run)
    assert page.count('<td class="fails">') == 2  # the number, and the verdict
    assert '<td class="fails">7.6!</td>' in page


def test_memory_check_a_leak_is_marked_where_it_is(tmp_path):
    run = run_of(tmp_path, live=[500 + t for t in range(STEPS + 1)], collected=[0] * STEPS + [1], with_graph=1)
    session._compare(run)
    assert [text for text in report.cells(run.rows[0]) if text.endswith("!")] == ["100!", "1!", "1!"]


@pytest.mark.parametrize("less", [{"peak": 999}, {"end": 499}, {"allocations": 7.4}])
def test_memory_check_an_improvement_is_an_invitation_and_no_failure(tmp_path, less):
    accept(run_of(tmp_path))
    run = run_of(tmp_path, **less)
    session._compare(run)
    assert run.exit_code == 0
    assert report.cells(run.rows[0])[-1] == "better"
    assert "MLP is better than the baseline: " in report.markdown(run)
    assert "`nox -s memory -- --panel-only --accept` makes it the new one" in report.markdown(run)
    accept(run)
    again = run_of(tmp_path)
    session._compare(again)
    assert again.exit_code == 1, "what was accepted is what counts"


def test_memory_check_one_model_runs_alone_by_name(tmp_path, capsys, monkeypatch):
    def memory(**changes):
        usual = {"cases": 30, "seed": 0, "workers": 1, "panel_only": False, "accept": False, "folder": tmp_path}
        return session.memory(**usual | changes)

    assert memory(model="MPL") == 2
    assert "--model must be one of 'MLP', 'MLPResNet BatchNorm'" in capsys.readouterr().err
    assert memory(model="MLP", accept=True) == 2
    assert "--accept goes without --model" in capsys.readouterr().err
    jobs = []

    def stop(outcome, text):
        jobs.append([row.name for row in outcome.rows])
        raise KeyboardInterrupt

    session.run(session.Plan(0, 0, 1, model="tied weights", folder=tmp_path), stop)
    assert jobs == [["tied weights"]]


def test_memory_check_accept_keeps_the_entries_of_other_keys(tmp_path):
    accept(run_of(tmp_path))
    other = run_of(tmp_path, peak=2000)
    other.key = {**KEY, "python": "3.14.0"}
    accept(other)
    accept(run_of(tmp_path, peak=3000))
    entries = baseline.read(tmp_path / "memory.json").entries
    assert {e.key["python"]: e.cases["MLP"].peak for e in entries} == {"3.14.0": 2000, "3.11.7": 3000}


def test_memory_check_another_case_under_the_same_name_has_no_baseline(tmp_path):
    accept(run_of(tmp_path))
    run = run_of(tmp_path, peak=2000)
    run.rows[0].case = PANEL["Adam"]
    session._compare(run)
    assert run.rows[0].known is None
    assert run.exit_code == 0


def test_memory_check_a_run_cut_short_is_not_held_to_the_baseline_of_the_other_mode(tmp_path):
    accept(run_of(tmp_path))
    run = run_of(tmp_path)
    run.rows[0].runs = {"python": measured(peak=9999)}
    run.interrupted = True
    session._compare(run)
    assert run.exit_code == 130


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"live": [500] * STEPS + [501]}, "C"),
        ({"blocks": [5] * STEPS + [6]}, "C"),
        ({"collected": [0] * STEPS + [1]}, "B"),
        ({"with_graph": 1}, "A"),
        ({"tensors": [0] * STEPS + [1]}, "A"),
    ],
)
def test_memory_check_one_is_not_zero(changes, gate):
    row = Row("x", PANEL["MLP"], panel=True, runs={"malloc": measured(**changes)})
    judge(row)
    assert set(row.failures) == {gate}


def test_memory_check_the_page_opens_offline_and_tells_everything(tmp_path):
    run = run_of(
        tmp_path, live=[500 + t for t in range(STEPS + 1)], survivors=[Site("needle/ops.py:1 f", "x <= y", 9, 3, 3)]
    )
    run.rows[0].runs["python"] = run.rows[0].runs["malloc"]
    run.rows[0].holders = ["SGD.u[0.weight] → Tensor.op (EWiseAdd)"]
    run.rows[0].flame = "memory-MLP-flame.html"
    run.rows[0].torch = measured(peak=800)
    session._compare(run)
    report.write(run, tmp_path)
    page = (tmp_path / "memory.html").read_text("utf-8")
    assert "MLP fails C" in page
    assert "SGD.u[0.weight] → Tensor.op (EWiseAdd)" in page
    assert "x &lt;= y" in page
    assert 'href="memory-MLP-flame.html"' in page
    assert page.count("<svg") == 3  # the failure, live bytes, peaks
    assert "src=" not in page
    assert 'rel="stylesheet"' not in page
    assert "MLP fails" not in (tmp_path / "memory.md").read_text("utf-8").split("##")[0]
    assert msgspec.json.decode((tmp_path / "memory.json").read_bytes())["exit_code"] == 1


def test_memory_check_the_trend_is_drawn_from_the_second_baseline_on(tmp_path):
    import matplotlib

    accept(run_of(tmp_path))
    first = baseline.read(tmp_path / "memory.json")
    accept(run_of(tmp_path, peak=1200))
    second = baseline.read(tmp_path / "memory.json")
    matplotlib.use("svg")
    assert report._trend_plot([("a", first)], KEY) == ""
    assert "MLP" in report._trend_plot([("a", first), ("b", second)], KEY)
