"""What CI reads of a run: JUnit's XML, GitHub's annotations and its summary, all made from the data of ``summary.json``.

A format says no more and no less than the exit code: what is not a success there is an error or a failure here.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from oracle import commands, files
from oracle.blame import report
from oracle.exits import ExitCode, saved
from oracle.pages import markdown

Summary = Mapping[str, Any]

RULES = {
    "form": "presence, shape and dtype of every tensor",
    "G": "needle against the truth, within 16 x measured noise",
    "L": "the update, from needle's own gradients",
    "T": "torch's optimizer on needle's gradients",
    "OP": "every node of needle's tape by itself, on the first step",
    "exact": "what must keep its bits",
    "behaviour": "needle returns, raises nothing, and leaves the process as it was",
    "P": "torch against the truth: the oracle checking itself",
    "validation": "the truth against torch float64, limit 1e-4: the oracle checking itself",
}
_FORM = ("shape", "dtype", "missing", "unexpected", "nonfinite")
NAME = "needle against torch"


def rule_of(failure: Mapping[str, Any]) -> str:
    """The row of `RULES` that a failure belongs to."""
    if failure.get("failure") is not None:
        return "behaviour"
    rule = str(failure["rule"])
    return "form" if rule in _FORM else rule


def percent(share: float) -> str:
    """A share of a limit that can be read: "18.8%", and "3.9e+19 times" where a number has gone astray."""
    return f"{share:.1%}" if share < 100 else f"{share:.1e} times" if math.isfinite(share) else "not finite"


def verdict(summary: Summary) -> str:
    """The run in a few words: what its exit code says."""
    total, parts = sum(summary["cases"].values()), len(summary["failures"])
    return {
        ExitCode.AGREE: f"0 divergences in {total:,} cases",
        ExitCode.PART: f"{parts} divergence{'s' * (parts != 1)} in {total:,} cases",
    }.get(ExitCode(summary["exit_code"]), ExitCode(summary["exit_code"]).meaning)


def problems(summary: Summary) -> Iterator[tuple[str, str]]:
    """Name and text of what keeps a run from being a success beside its divergences."""
    for what, key in (
        ("the oracle contradicts itself", "oracle_errors"),
        ("the harness itself failed", "harness_errors"),
    ):
        if summary[key]:
            yield what, "\n".join(summary[key])
    if summary["interrupted"]:
        yield "interrupted", f"the run did not come to its end; again: {summary['again']}"
    if ExitCode.NO_VERDICT in summary["exit_codes"]:
        yield "no verdict", "nothing could be judged"


# -- JUnit ------------------------------------------------------------------------------------------------------------


def junit(summary: Summary) -> str:
    """A test case for each rule and each entry, as JUnit's XML (the dialect of Jenkins' xUnit plugin).

    A rule fails if an entry is its own; what makes the exit code 3, 4, 5 or 130 is an error.
    """
    cases = []
    failed = Counter(rule_of(f) for f in summary["failures"])
    for rule, meaning in {**RULES, **{r: "" for r in failed if r not in RULES}}.items():
        case = ElementTree.Element("testcase", classname="oracle.rules", name=f"rule {rule}: {meaning}")
        if failed[rule]:
            ElementTree.SubElement(case, "failure", message=f"{_entries(failed[rule])}, see oracle.entries", type=rule)
        shares = {key: share for key, share in summary["largest_share"].items() if key.partition(" ")[0] == rule}
        if shares:
            nearest = max(shares, key=lambda key: shares[key])
            at = summary["largest_share_at"].get(nearest, "")
            out = f"nearest to its limit: {shares[nearest]:.3g} of it, {nearest}, {at}"
            ElementTree.SubElement(case, "system-out").text = _clean(out)
        cases.append(case)
    for f in summary["failures"]:
        case = ElementTree.Element("testcase", classname="oracle.entries", name=_clean(f"{f['case']}: {f['culprit']}"))
        message = f"{f['headline']}; seen in {f['count']} of {sum(summary['cases'].values())} cases"
        found = ElementTree.SubElement(case, "failure", message=_clean(message), type=rule_of(f))
        found.text = _clean(f["block"])
        cases.append(case)
    errors = 0
    for what, text in problems(summary):
        errors += 1
        case = ElementTree.Element("testcase", classname="oracle.run", name=what)
        ElementTree.SubElement(case, "error", message=_clean(text.split("\n")[0]), type=what).text = _clean(text)
        cases.append(case)
    counts: dict[str, Any] = {
        "tests": str(len(cases)),
        "failures": str(len(summary["failures"]) + sum(map(bool, failed.values()))),
        "errors": str(errors),
        "time": f"{summary['wall_seconds']:.3f}",
    }
    root = ElementTree.Element("testsuites", name="oracle", **counts)
    suite = ElementTree.SubElement(root, "testsuite", name=NAME, skipped="0", **counts)
    properties = ElementTree.SubElement(suite, "properties")
    for key in ("seed", "workers", "tensors", "elements", "steps", "digest", "again", "exit_code"):
        ElementTree.SubElement(properties, "property", name=key, value=_clean(str(_plain(summary[key]))))
    suite.extend(cases)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """Without what XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, ExitCode) else value


def _entries(count: int) -> str:
    return f"{count} entr{'y' if count == 1 else 'ies'}"


# -- GitHub -----------------------------------------------------------------------------------------------------------

