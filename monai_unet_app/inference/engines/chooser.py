"""The table of engines, and the choice of one by the settings of a result."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from monai_unet_app.config import EngineName, EngineWish, Precision, ResultSettings
from monai_unet_app.errors import UsageError

from . import Engine, Source
from .certificate import parity_of
from .exported import exported_engine, why_no_export
from .torch_engine import TorchEngine

MakesEngine = Callable[[Source, ResultSettings], Engine]


def torch_engine(bundle: Source, settings: ResultSettings) -> TorchEngine:
    """The network as torch runs it, on the bundle's device."""
    return TorchEngine(
        bundle.network, bundle.device, bundle.slice_axis, bundle.feature_layer,
        may_leave=bundle.may_leave_device, precision=settings.precision,
    )  # fmt: skip


ENGINES: dict[tuple[EngineName, Precision], MakesEngine] = {
    ("torch", "float32"): torch_engine,
    ("torch", "bfloat16"): torch_engine,
    ("torch", "float16"): torch_engine,
    ("openvino", "float32"): exported_engine,
    ("openvino", "bfloat16"): exported_engine,
    ("onnxruntime", "float32"): exported_engine,
    ("openvino", "int8"): exported_engine,
    ("onnxruntime", "int8"): exported_engine,
}
"""(engine, precision) of `ResultSettings` -> what makes the engine."""


def choose_engine(settings: ResultSettings) -> MakesEngine:
    """What makes the engine for these settings. Raises UsageError if the table has no such engine or precision."""
    try:
        return ENGINES[settings.engine, settings.precision]
    except KeyError:
        possible = ", ".join(f"{engine} in {precision}" for engine, precision in ENGINES)
        raise UsageError(
            f"there is no engine {settings.engine} in {settings.precision}; one of these is needed: {possible}"
        ) from None


def engine_by_itself(bundle: Source) -> tuple[EngineName, str | None]:
    """The engine that `--engine auto` takes in float32, and why; None where the bundle has no export to choose.

    The order is fixed, and nothing is timed: OpenVINO on a CPU with a certified export, else torch.
    """
    if not parity_of(bundle):
        return "torch", None
    if bundle.device.type != "cpu":
        return "torch", f"exports run on the CPU, and the device is {bundle.device.type}"
    if why := why_no_export(bundle, "openvino"):
        return "torch", why
    if find_spec("openvino") is None:
        return "torch", "openvino is not installed; pip install 'monai-unet-app[engines]'"
    return "openvino", "its export is certified to answer as torch does"


def with_engine(settings: ResultSettings, bundle: Source, engine: EngineWish) -> tuple[ResultSettings, str | None]:
    """The settings with an engine, and why "auto" took it; None where nothing is to be said.

    Raises:
        UsageError: It does not run on the bundle's device, or int8 is asked for without an engine.
    """
    if engine == "auto" and settings.precision == "int8":
        raise UsageError("--engine auto takes no int8; an engine is needed; give --engine openvino or onnxruntime")
    name, why = engine_by_itself(bundle) if engine == "auto" else (engine, None)
    chosen = replace(settings, engine=name)
    check_device(chosen, bundle.device.type)
    return chosen, why


def check_device(settings: ResultSettings, device: str) -> None:
    """Raises UsageError if an engine that runs on the CPU alone is asked for on another device, or float16 on a CPU."""
    if settings.precision == "float16" and device != "cuda":
        raise UsageError(f"--precision float16 runs on cuda, and the device is {device}; take bfloat16 or float32")
    if settings.engine != "torch" and device != "cpu":
        raise UsageError(f"--engine {settings.engine} runs on the CPU, and the device is {device}; give --device cpu")
