"""How do other libraries differ from PyTorch, by more than rounding? A table of pairs, and what `oracle.check` says of each.

A row of a chapter (`activations`, `losses`, …) is an expression of JAX, flax, optax, MyGrad, autograd or tinygrad, the same in torch, and
what is claimed of them: they agree, they differ by convention, or one of them is wrong, with the reason. `judging` holds each row to that,
on several kinds of numbers; `programs` writes the few lines that show a difference, and runs them; `run` is the command, and
writes the page. `libraries` knows how each library is called. The libraries are imported where a row needs them.
"""