ANNOTATIONS = 10  # of a kind that GitHub shows of one step
SUMMARY_BYTES = 1 << 20  # of all that a step may write into its summary; above, GitHub shows nothing


def annotated(summary: Summary, root: Path, workspace: Path) -> Iterator[str]:
    """A line ``::error file=…,line=…::…`` for each entry, at the suspect's line; ``root`` holds the package needle.

    No more than GitHub shows: the last one counts the others. Without a known line an annotation stands without a file.
    """
    found = [("error", f) for f in summary["failures"]]
    rest = len(found) - ANNOTATIONS
    for _, f in found[: ANNOTATIONS - 1 if rest > 0 else None]:
        file, _, line = str((f.get("suspect") or {}).get("line") or "").rpartition(":")
        place = {"title": f"{f['case']}: {f['culprit']}"}
        if file and line.isdigit():
            path = root / file
            if path.is_relative_to(workspace):
                place = {"file": path.relative_to(workspace).as_posix(), "line": line, **place}
        yield _command("error", place, f"{f['block']}")
    if rest > 0:
        others = ", ".join(f["culprit"] for _, f in found[ANNOTATIONS - 1 :])
        yield _command("error", {"title": f"{rest + 1} more divergences"}, others)
    for what, text in problems(summary):
        yield _command("warning" if what == "interrupted" else "error", {"title": what}, text)


def _command(kind: str, properties: Mapping[str, str], message: str) -> str:
    """GitHub's workflow command, escaped as its runner reads it."""
    told = ",".join(f"{k}={_escaped(v).replace(':', '%3A').replace(',', '%2C')}" for k, v in properties.items())
    return f"::{kind} {told}::{_escaped(message[:4000])}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def step_summary(summary: Summary, limit: int = SUMMARY_BYTES) -> str:
    """The run in Markdown, no longer than ``limit`` bytes; entries that find no room are counted."""
    failures = summary["failures"]
    lines = [f"## needle against PyTorch: {verdict(summary)}", ""]
    facts = [
        ("compared", f"{summary['tensors']:,} tensors of {summary['steps']:,} training steps"),
        ("exit code", "; also ".join(f"{int(c)}: {ExitCode(c).meaning}" for c in summary["exit_codes"])),
        ("again", f"`{summary['again']}`"),
        ("digest", f"`{summary['digest']}`"),
    ]
    lines += markdown.table(("", "what"), facts, ("", "what"))
    for what, text in problems(summary):
        lines += ["", f"**{what}**", "", *_fenced(text[:20_000])]
    shares = [(key, f"{share:.1%}") for key, share in sorted(summary["largest_share"].items(), key=lambda i: -i[1])]
    if shares and not failures:
        lines += ["", "Nearest to a limit:", "", *markdown.table(("rule", "share"), shares[:5], ("rule",))]
    text = "\n".join(lines) + "\n"
    for at, f in enumerate(failures):
        part = "\n".join(["", f"### {f['culprit']}", "", f"Seen in {f['count']} cases.", "", *_fenced(f["block"]), ""])
        left = f"\n… and {len(failures) - at} more, in the files of the run\n"
        if len((text + part + left).encode()) > limit:
            return (text + left).encode()[:limit].decode(errors="ignore")
        text += part
    return text.encode()[:limit].decode(errors="ignore")


def _fenced(text: str) -> list[str]:
    """A block of code whose fence is longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [fence, text, fence]


def write_step_summary(summary: Summary, path: Path) -> None:
    """Append to the file that ``$GITHUB_STEP_SUMMARY`` names, within what is left of its limit."""
    written = path.stat().st_size if path.exists() else 0
    with path.open("a", encoding="utf-8") as file:
        file.write(step_summary(summary, max(SUMMARY_BYTES - written, 0)))


@dataclass(frozen=True)
class Asked:
    """The formats that a run is asked for."""

    junitxml: Path | None = None
    json: str | None = None  # a path, or "-" for standard output, which then has nothing else
    github: bool = False  # annotations, and the summary of the step

    @property
    def talks_aside(self) -> bool:
        """Whether what is meant for people goes to standard error."""
        return self.json == "-"

    def write(self, summary: Summary, root: Path) -> None:
        """All of them; ``root`` is the folder that holds the package needle. What cannot be written costs no verdict."""
        if self.junitxml is not None:
            with saved(f"{self.junitxml}, named by --junitxml"):
                files.save(commands.meant(self.junitxml), junit(summary))
        if self.github:
            workspace = Path(os.environ.get("GITHUB_WORKSPACE") or commands.meant(Path()))
            for line in annotated(summary, root.resolve(), workspace.resolve()):
                print(line, file=sys.stderr if self.talks_aside else sys.stdout)
            if os.environ.get("GITHUB_STEP_SUMMARY"):
                with saved("the summary of the step, $GITHUB_STEP_SUMMARY"):
                    write_step_summary(summary, Path(os.environ["GITHUB_STEP_SUMMARY"]))
        if self.json == "-":
            sys.stdout.write(report.dumped(summary))
        elif self.json is not None:
            with saved(f"{self.json}, named by --json"):
                files.save(commands.meant(Path(self.json)), report.dumped(summary))


def under_github() -> bool:
    """Whether this is a step of GitHub's workflows."""
    return os.environ.get("GITHUB_ACTIONS") == "true"
