"""Stages of a network, compiled by engines."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from torch import Tensor

from pipelines.model_export.onnx_writer import to_onnx
from ranet import RANet
from ranet.inference.stages import Stage, make_stages
from ranet.model.preprocessing import Normalize

ENGINES = ("onnxruntime", "openvino")
Run = Callable[[Sequence[np.ndarray]], list[Any]]


def onnx_graphs(stages: Sequence[Stage], images: Tensor) -> list[bytes]:
    """Export all stages with an example of their input."""
    values, graphs = {"images": images}, []
    for stage in stages:
        inputs = tuple(values[name] for name in stage.inputs)
        graph = to_onnx(stage.export(inputs), stage.inputs, stage.outputs)
        graphs.append(graph.SerializeToString())
        with torch.no_grad():
            values.update(zip(stage.outputs, stage(*inputs), strict=True))
    return graphs


def compile_graph(engine: str, graph: bytes) -> Run:
    """Compile a graph for float32 arithmetic on one thread."""
    if engine == "onnxruntime":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return lambda inputs: list(session.run(None, dict(zip(names, inputs, strict=True))))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    return lambda inputs: list(compiled(list(inputs)).values())


class EngineNetwork:
    """All stages of a network in one engine."""

    def __init__(self, engine: str, stages: Sequence[Stage], graphs: Sequence[bytes]) -> None:
        self.stages = stages
        self.runs = [compile_graph(engine, graph) for graph in graphs]

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (exits, batch, classes)."""
        values, logits = {"images": images.numpy()}, []
        for stage, run in zip(self.stages, self.runs, strict=True):
            outputs = run([values[name] for name in stage.inputs])
            values.update(zip(stage.outputs, outputs, strict=True))
            logits.append(values["logits"])
        return torch.from_numpy(np.stack(logits))


def compile_in_engines(
    model: RANet, images: Tensor, normalize: Normalize | None = None
) -> list[EngineNetwork]:
    """Export a network once and compile it in each engine."""
    stages = make_stages(model, normalize)
    graphs = onnx_graphs(stages, images)
    return [EngineNetwork(engine, stages, graphs) for engine in ENGINES]
