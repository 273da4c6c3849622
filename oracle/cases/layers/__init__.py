"""What layers does a model consist of? A block per layer, grouped by family.

A block is a class: its fields are what a case file says of the layer, its methods how needle builds it and how torch does,
what it means in float64, how it is drawn, and what else there is to know; see `layer` for all the questions and for the
answers that fit plain layers. needle, torch and Hypothesis are given to a block: no family imports them. A class in a file
of a family is all there is to adding a layer.
"""

from oracle.cases.layers.activations import ACTIVATIONS, ReLU, Sigmoid, Tanh
from oracle.cases.layers.containers import LAYERS, AnyLayer, Branch, Eval, Residual, Sequential
from oracle.cases.layers.dropout import Dropout
from oracle.cases.layers.layer import Layer, Part, Pass, Side, Site, Slot, Variant
from oracle.cases.layers.norms import BatchNorm, LayerNorm
from oracle.cases.layers.passive import Flatten, Identity
from oracle.cases.layers.products import Conv, Linear
from oracle.cases.layers.programs import Ops, OpStep
from oracle.cases.layers.unused import Unused

__all__ = [
    "ACTIVATIONS",
    "LAYERS",
    "AnyLayer",
    "BatchNorm",
    "Branch",
    "Conv",
    "Dropout",
    "Eval",
    "Flatten",
    "Identity",
    "Layer",
    "LayerNorm",
    "Linear",
    "OpStep",
    "Ops",
    "Part",
    "Pass",
    "ReLU",
    "Residual",
    "Sequential",
    "Side",
    "Sigmoid",
    "Site",
    "Slot",
    "Tanh",
    "Unused",
    "Variant",
]
