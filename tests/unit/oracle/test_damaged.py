"""Damaged case files: whatever is in a file, `replay` refuses it in one line and with exit 2, or judges a case that is one.

What lies within its documented range is decided here by a table of its own (`RANGES`), not by the code that is under test.
More of them: ``python tests/unit/oracle/test_damaged.py 10000``.
"""

import contextlib
import copy
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

import needle
from oracle.blame import judged
from oracle.cases import case as c
from oracle.commands import Asked
from oracle.exits import ExitCode
from oracle.runs.draws import draw
from oracle.runs.replay import replay

FLOAT32 = 3.4028234663852886e38
SECONDS = (
    60.0  # of a processor that a file may take, whatever it says: a step takes 7 ms, and 4,097 of them are within range
)
BYTES = 3e9  # that one may take


# -- what is documented -----------------------------------------------------------------------------------------------


def whole(low, high):
    return lambda v: type(v) is int and low <= v <= high


def number(low=-FLOAT32, high=FLOAT32, *, open_low=False, open_high=False):
    def within(v):
        return (
            type(v) in (int, float)
            and low <= v <= high
            and not (open_low and v == low)
            and not (open_high and v == high)
        )

    return within


def maybe(test):
    return lambda v: v is None or test(v)


def each(test, most=10**9):
    return lambda v: isinstance(v, list) and len(v) <= most and all(map(test, v))


def of(*values):
    return lambda v: isinstance(v, str) and v in values


def flag(v):
    return v is True or v is False


def a_slice(v):
    return isinstance(v, list) and len(v) == 3 and all(map(maybe(whole(-(2**31), 2**31)), v))


def a_place(v):
    if not (isinstance(v, dict) and len(v) == 1 and next(iter(v)) in ("array", "mask", "number", "ellipsis")):
        return False
    return each(whole(-(2**31), 2**31), 64)(next(iter(v.values())))


