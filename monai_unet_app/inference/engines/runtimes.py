"""Other programs that run a network: each reads an exported file and answers windows on the CPU."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_unet_app.config import EngineName
from monai_unet_app.errors import UsageError, needing

Run = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Windows of shape (B, C_in, *window), float32, to logits and layer, as in `Answer`."""


def imported(package: str) -> Any:
    """The module of a runtime, or of what quantises for it. Raises UsageError if it is not installed."""
    try:
        # Its absence is what keeps OpenVINO from telling its makers of each use
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime reads it when it is imported, and never again
        with needing("quantise" if package == "nncf" else "engines", package):
            return import_module(package)
    finally:
        del sys.modules["openvino_telemetry"]


def made_with(package: str) -> str:
    """Name and version of a runtime."""
    return f"{package} {version(package)}"


_PLANAR = 4  # axes of a window of a picture, with batch and channels
_OPENVINO_TYPES = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # int8: of what was not quantised


def openvino_run(file: Path, precision: str = "float32") -> Run:
    """OpenVINO, with the threads that torch may use: all on one window of a volume, or each on a window of a picture.

    Args:
        file: The .xml of a network for windows of one size, whose outputs are logits, and perhaps statistics of a layer.
        precision: float32, bfloat16, or int8 of a quantised network.

    Raises:
        UsageError: The processor computes in another precision.
    """
    openvino, wanted = imported("openvino"), _OPENVINO_TYPES[precision]
    core, threads = openvino.Core(), torch.get_num_threads()
    network = core.read_model(file)
    at_once = threads if len(network.inputs[0].shape) == _PLANAR else 1
    told = {
        "INFERENCE_PRECISION_HINT": wanted,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": at_once,
    }
    compiled = core.compile_model(network, "CPU", told)
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != wanted:
        raise UsageError(
            f"OpenVINO computes in {found} on this processor, although {wanted} was asked for; one that has it is needed; "
            "take --precision float32, or --engine torch"
        )
    queue, answers = openvino.AsyncInferQueue(compiled, at_once), dict[int, list[Any]]()
    queue.set_callback(
        lambda request, number: answers.update({number: [output.data.copy() for output in request.output_tensors]})
    )

    def run(windows: Tensor) -> tuple[Tensor, Tensor | None]:
        for number, window in enumerate(torch.split(windows, 1)):
            queue.start_async([window.numpy()], number)
        queue.wait_all()
        return _together([answers.pop(number) for number in range(len(windows))])

    return run


def onnxruntime_run(file: Path, precision: str = "float32") -> Run:
    """ONNX Runtime, one window at a time, with the threads that torch may use.

    Args:
        file: A network with one input and the outputs of `openvino_run`.
        precision: float32, or int8 of a quantised network.
    """
    runtime = imported("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (name,) = [one.name for one in session.get_inputs()]
    return lambda windows: _together([session.run(None, {name: one.numpy()}) for one in torch.split(windows, 1)])


def _together(answers: list[Any]) -> tuple[Tensor, Tensor | None]:
    logits, *layer = (torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*answers, strict=True))
    return logits, layer[0] if layer else None


def openvino_write(network: nn.Module, window: Tensor, file: Path) -> None:
    """Writes a network for windows of one size, values of shape (1, C_in, *window), as OpenVINO reads it."""
    openvino = imported("openvino")
    # Half precision is for who asks for it
    converted = openvino.convert_model(network, example_input=window, input=list(window.shape))
    openvino.save_model(converted, file, compress_to_fp16=False)


def onnx_write(network: nn.Module, window: Tensor, file: Path) -> None:
    """Writes a network for windows of one size, values of shape (1, C_in, *window), as ONNX."""
    # The older exporter writes instance norms that answer otherwise
    torch.onnx.export(network, (window,), file, dynamo=True, external_data=False, verbose=False)


@dataclass(frozen=True)
class Runtime:
    """A program that runs exported networks; its package has the name of the engine.

    Attributes:
        files: The files of an export in a bundle; the first is the one that is read.
        run: What runs this file in a precision.
        write: Writes it, and the other files beside it, for windows of the size of the given one.
    """

    files: tuple[str, ...]
    run: Callable[[Path, str], Run]
    write: Callable[[nn.Module, Tensor, Path], None]


RUNTIMES: dict[EngineName, Runtime] = {
    "openvino": Runtime(("models/network.xml", "models/network.bin"), openvino_run, openvino_write),
    "onnxruntime": Runtime(("models/network.onnx",), onnxruntime_run, onnx_write),
}


def export_files(engine: EngineName, precision: str) -> tuple[str, ...]:
    """The files in a bundle that an engine runs with a precision."""
    files = RUNTIMES[engine].files
    return tuple(name.replace("network", "network_int8") for name in files) if precision == "int8" else files
