"""A campaign: each seed's digest is a serial run's, whoever works; what ends a worker costs nothing, and the ledger goes on."""

import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from needles.mistakes import MISTAKES
from shards import shard

from oracle.__main__ import main
from oracle.apart import Died
from oracle.cases import case as c
from oracle.rules.verdict import Divergence, Tally
from oracle.runs import helper, ledger, runner, seeds
from oracle.runs.result import Failed, Result
from oracle.runs.shard import run_shard
from oracle.runs.versions import differences, versions
from oracle.runs.workers import NoWorkers, Task
from oracle.systems.foreign import Offer

ROOT = Path(__file__).parents[3]
CASE = c.OpCase(op="tanh", operands=(c.Operand((2,), (0.5, 0.5)),))


class Shuffled:
    """A pool that answers in any order."""

    def __init__(self, size, order=0, dies=None, stops=None):
        self.size, self.lost, self.dies, self.stops = size, 0, dies or {}, stops
        self._order, self._tasks, self.closed = random.Random(order), [], False

    def submit(self, function, *args, first=False):
        task = Task(self, function, args)
        self._tasks.append(task)
        return task

    def wait(self):
        if self.stops is not None:
            self.stops -= 1
            if self.stops < 0:
                os.kill(os.getpid(), signal.SIGINT)
                raise AssertionError("Ctrl-C is let through here")
        task = self._tasks.pop(self._order.randrange(min(len(self._tasks), self.size)))
        error = self.dies.get(task.args[:2]) if len(task.args) > 1 else None
        task.settle(task.function(*task.args)) if error is None else task.settle(error=error)

    def close(self):
        self.closed = True


def campaign(pool, tmp_path, *, numbers=(1, 2, 3), cases=2000, judge=None, minutes=1.0, needle=None, **another):
    plan = runner.Plan(seed=1, cases=cases, digits=False, keep_going=True, folder=tmp_path, needle=needle)
    found = seeds.Seeds(plan, go_on="the command")
    seeds.run(seeds.Plan(numbers, cases, minutes, tmp_path, judge or shard, **another), pool, found)
    return found


