"""What the graphs of all parts are made of: nodes whose weights are a checkpoint's tensors, by their names."""

import numpy as np

from salmonrun.export.graphs.builder import FLOAT, FLOAT16, GraphBuilder
from salmonrun.export.graphs.linear import F32, Linear, Matrix, Stacked, half_linear, to_numpy
from salmonrun.training.tensors import LazyTensors


class NamedLayers:
    """Adds layers to a graph, each under the name of its tensors.

    Where products are computed in half precision, `narrow` and `wide` say what is: products, convolutions and what lies
    between two of them. Residuals, norms and softmax stay in float32, so that nothing is summed over layers or squared
    in 16 bits. Anywhere else both leave a value as it is.
    """

    def __init__(self, graph: GraphBuilder, tensors: LazyTensors, linear: Linear) -> None:
        self._graph = graph
        self._tensors = tensors
        self._linear = linear
        self._half = linear is half_linear

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def array(self, name: str) -> F32:
        """A tensor's values, to be computed with."""
        return to_numpy(self._tensors[name]())

    def weight(self, name: str) -> str:
        """A tensor as it is."""
        return self._graph.weight(name, self.array(name))

    def factor(self, name: str, array: F32 | None = None) -> str:
        """An array that is multiplied with, as products are computed; None: the tensor of this name."""
        array = self.array(name) if array is None else array
        if not self._half:
            return self._graph.weight(name, array)
        return self._graph.raw_weight(name, array.astype(np.float16))

    def narrow(self, x: str) -> str:
        """x as products are computed."""
        return self._graph.op("Cast", x, to=FLOAT16) if self._half else x

    def wide(self, x: str) -> str:
        """x in float32, of what products gave."""
        return self._graph.op("Cast", x, to=FLOAT) if self._half else x

    def norm(self, x: str, name: str, epsilon: float) -> str:
        """Layer normalisation of the last axis."""
        scale, shift = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self._graph.op("LayerNormalization", x, scale, shift, epsilon=epsilon)

    def linear(self, x: str, name: str, *stacked: str, factor: float = 1.0) -> str:
        """x times a matrix, plus its bias if it has one.

        Args:
            x: input [..., in].
            name: of the product, and of its matrix.
            stacked: names of matrices that are stacked to one, if it is not `name`'s own; one without a bias has zeros.
            factor: on weights and bias.
        """
        parts = stacked or (name,)
        if any(self._is_thin(part) for part in parts):
            assert factor == 1.0, "Whisper alone has such layers, and no factors"
            products = [self._thin(x, part) for part in parts]
            return products[0] if len(products) == 1 else self._graph.op("Concat", *products, axis=-1)
        matrices = [self._tensors[f"{part}.weight"]() for part in parts]
        weight: Matrix = Stacked(matrices)
        bias = self._bias(parts, [len(matrix) for matrix in matrices])
        if factor != 1.0:
            weight = weight[:, :] * np.float32(factor)
            bias = None if bias is None else bias * np.float32(factor)
        return self.product(x, name, weight, bias)

    def product(self, x: str, name: str, weight: Matrix, bias: F32 | None) -> str:
        """x [..., in] times a matrix [out, in] that no tensor has as it is, plus a bias [out] if there is one."""
        return self._linear(self._graph, x, name, weight, bias)

    def _is_thin(self, name: str) -> bool:
        """Whether a layer is of low rank: two thin matrices, one behind the other."""
        return f"{name}.down.weight" in self

    def _thin(self, x: str, name: str) -> str:
        return (
            self.linear(self.linear(x, f"{name}.down"), f"{name}.up") if self._is_thin(name) else self.linear(x, name)
        )

    def _bias(self, parts: tuple[str, ...], sizes: list[int]) -> F32 | None:
        names = [f"{part}.bias" for part in parts]
        if not any(name in self for name in names):
            return None
        zeros = [np.zeros(size, np.float32) for size in sizes]
        return np.concatenate([self.array(n) if n in self else zero for n, zero in zip(names, zeros, strict=True)])