POSITIVE = number(0, open_low=True)
BELOW_1 = number(0, 1, open_high=True)
BODY = each(lambda v: isinstance(v, dict))
AXIS = whole(-8, 7)
SIZE = whole(1, 4096)
PLACE = whole(0, 2**31 - 1)
STEP = whole(1, 100_000)
ARGUMENT = whole(0, 999)
ATTRIBUTES = {
    "c": number(), "c1": number(), "eps": POSITIVE, "axis": AXIS, "axes": lambda v: maybe(AXIS)(v) or each(AXIS, 8)(v),
    "shape": each(whole(-1, 2**20), 8), "dilation": whole(0, 64), "padding": whole(0, 64), "stride": whole(1, 64),
    "pick": whole(-(2**31), 2**31), "labels": each(whole(0, 4095), 4096),
    "index": each(lambda s: s is None or a_slice(s) or a_place(s), 8),
    "low": maybe(number()), "high": maybe(number()), "correction": number(0), "largest": flag,
}  # fmt: skip
ON = {"optimizer": PLACE}
FORM = {"form": lambda v: isinstance(v, str), "parameter": PLACE}
SETTING = {"setting": of("lr", "momentum", "weight_decay", "beta1", "beta2", "eps", "max_norm")}
ACTIONS = {
    "Pass": {"backward": of("once", "twice", "with graph"), "reset": flag, "add": flag, "to_input": flag, "keep": flag} | {"computed": maybe(PLACE), "layout": lambda v: isinstance(v, str)},
    "Step": ON, "Reset": ON | {"by": of("reset_grad", "zero_grad", "model")}, "ClipNorm": ON | {"at": lambda v: isinstance(v, str)},
    "Set": ON | SETTING | {"value": number(0)}, "Refuse": ON | SETTING | {"value": lambda v: True},
    "Freeze": {"parameter": PLACE, "frozen": flag}, "ReplaceData": FORM, "ReplaceGradient": FORM,
    "ReplaceState": FORM | ON | {"second": flag}, "AddParameter": {"parameter": PLACE},
    "NewOptimizer": {"optimizer": of("SGD", "Adam"), "settings": lambda v: isinstance(v, dict)},
    "Mode": {"part": maybe(PLACE), "training": flag, "by_train": flag}, "Evaluate": {"constant": flag}, "NoGrad": {"how": lambda v: isinstance(v, str)},
    "Load": {"file": flag, "optimizer": flag}, "SetLayer": {"layer": PLACE, "setting": of("p", "momentum", "eps"), "value": number(0, 1)}, "Copy": {"how": of("deepcopy", "pickle")},
    "Attach": ON | {
        "schedule": of("StepLR", "CosineLR", "Warmup"), "steps": whole(1, 1000), "value": maybe(number(0)),
        "then": maybe(of("StepLR", "CosineLR")),
    },
    "Augment": FORM, "Loader": {"form": of("in order", "shuffled", "short", "dropped")}, "Advance": ON, "PutLayer": {"layer": PLACE}, "SwapLayers": {"pair": PLACE},
    "Keep": ON | {"what": lambda v: isinstance(v, str), "parameter": PLACE}, "Mishap": ON | {"form": lambda v: isinstance(v, str)},
    "Rewind": {"optimizer": flag},
}  # fmt: skip
CASE = {"kind": of("train", "second", "op", "program"), "format": lambda v: type(v) is int and v == 1}
MODEL = {
    "model": BODY, "data": lambda v: isinstance(v, dict), "loss": lambda v: isinstance(v, dict), "seed": whole(0, 2**32 - 1),
    "weight_scale": number(0, 1e30), "keep_init": flag,
}  # fmt: skip
OP = {"op": lambda v: isinstance(v, str), "attributes": lambda v: isinstance(v, dict)}
RANGES = {
    "train": CASE | MODEL | {
        "optimizer": lambda v: isinstance(v, dict), "steps": STEP, "clip": maybe(lambda v: isinstance(v, dict)),
        "lr_changes": BODY, "gap": maybe(lambda v: isinstance(v, dict)), "backward": of("once", "twice", "accumulate"),
        "input_grad": flag, "memory": maybe(lambda v: isinstance(v, dict)),
        "dtypes": maybe(lambda v: isinstance(v, dict)),
    },
    "second": CASE | MODEL,
    "program": CASE | MODEL | {
        "optimizer": lambda v: isinstance(v, dict), "actions": BODY, "held": of("sequential", "list", "dict", "ModuleList"),
        "again": maybe(PLACE), "functions": flag,
    },
    **ACTIONS,
    "op": CASE | OP | {
        "operands": BODY, "cotangent": each(number()), "numpy_scalars": flag, "constants": each(ARGUMENT),
        "order": whole(1, 3), "dtypes": each(of("float16", "float32", "float64", "int64", "int32", "uint8", "bool")),
    },
    "Operand": {
        "shape": each(whole(-1, 2**20), 8), "cycled": flag, "values": each(lambda v: number()(v) or of("nan", "inf", "-inf")(v)),
        "layout": of("C", "F", "strided", "reversed", "repeated", "read-only"),
    },
    "OpStep": OP | {"args": each(ARGUMENT)},
    "Ops": {"steps": BODY},
    "Linear": {"out": SIZE, "bias": flag, "frozen": flag, "tie": maybe(ARGUMENT)},
    "Conv": {
        **dict.fromkeys(("out", "channels", "height", "kernel", "stride"), whole(1, 64)), "padding": maybe(whole(0, 64)),
        "bias": flag, "frozen": flag,
    },
    "BatchNorm": {"eps": maybe(POSITIVE), "momentum": maybe(number(0, 1)), "frozen": flag},
    "LayerNorm": {"eps": maybe(POSITIVE), "frozen": flag},
    "Dropout": {"p": maybe(number(0, 1))},
    "Unused": {"size": SIZE},
    "Sequential": {"body": BODY}, "Residual": {"body": BODY}, "Eval": {"body": BODY},
    "Branch": {"left": BODY, "right": BODY, "join": of("add", "subtract", "multiply")},
    "Atom": {"at": PLACE, "value": number()},
    "Data": {
        "rows": SIZE, "features": SIZE, "scale": number(0, 1e30), "offset": number(), "atoms": BODY, "repeated_rows": flag,
        "constant_column": flag, "rounded": flag, "same_batch": flag,
    },
    "Digits": {"rows": SIZE},
    "SoftmaxLoss": {
        "labels": of("int64", "int32", "uint8", "int8", "int16", "uint16", "uint32", "uint64", "float32", "list"),
    },
    "Dtypes": dict.fromkeys(("model", "data"), of("float16", "float32", "float64")),
    "MeanSquare": {}, "MSELoss": {}, "WeightedSum": {}, "Cotangent": {},
    "SGD": {"lr": maybe(POSITIVE), "momentum": maybe(BELOW_1), "weight_decay": maybe(number(0))},
    "Adam": {
        "lr": maybe(POSITIVE), "beta1": maybe(BELOW_1), "beta2": maybe(BELOW_1), "eps": maybe(POSITIVE),
        "weight_decay": maybe(number(0)),
    },
    "Clip": {"max_norm": maybe(POSITIVE)},
    "LrChange": {"step": STEP, "lr": POSITIVE},
    "Gap": {"step": STEP, "parameter": PLACE},
    "Memory": {"allocators": of("malloc", "python"), "evaluate": flag, "create_graph": flag},
    **{name: {} for name in ("Identity", "Flatten", "ReLU", *c.ACTIVATIONS)},
}  # fmt: skip


