"""Losses, and the softmax family that they are made of."""

from __future__ import annotations

from oracle.frameworks.pairs import Chapter

SOFTMAX = Chapter("Softmax and its family", x=("n", "k"))
LOSSES = Chapter("Losses", a=("n", 3), b=("n", 3))
LABELS = [2, 0, 1, 1]

# fmt: off
row = SOFTMAX
row.agrees("jax", "jax.nn.softmax(x)", "F.softmax(x, -1)")
row.agrees("jax", "jax.nn.softmax(x, axis=0)", "F.softmax(x, 0)")
row.agrees("jax", "jax.nn.log_softmax(x)", "F.log_softmax(x, -1)")
row.agrees("jax", "jsp.special.logsumexp(x, axis=-1)", "torch.logsumexp(x, -1)")
row.agrees("jax", "jax.nn.glu(x)", "F.glu(x)", x=("n", 4))
row.differs("jax", "jax.nn.standardize(x)", "F.layer_norm(x, x.shape[-1:])", "E[x²] − E[x]² cancels far from 0", x=("n", 5))
row.agrees("jax", "jax.nn.one_hot(jnp.array([1, 0, 2]), 3) @ x", "F.one_hot(torch.tensor([1, 0, 2]), 3).to(x.dtype) @ x", x=(3, 2))
row.agrees("tinygrad", "x.softmax(-1)", "F.softmax(x, -1)")
row.agrees("tinygrad", "x.log_softmax(-1)", "F.log_softmax(x, -1)")
row.agrees("tinygrad", "x.logsumexp(-1)", "torch.logsumexp(x, -1)")
row.agrees("mygrad", "nnet.softmax(x)", "F.softmax(x, -1)")
row.agrees("mygrad", "nnet.logsoftmax(x)", "F.log_softmax(x, -1)")
row.agrees("mygrad", "nnet.glu(x, axis=-1)", "F.glu(x)", x=("n", 4))
row.agrees("autograd", "asp.special.logsumexp(x, axis=-1)", "torch.logsumexp(x, -1)")
row.agrees("autograd", "anp.exp(x - asp.special.logsumexp(x, axis=-1, keepdims=True))", "F.softmax(x, -1)")
row.agrees("torch", "F.softmax(x, -1)", "torch.exp(x - torch.logsumexp(x, -1, keepdim=True))")

