"""The baseline and the report, without measuring anything."""

import msgspec
import pytest

pytest.importorskip("memray")

from oracle.memory import baseline, report
from oracle.memory.gates import Row, judge
from oracle.memory.panel import PANEL
from oracle.memory.probe import STEPS, Measured, Site
from oracle.runs import memory as session

KEY = {"python": "3.11.7", "allocators": "malloc"}


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


def test_memory_check_under_another_key_only_ratios_are_shown(tmp_path):
    accept(run_of(tmp_path))
    other = run_of(tmp_path, peak=2000)
    other.key = {**KEY, "python": "3.14.0"}
    session._compare(other)
    assert other.exit_code == 0
    assert report.cells(other.rows[0])[-2:] == ["x2.000", "ok"]
    assert "the baseline was made with python 3.11.7: ratios only, gate D is not judged" in report.markdown(other)


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