# where one kind alone is possible, a file need not say which
ALONE = {
    ("op", "operands"): "Operand", ("second", "data"): "Data", ("program", "data"): "Data", ("Data", "atoms"): "Atom", ("train", "clip"): "Clip",
    ("train", "lr_changes"): "LrChange", ("train", "gap"): "Gap", ("Ops", "steps"): "OpStep", ("train", "memory"): "Memory",
}  # fmt: skip


def outside(raw, kind=None):
    """What of a file is not within its documented range."""
    if not isinstance(raw, dict):
        return "no object"
    kind = raw.get("kind", kind)
    if not isinstance(kind, str) or kind not in RANGES:
        return f"kind {kind!r:.40}"
    for name, value in raw.items():
        test = RANGES[kind].get(name, lambda v: False)
        if name != "kind" and not test(value):
            return f"{kind}.{name}={value!r:.60}"
    for name, value in raw.get("attributes", {}).items():
        if not ATTRIBUTES.get(name, lambda v: False)(value):
            return f"attribute {name}={value!r:.60}"
    for name, value in raw.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict) and name not in ("attributes", "settings"):
                found = outside(part, ALONE.get((kind, name)))
                if found:
                    return found
    return ""


# -- how files are damaged --------------------------------------------------------------------------------------------

NUMBERS = (
    0, -1, 1, 2, -0.0, 0.5, 1.0, 1e-45, 1e-320, 3.5e38, -3.5e38, 1e39, 1e308, 4096, 4097, 65536, 100_000, 100_001, 2**31, 2**32,
    2**53, 2**63, 2**64, -(2**63), 10**30, 10**400, 3.4e38,
)  # fmt: skip
OTHERS = (
    None,
    True,
    False,
    "",
    "nan",
    "inf",
    "Linear",
    "1",
    "é",
    "\ud800",
    [],
    {},
    [[]],
    [1],
    {"kind": "Linear"},
    "\0" * 9,
)


def places(raw, path=()):
    """The paths of everything in a tree."""
    for key in list(raw) if isinstance(raw, dict) else range(len(raw)):
        yield (*path, key)
        if isinstance(raw[key], dict | list):
            yield from places(raw[key], (*path, key))


def at(raw, path):
    for key in path:
        raw = raw[key]
    return raw


def into(raw, path, value):
    at(raw, path[:-1])[path[-1]] = value


