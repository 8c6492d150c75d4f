"""The review of a result by a clinician, and the consequences of the decision."""

from .export import ReviewConfig, write_review

__all__ = ["ReviewConfig", "write_review"]