def serial(monkeypatch, tmp_path, seed, cases, judge=None):
    """What ``oracle diff --seed S --cases N --keep-going`` comes to."""
    monkeypatch.setattr(runner, "run_shard", judge or shard)
    monkeypatch.setattr(runner, "PARTS", 1)
    plan = runner.Plan(seed=seed, cases=cases, workers=1, digits=False, keep_going=True, folder=tmp_path)
    return runner.run(plan).result


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The digests and tensors of three seeds, run serially."""
    with pytest.MonkeyPatch.context() as patch:
        found = {n: serial(patch, tmp_path_factory.mktemp("alone"), n, 2000) for n in (1, 2, 3)}
    return {number: (result.digest, result.tally.tensors) for number, result in found.items()}


@pytest.mark.parametrize("size", [1, 2, 4, 40])
def test_each_seed_is_a_serial_run_whatever_comes_first(size, alone, tmp_path):
    found = campaign(Shuffled(size, order=size), tmp_path)
    assert {n: (s.digest, s.tensors) for n, s in found.seeds.items()} == alone
    assert found.exit_code == 0
    assert found.result.tally.tensors == sum(tensors for _, tensors in alone.values())
    assert sum(found.result.cases.values()) == 6000


def test_the_time_is_up_between_two_rounds(tmp_path, monkeypatch):
    pool = Shuffled(2)
    found = campaign(pool, tmp_path, minutes=0.0)
    assert found.seeds == {}, "not even the first round begins"
    clock = iter(range(10**6))
    monkeypatch.setattr("oracle.runs.seeds.time.perf_counter", lambda: float(next(clock)))
    found = campaign(pool, tmp_path, minutes=15 / 60)
    assert found.seeds[1].shards == runner.ROUND, "a round that has begun comes to its end"
    assert found.seeds[1].digest == serial(monkeypatch, tmp_path, 1, 100 * runner.ROUND).digest


@pytest.mark.parametrize("stops", [13, 30])
def test_ctrl_c_leaves_a_beginning_of_each_seed(stops, tmp_path, monkeypatch):
    pool = Shuffled(3, order=5, stops=stops)
    add = seeds._Making.add

    def interrupted(*args):  # between two counts of one shard
        os.kill(os.getpid(), signal.SIGINT)
        add(*args)

    if stops == 30:
        monkeypatch.setattr(seeds._Making, "add", interrupted)
    found = campaign(pool, tmp_path)
    monkeypatch.undo()
    assert pool.closed
    assert found.exit_code == 130
    assert 0 < sum(seed.shards for seed in found.seeds.values()) < 60
    for number, seed in found.seeds.items():
        if seed.shards:
            assert seed.digest == serial(monkeypatch, tmp_path, number, seed.cases).digest
    assert sum(s.tensors for s in found.seeds.values()) == found.result.tally.tensors
    assert sum(s.cases for s in found.seeds.values()) == sum(found.result.cases.values())
    assert found.again == "the command"
    kept = ledger.Kept(tmp_path / "campaign.json")
    kept.add(found, versions(), {})
    assert ledger.read(tmp_path / "campaign.json").campaigns[0].interrupted


@pytest.mark.parametrize("error", [Died("ended"), MemoryError("of some machine")], ids=["ended", "raised"])
def test_a_poison_shard_is_named_and_the_campaign_goes_on(error, alone, tmp_path):
    found = campaign(Shuffled(2, dies={(2, 9): error}), tmp_path)
    assert found.exit_code == 4
    assert found.seeds[2].lost == [9]
    assert found.seeds[2].shards == 9, "what is behind the gap has no digest to compare"
    assert [error.partition(":")[0] for error in found.result.harness_errors] == ["seed 2, shard 9"]
    assert {n: (found.seeds[n].digest, found.seeds[n].tensors) for n in (1, 3)} == {n: alone[n] for n in (1, 3)}


def test_where_nothing_can_be_judged_it_ends(tmp_path):
    dies = {(seed, index): Died("ended") for seed in range(1000) for index in range(8)}
    found = campaign(Shuffled(2, dies=dies), tmp_path, numbers=range(1000), minutes=5.0)
    assert found.exit_code == 4
    assert seeds.TOO_MANY <= len(found.result.harness_errors) < seeds.TOO_MANY + 3 * runner.ROUND


def test_without_workers_what_is_known_is_kept(tmp_path):
    pool, wait = Shuffled(2, stops=30), Shuffled.wait

    def nobody():
        if pool.stops == 20:
            raise NoWorkers("nobody is there")
        wait(pool)

    pool.wait = nobody
    found = campaign(pool, tmp_path)
    assert found.exit_code == 4
    assert found.result.harness_errors == ["nobody is there"]
    assert found.seeds[1].shards


# -- failing cases ----------------------------------------------------------------------------------------------------


def failing_shard(seed, index, lacking, reached, enough):
    found = shard(seed, index, lacking, reached, enough)
    if index % 2:
        case = msgspec.structs.replace(CASE, operands=(c.Operand((2,), (0.5, float(seed))),))
        found.failed = [Failed(case, Divergence(0, "operator", "y", "OP", f"wrong in seed {seed}"), count=3)]
    return found


def test_failing_cases_are_files_and_fold_over_all_seeds_by_culprit(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "made_smaller", lambda failed: (failed, [], "print('shown')\n", ""))
    found = campaign(Shuffled(3), tmp_path, judge=failing_shard)
    assert found.exit_code == 1
    (one,) = found.failures
    assert one.count == 3 * 10 * 3
    assert {n: s.failing for n, s in found.seeds.items()} == {1: 30, 2: 30, 3: 30}
    assert found.found_with[one.culprit] == [1, 2, 3]
    path = tmp_path / one.case.digest
    assert c.read(path.with_suffix(".json")) == one.case
    assert path.with_suffix(".py").read_text() == "print('shown')\n"
    assert "90 generated cases" in path.with_suffix(".md").read_text()
    assert found.written == [one.case.digest]
    kept = ledger.Kept(tmp_path / "campaign.json")
    kept.add(found, versions(), {})
    kept = ledger.Kept(tmp_path / "campaign.json")
    kept.add(campaign(Shuffled(3), tmp_path, numbers=(4,), judge=failing_shard), versions(), {})
    (failure,) = ledger.read(tmp_path / "campaign.json").failures
    assert (failure.count, failure.seeds, failure.case) == (120, [1, 2, 3, 4], one.case.digest)


def test_what_is_made_smaller_takes_the_place_of_what_was_found(tmp_path, monkeypatch):
    def smaller(failed):
        assert (tmp_path / f"{failed.case.digest}.json").exists(), "it is written at once"
        return Failed(CASE, failed.divergence, failed.count), [], None, "it cannot be written"

    monkeypatch.setattr(seeds, "made_smaller", smaller)
    found = campaign(Shuffled(3), tmp_path, judge=failing_shard)
    assert [failed.case for failed in found.failures] == [CASE]
    assert found.failures[0].count == 90
    assert {path.stem for path in tmp_path.iterdir()} == {CASE.digest}
    assert "There is no standalone script: it cannot be written" in (tmp_path / f"{CASE.digest}.md").read_text()


def test_a_case_that_cannot_be_written_is_shown_by_its_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "made_smaller", lambda failed: (failed, [], None, ""))
    monkeypatch.setattr("oracle.files.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    found = campaign(Shuffled(3), tmp_path, numbers=(7,), judge=failing_shard)
    assert "--seed 7 --cases 2000 --no-digits --keep-going" in found.replay(found.failures[0])
    assert len(found.notes) == 1
    assert "No space left" in found.notes[0]


# -- another needle ---------------------------------------------------------------------------------------------------

LACKING = frozenset({"op tanh"})


def small(lacking):
    assert lacking == LACKING
    case = msgspec.structs.replace(CASE, op="exp")
    failed = Failed(case, Divergence(0, "operator", "y", "OP", "wrong in a small case"))
    tally = Tally(tensors=7, largest={"G loss": 9.0})
    return Result(Counter(op=5), tally=tally, coverage=Counter({"op exp": 5}), failed=[failed], digests=["small;"])


def without_tanh(seed, index, lacking, reached, enough):
    assert lacking == LACKING
    return shard(seed, index, lacking, reached, enough)


def test_the_small_cases_of_another_needle_are_part_of_each_seed_and_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "made_smaller", lambda failed: (failed, [], None, "it is a test"))
    monkeypatch.setattr(seeds.entries, "entries", lambda *_: [])
    other = tmp_path / "other"
    found = campaign(Shuffled(2), tmp_path, judge=without_tanh, needle=other, lacking=LACKING, small=small)
    monkeypatch.setattr(runner, "run_battery", small)
    monkeypatch.setattr(runner, "run_shard", without_tanh)
    monkeypatch.setattr(runner, "PARTS", 1)
    monkeypatch.setattr(runner.entries, "entries", lambda *_: [])
    for number in (1, 2, 3):
        offer = Offer(left_open=LACKING)
        plan = runner.Plan(number, 2000, 1, digits=False, keep_going=True, offer=offer, folder=tmp_path, needle=other)
        alone = runner.run(plan).result
        assert found.seeds[number].digest == alone.digest
        assert found.seeds[number].tensors == alone.tally.tensors - 7
    assert found.small == 5
    assert sum(found.result.cases.values()) == 6000
    assert [(one.count, found.found_with[one.culprit]) for one in found.failures] == [(1, [1])]
    kept = ledger.Kept(tmp_path / "campaign.json")
    kept.add(found, versions(), {})
    assert ledger.read(kept.path).needle == str(other)


def test_where_the_small_cases_cannot_be_judged_no_seed_begins(tmp_path):
    pool = Shuffled(2)
    pool.wait = lambda: pool._tasks.pop().settle(error=Died("ended"))
    found = campaign(pool, tmp_path, needle=tmp_path / "other", lacking=LACKING, small=small)
    assert found.seeds == {}
    assert found.exit_code == 4
    assert "the small cases could not be judged" in found.result.harness_errors[0]


# -- the ledger -------------------------------------------------------------------------------------------------------


def test_a_ledger_goes_on(tmp_path):
    path = tmp_path / "campaign.json"
    for numbers in ((1, 2), (3,)):
        kept = ledger.Kept(path)
        assert kept.before.next_seed == numbers[0]
        found = campaign(Shuffled(2), tmp_path, numbers=numbers)
        kept.add(found, versions(), {"Haswell": 20})
        kept.add(found, versions(), {"Haswell": 20})  # after each seed, and once more: no seed counts twice
    book = ledger.read(path)
    assert [(one.seed, one.campaign) for one in book.seeds] == [(1, 0), (2, 0), (3, 1)]
    assert book.cases == {"op": 6000}
    assert book.tensors == sum(one.tensors for one in book.seeds)
    assert book.largest_share == {"G loss": 0.5}
    assert book.coverage == {f"op {n}": count for n, count in Counter(s + i for s in (1, 2, 3) for i in range(20)).items()}  # fmt: skip
    assert book.campaigns[1].versions == versions()


def whole(tmp_path):
    path = tmp_path / "campaign.json"
    ledger.Kept(path).add(campaign(Shuffled(2), tmp_path, numbers=(1, 2)), versions(), {})
    return path


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "is no ledger, or a damaged one"),
        (lambda text: b"", "is no ledger, or a damaged one"),
        (lambda text: b"\xff" + text, "is no ledger, or a damaged one"),
        (lambda text: b"[]", "is no ledger, or a damaged one"),
        (lambda text: text.replace(b'"format": 1', b'"format": 2'), "has format 2, this oracle reads 1"),
        (lambda text: text.replace(b'"seed": 2', b'"seed": 3'), "its checksum is another one"),
        (lambda text: text.replace(b'"started"', b'"begun"'), "is no ledger, or a damaged one"),
    ],
    ids=["half", "empty", "not utf-8", "a list", "another format", "another seed", "another field"],
)
def test_a_damaged_ledger_is_refused_by_its_name(damage, says, tmp_path, capsys):
    path = whole(tmp_path)
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    assert main(["campaign", "--ledger", str(path), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("campaign: ")
    assert str(path) in line
    assert says in line
    assert path.read_bytes() == damage(before), "it is left as it is"


def test_a_ledger_that_does_not_add_up_is_refused(tmp_path):
    path = whole(tmp_path)
    good = ledger.read(path)
    for wrong, says in (
        (msgspec.structs.replace(good, tensors=good.tensors + 1), "tensors"),
        (msgspec.structs.replace(good, seeds=good.seeds[:1] * 2), "seed 1 is there twice"),
        (msgspec.structs.replace(good, campaigns=[]), "belongs to no campaign"),
        (msgspec.structs.replace(good, cases={"op": 10**6}), "fewer cases"),
    ):
        ledger.save(path, wrong)
        with pytest.raises(ledger.Damaged, match=says):
            ledger.read(path)


def test_two_campaigns_do_not_overwrite_each_other(tmp_path):
    path = tmp_path / "campaign.json"
    one, other = ledger.Kept(path), ledger.Kept(path)
    found = campaign(Shuffled(2), tmp_path, numbers=(1,))
    one.add(found, versions(), {})
    with pytest.raises(OSError, match="another campaign"):
        other.add(found, versions(), {})


def test_a_ledger_has_the_seeds_of_one_needle(tmp_path):
    ours, theirs, moved = None, Path("/one"), Path("/two")
    book = ledger.Ledger(campaigns=[ledger.Campaign("", 1.0, 1, {"needle": "abc"}, {})])
    assert ledger.mixed(ledger.Ledger(), theirs, "abc") == "", "it has none yet"
    assert ledger.mixed(book, ours, "edited") == ""
    assert ledger.mixed(book, theirs, "abc") == "our needle"
    book = msgspec.structs.replace(book, needle=str(theirs))
    assert ledger.mixed(book, theirs, "edited") == ""
    assert ledger.mixed(book, moved, "abc") == "", "the same one, in another folder"
    assert ledger.mixed(book, moved, "another") == ledger.mixed(book, ours, "abc") == "the needle of /one"


def test_a_ledger_of_ours_is_what_it_was(tmp_path):
    """An older one has no word about another needle, and its checksum holds."""
    assert b'"needle": "/' not in whole(tmp_path).read_bytes()
    assert ledger.read(tmp_path / "campaign.json").needle is msgspec.UNSET


def test_what_could_not_be_written_is_not_said_to_be_in_the_ledger(tmp_path, monkeypatch):
    kept = ledger.Kept(tmp_path / "campaign.json")
    found = campaign(Shuffled(2), tmp_path, numbers=(1,))
    with monkeypatch.context() as patch:
        patch.setattr("oracle.files.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            kept.add(found, versions(), {})
    assert (kept.saved, kept.now) == (False, ledger.Ledger())
    kept.add(found, versions(), {})  # there is room again: nothing is lost
    assert kept.saved
    assert [one.seed for one in ledger.read(kept.path).seeds] == [1]


def test_other_versions_are_told_apart():
    ours = versions()
    assert differences(ours, ours) == []
    assert differences(ours, {**ours, "kernel": "Zen", "python": "3.12.1", "commit": "x"}) == []
    assert differences(ours, {**ours, "torch": "2.12.0", "needle": "0"}) == [
        f"needle {ours['needle']}, there 0",
        f"torch {ours['torch']}, there 2.12.0",
    ]


# -- the command ------------------------------------------------------------------------------------------------------


def test_without_dask_a_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "distributed" else find(name))
    assert main(["campaign", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "campaign needs Dask: pip install 'needle-oracle[campaign]' (docs/ci.md)\n"


def test_a_seed_that_is_done_is_not_run_again(tmp_path, capsys):
    path = whole(tmp_path)
    assert main(["campaign", "--seed", "2", "--ledger", str(path), "--out", str(tmp_path)]) == 2
    assert "has seed 2 already" in capsys.readouterr().err


def test_another_needle_gets_another_helper(monkeypatch):
    """Also one that was edited: workers of Dask outlive campaigns."""
    told = "import sys\nfrom oracle.runs.pipes import received, send\nwhile received(0) is not None:\n    send(1, sys.argv[1].encode())"
    started = []

    def start(folder):
        started.append(folder)
        line = [sys.executable, "-c", told, folder]
        return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment())

    monkeypatch.setattr(helper, "_started", start)
    monkeypatch.setattr(helper, "_of_thread", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(get_worker=lambda: SimpleNamespace(address="here")))
    needles = [("", "1"), ("", "1"), ("a", "1"), ("a", "2"), ("", "1")]
    assert [helper.work(b"task", needle) for needle in needles] == [("here", of.encode(), 0) for of, _ in needles]
    assert started == ["", "a", "a", ""]
    helper._end(helper._of_thread.helper)


def environment():
    path = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def script(tmp_path, text):
    """Dask in a process of its own: its threads are none of the tests'."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), str(tmp_path)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