def in_tree(change):
    """Damage to the tree of a file."""

    def damage(rng, text):
        raw = json.loads(text)
        change(rng, raw)
        return json.dumps(raw).encode()

    damage.__name__ = change.__name__
    return damage


@in_tree
def another_number(rng, raw):
    numbers = [p for p in places(raw) if type(at(raw, p)) in (int, float)]
    into(raw, rng.choice(numbers), rng.choice(NUMBERS))


@in_tree
def another_type(rng, raw):
    into(raw, rng.choice(list(places(raw))), rng.choice(OTHERS))


@in_tree
def unknown_field(rng, raw):
    objects = [(), *(p for p in places(raw) if isinstance(at(raw, p), dict))]
    at(raw, rng.choice(objects))[rng.choice(["x", "out", "lr", "kind", "", "c", "axes", "__class__"])] = rng.choice(
        NUMBERS
    )


@in_tree
def lost_field(rng, raw):
    path = rng.choice(list(places(raw)))
    del at(raw, path[:-1])[path[-1]]


@in_tree
def swapped(rng, raw):
    one, two = (rng.choice(list(places(raw))) for _ in range(2))
    first, second = copy.deepcopy(at(raw, one)), copy.deepcopy(at(raw, two))
    with contextlib.suppress(KeyError, IndexError, TypeError):
        into(raw, one, second)
        into(raw, two, first)


@in_tree
def repeated(rng, raw):
    lists = [p for p in places(raw) if isinstance(at(raw, p), list) and at(raw, p)]
    if lists:
        path = rng.choice(lists)
        into(raw, path, at(raw, path) * rng.choice([2, 3, 50, 3000]))


@in_tree
def large(rng, raw):
    """Every size at once within its range, and far more than any machine has."""
    for path in places(raw):
        if path[-1] in ("rows", "features", "out") and rng.random() < 0.7:
            into(raw, path, 4096)
        if path[-1] == "steps" and type(at(raw, path)) is int:
            into(raw, path, rng.choice([1, 3000, 100_000]))
        if isinstance(path[-1], int) and path[-2] == "shape":
            into(raw, path, rng.choice([0, 1, 1024, 4096]))


@in_tree
def two_numbers(rng, raw):
    for _ in range(2):
        another = [p for p in places(raw) if type(at(raw, p)) in (int, float)]
        into(raw, rng.choice(another), rng.choice((*NUMBERS, 2, 3, 4, -2, 7)))


def truncated(rng, text):
    return text[: rng.randrange(len(text))]


