"""Writer of ONNX graphs from exported PyTorch programs of stages."""

import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper
from torch.export import ExportedProgram
from torch.fx import Node

OPSET = 18
"""First opset in which a Resize names its axes; every later engine reads it."""
IR_VERSION = 10
"""File format version, readable by ONNX Runtime 1.18 and later."""

_ATEN = torch.ops.aten
_TYPES = {torch.float32: TensorProto.FLOAT, torch.uint8: TensorProto.UINT8}

Writer: TypeAlias = "Callable[[OnnxWriter, Node], list[NodeProto]]"


def to_onnx(
    program: ExportedProgram, input_names: Iterable[str], output_names: Iterable[str]
) -> ModelProto:
    """Translate a program into an ONNX graph with a free batch size.

    Args:
        program: exported stage; the first axis of all its inputs and outputs is the batch.
        input_names: names of the inputs in the graph.
        output_names: names of the outputs in the graph.

    Raises:
        ValueError: the program contains an operation that the writer does not translate.
    """
    writer = OnnxWriter(program)
    writer.translate(list(input_names), list(output_names))
    model = helper.make_model(
        helper.make_graph(
            writer.nodes, "stage", writer.inputs, writer.outputs, initializer=writer.initializers
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ranet",
    )
    checker.check_model(model, full_check=True)
    return model


class OnnxWriter:
    """Nodes, inputs, outputs and weights of one ONNX graph."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.nodes: list[NodeProto] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.initializers: list[TensorProto] = []
        self.names: dict[Node, str] = {}
        self.output_names: dict[Node, str] = {}

    def translate(self, input_names: list[str], output_names: list[str]) -> None:
        """Translate all nodes of the program."""
        free_names = iter(input_names)
        signature = self.program.graph_signature
        weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.output_names = _output_names(self.program, output_names)
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in weights:
                self.names[node] = self.add_constant(node.name, self._weight(weights[node.name]))
            elif node.op == "placeholder":
                self.names[node] = next(free_names)
                self.inputs.append(_describe(node, self.names[node]))
            elif node.op == "call_function":
                self._translate_call(node)
            elif node.op == "output":
                self._name_outputs(node, output_names)

    def _weight(self, name: str) -> np.ndarray:
        stored = self.program.state_dict.get(name)
        value = self.program.constants[name] if stored is None else stored
        assert isinstance(value, torch.Tensor)
        return value.detach().numpy()

    def _translate_call(self, node: Node) -> None:
        if node.target is operator.getitem:
            source, index = node.args
            self.names[node] = f"{self.name(source)}_{index}"
            return
        if node.target is _ATEN._assert_tensor_metadata.default:
            return  # a check of `Tensor.to` without a result
        if node.target not in _WRITERS:
            raise ValueError(
                f"the exported program contains {node.target}, which the ONNX writer does not "
                "translate; add it to pipelines/model_export/onnx_writer.py"
            )
        self.names[node] = self.output_names.get(node, node.name)
        self.nodes += _WRITERS[node.target](self, node)

    def _name_outputs(self, node: Node, output_names: list[str]) -> None:
        results = node.args[0]
        assert isinstance(results, tuple | list)
        for result, name in zip(results, output_names, strict=True):
            assert isinstance(result, Node)
            if self.name(result) != name:
                self.nodes.append(helper.make_node("Identity", [self.name(result)], [name]))
            self.outputs.append(_describe(result, name))

    def name(self, node: Any) -> str:
        """Return the name of a node's result in the graph; empty for None."""
        return "" if node is None else self.names[node]

    def add_constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant to the graph and return its name."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def single(self, kind: str, node: Node, inputs: Iterable[str], **attributes: Any) -> NodeProto:
        """Create the ONNX node of a call with one result."""
        return helper.make_node(kind, list(inputs), [self.names[node]], **attributes)


def _output_names(program: ExportedProgram, names: list[str]) -> dict[Node, str]:
    """Return the name of each output by the call that computes it.

    An output under its own name needs no Identity, which engines carry out as a copy.
    """
    results: Any = program.graph.output_node().args[0]
    return {
        result: name
        for result, name in zip(results, names, strict=True)
        if result.op == "call_function" and result.target is not operator.getitem
    }


def _describe(node: Node, name: str) -> Any:
    """Describe an input or output of the graph: name, type and shape with a free batch."""
    value = node.meta["val"]
    return helper.make_tensor_value_info(name, _TYPES[value.dtype], ["batch", *value.shape[1:]])


def _elementwise(kind: str) -> Writer:
    def write(writer: OnnxWriter, node: Node) -> list[NodeProto]:
        return [writer.single(kind, node, [writer.name(each) for each in node.args])]

    return write


def _conv(writer: OnnxWriter, node: Node) -> list[NodeProto]:
    features, weight, bias, stride, padding, dilation, groups = _arguments(
        node, 7, (None, None, None, [1, 1], [0, 0], [1, 1], 1)
    )
    names = [writer.name(each) for each in (features, weight, bias) if each is not None]
    attributes = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation}
    return [writer.single("Conv", node, names, group=groups, **attributes)]


