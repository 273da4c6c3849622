"""Tensor and the graph it is in."""

import contextlib
import weakref

import numpy as np

_recording = [True]
_living = weakref.WeakSet()


@contextlib.contextmanager
def no_grad():
    _recording.append(False)
    try:
        yield
    finally:
        _recording.pop()


class Value:
    pass


class Function:
    """An op: `forward` on arrays, `backward` on Tensors."""

    def __call__(self, *tensors):
        made = np.asarray(self.forward(*(t.cached_data for t in tensors)))
        asks = _recording[-1] and any(t.requires_grad for t in tensors)
        return Tensor._of(made, self if asks else None, tensors if asks else (), asks)


class Tensor(Value):
    grad = None

    def __init__(self, array, *, device=None, dtype=None, requires_grad=True, **kwargs):
        if isinstance(array, Tensor):
            array = array.cached_data
            made = array if dtype is None or array.dtype == dtype else array.astype(dtype)
        else:
            made = np.array(array, dtype=dtype)
        self._fill(made, None, (), requires_grad)

    def _fill(self, data, op, inputs, requires_grad):
        self.cached_data, self.op, self.inputs, self.requires_grad = data, op, tuple(inputs), requires_grad

    @classmethod
    def _of(cls, data, op=None, inputs=(), requires_grad=False):
        tensor = Tensor.__new__(Tensor)
        tensor._fill(data, op, inputs, requires_grad)
        return tensor

    make_const = _of

    def realize_cached_data(self):
        return self.cached_data

    def is_leaf(self):
        return self.op is None

    def detach(self):
        return Tensor._of(self.cached_data)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        self.cached_data = other.cached_data

    @property
    def shape(self):
        return self.cached_data.shape

    @property
    def dtype(self):
        return self.cached_data.dtype

    def numpy(self):
        return self.cached_data

    def backward(self, out_grad=None):
        start = out_grad if out_grad is not None else Tensor._of(np.ones(self.shape, self.dtype))
        compute_gradient_of_variables(self, start)

    def __add__(self, other):
        return ops.add(self, other) if isinstance(other, Tensor) else ops.add_scalar(self, other)

    def __sub__(self, other):
        return ops.Minus()(self, other) if isinstance(other, Tensor) else ops.add_scalar(self, -other)

    def __rsub__(self, other):
        return ops.add_scalar(ops.negate(self), other)

    def __mul__(self, other):
        return ops.multiply(self, other) if isinstance(other, Tensor) else ops.mul_scalar(self, other)

    def __truediv__(self, other):
        return ops.divide(self, other) if isinstance(other, Tensor) else ops.divide_scalar(self, other)

    def __pow__(self, other):
        return ops.power(self, other) if isinstance(other, Tensor) else ops.power_scalar(self, other)

    def __neg__(self):
        return ops.negate(self)

    def __matmul__(self, other):
        return ops.matmul(self, other)

    matmul = __matmul__
    __radd__, __rmul__ = __add__, __mul__

    def sum(self, axes=None):
        return ops.summation(self, axes)

    def broadcast_to(self, shape):
        return ops.broadcast_to(self, shape)

    def reshape(self, shape):
        return ops.reshape(self, shape)

    def transpose(self, axes=None):
        return ops.transpose(self, axes)


def find_topo_sort(node_list):
    """Kahn's way: a node comes when all that it is made of has come."""
    users, open_inputs, nodes = {}, {}, list(node_list)
    seen = {id(n) for n in nodes}
    for node in nodes:  # grows while it is walked over
        distinct = {id(x): x for x in node.inputs}
        open_inputs[id(node)] = len(distinct)
        for key, x in distinct.items():
            users.setdefault(key, []).append(node)
            if key not in seen:
                seen.add(key)
                nodes.append(x)
    ready = [n for n in nodes if not open_inputs[id(n)]]
    for node in ready:
        for user in users.get(id(node), ()):
            open_inputs[id(user)] -= 1
            if not open_inputs[id(user)]:
                ready.append(user)
    return ready


def compute_gradient_of_variables(output, out_grad):
    gathered = {id(output): out_grad}
    for node in reversed(find_topo_sort([output])):
        arrived = gathered.pop(id(node), None)
        if arrived is None or not node.requires_grad:
            continue
        if node.op is None:
            node.grad = arrived
            continue
        parts = node.op.backward(arrived, *node.inputs)
        for x, part in zip(node.inputs, parts if isinstance(parts, tuple) else (parts,), strict=True):
            gathered[id(x)] = gathered[id(x)] + part if id(x) in gathered else part


from . import ops  # noqa: E402