def flipped(rng, text):
    data = bytearray(text)
    for _ in range(rng.choice([1, 1, 2, 9])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(rng, text):
    start = rng.randrange(len(text))
    return text[:start] + text[start + rng.randrange(1, 40) :]


def doubled(rng, text):
    start, stop = sorted(rng.randrange(len(text)) for _ in range(2))
    return text[:stop] + text[start:stop] * rng.choice([1, 2]) + text[stop:]


def digit(rng, text):
    found = [i for i, b in enumerate(text) if chr(b).isdigit()]
    place = rng.choice(found)
    return (
        text[:place] + rng.choice([b"9", b"-", b"e9", b"0.", b"9" * 30, b"NaN", b"Infinity", b""]) + text[place + 1 :]
    )


def encoded(rng, text):
    return rng.choice([lambda: text.decode().encode("utf-16"), lambda: b"\xef\xbb\xbf" + text, lambda: text[:9] + b"\xff\xfe" + text[9:],
                       lambda: b"", lambda: b"\0" * 999, lambda: b"null", lambda: text * 2, lambda: b"[" + text + b"]"])()  # fmt: skip


def nested(rng, text):
    depth = rng.choice([60, 200, 5000, 200_000])
    return rng.choice(
        [
            lambda: b"[" * depth + b"]" * depth,
            lambda: b'{"a":' * depth + b"1" + b"}" * depth,
            lambda: text.replace(
                b'"model": [',
                b'"model": [' + b'{"kind": "Sequential", "body": [' * depth + b"]}," * depth,
                1,
            ).replace(b"]}," * depth, b"]}" * depth + b","),
        ]
    )()


def huge(rng, text):
    filler = rng.choice([b" ", b"1,", b'{"kind": "ReLU"},', b'"'])
    place = rng.randrange(len(text))
    return text[:place] + filler * (rng.choice([10**4, 5 * 10**6]) // len(filler)) + text[place:]


DAMAGES = (
    another_number, two_numbers, another_type, unknown_field, lost_field, swapped, repeated, large, truncated, flipped, cut,
    doubled, digit, encoded, nested, huge,
)  # fmt: skip


def good_cases():
    """Some thirty drawn cases of all kinds."""
    kinds = (("train", 16), ("op", 13), ("second", 4), ("program", 6), ("dtype", 4), ("long", 3), ("whole", 2))
    return [c.encode(case) for kind, n in kinds for case in draw(kind, n, 14)]


# -- the trial --------------------------------------------------------------------------------------------------------


def processor_seconds():
    """Of this process and its children: what else the machine does is no matter of a file's."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def outcome(path, text):
    """What replay makes of a file, in a word, and what is wrong with that, or ""."""
    path.write_bytes(text)
    out, err = io.StringIO(), io.StringIO()
    started = processor_seconds()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = replay(str(path), Asked())
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    took = processor_seconds() - started
    if took > SECONDS:
        return "slow", f"{took:.0f} s"
    if "Traceback" in out.getvalue() + err.getvalue():
        return "failed", err.getvalue()
    if code == ExitCode.USAGE:
        lines = err.getvalue().splitlines()
        wrong = (
            ""
            if len(lines) == 1 and len(lines[0]) < 1000 and not out.getvalue()
            else f"{len(lines)} lines: {lines!r:.300}"
        )
        return "refused", wrong
    if code not in (ExitCode.AGREE, ExitCode.PART, ExitCode.CONTRADICTION, ExitCode.NO_VERDICT):
        return "failed", f"exit code {code}: {err.getvalue():.300}"
    if code in (ExitCode.AGREE, ExitCode.NO_VERDICT):
        why = outside(json.loads(text))
    else:
        why = "no such case shows a fault, be it needle's or the oracle's"
    return f"judged: {ExitCode(code).meaning}", why


def trial(count, seed, folder):
    """Counts by damage and outcome, and everything that is wrong."""
    cases, rng = [], random.Random(seed)
    for text in good_cases():
        judged(c.decode(text), needle, validate=True)  # what torch does once, it does before the first child is forked
        word, why = outcome(folder / "good.json", text)
        assert word in ("judged: they agree", "judged: nothing could be judged"), text
        assert why == "", "the table here is not that of the cases"
        cases += [text] * (word == "judged: they agree")
    assert len(cases) >= 25
    counts, wrong = Counter(), []
    for i in range(count):
        damage = DAMAGES[i % len(DAMAGES)]
        text = damage(rng, rng.choice(cases))
        word, why = outcome(folder / "damaged.json", text)
        counts[damage.__name__, word] += 1
        if why:
            wrong.append((damage.__name__, word, why, text))
    return counts, wrong


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            b'{"format": 1, "kind": "op", "op": "put_item", "operands": [{"shape": [1], "values": [1.0]}], '
            b'"attributes": {"shape": [5], "index": []}, "cotangent": [1.0]}',
            "the operand has the shape (1,), and its place (5,)",
        ),
        (
            b'{"format": 1, "kind": "train", "model": [{"kind": "Linear", "out": 1}], "data": {"kind": "Data", "rows": 2, "features": 2}, '
            b'"loss": {"kind": "WeightedSum"}, "optimizer": {"kind": "Adam", "lr": 3.4e38}, "seed": 0}',
            "lr / (1 - beta1), the first step, must be a float32",
        ),
        (
            b'{"format": 1, "kind": "op", "op": "clip", "operands": [{"kind": "Operand", "shape": [1], "values": [-2.0]}], '
            b'"attributes": {}, "cotangent": [0.5]}',
            "clip: low, high or both are needed",
        ),
        (
            b'{"format": 1, "kind": "op", "op": "rpow", "operands": [{"shape": [1], "values": [0.5]}], "attributes": {"c": -2.0}, '
            b'"cotangent": [0.5]}',
            "rpow: c must be positive",
        ),
    ],
    ids=["put_item", "Adam", "clip", "rpow"],
)
def test_what_10000_files_have_found(text, why, tmp_path, capsys):
    (tmp_path / "found.json").write_bytes(text)
    assert replay(str(tmp_path / "found.json"), Asked()) == ExitCode.USAGE
    assert why in capsys.readouterr().err


LINEAR = (
    b'{"format": 1, "kind": "train", "model": [{"kind": "Linear", "out": 2}], "data": {"kind": "Data", "rows": 2, "features": 2}, '
    b'"loss": {"kind": "MeanSquare"}, "seed": 0, '
)


@pytest.mark.parametrize(
    "text",
    [
        b'{"format": 1, "kind": "op", "op": "add", "operands": [{"shape": [1, 1], "values": [-0.0]}, {"shape": [1, 3], "values": '
        b'[0.0, 0.25, -0.5]}], "cotangent": [9007199254740992, -1.0], "dtypes": ["int32", "float16"]}',
        LINEAR + b'"optimizer": {"kind": "SGD", "lr": 0.01, "momentum": 0.3, "weight_decay": 1e30}, '
        b'"dtypes": {"kind": "Dtypes", "model": "float16", "data": "float16"}}',
        LINEAR + b'"optimizer": {"kind": "SGD", "lr": 100, "weight_decay": 1e38}}',
        LINEAR + b'"optimizer": {"kind": "Adam", "lr": 0.01, "weight_decay": 1e22}}',
    ],
    ids=["cotangent in half", "decay in half", "decay and lr", "Adam's square"],
)
def test_numbers_that_overflow_on_their_way_are_no_evidence(text, tmp_path, capsys):
    (tmp_path / "found.json").write_bytes(text)
    assert replay(str(tmp_path / "found.json"), Asked()) == ExitCode.NO_VERDICT, capsys.readouterr().out


@pytest.mark.parametrize("count", [300])
def test_a_damaged_file_is_refused_in_a_line_or_is_a_case(count, tmp_path):
    counts, wrong = trial(count, 0, tmp_path)
    assert wrong == []
    assert sum(counts.values()) == count
    assert sum(n for (_, word), n in counts.items() if word == "refused") > count // 2
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < BYTES, f"{peak:,} bytes"


def test_what_is_out_of_range_is_seen_by_the_table():
    for text in good_cases():
        raw = json.loads(text)
        raw["seed" if "seed" in raw else "numpy_scalars"] = -1
        assert outside(raw)
    assert outside({"kind": "op", "format": 1, "op": "exp", "attributes": {"c": "1"}, "operands": []})


def main(count, seed=0):
    """Prints a table of what became of ``count`` damaged files."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = trial(count, seed, Path(folder))
    words = sorted({word for _, word in counts})
    print(f"{'':16}" + "".join(f"{word:>26}" for word in words))
    for damage in (*DAMAGES, None):
        row = [sum(n for (d, w), n in counts.items() if w == word and damage in (None, _named(d))) for word in words]
        print(f"{damage.__name__ if damage else 'all':16}" + "".join(f"{n:26,}" for n in row))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{time.monotonic() - started:.0f} s; {len(wrong)} wrong; largest child {peak:.2f} GB")
    for name, word, why, text in wrong[:20]:
        print(f"{name}: {word}: {why}\n  {text[:300]!r}")
    return bool(wrong)


def _named(name):
    return next(d for d in DAMAGES if d.__name__ == name)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
