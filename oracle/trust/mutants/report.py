"""The tables of a run: on the terminal while it goes on, and as reports/mutants.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from oracle.commands import command, session
from oracle.pages import terminal
from oracle.pages.markdown import table
from oracle.trust.mutants.campaign import REACHING, Excuse, is_alarm
from oracle.trust.mutants.claims import ALL_FILES, BY_TESTS, UNCLAIMED, unclaimed
from oracle.trust.mutants.mutant import RUNGS
from oracle.trust.mutants.operators import GENERIC, OPERATORS
from oracle.trust.mutants.trial import FIRST

Row = Mapping[str, Any]


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many of which fate, excused ones apart."""
    found = dict.fromkeys(("mutants", "excused", "numeric", "crashed", "tested", "survived"), 0)
    for r in rows:
        found["mutants"] += 1
        if "excused" in r:
            found["excused"] += 1
        elif r["status"] != "killed":
            found["tested" if r.get("test") else "survived"] += 1
        else:
            found[{"numeric": "numeric", "test": "tested"}.get(r["how"], "crashed")] += 1
    return found


def by_diff_alone(rows: Iterable[Row]) -> float | None:
    """Of the mutants that diff judges, the share that it kills; None without such mutants."""
    its = [r["status"] == "killed" for r in rows if "excused" not in r and not _of_tests(r)]
    return sum(its) / len(its) if its else None


def _of_tests(r: Row) -> bool:
    return r["file"] in BY_TESTS or bool(unclaimed(r["file"], r["function"]))


def shares(n: Mapping[str, int]) -> tuple[float, float]:
    """The score, and the score of those that do not crash."""
    alive = n["survived"]
    calm = n["numeric"] + n["tested"] + alive
    whole = calm + n["crashed"]
    return (1 - alive / whole if whole else 1.0), (1 - alive / calm if calm else 1.0)


_HEAD = (
    "mutants",
    "excused",
    "killed by numbers",
    "by a crash",
    "by a unit test",
    "survive",
    "score",
    "without crashes",
    "diff alone",
)


def _cells(rows: Sequence[Row]) -> list[str]:
    n = counts(rows)
    overall, numeric = shares(n)
    return [*(str(n[k]) for k in ("mutants", "excused", "numeric", "crashed", "tested", "survived")),
            f"{overall:.1%}", f"{numeric:.1%}", "–" if (alone := by_diff_alone(rows)) is None else f"{alone:.1%}"]  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> list[str]:
    return table(head, rows, left=head[:text_columns])


def by(rows: Sequence[Row], field: str, names: Sequence[str]) -> list[list[str]]:
    """One line per name of a field, and one for all."""
    lines = []
    for name in names:
        some = [r for r in rows if r[field] == name]
        if some:
            lines.append([name, *_cells(some)])
    return [*lines, ["all", *_cells(rows)]]


def _code(text: str) -> str:
    short = text if len(text) <= 90 else text[:87] + "…"
    return "`` " + short + " ``"


def _where(r: Row) -> str:
    return f"{r['file']}.py {r['function']}"


def markdown(content: Mapping[str, Any], excused: Mapping[str, Excuse]) -> str:
    """reports/mutants.md."""
    rows = {k: r for k, r in content["mutants"].items() if r["kind"] == "mutant"}
    probes = [r for r in content["mutants"].values() if r["kind"] == "probe"]
    ladder = [r for r in content["mutants"].values() if r["kind"] == "ladder"]
    every = list(rows.values())
    left = [(k, r) for k, r in rows.items() if r["status"] != "killed" and "excused" not in r]  # by diff
    alive, noticed = [(k, r) for k, r in left if not r.get("test")], [r for _, r in left if r.get("test")]
    part = content["part"]
    share = "" if part[1] == 1 else f" Judged are the mutants whose key is {part[0]} modulo {part[1]}."
    generic = [r for r in every if r["operator"] in GENERIC]
    numeric = [r for r in every if r["operator"] not in GENERIC]
    out = [
        "# Source mutants of needle",
        "",
        f"Written by `{command('mutants', accept=True)}`.{share}",
        "",
        *_judged(every, content),
        "",
        *([content["note"], ""] if content.get("note") else []),
        "A kill by a crash (an exception, an endless loop) needs no rule about numbers and is counted apart. A case in which",
        "correct code already uses more than a quarter of rule G's tolerance is no evidence for a kill. Excused are mutants",
        f"that change nothing which `{session('diff')}` claims to notice; each has its reason below. The run fails where a reason is",
        "shown to be wrong: diff kills the mutant, or a unit test kills an *equivalent* one, or none of the tests that the reason",
        "names kills an *unclaimed* one.",
        "",
        "## Score per file",
        "",
        *_table(("file", *_HEAD), by(every, "file", ALL_FILES)),
        "",
        "## Score per operator",
        "",
        *_table(("operator", *_HEAD), [["*generic*", *_cells(generic)], ["*numeric*", *_cells(numeric)],
                                       *by(every, "operator", list(OPERATORS))]),
        "",
        "## The rules that kill",
        "",
        *_table(("rule", "quantity", "mutants"), _rules(every), 2),
        "",
        f"## Survivors: {len(alive)}",
        "",
        *(_table(("key", "where", "operator", "before", "after", "cases"), (
            (k, _where(r), r["operator"], _code(r["before"]), _code(r["after"]), str(r.get("cases", 0))) for k, r in alive
        ), 5) if alive else ["None."]),
        "",
        *([
            f"## Left alive by diff, and killed by a unit test: {len(noticed)}",
            "",
            *_table(("function", "mutants", "one of the tests"), _noticed(noticed)),
            "",
        ] if noticed else []),
        "## Excused",
        "",
        *_excuses(rows, excused),
        "",
        *([
            f"## False-alarm probes: {len(_alarms(probes))} of {len(probes)} killed",
            "",
            "Correct code that rounds differently (a product or sum in float64, a reciprocal for a division). None may be killed by a rule",
            f"about rounding. ({sum(r['status'] == 'killed' for r in probes) - len(_alarms(probes))} more change one of two ways that",
            "needle promises the same bits of, and that is noticed.)",
            "",
        ] if probes else []),
        *([
            "## Sensitivity ladder",
            "",
            "A result or hyperparameter scaled by 1 + 2⁻ᵏ: the largest k that is still killed on at most 30 cases.",
            f"k = {', '.join(map(str, RUNGS))} were tried; 0 means that not even 2⁻⁴ is noticed there.",
            "",
            *_table(("where", "what is scaled", "largest k"), sorted(
                ((_where(r), _code(r["before"]), str(r.get("rung", 0))) for r in ladder), key=lambda t: (int(t[2]), t)
            ), 2),
            "",
        ] if ladder else []),
        "## Left to the unit tests",
        "",
        *_table(("function", "reason"), ((f"{f}.py {name}", reason) for f, name, reason in UNCLAIMED), 2),
        "",
        "Guards (an `if` that only raises), messages, docstrings, annotations and `__repr__` are never mutated.",
        "",
    ]  # fmt: skip
    return "\n".join(out)


