"""Makes an int8 network of an exported one: the ranges of its numbers come from windows of images."""

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .runtimes import imported

_STAYS = ("Add", "AvgPool", "Divide", "Multiply", "Power", "ReduceMean", "Sqrt", "Subtract")
"""What norms consist of; they stay in float32, and so do statistics of a layer."""

QUANTISERS = {"openvino": "nncf", "onnxruntime": "onnxruntime.quantization"}
"""Engine -> the module that quantises for it."""


def quantise(engine: str, source: Path, target: Path, windows: Sequence[NDArray[np.float32]]) -> None:
    """Writes a copy of an exported network whose convolutions compute in int8, with a scale for each output channel.

    Processors without VNNI add pairs of products in 16 bits, which numbers without sign times the whole range of int8 overflow.
    So weights take half of the range, or for ONNX Runtime have no sign either.

    Args:
        engine: "openvino" (NNCF quantises) or "onnxruntime" (by its own package).
        source: The network in float32, for windows of one size.
        target: The new file.
        windows: Each of shape (1, C_in, *window), preprocessed, without the slice axis that the network does not know.

    Raises:
        UsageError: What quantises for this engine is not installed.
    """
    with _quiet():
        if engine == "openvino":
            openvino, nncf = imported("openvino"), imported(QUANTISERS[engine])
            network = nncf.quantize(
                openvino.Core().read_model(source),
                nncf.Dataset(windows),
                subset_size=len(windows),
                ignored_scope=nncf.IgnoredScope(types=list(_STAYS), validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
            )
            openvino.save_model(network, target, compress_to_fp16=False)
        else:
            (name,) = [one.name for one in imported("onnxruntime").InferenceSession(source).get_inputs()]
            tools, inputs = imported(QUANTISERS[engine]), iter([{name: window} for window in windows])
            reader = type("Reader", (tools.CalibrationDataReader,), {"get_next": lambda self: next(inputs, None)})()
            tools.quantize_static(source, target, reader, op_types_to_quantize=["Conv", "ConvTranspose"], per_channel=True,
                                  activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QUInt8)  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what these packages print and log: standard output is for results."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
