"""Optimizers, twelve steps on drawn gradients, and the scale of initialisers."""

from __future__ import annotations

from oracle.frameworks.pairs import Chapter

INITIALISERS = Chapter(
    "Initialisers: the scale, as a draw divided by a plain one", x=[1.0], kinds=("normal",), gradient=False
)
TORCHS = (
    "x * (lambda f: f({}) / f({}))(lambda init, *a: (torch.manual_seed(0), init(torch.empty(20, 30), *a))[1][0, 0])"
)
UNIFORM = "nn.init.uniform_, -1.0, 1.0"
OPTIMIZERS = Chapter("Optimizers", grads=[[0.0]], steps=12, kinds=("normal", "big", "ties", "zeros", "tiny"))

# fmt: off
row = OPTIMIZERS
row.agrees("optax", "optax.sgd(0.1)", "torch.optim.SGD(p, 0.1)")
row.agrees("optax", "optax.sgd(0.1, momentum=0.9)", "torch.optim.SGD(p, 0.1, momentum=0.9)")
row.agrees("optax", "optax.sgd(0.1, momentum=0.9, nesterov=True)", "torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)")
row.agrees("optax", "optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))", "torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1)")
row.convention("optax", "optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1))", "torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.1)", "the mean starts at 0: (1 − β) g; torch starts with g")
row.agrees("optax", "optax.adam(0.01)", "torch.optim.Adam(p, 0.01)")
row.agrees("optax", "optax.adam(0.01, b1=0.8, b2=0.99, eps=1e-4)", "torch.optim.Adam(p, 0.01, (0.8, 0.99), 1e-4)")
row.agrees("optax", "optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.01))", "torch.optim.Adam(p, 0.01, weight_decay=0.1)")
row.convention("optax", "optax.adamw(0.01)", "torch.optim.AdamW(p, 0.01)", "weight_decay=1e-4 is the default; in torch it is 1e-2")
row.agrees("optax", "optax.adamw(0.01, weight_decay=0.01)", "torch.optim.AdamW(p, 0.01)")
row.convention("optax", "optax.amsgrad(0.01)", "torch.optim.Adam(p, 0.01, amsgrad=True)", "the maximum is taken after the bias correction; in torch before")
row.agrees("optax", "optax.adamax(0.01)", "torch.optim.Adamax(p, 0.01)")
row.convention("optax", "optax.nadam(0.01)", "torch.optim.NAdam(p, 0.01)", "a constant β₁; torch has the schedule of momentum")
row.convention("optax", "optax.nadam(0.01)", "torch.optim.NAdam(p, 0.01, momentum_decay=0.0)", "without a schedule torch still halves β₁")
row.agrees("optax", "optax.radam(0.01)", "torch.optim.RAdam(p, 0.01)")
row.convention("optax", "optax.rmsprop(0.01)", "torch.optim.RMSprop(p, 0.01)", "decay=0.9 is the default, and ε is within the root; in torch 0.99, and outside")
row.agrees("optax", "optax.rmsprop(0.01, decay=0.99)", "torch.optim.RMSprop(p, 0.01)")
row.agrees("optax", "optax.rmsprop(0.01, decay=0.99, eps_in_sqrt=False)", "torch.optim.RMSprop(p, 0.01)")
row.agrees("optax", "optax.rmsprop(0.01, decay=0.99, eps_in_sqrt=False, centered=True)", "torch.optim.RMSprop(p, 0.01, centered=True)")
row.agrees("optax", "optax.rmsprop(0.01, decay=0.99, eps_in_sqrt=False, momentum=0.9)", "torch.optim.RMSprop(p, 0.01, momentum=0.9)")
row.convention("optax", "optax.adagrad(0.1)", "torch.optim.Adagrad(p, 0.1)", "the sum starts at 0.1, ε = 1e-7; in torch at 0, 1e-10")
row.agrees("optax", "optax.adagrad(0.1, initial_accumulator_value=0.1, eps=1e-10)", "torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.1)")
row.agrees("optax", "optax.adadelta(1.0)", "torch.optim.Adadelta(p, 1.0)")
row.differs("optax", "optax.rprop(0.01)", "torch.optim.Rprop(p, 0.01)", "one step late: the first gradient moves nothing")
row.differs("optax", "optax.rprop(0.01, min_step_size=1e-6, max_step_size=50.0)", "torch.optim.Rprop(p, 0.01)", "one step late: the first gradient moves nothing", kinds=("normal",))
row.agrees("optax", "optax.adafactor(0.01, min_dim_size_to_factor=128)", "torch.optim.Adafactor(p, 0.01)")
row.agrees("optax", "optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))", "type('Clipped', (torch.optim.SGD,), {'step': lambda s: (nn.utils.clip_grad_norm_(p, 1.0), torch.optim.SGD.step(s))[1]})(p, 0.1)")
row.agrees("optax", "optax.chain(optax.clip(0.5), optax.sgd(0.1))", "type('Clipped', (torch.optim.SGD,), {'step': lambda s: (nn.utils.clip_grad_value_(p, 0.5), torch.optim.SGD.step(s))[1]})(p, 0.1)")
row.convention("optax", "optax.sm3(0.1)", "torch.optim.Adagrad(p, 0.1)", "with momentum 0.9; without, it is Adagrad for vectors")
row.agrees("optax", "optax.sgd(optax.exponential_decay(0.1, 1, 0.9))", "type('Decayed', (torch.optim.SGD,), {'step': lambda s: (torch.optim.SGD.step(s), s.param_groups[0].update(lr=s.param_groups[0]['lr'] * 0.9))[0]})(p, 0.1)")
row.agrees("autograd", "sgd(lambda w, i: grads[i], w0, num_iters=len(grads), step_size=0.1, mass=0.0)", "torch.optim.SGD(p, 0.1)")
row.convention("autograd", "sgd(lambda w, i: grads[i], w0, num_iters=len(grads), step_size=0.1, mass=0.9)", "torch.optim.SGD(p, 0.1, momentum=0.9)", "the momentum is dampened: (1 − mass) g")
row.agrees("autograd", "sgd(lambda w, i: grads[i], w0, num_iters=len(grads), step_size=1.0, mass=0.9)", "torch.optim.SGD(p, 0.1, momentum=0.9)")
row.agrees("autograd", "adam(lambda w, i: grads[i], w0, num_iters=len(grads), step_size=0.01)", "torch.optim.Adam(p, 0.01)")
row.convention("autograd", "rmsprop(lambda w, i: grads[i], w0, num_iters=len(grads), step_size=0.01, gamma=0.99)", "torch.optim.RMSprop(p, 0.01)", "the mean of squares starts at 1, not 0")
row.agrees("tinygrad", "optim.SGD([w], lr=0.1)", "torch.optim.SGD(p, 0.1)")
row.agrees("tinygrad", "optim.SGD([w], lr=0.1, momentum=0.9)", "torch.optim.SGD(p, 0.1, momentum=0.9)")
row.agrees("tinygrad", "optim.SGD([w], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)", "torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1)")
row.agrees("tinygrad", "optim.Adam([w], lr=0.01)", "torch.optim.Adam(p, 0.01)")
row.agrees("tinygrad", "optim.AdamW([w], lr=0.01)", "torch.optim.AdamW(p, 0.01)")

