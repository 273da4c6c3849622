"""A needle in the hands of a user who does this and that: the `Hands` of `oracle.cases.actions`.

Nothing of needle is wrapped or loaded in between. After every action all of the state is read, as copies, and no array is held
on to unless the program asks for it: an optimizer may write into what nobody holds.
"""

from __future__ import annotations

import copy
import operator
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oracle.cases import actions as a
from oracle.cases import case as c
from oracle.cases import known, programs
from oracle.cases.inputs import Batches, Slot, initial_state, step_seed
from oracle.cases.known import SETTINGS, STATES, State
from oracle.systems.ours.held import held, joined
from oracle.systems.ours.model import NEXT, SEED, Array, array_of, build, grad_of, loss_with
from oracle.systems.ours.phase import Phase
from oracle.systems.ours.watch import Closely, Record, Watch
from oracle.systems.recorded import TapeJudge
from oracle.systems.trace import Clock, Observation, same_bits


@dataclass
class Parts:
    """What is copied together: a model, its modules by path, its parameters by name, and optimizers of them with their schedules."""

    model: Any
    modules: dict[str, Any]
    parameters: dict[str, Any]
    optimizers: list[Any]
    schedules: dict[int, Any] = field(default_factory=dict)  # by the number of their optimizer


class World:
    """One user's needle. Actions work on it, and ``look`` tells its state."""

    strict = True  # whether needle keeps to our promises, or to those of the course alone

    def __init__(
        self, case: c.ProgramCase, ndl: Any, slots: tuple[list[Slot], list[Slot]],
        batches: Batches, clock: Clock,
    ) -> None:  # fmt: skip
        self.case, self.ndl, self.batches, self.clock = case, ndl, batches, clock
        self.due: State = {}  # what the action at work has to leave …
        self.judged: Collection[str] = ()  # … and what of it is numbers
        self.parameter_slots, self.buffer_slots = slots
        self.index = self.passes = 0
        self.flows: Sequence[str] = ()  # the parameters that a backward pass reaches, as things stand
        self.seen = Observation(0)
        self.promises: dict[str, bool] = {}
        self.kept: list[tuple[str, Any, Array]] = []
        self.twin: World | None = None
        self.loaded_from = 0  # the pass that takes the first of the batches of a loader …
        self.loader: list[tuple[Any, ...]] = []  # … which are these
        self.watch: Watch | None = None
        self.late = programs.late(case)
        self.scheduled: Mapping[int, a.Attach] = {}  # how the schedules were made, which a fresh one is made by
        self.tuned = programs.settings_of(case)
        with self.phase("build"):
            np.random.seed(case.seed_for("build"))
            self.softmax_loss = ndl.nn.SoftmaxLoss()
            self.parts = self._built()
            self.start(initial_state(case.training))
            spec = case.optimizer
            given = {n: getattr(spec, n) for n in spec.__struct_fields__ if getattr(spec, n) is not None}
            first = [p for name, p in self.parameters.items() if name not in self.late]
            self.parts.optimizers.append(getattr(ndl.optim, type(spec).__name__)(first, **given))

    def start(self, state: State) -> None:
        """Take over the parameters and buffers that the program begins with."""
        for name, p in self.parameters.items():
            p.data = self.ndl.Tensor(state[name], requires_grad=False)
        for slot in self.buffer_slots:
            self._buffer(slot).data = self.ndl.Tensor(state[slot.name], requires_grad=False)

    def backward(self, loss: Any, cotangent: tuple[Any, ...], **keywords: bool) -> None:
        """``loss.backward()``."""
        loss.backward(*cotangent, **keywords)

    def watched(self, tapes: TapeJudge) -> None:
        """From now on, whoever looks at the layers and the tapes sees them; chains of layers are then none."""
        self.watch = Watch(self.modules, self.clock)
        self.watch.findings, self.watch.closely = tapes, Closely()

    def phase(self, name: str) -> Phase:
        """Needle at work: what it raises there is a failure of this phase."""
        return Phase(name, self.clock, self.ndl)

    def _built(self) -> Parts:
        case, nn = self.case, self.ndl.nn
        whole = build(case.training, self.ndl)
        paths = programs.switched(case)
        made = []
        for i, layer in enumerate(case.model):
            module = whole.modules[str(i)]
            if case.functions and (op := programs.function_of(layer)):
                module = whole.modules[str(i)] = nn.Residual(getattr(self.ndl, op))
            if isinstance(layer, c.Branch):
                bodies = [[whole.modules[f"{i}.{part}{j}"] for j in range(len(body))] for part, body in layer.nested()]
                module = whole.modules[str(i)] = joined(
                    self.ndl, layer.join, *(nn.Sequential(*body) for body in bodies)
                )
            made.append(module)
        made += [] if case.again is None else [made[case.again % len(made)]]
        model = nn.Sequential(*made) if case.held == "sequential" else held(self.ndl, case.held, made)
        parameters = {}
        for slot in self.parameter_slots:
            path, attribute = slot.name.rsplit(".", 1)
            parameters[slot.name] = getattr(whole.modules[path], attribute)
        return Parts(model, {path: whole.modules[path] for path in paths}, parameters, [])

    def _buffer(self, slot: Slot) -> Any:
        path, attribute = slot.name.rsplit(".", 1)
        return getattr(self.modules[path], attribute)

    # -- what actions find ----------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The whole model."""
        return self.parts.model

    @property
    def modules(self) -> dict[str, Any]:
        """Its modules by path."""
        return self.parts.modules

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters by name."""
        return self.parts.parameters

    @property
    def optimizers(self) -> list[Any]:
        """All optimizers, the first one first."""
        return self.parts.optimizers

    @property
    def schedules(self) -> dict[int, Any]:
        """The schedules by the number of their optimizer."""
        return self.parts.schedules

    def parameter(self, place: int) -> tuple[str, Any]:
        """See `oracle.cases.actions.Hands`."""
        return list(self.parameters.items())[place % len(self.parameters)]

    def optimizer(self, place: int) -> Any:
        """Likewise."""
        return self.optimizers[place % len(self.optimizers)]

    def listed(self, optimizer: int, place: int) -> tuple[str, Any]:
        """Likewise."""
        names = self._names(self.optimizer(optimizer))
        name = names[place % len(names)]
        return name, self.parameters[name]

    def _names(self, optimizer: Any) -> list[str]:
        names = {id(p): name for name, p in self.parameters.items()}
        return [names[id(p)] for p in optimizer.params]

    def with_setting(self, setting: str, place: int) -> Any:
        """Likewise."""
        paths = [path for path, names in self.tuned.items() if setting in names]
        return self.modules[paths[place % len(paths)]] if paths else None

    def numbers(self, parameter: Any, *, positive: bool = False) -> Array:
        """Likewise."""
        return known.numbers(self.case.seed, self.index, parameter.shape, positive=positive)

    def write(self, tensor: Any, values: Array) -> bool:
        """Likewise."""
        array = tensor.cached_data
        others = [*self._arrays().values(), *(array_of(thing) for _, thing, _ in self.kept)]
        mine = sum(np.may_share_memory(array, other) for other in others)
        if mine > 1 or not array.flags.writeable:
            return False
        array[...] = values
        return True

    def plus(self, a: Any, b: Any) -> Any:
        """The sum of two gradients, as a user adds them up."""
        return a.data + b.data

    def hold(self, name: str, thing: Any) -> None:
        """Likewise."""
        self.kept.append((name, thing, np.array(array_of(thing))))

    def promise(self, name: str, kept: bool) -> None:
        """Likewise."""
        self.promises[name] = self.promises.get(name, True) and bool(kept)

    # -- what actions ask for -------------------------------------------------------------------------------------------

    def run(self, action: a.Pass) -> None:
        """A pass; what flows is taken down before anything is added to it."""
        t = self.passes
        before = {n: g for n, p in self.parameters.items() if (g := grad_of(p)) is not None and g.dtype == p.dtype}
        np.random.seed(step_seed(self.case.training, t))
        x = self._input(t, action)
        with self._looked_at() as record, self._computed(action.computed):
            out = self.model(x)
        loss, cotangent = self._loss(out, t)
        self._layers(record, "activation", out)
        if loss is not out:
            self.seen.put("loss", "loss", array_of(loss))
        flows = bool(self.flows) or action.to_input
        self.promise("a loss requires a gradient if a parameter does", bool(loss.requires_grad) == flows)
        if not loss.requires_grad:
            return
        tape = [] if self.watch is None else self.watch.tape(loss)
        if action.backward == "twice":
            self.backward(loss, cotangent, retain_graph=True)
            first = self._gradients()
        self.backward(loss, cotangent, **({"create_graph": True} if action.backward == "with graph" else {}))
        if action.backward == "twice":
            again = self._gradients()
            same = first.keys() == again.keys() and all(same_bits(first[n], again[n]) for n in first)
            self.promise("a second backward pass gives the same gradients", same)
            if self.strict:
                self._freed(loss, cotangent)
        if self.watch is not None:
            self.watch.judge(tape, cotangent[0] if cotangent else None, record)
            for path, given, made in reversed(record):
                if made is not given and grad_of(made) is not None:
                    self.seen.put("adjoint", path, array_of(made.grad))
        for name in reversed(self.flows):
            p = self.parameters[name]
            if grad_of(p) is not None:
                self.seen.put("gradient", name, array_of(p.grad))
        if action.to_input and grad_of(x) is not None:
            self.seen.put("adjoint", "input", array_of(x.grad))
        if action.add:
            for name in self.flows:
                if name in before and grad_of(self.parameters[name]) is not None:
                    self.parameters[name].grad = self.plus(before[name], self.parameters[name].grad)
        if action.keep:
            self.hold("loss", loss)
            self.hold("output", out)

    def _freed(self, loss: Any, cotangent: tuple[Any, ...]) -> None:
        try:
            loss.backward(*cotangent)
        except RuntimeError:
            pass
        else:
            self.promise("a third backward pass, through the freed graph, is refused", False)

    @contextmanager
    def _computed(self, place: int | None) -> Iterator[None]:
        """In its layer a Tensor that is computed from a parameter, and has the same numbers, stands for it."""
        if place is None:
            yield
            return
        name, p = self.parameter(place)
        path, attribute = name.rsplit(".", 1)
        setattr(self.modules[path], attribute, p * 1.0)
        try:
            yield
        finally:
            setattr(self.modules[path], attribute, p)

    @contextmanager
    def _looked_at(self) -> Iterator[Record]:
        """What the layers make, by the names of the training run, in which a layer that is applied twice stands twice."""
        if self.watch is None:
            yield []
            return
        named: Record = []
        with self.watch.recording() as record:
            yield named
        times: Counter[str] = Counter()
        for path, given, made in record:
            times[path] += 1
            _, dot, rest = path.partition(".")
            named.append((path if times[path] == 1 else f"{len(self.case.model)}{dot}{rest}", given, made))

    def _layers(self, record: Record, quantity: str, out: Any) -> None:
        for path, given, made in record:
            self.seen.put(quantity, path, array_of(made))
            if made is given:
                self.seen.aliases.add(path)
        self.seen.put(quantity, programs.last(self.case), array_of(out))

    def _gradients(self) -> dict[str, Array]:
        return {n: np.array(array_of(g)) for n, p in self.parameters.items() if (g := grad_of(p)) is not None}

    def _tensor(self, name: str, values: Array, *, requires_grad: bool = False) -> Any:
        """A Tensor that the user hands in, and goes on holding."""
        tensor = self.ndl.Tensor(np.array(values), requires_grad=requires_grad)
        self.hold(name, tensor)
        return tensor

    def _input(self, t: int, action: a.Pass) -> Any:
        """The batch of pass t, of a loader if there is one."""
        if not self.loader or action.to_input or action.layout != "plain":
            values = array_of(self.loader[t - self.loaded_from][0]) if self.loader else self.batches.x[t, 0]
            x = self.ndl.Tensor(np.array(values), requires_grad=action.to_input)
            if action.layout != "plain":
                x.cached_data = action.input(values)
            self.hold("input", x)
            return x
        x = self.loader[t - self.loaded_from][0]
        self.hold("input", x)
        return x

    def _beside(self, t: int, name: str, values: Array) -> Any:
        """What is beside the batch of pass t, likewise."""
        if not self.loader:
            return self._tensor(name, values)
        given = self.loader[t - self.loaded_from][1]
        self.hold(name, given)
        return given

    def load_batches(self, loader: a.Loader) -> None:
        """All batches of a DataLoader, each looked at: its rows, their order, and what else a batch is."""
        data, t, rows = self.ndl.data, self.passes, self.case.data.rows
        columns = programs.rows_left(self.case, programs.batches(self.case, self.index), t, loader.more)
        dataset = data.NDArrayDataset(*columns)
        given = {"shuffle": True} if loader.shuffle else {}
        given |= {"drop_last": True} if loader.form == "dropped" else {}
        made = data.DataLoader(dataset, batch_size=rows, **given)
        seed = programs.loader_seed(self.case, t)
        np.random.seed(seed)
        self.loaded_from, self.loader = t, [*made]
        order = loader.order(seed, len(columns[0]))
        until = len(order) - loader.more * (loader.form == "dropped")
        right = [[column[order[i : i + rows]] for column in columns] for i in range(0, until, rows)]
        self.promise("len() of a loader is the number of its batches", len(made) == len(right))
        self.promise("a loader gives the batches that there are", len(self.loader) == len(right))
        for batch, due in zip(self.loader, right, strict=False):
            self._is_batch(batch, due)
        if loader.form == "in order":  # as it is without any setting
            for batch, *due in zip(data.DataLoader(dataset), *columns, strict=True):
                self._is_batch(batch, [one[None] for one in due])

    def _is_batch(self, batch: Any, due: Sequence[Array]) -> None:
        same = all(g.dtype == d.dtype and same_bits(array_of(g), d) for g, d in zip(batch, due, strict=True))
        self.promise("a batch has the rows that are due", same)
        self.promise("a batch asks for no gradient", not any(given.requires_grad for given in batch))

    def _loss(self, out: Any, t: int) -> tuple[Any, tuple[Any, ...]]:
        """The loss, and the cotangent that its backward pass starts from, if it is no scalar."""
        loss, batches = self.case.loss, self.batches
        if isinstance(loss, c.SoftmaxLoss):
            assert batches.labels is not None
            return self.softmax_loss(out, self._beside(t, "labels", batches.labels[t, 0])), ()
        assert batches.drawn is not None
        drawn = self._beside(t, "out_grad" if isinstance(loss, c.Cotangent) else "target", batches.drawn[t, 0])
        found, start = loss_with(self.ndl, self.case, out, drawn)
        return found, () if start is None else (start,)

    def evaluate(self, *, constant: bool) -> None:
        """A forward pass on the next batch."""
        np.random.seed(SEED)
        self.promise("eval() switches every layer", not any(module.training for module in self.modules.values()))
        with self.ndl.no_grad() if constant else nullcontext(), self._looked_at() as record:
            out = self.model(self._tensor("input", self.batches.x[self.passes, 0]))
        self._layers(record, "evaluation", out)
        if self.watch is not None:
            self.watch.judge(self.watch.tape(out, retain=False), None, record, backward=False)
        self.promise("evaluation leaves the random state alone", np.random.bytes(8) == NEXT)
        if constant:
            self.promise("under no_grad the output requires no gradient", not out.requires_grad)

    def forward_both_ways(self) -> bool:
        """The next batch, in the modes that the layers are in; buffers are put back afterwards."""
        buffers = [self._buffer(slot) for slot in self.buffer_slots]
        before = [np.array(array_of(b)) for b in buffers]
        made: list[list[Array]] = []
        for mode in (nullcontext, self.ndl.no_grad):
            np.random.seed(SEED)
            with mode():
                out = self.model(self._tensor("input", self.batches.x[self.passes, 0]))
            made.append([np.array(array_of(value)) for value in (out, *buffers)])
            for buffer, values in zip(buffers, before, strict=True):
                buffer.data = self.ndl.Tensor(values, requires_grad=False)
        same = [a.dtype == b.dtype and same_bits(a, b) for a, b in zip(*made, strict=True)]
        self.promise("under no_grad the output has the bits that it has with a graph", same[0])
        self.promise("under no_grad buffers change as with a graph", all(same[1:]))
        return bool(out.requires_grad)

    def walk_after_change(self) -> None:
        """In evaluation mode, so that nothing else changes, and to the input, whose gradient needs every weight."""
        weights = [p for p in self.parameters.values() if p.ndim == 2 and p.shape[0] > 1]
        if not weights:
            return
        old = weights[0].data

        def given() -> None:
            weights[0].data = self.ndl.Tensor(np.array(array_of(old)) + 1, requires_grad=False)

        def loaded() -> None:
            self.model.load_state_dict(self.model.state_dict())

        for what, change in (("given", given), ("loaded", loaded)):
            modes = [(module, module.training) for module in self.model.modules_in()]
            self.model.eval()
            out = self.model(self._tensor("input", self.batches.x[self.passes, 0], requires_grad=True))
            for module, training in modes:
                module.training = training
            change()
            a.refused(self, f"a backward pass after another weight was {what}", out.sum().backward)
        weights[0].data = old

    def clip(self, optimizer: Any, max_norm: float | None) -> None:
        """Clip, and take down the norm that is returned."""
        norm = optimizer.clip_grad_norm(*(() if max_norm is None else (max_norm,)))
        self.seen.put("clip norm", "norm", np.float64(norm))

    def another(self, kind: str, settings: dict[str, float]) -> None:
        """One more optimizer."""
        self.optimizers.append(getattr(self.ndl.optim, kind)(list(self.model.parameters()), **settings))

    def _places(self) -> tuple[Any, list[Any]]:
        """Where the model has its layers, and by what each of them is found there."""
        n = len(self.case.model) + (self.case.again is not None)
        if self.case.held == "sequential":
            return self.model, list(range(n))
        return self.model.layers, [f"layer {i}" for i in range(n)] if self.case.held == "dict" else list(range(n))

    def put_layer(self, place: int) -> None:
        """A fresh layer, which the optimizers then have in the place of the old one."""
        paths = programs.replaceable(self.case)
        if not paths:
            return
        path = paths[place % len(paths)]
        np.random.seed(self.case.seed_for("fresh"))
        fresh = self._built()
        layers, keys = self._places()
        if self.case.held != "dict":
            inside = [self.modules[str(i)] for i in range(len(self.case.model))]
            self.promise("len() is the number of layers", len(layers) == len(keys))
            self.promise("the layers come in order", all(map(operator.is_, layers, inside)))
            self.promise("a slice has the layers themselves", all(map(operator.is_, layers[:2], inside)))
        layers[keys[int(path)]] = fresh.modules[path]
        self.promise("a layer is found where it was put", layers[keys[int(path)]] is fresh.modules[path])
        self.parts.modules |= {name: module for name, module in fresh.modules.items() if a.within(path, name)}
        for name, old in self.parameters.items():
            if a.within(path, name):
                new = self.parameters[name] = fresh.parameters[name]
                new.data = self.ndl.Tensor(self.numbers(new), requires_grad=False)
                for optimizer in self.optimizers:
                    optimizer.params[:] = [new if p is old else p for p in optimizer.params]

    def swap_layers(self, pair: int) -> None:
        """Two layers change places, and so names."""
        pairs = programs.alike(self.case)
        if not pairs:
            return
        one, other = pairs[pair % len(pairs)]
        layers, keys = self._places()
        i, j = keys[int(one)], keys[int(other)]
        layers[i], layers[j] = layers[j], layers[i]
        for things in (self.parts.modules, self.parts.parameters):
            before = dict(things)
            for name, thing in before.items():
                for path, to in ((one, other), (other, one)):
                    if a.within(path, name):
                        things[to + name[len(path) :]] = thing

    def loaded(self, *, optimizer: bool, file: bool = False) -> None:
        """Go on with a fresh model; the old one is left as it is."""
        np.random.seed(self.case.seed_for("fresh"))
        fresh = self._built()
        for name, p in self.parameters.items():
            self.hold(f"{name} of the model whose state was loaded", p)
        for slot in self.buffer_slots:
            self.hold(f"{slot.name} of the model whose state was loaded", self._buffer(slot))
        if file:
            self._through_a_file(fresh, optimizer=optimizer)
            self.parts = fresh
            return
        state = self.model.state_dict()
        fresh.model.load_state_dict(state)
        for value in state.values():
            value[...] = np.nan
        for old in self.optimizers:
            new = [fresh.parameters[name] for name in self._names(old)]
            if not optimizer:
                settings = {name: getattr(old, name) for name in SETTINGS[type(old).__name__]}
                fresh.optimizers.append(type(old)(new, **settings))
                continue
            state = old.state_dict()
            fresh.optimizers.append(type(old)(new))
            fresh.optimizers[-1].load_state_dict(state)
            if (schedule := self._fresh_schedule(fresh)) is not None:
                schedule.load_state_dict(self.schedules[len(fresh.optimizers) - 1].state_dict())
            for value in state.values():
                if isinstance(value, np.ndarray):
                    value[...] = np.nan
        self.parts = fresh

    def rewound(self, *, optimizer: bool) -> None:
        """Keep a state, go on from there, and put the state back; the batch of the next pass is looked at by the model twice."""
        state = self.model.state_dict()
        states = [o.state_dict() for o in self.optimizers]
        np.random.seed(SEED)
        self.model(self._tensor("input", self.batches.x[self.passes, 0]))  # which moves running statistics
        if optimizer:
            for o in self.optimizers:
                o.step()
        for p in self.parameters.values():
            p.cached_data = p.cached_data * np.float32(0.5)
        self.model.load_state_dict(state)
        if optimizer:
            for o, kept in zip(self.optimizers, states, strict=True):
                o.load_state_dict(kept)

    def _fresh_schedule(self, fresh: Parts) -> Any:
        """A new schedule for the last of the new optimizers; None where the old one has none."""
        i = len(fresh.optimizers) - 1
        if i in self.schedules:
            fresh.schedules[i] = self.scheduled[i].of(self.ndl, fresh.optimizers[i])
        return fresh.schedules.get(i)

    def _through_a_file(self, fresh: Parts, *, optimizer: bool) -> None:
        """The same by ``save`` and ``load``; with an optimizer, the global generator is put back too."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "saved.npz")
            if not optimizer:
                self.ndl.save(path, self.model)
                self.ndl.load(path, fresh.model)
            for old in self.optimizers:
                new = [fresh.parameters[name] for name in self._names(old)]
                if not optimizer:
                    settings = {name: getattr(old, name) for name in SETTINGS[type(old).__name__]}
                    fresh.optimizers.append(type(old)(new, **settings))
                    continue
                fresh.optimizers.append(type(old)(new))
                schedule = self._fresh_schedule(fresh)
                with_one = {} if schedule is None else {"schedule": self.schedules[len(fresh.optimizers) - 1]}
                np.random.seed(SEED)
                self.ndl.save(path, self.model, old, **with_one, kept=self.index)
                np.random.random_sample(3)
                with_one = {} if schedule is None else {"schedule": schedule}
                extra = self.ndl.load(path, fresh.model, fresh.optimizers[-1], **with_one)
                self.promise("load puts the generator back", np.random.bytes(8) == NEXT)
                self.promise("load returns what was saved beside the model", extra == {"kept": self.index})

    def copied(self, how: str) -> None:
        """Go on with a copy; the original becomes the twin, which does the same."""
        made = copy.deepcopy(self.parts) if how == "deepcopy" else pickle.loads(pickle.dumps(self.parts))
        self.twin = copy.copy(self)
        self.twin.twin, self.twin.kept = None, []
        self.parts = made
        theirs, mine = self.twin._arrays(), self._arrays()
        shared = any(np.may_share_memory(theirs[key], mine[key]) for key in theirs.keys() & mine.keys())
        self.promise("a copy shares nothing with its original", not shared)

    def _arrays(self) -> dict[str, Array]:
        """All arrays of parameters, gradients, buffers and optimizer states, by name."""
        found = {f"parameter {name}": array_of(p) for name, p in self.parameters.items()}
        found |= {f"gradient {n}": array_of(p.grad) for n, p in self.parameters.items() if p.grad is not None}
        found |= {f"buffer {slot.name}": array_of(self._buffer(slot)) for slot in self.buffer_slots}
        for i, optimizer in enumerate(self.optimizers):
            for attribute in STATES[type(optimizer).__name__].values():
                held = getattr(optimizer, attribute)
                found |= {f"{attribute} {i} {n}": array_of(held[p]) for n, p in self.parameters.items() if p in held}
        return found

    # -- what is seen ---------------------------------------------------------------------------------------------------

    def look(self) -> State:
        """All of the state, as copies."""
        state: State = {}
        for name, p in self.parameters.items():
            state[f"parameter {name}"] = np.array(array_of(p))
            state[f"requires_grad {name}"] = bool(p.requires_grad)
            if p.grad is not None:
                state[f"gradient {name}"] = np.array(array_of(p.grad))
        for slot in self.buffer_slots:
            state[f"buffer {slot.name}"] = np.array(array_of(self._buffer(slot)))
        for path, module in self.modules.items():
            state[f"mode {path}"] = bool(module.training)
        for path, given in self.tuned.items():
            state |= {f"setting {path} {name}": getattr(self.modules[path], name) for name in given}
        for i, optimizer in enumerate(self.optimizers):
            kind = type(optimizer).__name__
            state |= {f"optimizer {i}: {name}": getattr(optimizer, name) for name in SETTINGS[kind]}
            for name in self._names(optimizer):
                p = self.parameters[name]
                for quantity, attribute in STATES[kind].items():
                    if p in (held_in := getattr(optimizer, attribute)):
                        state[f"optimizer {i}: {quantity} {name}"] = np.array(array_of(held_in[p]))
                if kind == "Adam" and p in optimizer.t:
                    state[f"optimizer {i}: t {name}"] = optimizer.t[p]
        for i, schedule in self.schedules.items():
            state |= {f"schedule {i}: base": schedule.base, f"schedule {i}: t": schedule.t}
        return state

    def unkept(self) -> Iterator[str]:
        """What is held and has not kept its bits."""
        for name, thing, before in self.kept:
            if not same_bits(array_of(thing), before):
                yield name