row = LOSSES
row.agrees("optax", "optax.l2_loss(a, b)", "F.mse_loss(a, b, reduction='none') / 2")
row.agrees("optax", "optax.squared_error(a, b)", "F.mse_loss(a, b, reduction='none')")
row.differs("optax", "optax.huber_loss(a, b)", "F.huber_loss(a, b, reduction='none')", "|x| − min(|x|, δ) cancels: the derivative of small differences is 0")
row.agrees("optax", "optax.log_cosh(a, b)", "torch.logaddexp(a - b, b - a) - np.log(2)", kinds=("normal", "zeros", "ties", "big", "offset"))
row.agrees("optax", "optax.softmax_cross_entropy_with_integer_labels(x, labels)", "F.cross_entropy(x, labels, reduction='none')", x=(4, 3), labels=LABELS)
row.agrees("optax", "optax.softmax_cross_entropy(a, jax.nn.softmax(b))", "F.cross_entropy(a, F.softmax(b, -1), reduction='none')")
row.agrees("optax", "optax.softmax_cross_entropy(x, optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.1))", "F.cross_entropy(x, labels, reduction='none', label_smoothing=0.1)", x=(4, 3), labels=LABELS)
row.differs("optax", "optax.sigmoid_binary_cross_entropy(a, jax.nn.sigmoid(b))", "F.binary_cross_entropy_with_logits(a, torch.sigmoid(b), reduction='none')", "the derivative by the label, log σ(−x) − log σ(x), cancels; it is −x")
row.agrees("optax", "optax.kl_divergence(jax.nn.log_softmax(a), jax.nn.softmax(b))", "F.kl_div(F.log_softmax(a, -1), F.softmax(b, -1), reduction='none').sum(-1)")
row.agrees("optax", "optax.hinge_loss(x, jnp.array([1.0, -1.0, 1.0]))", "F.relu(1 - x * torch.tensor([1.0, -1.0, 1.0]))", x=(4, 3))
row.convention("optax", "optax.cosine_similarity(a, b)", "F.cosine_similarity(a, b, -1)", "epsilon=0 is the default: the similarity with 0 is nan; in torch it is 0")
row.convention("optax", "optax.cosine_similarity(a, b, epsilon=1e-8)", "F.cosine_similarity(a, b, -1)", "norms are clipped before they divide, and in torch after the division: it shows where they are below ε")
row.agrees("optax", "optax.ctc_loss(x, jnp.zeros((1, 5)), labels, jnp.zeros((1, 2)))", "F.ctc_loss(F.log_softmax(x, -1).transpose(0, 1), labels, torch.tensor([5]), torch.tensor([2]), reduction='none')", x=(1, 5, 3), labels=[[1, 2]])
row.differs("optax", "optax.sigmoid_focal_loss(a, jax.nn.sigmoid(b), gamma=0.0)", "F.binary_cross_entropy_with_logits(a, torch.sigmoid(b), reduction='none')", "the derivative by the label, log σ(−x) − log σ(x), cancels; it is −x")
row.agrees("tinygrad", "x.sparse_categorical_crossentropy(labels)", "F.cross_entropy(x, labels)", x=(4, 3), labels=LABELS)
row.agrees("tinygrad", "x.cross_entropy(labels)", "F.cross_entropy(x, labels)", x=(4, 3), labels=LABELS)
row.agrees("tinygrad", "x.cross_entropy(labels, label_smoothing=0.1)", "F.cross_entropy(x, labels, label_smoothing=0.1)", x=(4, 3), labels=LABELS)
row.differs("tinygrad", "a.binary_crossentropy_logits(b.sigmoid())", "F.binary_cross_entropy_with_logits(a, torch.sigmoid(b))", "the derivative by the label is a sum of rounded terms; it is −x")
row.convention("tinygrad", "a.sigmoid().binary_crossentropy(b.sigmoid())", "F.binary_cross_entropy(torch.sigmoid(a), torch.sigmoid(b))", "log 0 is −∞, and 0 · ∞ nan; in torch it is cut at −100")
row.agrees("tinygrad", "x.nll_loss(labels)", "F.nll_loss(x, labels)", x=(4, 3), labels=LABELS)
row.agrees("mygrad", "nnet.softmax_crossentropy(x, labels)", "F.cross_entropy(x, labels)", x=(4, 3), labels=LABELS)
row.agrees("mygrad", "nnet.negative_log_likelihood(x, labels)", "F.nll_loss(x, labels)", x=(4, 3), labels=LABELS)
row.differs("mygrad", "nnet.focal_loss(nnet.softmax(x), labels, alpha=1, gamma=2.0).mean()", "torch.mean((1 - F.softmax(x, -1)[torch.arange(4), labels])**2 * F.cross_entropy(x, labels, reduction='none'))", "the log of a probability that has become 0", x=(4, 3), labels=LABELS)
row.differs("mygrad", "nnet.softmax_focal_loss(x, labels, alpha=1, gamma=0.0).mean()", "F.cross_entropy(x, labels)", "the log of a probability that has become 0", x=(4, 3), labels=LABELS)
row.convention("mygrad", "nnet.multiclass_hinge(x, labels)", "F.multi_margin_loss(x, labels)", "a mean over samples of the sum over classes; in torch also over classes", x=(4, 3), labels=LABELS)
row.agrees("mygrad", "nnet.margin_ranking_loss(x, x[::-1], 1, 0.5)", "F.margin_ranking_loss(x, x.flip(0), torch.ones(4), 0.5)", x=(4,))
row.differs("torch", "F.soft_margin_loss(a, torch.ones_like(a))", "torch.logaddexp(-a, torch.zeros_like(a)).mean()", "log(1 + e⁻ˣ) without a branch: inf from −89 on", a=("n", 3))
row.agrees("torch", "F.multilabel_soft_margin_loss(a, torch.ones_like(a))", "torch.logaddexp(-a, torch.zeros_like(a)).mean()", a=("n", 3))
row.convention("torch", "F.binary_cross_entropy(torch.sigmoid(a), torch.sigmoid(b))", "F.binary_cross_entropy_with_logits(a, torch.sigmoid(b))", "logs are cut at −100, and 1 − σ rounds: that is why the loss with logits exists")
row.differs("torch", "F.kl_div(F.log_softmax(a, -1), F.softmax(b, -1), reduction='sum')", "F.kl_div(F.log_softmax(a, -1), F.log_softmax(b, -1), reduction='sum', log_target=True)", "the derivative of t log t at a probability that has become 0")
row.convention("torch", "F.cosine_similarity(a, b, -1)", "(F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1)", "ε is in the denominator of the product; normalize has one for each")
# fmt: on