row = INITIALISERS
JAX = "x * {}(jax.random.key(0), (30, 20))[0, 0] / jax.random.uniform(jax.random.key(0), (30, 20), minval=-1.0)[0, 0]"
CUT = "x * {}(jax.random.key(0), (30, 20))[0, 0] / jax.random.truncated_normal(jax.random.key(0), -2.0, 2.0, (30, 20))[0, 0]"
MYGRAD = "x * (np.random.seed(0), initializers.{}(20, 30))[1][0, 0] / (np.random.seed(0), np.random.uniform(-1, 1, (20, 30)))[1][0, 0]"
MYNORMAL = "x * (np.random.seed(0), initializers.{}(20, 30))[1][0, 0] / (np.random.seed(0), np.random.normal(0, 1, (20, 30)))[1][0, 0]"
TINY = "x * (Tensor.manual_seed(0), {})[1][0, 0] / (Tensor.manual_seed(0), Tensor.uniform(20, 30, low=-1.0, high=1.0))[1][0, 0]"
row.agrees("jax", JAX.format("jax.nn.initializers.he_uniform()"), TORCHS.format("nn.init.kaiming_uniform_", UNIFORM))
row.agrees("jax", JAX.format("jax.nn.initializers.glorot_uniform()"), TORCHS.format("nn.init.xavier_uniform_", UNIFORM))
row.agrees("jax", JAX.format("jax.nn.initializers.lecun_uniform()"), TORCHS.format("nn.init.kaiming_uniform_, 0.0, 'fan_in', 'linear'", UNIFORM))
row.convention("jax", CUT.format("jax.nn.initializers.he_normal()"), TORCHS.format("nn.init.kaiming_normal_", "nn.init.normal_"), "a normal distribution cut at two deviations, and scaled so that its deviation is that")
row.agrees("jax", "x * jnp.diag(jax.nn.initializers.orthogonal()(jax.random.key(0), (5, 5)) @ jax.nn.initializers.orthogonal()(jax.random.key(0), (5, 5)).T)", "torch.ones(5) * x", x=[1.0])
row.convention("tinygrad", TINY.format("Tensor.kaiming_uniform(20, 30)"), TORCHS.format("nn.init.kaiming_uniform_", UNIFORM), "a=0.01 is the default; in torch it is 0")
row.agrees("tinygrad", TINY.format("Tensor.kaiming_uniform(20, 30, a=0.0)"), TORCHS.format("nn.init.kaiming_uniform_", UNIFORM))
row.agrees("tinygrad", TINY.format("Tensor.glorot_uniform(20, 30)"), TORCHS.format("nn.init.xavier_uniform_", UNIFORM))
row.differs("mygrad", MYGRAD.format("he_uniform").replace("20, 30)", "20, 30, gain=2**0.5)", 1), TORCHS.format("nn.init.kaiming_uniform_", UNIFORM), "the bound is √(n/3) and not √(3/n): it grows with the layer")
row.agrees("mygrad", MYGRAD.format("glorot_uniform"), TORCHS.format("nn.init.xavier_uniform_", UNIFORM))
row.convention("mygrad", MYNORMAL.format("he_normal"), TORCHS.format("nn.init.kaiming_normal_", "nn.init.normal_"), "gain=1 is the default; the √2 of a relu has to be handed in")
row.agrees("mygrad", MYNORMAL.format("he_normal").replace("20, 30)", "20, 30, gain=2**0.5)", 1), TORCHS.format("nn.init.kaiming_normal_", "nn.init.normal_"))
row.agrees("mygrad", MYNORMAL.format("glorot_normal"), TORCHS.format("nn.init.xavier_normal_", "nn.init.normal_"))
# fmt: on
