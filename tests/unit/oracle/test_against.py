"""`bench --against REV`: which needle runs, what is compared, and what is left behind. Nothing here is timed."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from oracle.bench import against, cli, measure

NEEDLE = Path(__file__).parents[3] / "needle"
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository of needle alone, with one commit."""
    root = (tmp_path / "root").resolve()
    shutil.copytree(NEEDLE, root / "needle", ignore=shutil.ignore_patterns("__pycache__"))
    for command in (("init", "-q"), ("add", "needle"), ("commit", "-q", "-m", "needle")):
        subprocess.run([*GIT, *command], cwd=root, check=True)
    monkeypatch.setattr(against, "ROOT", root)
    monkeypatch.setattr(against, "QUICK_PAIRS", 2)
    yield root
    assert len(against.git("worktree", "list").splitlines()) == 1


def run(*flags):
    return against.run(cli.parser().parse_args(["--quick", "--rounds", "1", "--workloads", "W1", *flags]))


def wrong(root):
    """A mistake in the files that are not committed."""
    source = root / "needle/optim.py"
    source.write_text(source.read_text("utf-8") + "\n\nSGD.step = lambda self: None\n", "utf-8")


def test_both_needles_run_and_the_table_names_the_kernel(tree, capsys, monkeypatch):
    monkeypatch.setattr(against, "SLOWER", float("inf"))
    assert run("--against", "HEAD") == 0
    out = capsys.readouterr().out
    assert "needle: this tree against HEAD" in out
    assert "W1  MLP 8-16-4" in out
    assert "W2" not in out
    assert "1 thread, BLAS kernel " in out
    assert "2 pairs of processes, 1 rounds" in out
    assert "in every pair: nothing" in out


def test_only_the_new_needle_comes_from_this_tree(tree, capsys):
    wrong(tree)
    assert run("--against", "HEAD") == 1
    assert "W1: new and old part at step 1: loss " in capsys.readouterr().err
    subprocess.run([*GIT, "commit", "-q", "-a", "-m", "wrong"], cwd=tree, check=True)
    with against.worktree("HEAD~1") as old, against.Process(old, 1) as right, against.Process(tree, 1) as broken:
        assert right.ask("check", "W1") != broken.ask("check", "W1")
        assert against.told(right) == against.told(broken)
        right.folder = tree
        with pytest.raises(against.Unusable, match="needle comes from"):
            against.told(right)


@pytest.mark.parametrize("revision", ["nope", "HEAD~7", "--help", ""])
def test_what_is_no_revision_is_a_usage_error_on_one_line(tree, capsys, revision):
    assert run(f"--against={revision}") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"bench --against: {revision!r} is no commit of {tree} (")
    assert err.count("\n") == 1


def test_a_revision_without_a_needle_or_with_one_that_does_not_run(tree, capsys):
    subprocess.run([*GIT, "mv", "needle", "thread"], cwd=tree, check=True)
    subprocess.run([*GIT, "commit", "-q", "-m", "no needle"], cwd=tree, check=True)
    assert run("--against", "HEAD") == 2
    assert "'HEAD' has no needle" in capsys.readouterr().err
    subprocess.run([*GIT, "mv", "thread", "needle"], cwd=tree, check=True)
    (tree / "needle/nn.py").write_text("", "utf-8")
    assert run("--against", "HEAD~1") == 2
    err = capsys.readouterr().err
    assert f"the needle of {tree} does not run the bench: " in err
    assert err.count("\n") == 1


def test_an_interrupt_leaves_no_worktree_and_no_process_behind(tree, capsys, monkeypatch):
    started = []
    monkeypatch.setattr(against, "told", lambda side: started.append(side.process) or "a kernel")

    def interrupted(bursts, rounds, tick, timing):
        take_turns(bursts, rounds, tick, timing)
        raise KeyboardInterrupt

    take_turns = measure.take_turns
    monkeypatch.setattr(measure, "take_turns", interrupted)
    assert run("--against", "HEAD") == 130
    out = capsys.readouterr().out
    assert "W1  MLP 8-16-4" in out
    assert "interrupted: no verdict" in out
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


def test_slower_is_what_is_slower_in_every_pair_of_processes(tree, capsys, monkeypatch):
    """Costs in microseconds, a burst each: W2 costs 5 % more, and in one pair of W1 so does the old needle."""
    costs = {("W1", True): [100, 95], ("W1", False): [99, 100], ("W2", True): [210, 211], ("W2", False): [200, 201]}

    def ask(self, method, *arguments):
        if method == "who":
            return str(self.folder), "a kernel"
        self.key = arguments[0] if method == "start" else getattr(self, "key", None)
        answers = {"check": [1.0, 0.5], "start": 3}
        return answers[method] if method in answers else (costs[self.key, self.folder == tree].pop(0) * 1e-6, 1.0)

    monkeypatch.setattr(against.Process, "ask", ask)
    assert run("--workloads", "W1,W2", "--against", "HEAD") == 1
    out = capsys.readouterr().out
    assert "slower by more than 2% in every pair: W2\n" in out
    assert "1.050  1.050  1.050" in out
    w1 = next(line.split()[-5:] for line in out.splitlines() if line.startswith("W1"))
    assert w1 == ["99.5", "97.5", "0.980", "0.950", "1.010"]


def test_the_kernel_is_not_the_one_that_the_environment_asks_for(tree, monkeypatch):
    with against.Process(tree, 1) as side:
        right = against.told(side)
    other = "Nehalem" if right != "Nehalem" else "Haswell"
    monkeypatch.setenv("OPENBLAS_CORETYPE", other)
    with against.Process(tree, 1) as side:
        assert against.told(side) == right
    monkeypatch.setattr(against.blas, "CHOOSING", ())
    with against.Process(tree, 1) as side:
        assert against.told(side) == (other if platform.machine() in ("x86_64", "AMD64") else right)
