"""The graph and reverse mode."""

import numpy as np

TENSOR_COUNTER = 0


class CPUDevice:
    def __repr__(self):
        return "cpu()"

    def __eq__(self, other):
        return isinstance(other, CPUDevice)

    def __hash__(self):
        return 0


def cpu():
    return CPUDevice()


class Op:
    def __call__(self, *args):
        raise NotImplementedError

    def compute(self, *args):
        raise NotImplementedError

    def gradient(self, out_grad, node):
        raise NotImplementedError

    def gradient_as_tuple(self, out_grad, node):
        grads = self.gradient(out_grad, node)
        return tuple(grads) if isinstance(grads, (tuple, list)) else (grads,)


class TensorOp(Op):
    def __call__(self, *args):
        return Tensor.make_from_op(self, args)


class TensorTupleOp(Op):
    def __call__(self, *args):
        return TensorTuple.make_from_op(self, args)


class Value:
    def realize_cached_data(self):
        if self.cached_data is None:
            self.cached_data = self.op.compute(*[x.realize_cached_data() for x in self.inputs])
        return self.cached_data

    def is_leaf(self):
        return self.op is None

    def _init(self, op, inputs, *, cached_data=None, requires_grad=None):
        global TENSOR_COUNTER
        TENSOR_COUNTER += 1
        if requires_grad is None:
            requires_grad = any(x.requires_grad for x in inputs)
        self.op, self.inputs = op, list(inputs)
        self.cached_data, self.requires_grad = cached_data, requires_grad

    def __del__(self):
        global TENSOR_COUNTER
        TENSOR_COUNTER -= 1

    @classmethod
    def make_const(cls, data, *, requires_grad=False):
        value = cls.__new__(cls)
        value._init(None, [], cached_data=data, requires_grad=requires_grad)
        return value

    @classmethod
    def make_from_op(cls, op, inputs):
        value = cls.__new__(cls)
        value._init(op, inputs)
        if not value.requires_grad:
            return value.detach()
        value.realize_cached_data()
        return value


class TensorTuple(Value):
    def __len__(self):
        return len(self.realize_cached_data())

    def __getitem__(self, index):
        from . import ops

        return ops.tuple_get_item(self, index)

    def tuple(self):
        return tuple(self[i] for i in range(len(self)))

    def __add__(self, other):
        from . import ops

        return ops.make_tuple(*[self[i] + other[i] for i in range(len(self))])

    def detach(self):
        return TensorTuple.make_const(self.realize_cached_data())


class Tensor(Value):
    def __init__(self, array, *, device=None, dtype=None, requires_grad=True, **kwargs):
        if isinstance(array, Tensor):
            same = dtype is None or dtype == array.dtype
            data = array.numpy() if same else array.numpy().astype(dtype)
        else:
            data = np.array(array, dtype=dtype)
        self._init(None, [], cached_data=data, requires_grad=requires_grad)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        assert value.dtype == self.dtype, (value.dtype, self.dtype)
        self.cached_data = value.realize_cached_data()

    def detach(self):
        return Tensor.make_const(self.realize_cached_data())

    @property
    def shape(self):
        return self.realize_cached_data().shape

    @property
    def dtype(self):
        return self.realize_cached_data().dtype

    @property
    def device(self):
        return cpu()

    def backward(self, out_grad=None):
        if out_grad is None:
            out_grad = Tensor(np.ones(self.shape, dtype=self.dtype), requires_grad=False)
        compute_gradient_of_variables(self, out_grad)

    def numpy(self):
        return self.realize_cached_data()

    def __repr__(self):
        return f"needle.Tensor({self.realize_cached_data()})"

    def __add__(self, other):
        from . import ops

        return ops.EWiseAdd()(self, other) if isinstance(other, Tensor) else ops.AddScalar(other)(self)

    def __mul__(self, other):
        from . import ops

        return ops.EWiseMul()(self, other) if isinstance(other, Tensor) else ops.MulScalar(other)(self)

    def __pow__(self, other):
        from . import ops

        return ops.EWisePow()(self, other) if isinstance(other, Tensor) else ops.PowerScalar(other)(self)

    def __neg__(self):
        from . import ops

        return ops.Negate()(self)

    def __sub__(self, other):
        from . import ops

        return ops.EWiseAdd()(self, -other) if isinstance(other, Tensor) else ops.AddScalar(-other)(self)

    def __rsub__(self, other):
        return -self + other

    def __truediv__(self, other):
        from . import ops

        return ops.EWiseDiv()(self, other) if isinstance(other, Tensor) else ops.DivScalar(other)(self)

    def __matmul__(self, other):
        from . import ops

        return ops.MatMul()(self, other)

    matmul = __matmul__
    __radd__ = __add__
    __rmul__ = __mul__

    def sum(self, axes=None):
        from . import ops

        return ops.Summation(axes)(self)

    def broadcast_to(self, shape):
        from . import ops

        return ops.BroadcastTo(shape)(self)

    def reshape(self, shape):
        from . import ops

        return ops.Reshape(shape)(self)

    def transpose(self, axes=None):
        from . import ops

        return ops.Transpose(axes)(self)


def compute_gradient_of_variables(output_tensor, out_grad):
    """Reverse topological walk; every node that is visited gets a gradient that can be differentiated."""
    arriving = {output_tensor: [out_grad]}
    for node in reversed(find_topo_sort([output_tensor])):
        node.grad = sum_node_list(arriving[node])
        if node.op is None:
            continue
        for x, partial in zip(node.inputs, node.op.gradient_as_tuple(node.grad, node), strict=True):
            arriving.setdefault(x, []).append(partial)


def find_topo_sort(node_list):
    """Post-order of a depth-first walk, without recursion."""
    order, visited = [], set()
    stack = [(node, False) for node in reversed(node_list)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in visited:
            visited.add(node)
            stack.append((node, True))
            stack.extend((x, False) for x in reversed(node.inputs))
    return order


def sum_node_list(node_list):
    total = node_list[0]
    for node in node_list[1:]:
        total = total + node
    return total
