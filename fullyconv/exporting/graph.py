"""An ONNX graph under construction: nodes, constants and names, nothing of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["IR_VERSION", "OPSET", "Graph"]

OPSET, IR_VERSION = 17, 8  # what every runtime since 2022 reads


@final
class Graph:
    """Nodes in the order in which they were added. Values are named by strings; every name is new."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._names: set[str] = set()

    def input(self, name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> str:
        self.inputs.append(_value(name, dtype, shape))
        return self._new(name)

    def output(self, value: str, name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> None:
        """Give `value` out under `name`, which is then the name of the graph's last value."""
        self.add("Identity", [value], name=name)
        self.outputs.append(_value(name, dtype, shape))

    def constant(self, array: NDArray[np.number], name: str = "constant") -> str:
        from onnx import numpy_helper

        name = self._new(name)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def whole(self, *values: int) -> str:
        """A constant list of whole numbers."""
        return self.constant(np.asarray(values, np.int64), "numbers")

    def add(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """One node with one output, whose name is returned. `inputs`: "" leaves an optional one out."""
        from onnx import helper

        name = self._new(name or kind.lower())
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def model(self) -> Any:
        """The whole as an onnx.ModelProto."""
        import onnx
        from onnx import helper

        graph = helper.make_graph(self.nodes, "fullyconv", self.inputs, self.outputs, self.constants)
        made_for = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=made_for, ir_version=IR_VERSION, producer_name="fullyconv")
        assert isinstance(model, onnx.ModelProto)
        return model

    def _new(self, name: str) -> str:
        found, n = name, 0
        while found in self._names:
            n += 1
            found = f"{name}_{n}"
        self._names.add(found)
        return found


def _value(name: str, dtype: Any, shape: Sequence[int | str]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))
