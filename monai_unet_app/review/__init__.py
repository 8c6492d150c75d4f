"""The review of a result by a clinician, and the consequences of the decision."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .export import ReviewConfig, write_review

__all__ = ["ReviewConfig", "write_review"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # a page has plots, whose libraries take seconds to import, and a decision has none
        from . import export

        return getattr(export, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