RUN = """
    import json, sys
    from pathlib import Path
    from oracle.runs import dask_pool, runner, seeds
    from shards import deadly, shard

    if __name__ == "__main__":
        dask_pool.SETTINGS["distributed.scheduler.allowed-failures"] = 0  # one is enough to show it
        {before}
        pool = dask_pool.DaskPool(None, {workers})
        plan = runner.Plan(seed=1, cases=2000, digits=False, keep_going=True, folder=Path(sys.argv[1]))
        found = seeds.Seeds(plan)
        seeds.run(seeds.Plan({numbers}, 2000, 5.0, plan.folder, {shard}), pool, found)
        told = {{n: (s.digest, s.tensors, s.lost) for n, s in found.seeds.items()}}
        print(json.dumps([told, pool.lost, found.result.harness_errors, pool.refused, found.exit_code]))
"""


def test_workers_of_dask_that_end_cost_nothing_and_a_poison_shard_is_named(alone, tmp_path):
    done = script(tmp_path, RUN.format(before="", workers=2, numbers=(1, 2, 3), shard="deadly"))
    assert done.returncode == 0, done.stderr
    told, lost, errors, _, code = json.loads(done.stdout)
    assert {int(n): tuple(told[n][:2]) for n in ("1", "3")} == {n: alone[n] for n in (1, 3)}
    assert told["2"][2] == [3]
    assert len(errors) == 1
    assert errors[0].startswith("seed 2, shard 3: the process ended every worker of Dask")
    assert code == 4
    assert lost >= 4, "a worker twice by the poison and once by another, a helper, and a process of its pool"
    assert done.stderr == "", "Dask does not talk into it"


