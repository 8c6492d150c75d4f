"""Other programs that run a network: each reads an exported file and answers windows on the CPU."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_unet_app.errors import UsageError

Run = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Windows of shape (B, C_in, *window), float32, to logits and layer, as in `Answer`."""


def imported(package: str) -> Any:
    """The module of a runtime. Raises UsageError if it is not installed."""
    try:
        # Its absence is what keeps OpenVINO from telling its makers of each use
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        return import_module(package)
    except ImportError as error:
        raise UsageError(
            f"the engine {package} is not installed ({error}); its package is needed; pip install 'monai-unet-app[engines]'"
        ) from error
    finally:
        del sys.modules["openvino_telemetry"]


def made_with(package: str) -> str:
    """Name and version of a runtime."""
    return f"{package} {version(package)}"


_OPENVINO_TYPES = {"float32": "f32", "bfloat16": "bf16"}


def openvino_run(file: Path, precision: str = "float32") -> Run:
    """OpenVINO, one window at a time, with the threads that torch may use.

    Args:
        file: The .xml of a network for windows of one size, whose outputs are logits, and perhaps statistics of a layer.
        precision: float32 or bfloat16.

    Raises:
        UsageError: The processor computes in another precision.
    """
    openvino, wanted = imported("openvino"), _OPENVINO_TYPES[precision]
    told = {
        "INFERENCE_PRECISION_HINT": wanted,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(file, "CPU", told)
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != wanted:
        raise UsageError(
            f"OpenVINO computes in {found} on this processor, although {wanted} was asked for; one that has it is needed; "
            "take --precision float32, or --engine torch"
        )
    request = compiled.create_infer_request()
    return lambda windows: _together([request.infer([one.numpy()]).values() for one in torch.split(windows, 1)])


def onnxruntime_run(file: Path, precision: str = "float32") -> Run:
    """ONNX Runtime, one window at a time, with the threads that torch may use.

    Args:
        file: A network with one input and the outputs of `openvino_run`.
        precision: float32.
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


RUNTIMES: dict[str, tuple[tuple[str, ...], Callable[[Path, str], Run]]] = {
    "openvino": (("models/network.xml", "models/network.bin"), openvino_run),
    "onnxruntime": (("models/network.onnx",), onnxruntime_run),
}
"""Engine -> the files of its export in a bundle, and what runs the first of them."""