def _linear(writer: OnnxWriter, node: Node) -> list[NodeProto]:
    return [writer.single("Gemm", node, [writer.name(each) for each in node.args], transB=1)]


def _split(writer: OnnxWriter, node: Node) -> list[NodeProto]:
    features, sizes, axis = node.args
    assert isinstance(sizes, list)
    constant = writer.add_constant(f"{node.name}_sizes", np.array(sizes, np.int64))
    outputs = [f"{node.name}_{index}" for index in range(len(sizes))]
    return [helper.make_node("Split", [writer.name(features), constant], outputs, axis=axis)]


def _cat(writer: OnnxWriter, node: Node) -> list[NodeProto]:
    parts, axis = node.args
    assert isinstance(parts, list)
    return [writer.single("Concat", node, [writer.name(part) for part in parts], axis=axis)]


def _resize(writer: OnnxWriter, node: Node) -> list[NodeProto]:
    features, size, align_corners, _ = node.args
    assert align_corners
    sizes = writer.add_constant(f"{node.name}_sizes", np.array(size, np.int64))
    return [
        writer.single(
            "Resize",
            node,
            [writer.name(features), "", "", sizes],
            axes=[2, 3],
            mode="linear",
            coordinate_transformation_mode="align_corners",
        )
    ]


def _pool(kind: str) -> Writer:
    def write(writer: OnnxWriter, node: Node) -> list[NodeProto]:
        features, kernel, stride, padding = _arguments(node, 4, (None, None, [], [0, 0]))
        pads = [*padding, *padding]
        attributes = {"kernel_shape": kernel, "strides": stride or kernel, "pads": pads}
        return [writer.single(kind, node, [writer.name(features)], **attributes)]

    return write


def _flatten(writer: OnnxWriter, node: Node) -> list[NodeProto]:
    return [writer.single("Flatten", node, [writer.name(node.args[0])], axis=1)]


def _cast(writer: OnnxWriter, node: Node) -> list[NodeProto]:
    source, dtype = node.args
    assert isinstance(dtype, torch.dtype)
    return [writer.single("Cast", node, [writer.name(source)], to=_TYPES[dtype])]


def _arguments(node: Node, count: int, defaults: tuple[Any, ...]) -> list[Any]:
    """Return the arguments of a call, completed by defaults."""
    return [*node.args, *defaults[len(node.args) : count]]


_WRITERS: dict[Any, Writer] = {
    _ATEN.conv2d.default: _conv,
    _ATEN.linear.default: _linear,
    _ATEN.relu.default: _elementwise("Relu"),
    _ATEN.add.Tensor: _elementwise("Add"),
    _ATEN.sub.Tensor: _elementwise("Sub"),
    _ATEN.mul.Tensor: _elementwise("Mul"),
    _ATEN.cat.default: _cat,
    _ATEN.split_with_sizes.default: _split,
    _ATEN.upsample_bilinear2d.vec: _resize,
    _ATEN.avg_pool2d.default: _pool("AveragePool"),
    _ATEN.max_pool2d.default: _pool("MaxPool"),
    _ATEN.flatten.using_ints: _flatten,
    _ATEN.to.dtype: _cast,
}
"""Translation of each operation that a stage may contain."""
