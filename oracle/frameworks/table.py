"""All rows."""

from __future__ import annotations

from oracle.frameworks import activations, layers, losses, optimizers, reductions, special
from oracle.frameworks.pairs import Chapter, Pair

CHAPTERS: tuple[Chapter, ...] = (
    activations.ACTIVATIONS,
    special.SPECIAL,
    losses.SOFTMAX,
    losses.LOSSES,
    layers.NORMS,
    layers.CONVOLUTIONS,
    layers.POOLING,
    layers.LAYERS,
    reductions.REDUCTIONS,
    reductions.ORDER,
    reductions.ALGEBRA,
    optimizers.OPTIMIZERS,
    optimizers.INITIALISERS,
)
PAIRS: tuple[Pair, ...] = tuple(pair for chapter in CHAPTERS for pair in chapter.pairs)
