"""What a clinician looks at, and what becomes of the verdict."""

from .export import ReviewConfig, write_review

__all__ = ["ReviewConfig", "write_review"]