def _judged(rows: Sequence[Row], content: Mapping[str, Any]) -> list[str]:
    """Who has judged what, and on how many cases; a table may have mutants of some files alone."""
    by_tests = [r for r in rows if _of_tests(r)]
    by_diff = len(rows) - len(by_tests)
    lines = ["One place of needle's source is changed in memory, and somebody has to notice."]
    if by_diff:
        numbers = sorted(r["number"] for r in rows if r["status"] == "killed" and r.get("number"))
        half = f" Half of the kills need no more than the first {numbers[len(numbers) // 2]}." if numbers else ""
        lines += [
            f"{by_diff:,} mutants are judged by the engine of `{session('diff')}` alone, on cases of a diff run of {content['cases']:,}",
            f"(seed {content['seed']}): the first {FIRST} that run the changed line, then, while it lives, all single operations and",
            f"{REACHING} models that do.{half} Needle's unit tests then judge what diff leaves alive.",
        ]
    if by_tests:
        lines += [
            f"{len(by_tests):,} mutants, of files that no case trains with and of functions that are left to the unit tests (below), are",
            "judged by these tests alone.",
        ]
    if absent := [file for file in ALL_FILES if not any(r["file"] == file for r in rows)]:
        lines.append(f"No mutant is here of {', '.join(f'{file}.py' for file in absent)}.")
    return lines


def _alarms(probes: Sequence[Row]) -> list[Row]:
    return [r for r in probes if is_alarm(r["status"], r.get("rule", ""))]


def _noticed(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each function: how many mutants, and a test that kills one."""
    found: dict[str, list[str]] = {}
    for r in rows:
        found.setdefault(f"{r['file']}.py {r['function']}", []).append(r["test"].rpartition("/")[2])
    return [[name, str(len(tests)), tests[0]] for name, tests in found.items()]


def _rules(rows: Sequence[Row]) -> list[list[str]]:
    found: dict[tuple[str, str], int] = {}
    for r in rows:
        if r["status"] == "killed" and r["how"] == "numeric":
            key = (r["rule"], r["quantity"])
            found[key] = found.get(key, 0) + 1
    return [[*key, str(n)] for key, n in sorted(found.items(), key=lambda item: -item[1])]


def _excuses(rows: Mapping[str, Row], excused: Mapping[str, Excuse]) -> list[str]:
    groups: dict[Excuse, list[str]] = {}
    for key, excuse in excused.items():
        if key in rows:
            groups.setdefault(excuse, []).append(key)
    lines: list[str] = []
    for excuse, keys in groups.items():
        lines += [f"**{excuse.kind}** — {excuse.reason}", ""]
        lines += [
            f"- {k} {_where(rows[k])}, {rows[k]['operator']}: {_code(rows[k]['before'])} → {_code(rows[k]['after'])}"
            for k in keys
        ]
        lines.append("")
    return lines[:-1] or ["None."]


def summary(content: Mapping[str, Any]) -> Table:
    """What the terminal shows at the end."""
    made = terminal.table(
        ("file", "mutants", "excused", "numbers", "crash", "test", "survive", "score", "no crash", "diff"), ("file",)
    )
    for cells in by([r for r in content["mutants"].values() if r["kind"] == "mutant"], "file", ALL_FILES):
        made.add_row(*cells)
    return made
