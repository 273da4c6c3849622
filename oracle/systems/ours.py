"""Runs a Case in needle, through the public course API alone, and observes it. Never imports torch.

The package under test is handed in (``ndl``), so that any other needle can be driven the same way. Models are called
as a user calls them; layers are observed by wrapping their ``forward``.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from oracle.apart import frames_of, home, is_interrupt, one_line, place, plain, tell
from oracle.cases import case as c
from oracle.cases.inputs import Batches, Slot, gap, step_seed
from oracle.systems import recorded
from oracle.systems.surroundings import around_a_call
from oracle.systems.trace import CHANGED, STATE, UNSEEN, Clock, Failure, Observation, State, same_bits
from oracle.systems.window import Window

Array = npt.NDArray[Any]
Build = Callable[[Any, Any, int, "Callable[[str, Sequence[c.Layer]], Any]"], Any]


class _Failed(Exception):
    """An exception of needle, on its way to the Observation."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class _Phase:
    """Whatever needle raises inside becomes an observed failure of this phase; the time is needle's own."""

    def __init__(self, name: str, clock: Clock, ndl: Any) -> None:
        self.name, self.clock, self.ndl = name, clock, ndl
        self._quiet = np.errstate(all="ignore")

    def __enter__(self) -> None:
        self._quiet.__enter__()
        self._around = around_a_call()
        self.clock.turn("needle")
        tell(f"{self.clock.step} {self.name}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.clock.turn("observing")
        changed = self._around.restore()
        self._quiet.__exit__(kind, error, tb)
        # sys.exit() is no way out of a comparison: every exception is needle's, but for somebody's Ctrl-C
        if error is not None and not is_interrupt(error):
            where = place(frames_of(tb), home(self.ndl))
            failure = Failure(self.name, plain(type(error).__name__), one_line(error), where, _operator(tb))
            tell()  # not before the message has been asked for: that is needle's code too
            raise _Failed(failure) from None
        tell()
        if changed:
            raise _Failed(Failure(self.name, CHANGED, "; ".join(changed)))


def _operator(tb: TracebackType | None) -> str:
    """Class of the innermost op on the way to an exception; empty if there was none."""
    found = ""
    while tb is not None:
        for name in ("op", "self"):
            thing = tb.tb_frame.f_locals.get(name)
            if hasattr(type(thing), "compute") and hasattr(type(thing), "gradient_as_tuple"):
                found = type(thing).__name__
        tb = tb.tb_next
    return found


UNWATCHED = 2  # one step in so many is taken a second time without looking at the layers
# What NumPy's global generator gives next after this seed, unless somebody has drawn from it.
_SEED = 7
_NEXT = np.random.RandomState(_SEED).bytes(8)


def _array(value: Any) -> Array:
    """The ndarray of a Tensor, or of a plain array."""
    return np.asarray(value.cached_data if hasattr(value, "cached_data") else value)


def is_ours(ndl: Any) -> bool:
    """Whether it is the needle beside this oracle: whose tape rule OP can read, and which offers more than the course asks."""
    return Path(str(getattr(ndl, "__file__", ""))).resolve().parent == BESIDE


BESIDE = Path(__file__).resolve().parents[2] / "needle"


def again_unwatched(case: c.TrainCase | c.SecondOrderCase, t: int) -> bool:
    """Whether step t is taken a second time, without looking at the layers."""
    return (case.seed_for("unwatched") + t) % UNWATCHED == 0


def _same_gradient(a: Any, b: Any) -> bool:
    """Whether two gradients are the same bits, or both missing."""
    return a is b is None or (a is not None and b is not None and same_bits(_array(a), _array(b)))


@dataclass
class NeedleModel:
    """A model built from a Case."""

    module: Any
    modules: dict[str, Any]  # by path
    eval_modules: list[Any]


def build(case: c.TrainCase | c.SecondOrderCase, ndl: Any, layers: Mapping[type, Build]) -> NeedleModel:
    """The model of a case as a user would write it."""
    model = NeedleModel(None, {}, [])
    linears: list[Any] = []
    widths = c.input_widths(case)

    def body(prefix: str, part: Sequence[c.Layer]) -> Any:
        made = []
        for i, layer in enumerate(part):
            path = f"{prefix}{i}"

            def inner(name: str, sub: Sequence[c.Layer], path: str = path) -> Any:
                return body(f"{path}.{name}", sub)

            module = layers[type(layer)](ndl, layer, widths[path], inner)
            if isinstance(layer, c.Linear):
                if layer.tie is not None:
                    module.weight = linears[layer.tie].weight
                linears.append(module)
            if isinstance(layer, c.Linear | c.BatchNorm | c.LayerNorm) and layer.frozen:
                bare = isinstance(layer, c.Linear) and not layer.bias
                for parameter in (module.weight,) if bare else (module.weight, module.bias):
                    parameter.requires_grad = False
            if isinstance(layer, c.Eval):
                model.eval_modules.append(module)
            model.modules[path] = module
            made.append(module)
        return ndl.nn.Sequential(*made)

    model.module = body("", case.model)
    body = None  # type: ignore[assignment]  # it refers to itself, and to the model
    return model


@dataclass
class _Pass:
    """A forward and backward pass on one micro-batch."""

    mark: str  # behind the name of what belongs to it: "" or "#1"
    x: Any
    record: list[tuple[str, Any, Any]]  # path, input and output of every layer, in the order of execution
    loss: Any


class NeedleRun:
    """A training run in needle, one step at a time: ``load(state)``, ``step(t)``, ``evaluate(t)``."""

    def __init__(
        self,
        case: c.TrainCase,
        ndl: Any,
        layers: Mapping[type, Build],
        slots: tuple[list[Slot], list[Slot]],
        batches: Batches,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.case, self.ndl, self.batches = case, ndl, batches
        self.parameter_slots, self.buffer_slots = slots
        self.observation = Observation(step=0)
        self.kept: list[tuple[int, str, Any, Array]] = []
        self.failed: Failure | None = None
        self.relus = {path for path, layer in c.walk(case.model) if isinstance(layer, c.ReLU)}
        self._loads = case.seed_for("loads") % 2  # whether a state is written into arrays, or replaces them: in turn
        self._recording: list[tuple[str, Any, Any]] | None = None
        self._findings: recorded.TapeJudge | None = None
        self.taped = False  # for localisation: data and buffers too ask for gradients, so that all ops are on the tape
        try:
            with self._phase("build"):
                self._build(layers)
        except _Failed as failed:
            self.failed = failed.failure

    def _build(self, layers: Mapping[type, Build]) -> None:
        np.random.seed(self.case.seed_for("build"))
        model = build(self.case, self.ndl, layers)
        self.model = model.module
        self.modules = model.modules
        self.eval_modules = model.eval_modules
        self.tensors: dict[str, tuple[Any, str]] = {}  # name -> (owner, attribute)
        for slot in (*self.parameter_slots, *self.buffer_slots):
            path, attribute = slot.name.rsplit(".", 1)
            self.tensors[slot.name] = (model.modules[path], attribute)
        self.parameters = {s.name: self._tensor(s.name) for s in self.parameter_slots}
        self._gap, self._late = gap(self.case)
        names = {id(p): name for name, p in self.parameters.items()}
        listed = [names.get(id(p), f"unknown {p.shape}") for p in self.model.parameters()]
        # compared as text: order is part of the contract, it is the order of the optimizer
        self.listed = np.array(listed, dtype=object)
        self.optimizer = self._optimizer()
        for path, module in model.modules.items():
            self._observe(path, module)
        self.initial = {name: np.array(self._array(name)) for name in self.tensors}
        self.loss = self.ndl.nn.SoftmaxLoss()
        self.model.train()
        for module in self.eval_modules:
            module.eval()

    def _phase(self, name: str) -> _Phase:
        return _Phase(name, self.clock, self.ndl)

    def _tensor(self, name: str) -> Any:
        owner, attribute = self.tensors[name]
        return getattr(owner, attribute)

    def _array(self, name: str) -> Array:
        return _array(self._tensor(name))

    def _optimizer(self) -> Any:
        spec = self.case.optimizer
        given = {n: getattr(spec, n) for n in spec.__struct_fields__ if getattr(spec, n) is not None}
        kind = self.ndl.optim.SGD if isinstance(spec, c.SGD) else self.ndl.optim.Adam
        tied = [layer for _, layer in c.walk(self.case.model) if isinstance(layer, c.Linear) and layer.tie is not None]
        # a generator, as a user may pass one; with tied weights, as if they had been listed layer by layer
        repeated = [p for p in self.model.parameters() for _ in range(2 if tied else 1)]
        return kind((p for p in repeated), **given)

    def _observe(self, path: str, module: Any) -> None:
        # weak, or every case would leave its models behind in a circle
        forward, of, run = type(module).forward, weakref.ref(module), weakref.ref(self)

        def wrapped(*args: Any) -> Any:
            out = forward(of(), *args)
            recording = run()._recording  # type: ignore[union-attr]
            if recording is not None:
                recording.append((path, args[0], out))
            return out

        module.forward = wrapped

    # -- state --------------------------------------------------------------------------------------------------------

    def load(self, state: State) -> None:
        """Take over the common state before a step. A needle that cannot take it over, because it has changed a shape or
        a dtype, has failed: the run ends with the steps so far.
        """
        if self.failed is not None:
            return
        try:
            with self._phase("taking over the state"):
                self._load(state)
        except _Failed as failed:
            self.failed = failed.failure

    def _load(self, state: State) -> None:
        self._loads += 1
        for name, value in state.tensors.items():
            held = _array(self._tensor(name))
            if self._loads % 2 and held.shape == value.shape and held.dtype == value.dtype and held.flags.writeable:
                held[...] = value  # into the array itself, which then stays the one that the optimizer knows
                continue
            # by way of float64, from an array and from a Tensor: the dtype asked for counts, not that of the source
            wide = value.astype(np.float64)
            source = self.ndl.Tensor(wide, requires_grad=False) if name.endswith("bias") else wide
            self._tensor(name).data = self.ndl.Tensor(source, dtype="float32", requires_grad=False)
        for quantity, values in state.slots.items():
            held = getattr(self.optimizer, STATE[quantity])
            for name, value in values.items():
                parameter = self.parameters[name]
                if parameter in held:
                    _array(held[parameter])[...] = value

    # -- a training step ----------------------------------------------------------------------------------------------

    def step(self, t: int, findings: recorded.TapeJudge | None = None) -> Observation:
        """One training step; an exception of needle ends up in ``observation.failure``.

        With ``findings``, rule OP judges the tape of every backward pass.
        """
        self._findings = findings
        self.clock.step = t
        self.observation = obs = Observation(step=t)
        if t == 0 and hasattr(self, "initial"):
            self._as_built(obs)
        if self.failed is not None:
            obs.failure = self.failed
            return obs
        try:
            with self._window(t) as window:
                self._step(t, obs)
                window.count()
                if window.closely:
                    self.kept = []
                    with self._phase("reset_grad"):
                        self.optimizer.reset_grad()
            window.report(obs, number=t > 0)  # the first step makes the state of the optimizer, and keeps gradients
        except _Failed as failed:
            obs.failure = self.failed = failed.failure
        finally:
            self._recording = None
        return obs

    def _step(self, t: int, obs: Observation) -> None:
        case = self.case
        if t and case.lr_at(t) != case.lr_at(t - 1):
            self.optimizer.lr = case.lr_at(t)
        np.random.seed(step_seed(case, t))
        passes = []
        collected: dict[str, Any] = {}
        for m in range(self.batches.micro):
            passes.append(self._forward_backward(t, m, obs))
            with self._phase("backward"):
                if m:
                    self._accumulate(collected)
                elif self.batches.micro > 1:
                    collected = {n: p.grad for n, p in self.parameters.items() if p.grad is not None}
        for made in reversed(passes):
            self._adjoints(made, obs)
        self._gradients("gradient", obs)
        if self.batches.micro == 1 and not self.taped and again_unwatched(case, t):
            self._unwatched(t, passes[0].x.grad, obs)
        if case.clip is not None:
            self._clip(t, case.clip, obs)
        skipped = self.parameters[self._late] if t == self._gap else None
        if skipped is not None:
            gradient, skipped.grad = skipped.grad, None
        held = self._held_gradients(t, "gradient" if case.clip is None else "clipped")
        self._update(t, obs)
        if skipped is not None:
            skipped.grad = gradient  # the number of live tensors is to be constant
        self._keep(t, held, passes[-1].loss, obs)

    def _forward_backward(self, t: int, m: int, obs: Observation) -> _Pass:
        """A forward and a backward pass on one micro-batch; what the graph holds is looked at before it is freed."""
        mark = f"#{m}" if m else ""
        record: list[tuple[str, Any, Any]] = []
        self._recording = record
        with self._phase("forward"):
            given = np.array(self.batches.x[t, m])
            x = self.ndl.Tensor(given, requires_grad=self.case.input_grad or self.taped)
            given[...] = np.nan  # a Tensor copies what it is made of
            out = self.model(x)
            loss, cotangent = self._loss(out, t, m)
        self._recording = None
        for path, given, made in record:
            obs.put("activation", path + mark, _array(made))
            if made is given:
                obs.aliases.add(path + mark)
            elif made.requires_grad:
                made.retain_grad()
            if path in self.relus:
                obs.kinks[path + mark] = _array(given) > 0
        if loss is not out:
            obs.put("loss", f"loss{mark}", _array(loss))
        tape = self._record_tape(loss)
        with self._phase("backward"):
            if m == 0:
                self.optimizer.reset_grad()
                self._left_over(obs)
            self._backward(loss, cotangent)
        self._judge_tape(tape, cotangent, record)
        return _Pass(mark, x, record, loss)

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """The model as the user has it, with no layer wrapped: needle may then compute layers together, let go of what it
        needs no more, or write into it.
        """
        wrapped = [(module, module.forward) for module in self.modules.values()]
        for module, _ in wrapped:
            del module.forward
        try:
            yield
        finally:
            for module, forward in wrapped:
                module.forward = forward

    def _unwatched(self, t: int, given: Any, obs: Observation) -> None:
        """The pass once more, without anybody who looks at a layer: the loss and the gradients are the same bits."""
        seen = {name: parameter.grad for name, parameter in self.parameters.items()}
        buffers = {s.name: np.array(self._array(s.name)) for s in self.buffer_slots}
        np.random.seed(step_seed(self.case, t))
        with self.unwatched():
            with self._phase("forward"):
                x = self.ndl.Tensor(self.batches.x[t, 0], requires_grad=self.case.input_grad)
                loss, cotangent = self._loss(self.model(x), t, 0)
            with self._phase("backward"):
                self.optimizer.reset_grad()
                self._backward(loss, cotangent)
        if "loss" in obs.values:
            same = same_bits(_array(loss), obs.values["loss"]["loss"])
            obs.hold("kept", f"loss {UNSEEN}", same)
        if self.case.input_grad:
            same = _same_gradient(given, x.grad)
            obs.hold("kept", f"gradient of the input {UNSEEN}", same)
        for name, parameter in self.parameters.items():
            same = _same_gradient(seen[name], parameter.grad)
            obs.hold("kept", f"gradient {name} {UNSEEN}", same)
            parameter.grad = seen[name]
        with self._phase("taking over the state"):
            for name, value in buffers.items():
                self._tensor(name).data = self.ndl.Tensor(value, requires_grad=False)

    def _accumulate(self, collected: dict[str, Any]) -> None:
        """Gradients of several backward passes, added up as a user does it."""
        for name, parameter in self.parameters.items():
            if name in collected:
                self._judge_sum(collected[name], parameter.grad)
                parameter.grad = collected[name].data + parameter.grad.data

    def _adjoints(self, made: _Pass, obs: Observation) -> None:
        for path, given, out in reversed(made.record):
            if out is not given and out.grad is not None:
                obs.put("adjoint", path + made.mark, _array(out.grad))
        if self.case.input_grad and made.x.grad is not None:
            obs.put("adjoint", f"input{made.mark}", _array(made.x.grad))

    def _clip(self, t: int, clip: c.Clip, obs: Observation) -> None:
        """Clipping replaces gradients: those from before, which a user may hold, stay as they are."""
        unclipped = self._held_gradients(t, "gradient")
        with self._phase("clip_grad_norm"):
            given_norm = () if clip.max_norm is None else (clip.max_norm,)
            obs.put("clip norm", "norm", np.float64(self.optimizer.clip_grad_norm(*given_norm)))
        self._gradients("clipped", obs)
        for _, name, tensor, before in unclipped:
            obs.hold("kept", f"{name} before clipping", same_bits(_array(tensor), before))

    def _update(self, t: int, obs: Observation) -> None:
        """The optimizer's step, and everything that it leaves behind."""
        with self._phase("reading .grad and .data"):
            graded = [p for p in self.parameters.values() if p.grad is not None]
            constant = not any(p.grad.requires_grad or p.data.requires_grad for p in graded)
        obs.hold("kept", "p.grad and p.data, which are constants", constant)
        data = self._held_data(t)
        with self._phase("step"):
            self.optimizer.step()
        for name, (tensor, value) in data.items():
            obs.hold("kept", f"p.data of {name} before step {t}", same_bits(_array(tensor), value))
        self._gradients("gradient after step", obs)
        for quantity, attribute in STATE.items():
            state = getattr(self.optimizer, attribute, {})
            for name, parameter in self.parameters.items():
                if parameter in state:
                    array = _array(state[parameter])
                    obs.put(quantity, name, array)
                    apart = parameter.grad is None or not np.may_share_memory(array, _array(parameter.grad))
                    obs.hold("kept", f"{quantity} {name}, apart from its gradient", apart)
        for name, parameter in self.parameters.items():
            obs.put("parameter", name, _array(parameter))
        for slot in self.buffer_slots:
            obs.put("buffer", slot.name, self._array(slot.name))

    def _window(self, t: int) -> Window:
        """Gates A and B: a close look only once in a case, in its last step and in its last evaluation."""
        return Window(self.ndl, closely=t == self.case.steps - 1)

    def _loss(self, out: Any, t: int, m: int) -> tuple[Any, Any]:
        ndl, loss = self.ndl, self.case.loss
        if isinstance(loss, c.SoftmaxLoss):
            assert self.batches.labels is not None
            # a Tensor asks for a gradient unless told otherwise; labels have none in any case
            default = (self.case.seed_for("labels") + t) % 2
            return self.loss(out, ndl.Tensor(self.batches.labels[t, m], requires_grad=bool(default))), None
        assert self.batches.drawn is not None
        drawn = ndl.Tensor(self.batches.drawn[t, m], requires_grad=self.taped)
        if isinstance(loss, c.Cotangent):
            return out, drawn
        if isinstance(loss, c.WeightedSum):
            return (out * drawn).sum(), None
        return ((out - drawn) ** 2).sum() / self.case.data.rows, None

    def _backward(self, loss: Any, cotangent: Any) -> None:
        given = () if cotangent is None else (cotangent,)
        if self.case.backward == "twice":
            loss.backward(*given, retain_graph=True)  # the second one overwrites
        loss.backward(*given)
        if self.case.backward == "twice":
            try:
                loss.backward(*given)
            except RuntimeError:
                return
            self.observation.hold("kept", "the freed graph, through which a third backward went", False)

    def _as_built(self, obs: Observation) -> None:
        """What the constructors made, also where the state of the case does not fit into it."""
        obs.put("parameters", "model.parameters()", self.listed)
        for name, value in self.initial.items():
            obs.put("initial", name, value)

    def _record_tape(self, root: Any, *, retain: bool = True) -> list[recorded.Node]:
        """The tape, for rule OP: the backward pass frees it."""
        return recorded.record(root, retain=retain) if self._findings is not None else []

    def _judge_tape(
        self,
        tape: list[recorded.Node],
        cotangent: Any,
        record: Sequence[tuple[str, Any, Any]],
        *,
        backward: bool = True,
        graph: bool = False,
    ) -> None:
        """Rule OP, at once: the optimizer rebinds the parameters, and nothing of the step may be held on to."""
        if self._findings is not None and tape:
            self.clock.turn("OP")
            labels = {id(made): path for path, given, made in record if made is not given}
            seed = None if cotangent is None else _array(cotangent)
            self._findings.judge(tape, seed, backward=backward, labels=labels, second=graph)
            self.clock.turn("observing")

    def _gradients(self, quantity: str, obs: Observation) -> None:
        for name, parameter in reversed(self.parameters.items()):
            if parameter.grad is not None:
                obs.put(quantity, name, _array(parameter.grad))

    def _left_over(self, obs: Observation) -> None:
        """Gradients that reset_grad has left: there should be none."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                obs.put("gradient", f"{name} after reset_grad", _array(parameter.grad))

    def _held_data(self, t: int) -> dict[str, tuple[Any, Array]]:
        """``p.data`` as a user may hold it during a step, which must then leave it alone; in every second step, because
        an optimizer may write into what nobody holds.
        """
        if (self.case.seed_for("holds") + t) % 2:
            return {}
        return {n: (p.data, np.array(_array(p))) for n, p in self.parameters.items()}

    def _held_gradients(self, t: int, quantity: str) -> list[tuple[int, str, Any, Array]]:
        """Gradients as a user may hold them, each beside the copy that was taken of it as a quantity."""
        copies = self.observation.values.get(quantity, {})
        return [(t, f"gradient {n}", p.grad, copies[n]) for n, p in self.parameters.items() if p.grad is not None]

    def _keep(self, t: int, held: list[tuple[int, str, Any, Array]], loss: Any, obs: Observation) -> None:
        """Arrays that a user kept from the steps before must not change later."""
        for step, name, tensor, before in self.kept:
            obs.hold("kept", f"{name} of step {step}", same_bits(_array(tensor), before))
        self.kept = [*held, (t, "loss", loss.data, np.array(_array(loss)))]

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self, t: int, findings: recorded.TapeJudge | None = None) -> Observation:
        """A forward pass in evaluation mode on the batch of step t; buffers and random state must not change."""
        obs = Observation(step=t, failure=self.failed)
        if self.failed is not None:
            return obs
        with self._window(t) as window:
            self._evaluate(t, obs, findings)
            window.count()
        if obs.failure is None:
            window.report(obs, number=True)
        return obs

    def _evaluate(self, t: int, obs: Observation, findings: recorded.TapeJudge | None) -> None:
        self._findings = findings
        constant = t % 2 == 1 and findings is None and hasattr(self.ndl, "no_grad")  # rule OP needs the tape
        before = {s.name: np.array(self._array(s.name)) for s in self.buffer_slots}
        np.random.seed(_SEED)
        record: list[tuple[str, Any, Any]] = []
        self._recording = record
        try:
            with self._phase("evaluation"):
                self.model.eval()
                with self.ndl.no_grad() if constant else nullcontext():
                    out = self.model(self.ndl.Tensor(self.batches.x[t, 0], requires_grad=self.taped))
                    if not self.taped and again_unwatched(self.case, t):
                        self._recording = None
                        with self.unwatched():
                            again = self.model(self.ndl.Tensor(self.batches.x[t, 0], requires_grad=constant))
                        same = same_bits(_array(again), _array(out)) and not (constant and again.requires_grad)
                        obs.hold("untouched", f"output {UNSEEN}", same)
                self.model.train()
                for module in self.eval_modules:
                    module.eval()
        except _Failed as failed:
            obs.failure = self.failed = failed.failure
            return
        finally:
            self._recording = None
        self._judge_tape(self._record_tape(out, retain=False), None, record, backward=False)
        for path, given, made in record:
            obs.put("evaluation", path, _array(made))
            if path in self.relus:
                obs.kinks[path] = _array(given) > 0
        for name, value in before.items():
            obs.hold("untouched", name, same_bits(self._array(name), value))
        obs.hold("untouched", "random state", np.random.bytes(8) == _NEXT)
        if constant:
            obs.hold("untouched", "what no_grad promises", not any(made.requires_grad for *_, made in record))

    def _judge_sum(self, a: Any, b: Any) -> None:
        """The addition by which a user accumulates gradients is on no tape: for localisation it is put on one."""
        if self.taped:
            total = self.ndl.Tensor(_array(a)) + self.ndl.Tensor(_array(b))
            self._judge_tape(self._record_tape(total, retain=False), None, [], backward=False)

    # -- for localisation ---------------------------------------------------------------------------------------------

    def again(self, state: State, t: int, found: recorded.TapeJudge, *, evaluation: bool) -> None:
        """One step or evaluation once more, from its state, with every op on the tape that is judged."""
        self.failed, self.taped = None, True
        self.load(state)
        buffers = [self._tensor(s.name) for s in self.buffer_slots]
        for tensor in buffers:
            tensor.requires_grad = True
        try:
            _ = self.evaluate(t, found) if evaluation else self.step(t, found)
        finally:
            self.taped = False
            for tensor in buffers:
                tensor.requires_grad = False

    def outputs(self, x: Array) -> Array:
        """What the model makes of other rows, in evaluation mode; raises what needle raises."""
        with self._phase("evaluation"):
            self.model.eval()
            out = np.asarray(self.model(self.ndl.Tensor(x, requires_grad=False)).cached_data)
            self.model.train()
        return out

    def modes(self, *, evaluation: bool) -> dict[str, tuple[bool, bool]]:
        """Of every layer: whether it is in training mode after train() or eval(), and whether it should be."""
        quiet = [f"{p}." for p, layer in c.walk(self.case.model) if isinstance(layer, c.Eval)]
        right = {p: not evaluation and not f"{p}.".startswith(tuple(quiet)) for p in self.modules}
        if evaluation:
            self.model.eval()
            found = {p: bool(getattr(m, "training", right[p])) for p, m in self.modules.items()}
        self.model.train()
        for module in self.eval_modules:
            module.eval()
        if not evaluation:
            found = {p: bool(getattr(m, "training", right[p])) for p, m in self.modules.items()}
        return {p: (found[p], right[p]) for p in self.modules}


def run_op(
    case: c.OpCase,
    ndl: Any,
    op: Callable[..., Any],
    findings: recorded.TapeJudge | None = None,
    *,
    graph: bool = False,
    clock: Clock | None = None,
) -> Observation:
    """One operation: its value, and the gradient of its inner product with the cotangent.

    With ``graph``, once more with ``create_graph=True``: the same gradient, computed by operations on Tensors.
    """
    obs = Observation(step=0)
    phase = functools.partial(_Phase, clock=clock or Clock(), ndl=ndl)
    try:
        attributes = dict(case.attributes)
        if case.numpy_scalars:
            attributes = {k: np.float64(v) if isinstance(v, float) else v for k, v in attributes.items()}
        with phase("forward"):
            operands = []
            for i, operand in enumerate(case.operands):
                tensor = ndl.Tensor(operand.array, requires_grad=i not in case.constants)
                tensor.cached_data = operand.array  # Tensor copies: this keeps the memory layout
                operands.append(tensor)
            out = op(ndl, *operands, **attributes)
            obs.put("activation", case.op, _array(out))
        tape = recorded.record(out) if findings is not None else []
        with phase("backward"):
            out.backward(ndl.Tensor(case.cotangent_array, requires_grad=False))
        if findings is not None:
            findings.judge(tape, case.cotangent_array)
        for i, (operand, tensor) in enumerate(zip(case.operands, operands, strict=True)):
            if tensor.grad is not None:
                obs.put("gradient", f"operand {i}", _array(tensor.grad))
            obs.hold("kept", f"operand {i}", np.array_equal(_array(tensor), operand.array, equal_nan=True))
        if graph:
            with phase("backward with create_graph"):
                for tensor in operands:
                    tensor.grad = None
                out = op(ndl, *operands, **attributes)
                tape = recorded.record(out) if findings is not None else []
                out.backward(ndl.Tensor(case.cotangent_array, requires_grad=False), create_graph=True)
            if findings is not None:
                findings.judge(tape, case.cotangent_array, second=True)
            for i, tensor in enumerate(operands):
                if tensor.grad is not None:
                    obs.put("gradient with graph", f"operand {i}", _array(tensor.grad))
                    if findings is not None:
                        findings.judge(recorded.record(tensor.grad, retain=False), backward=False)
    except _Failed as failed:
        obs.failure = failed.failure
    return obs


def run_second(
    case: c.SecondOrderCase,
    ndl: Any,
    layers: Mapping[type, Build],
    slots: tuple[list[Slot], list[Slot]],
    batches: Batches,
    state: dict[str, Array],
    directions: dict[str, Array],
    findings: recorded.TapeJudge | None = None,
    clock: Clock | None = None,
) -> Observation:
    """First-order gradients with their graph, then the gradient of their inner product with ``directions``."""
    obs = Observation(step=0)
    phase = functools.partial(_Phase, clock=clock or Clock(), ndl=ndl)
    try:
        with phase("build"):
            run = NeedleRun(_as_train(case), ndl, layers, slots, batches, clock)
            if run.failed is not None:
                raise _Failed(run.failed)
            run.load(State(state))
        np.random.seed(step_seed(case, 0))
        record: list[tuple[str, Any, Any]] = []
        run._recording = record
        with phase("forward"):
            out = run.model(ndl.Tensor(batches.x[0, 0], requires_grad=False))
            loss, cotangent = run._loss(out, 0, 0)
        run._recording = None
        for path, given, made in record:
            obs.put("activation", path, _array(made))
            if path in run.relus:
                obs.kinks[path] = _array(given) > 0
        run._findings = findings
        tape = run._record_tape(loss)
        # create_graph asks for a graph, inside no_grad too
        with phase("backward"), ndl.no_grad() if case.seed % 2 else nullcontext():
            loss.backward(*(() if cotangent is None else (cotangent,)), create_graph=True)
        run._judge_tape(tape, cotangent, record, graph=True)
        del tape
        first = {n: p.grad for n, p in run.parameters.items() if p.grad is not None}
        for name, grad in reversed(first.items()):
            obs.put("gradient", name, _array(grad))
        if again_unwatched(case, 0) and findings is None:
            np.random.seed(step_seed(case, 0))
            with run.unwatched():
                with phase("forward"):
                    again, _ = run._loss(run.model(ndl.Tensor(batches.x[0, 0], requires_grad=False)), 0, 0)
                with phase("backward"):
                    run.optimizer.reset_grad()
                    again.backward(*(() if cotangent is None else (cotangent,)), create_graph=True)
            for name, parameter in run.parameters.items():
                same = _same_gradient(first.get(name), parameter.grad)
                obs.hold("kept", f"gradient with graph {name} {UNSEEN}", same)
                parameter.grad = first.get(name)
        with phase("second backward"):
            total, second = None, []
            for name, grad in first.items():
                part = (grad * ndl.Tensor(directions[name], requires_grad=False)).sum()
                total = part if total is None else total + part
            run.optimizer.reset_grad()
            assert total is not None
            if total.requires_grad:
                second = run._record_tape(total)
                total.backward()
        run._judge_tape(second, None, [])
        for name, parameter in reversed(run.parameters.items()):
            if parameter.grad is not None:
                obs.put("second", name, _array(parameter.grad))
    except _Failed as failed:
        obs.failure = failed.failure
    return obs


def _as_train(case: c.SecondOrderCase) -> c.TrainCase:
    return c.TrainCase(model=case.model, data=case.data, loss=case.loss, optimizer=c.SGD(), seed=case.seed)
