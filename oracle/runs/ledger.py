"""The ledger of campaigns: one file that says which seeds are done, with what, and what all of them came to.

It is written whole after every seed, holds its own checksum, and is refused where anything in it does not add up.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from oracle import commands, files
from oracle.blame.headline import headline
from oracle.pages.made import now
from oracle.runs.seeds import Seed, Seeds

FORMAT = 1
NAME = "campaign.json"
LISTED = 8  # seeds that are named with a failure


class Damaged(Exception):
    """A file that is no ledger, or one in which something does not add up."""


class Done(msgspec.Struct, forbid_unknown_fields=True):
    """A seed: ``oracle diff --seed S --cases N --keep-going`` gives its digest and its number of tensors again; of another needle,
    that run has the small cases beside them, which no seed counts.
    """

    seed: int
    cases: int
    tensors: int
    failing: int
    digest: str
    campaign: int  # its place among the campaigns
    lost: list[int] = []  # shards that nobody could judge


class Campaign(msgspec.Struct, forbid_unknown_fields=True):
    """One command."""

    started: str  # UTC
    seconds: float
    workers: int
    versions: dict[str, str]
    kernels: dict[str, int]  # of OpenBLAS -> shards judged with them
    interrupted: bool = False


class Found(msgspec.Struct, forbid_unknown_fields=True):
    """What fails in one way, over all campaigns."""

    culprit: str
    headline: str
    case: str  # its digest
    count: int
    seeds: list[int]  # the first of them


class Ledger(msgspec.Struct, forbid_unknown_fields=True):
    """All campaigns."""

    format: int = FORMAT
    campaigns: list[Campaign] = []
    seeds: list[Done] = []
    cases: dict[str, int] = {}
    tensors: int = 0
    elements: int = 0
    steps: int = 0
    out_of_domain: int = 0
    rounded_alike: int = 0
    largest_share: dict[str, float] = {}  # of each rule and quantity, in units of its limit
    largest_share_at: dict[str, str] = {}
    coverage: dict[str, int] = {}  # label -> cases
    failures: list[Found] = []
    needle: str | msgspec.UnsetType = msgspec.UNSET  # the folder of another needle than ours
    check: str = ""

    @property
    def next_seed(self) -> int:
        """The first seed behind all that are done; 0 is left to CI."""
        return max((done.seed for done in self.seeds), default=0) + 1


def mixed(ledger: Ledger, needle: Path | None, content: str) -> str:
    """Whose seeds a ledger has, where that is another needle than the one in a folder (None is ours); empty where it may go on.

    It is the same one if it lies in the same folder, edited since or not, or if ``content``, its hash in
    `oracle.runs.versions`, is that of the last campaign.
    """
    theirs = None if ledger.needle is msgspec.UNSET else ledger.needle
    if not ledger.campaigns or theirs == (None if needle is None else str(needle)):
        return ""
    if theirs is not None and needle is not None and ledger.campaigns[-1].versions.get("needle") == content:
        return ""
    return "our needle" if theirs is None else f"the needle of {theirs}"


def read(path: Path) -> Ledger | None:
    """The ledger in a file; None where there is no file. Damaged where it cannot be believed."""
    where = commands.shown(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"the ledger {where} cannot be read: {error.strerror}") from None
    way_out = "move it away, or name another one with `--ledger`"
    try:
        found = msgspec.json.decode(data, type=Ledger)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{where} is no ledger, or a damaged one: {error}; {way_out}") from None
    if found.format != FORMAT:
        raise Damaged(f"the ledger {where} has format {found.format}, this oracle reads {FORMAT}; {way_out}")
    wrong = _wrong(found)
    if wrong:
        raise Damaged(f"the ledger {where} is damaged: {wrong}; {way_out}")
    return found


def _wrong(ledger: Ledger) -> str:
    """What does not add up."""
    if ledger.check != _check(ledger):
        return "its checksum is another one"
    numbers = Counter(done.seed for done in ledger.seeds)
    twice = [seed for seed, count in numbers.items() if count > 1]
    if twice:
        return f"seed {twice[0]} is there twice"
    if any(not 0 <= done.campaign < len(ledger.campaigns) for done in ledger.seeds):
        return "a seed belongs to no campaign"
    if sum(done.tensors for done in ledger.seeds) != ledger.tensors:
        return (
            f"its seeds have {sum(done.tensors for done in ledger.seeds):,} tensors, and all of it {ledger.tensors:,}"
        )
    if sum(done.cases for done in ledger.seeds) < sum(ledger.cases.values()):
        return "its seeds have fewer cases than all of it"
    return ""


def _check(ledger: Ledger) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(ledger, check=""))).hexdigest()[:16]


def continued(before: Ledger, run: Seeds, campaign: Campaign) -> Ledger:
    """The ledger with one campaign more."""
    result = run.result
    number = len(before.campaigns)
    largest, where = _shares(before, run)
    return Ledger(
        campaigns=[*before.campaigns, campaign],
        seeds=[*before.seeds, *(_done(seed, number) for seed in run.seeds.values() if seed.shards or seed.lost)],
        cases=dict(Counter(before.cases) + result.cases),
        tensors=before.tensors + result.tally.tensors,
        elements=before.elements + result.tally.elements,
        steps=before.steps + result.steps,
        out_of_domain=before.out_of_domain + result.out_of_domain,
        rounded_alike=before.rounded_alike + result.common,
        largest_share=largest,
        largest_share_at=where,
        coverage=dict(Counter(before.coverage) + result.coverage),
        failures=_failures(before.failures, run),
        needle=str(run.plan.needle) if run.plan.foreign else msgspec.UNSET,
    )


def _done(seed: Seed, campaign: int) -> Done:
    return Done(seed.seed, seed.cases, seed.tensors, seed.failing, seed.digest, campaign, seed.lost)


def _shares(before: Ledger, run: Seeds) -> tuple[dict[str, float], dict[str, str]]:
    largest, where = dict(before.largest_share), dict(before.largest_share_at)
    for key, share in run.result.tally.largest.items():
        if share > largest.get(key, -1.0):
            largest[key], where[key] = share, run.result.tally.where.get(key, "")
    return largest, where


def _failures(before: Sequence[Found], run: Seeds) -> list[Found]:
    found = {one.culprit: one for one in before}
    for failed in run.failures or run.result.failed:
        seeds = run.found_with.get(failed.culprit, [])
        known = found.get(failed.culprit)
        found[failed.culprit] = Found(
            failed.culprit,
            headline(failed.divergence) if known is None else known.headline,
            failed.case.digest if known is None else known.case,
            failed.count + (0 if known is None else known.count),
            (([] if known is None else known.seeds) + seeds)[:LISTED],
        )
    return list(found.values())


def save(path: Path, ledger: Ledger) -> None:
    """Write it in one go."""
    files.save(path, text(ledger))


def text(ledger: Ledger) -> bytes:
    """The content of the file."""
    whole = msgspec.structs.replace(ledger, check=_check(ledger))
    return msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"


class Kept:
    """A ledger on the disk, to which one campaign is added: written after each seed, and refused if somebody else does so too."""

    def __init__(self, path: Path) -> None:
        """Damaged if there is something else at this path."""
        self.path = path
        self.before = read(path) or Ledger()
        self._mine = path.read_bytes() if path.exists() else b""
        self.now = self.before
        self.saved = False  # whether all that the campaign has come to is in the file
        self.started = now()

    def add(self, run: Seeds, versions: dict[str, str], kernels: dict[str, int]) -> None:
        """What the campaign has come to so far. OSError where it cannot be written."""
        self.saved = False
        if (self.path.read_bytes() if self.path.exists() else b"") != self._mine:
            raise OSError(17, "another campaign has written into it")
        campaign = Campaign(self.started, round(run.wall, 1), run.workers, versions, kernels, run.interrupted)
        ledger = continued(self.before, run, campaign)
        save(self.path, ledger)
        self.now, self._mine, self.saved = ledger, text(ledger), True