def test_a_worker_with_something_else_installed_gets_nothing(tmp_path):
    before = 'dask_pool.versions = lambda: {"torch": "1.0"}'
    done = script(tmp_path, RUN.format(before=before, workers=1, numbers=(1,), shard="shard"))
    assert done.returncode == 0, done.stderr
    told, _, errors, refused, code = json.loads(done.stdout)
    assert told["1"][1] == 0
    assert errors == ["no worker has the same installed as this machine"]
    assert "torch 1.0, there 2." in "".join(refused.values())
    assert code == 4


def test_the_command_from_end_to_end(tmp_path):
    """A real shard: its digest is that of a serial run, and the campaign goes on from the ledger."""
    whole(tmp_path)
    line = [sys.executable, "-m", "oracle", "campaign", "--minutes", "5", "--seeds", "1", "--cases", "100"]
    done = subprocess.run(
        [*line, "--workers", "1", "--out", str(tmp_path)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("the ledger goes on: 1 campaign, 2 seeds, 4,000 cases")
    assert "0 divergences in 100 cases" in done.stdout
    assert "--verbose" not in done.stdout, "it has no such flag"
    assert [text for text in done.stdout.splitlines() if len(text) > 80 and "--minutes" not in text] == []
    book = ledger.read(tmp_path / "campaign.json")
    assert [one.seed for one in book.seeds] == [1, 2, 3]
    first = run_shard(3, 0)
    assert (book.seeds[2].digest, book.seeds[2].tensors) == (first.digest, first.tally.tensors)


SERIAL = """
    import sys
    from pathlib import Path
    from oracle.runs import offered
    from oracle.runs.result import Result
    from oracle.runs.shard import run_battery, run_shard
    from oracle.systems import candidate

    candidate.choose(Path(sys.argv[1]) / "theirs")
    lacking, result = offered.offered().lacking, Result()
    result.add(run_battery(lacking))
    result.add(run_shard(1, 0, lacking, dict(result.coverage)))
    print(result.digest)
"""


def test_another_needle_from_end_to_end(tmp_path, capsys):
    """A mistake is told once, in its author's words; the seed is that of a serial run, and the ledger is of this needle alone."""
    mistake = next(m for m in MISTAKES if m.name == "the loss is a sum")
    folder, out = mistake.planted(tmp_path / "theirs"), tmp_path / "out"
    about = ["--seeds", "1", "--cases", "100", "--workers", "1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "oracle", "campaign", "--needle", "theirs", *about],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    assert "1 finding in 100 cases; the page: out/needle.html" in done.stdout
    assert re.search(r"^1\. `ndl\.nn\.SoftmaxLoss.*\n   at      needle/nn\.py:", done.stdout, re.M), done.stdout
    book = ledger.read(out / "campaign.json")
    assert book.needle == str(folder)
    assert book.seeds[0].digest == script(tmp_path, SERIAL).stdout.strip()
    assert main(["campaign", *about]) == 2
    assert f"has seeds of the needle of {folder}" in capsys.readouterr().err
