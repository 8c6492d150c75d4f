"""The table of engines, and the choice of one by the settings of a result."""

from collections.abc import Callable

from monai_unet_app.config import ResultSettings
from monai_unet_app.errors import UsageError

from . import Engine
from .torch_engine import TorchEngine

MakesEngine = Callable[..., Engine]
"""Takes the arguments of `TorchEngine`."""

ENGINES: dict[tuple[str, str], MakesEngine] = {("torch", "float32"): TorchEngine}
"""(engine, precision) of `ResultSettings` -> what makes the engine."""


def choose_engine(settings: ResultSettings) -> MakesEngine:
    """What makes the engine for these settings. Raises UsageError if the table has no such engine or precision."""
    try:
        return ENGINES[settings.engine, settings.precision]
    except KeyError:
        possible = ", ".join(f"{engine} in {precision}" for engine, precision in ENGINES)
        raise UsageError(
            f"there is no engine {settings.engine} in {settings.precision}; {possible} is needed; change the settings"
        ) from None
