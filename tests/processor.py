"""What the processor at hand computes, for tests that no other instructions can stand in for."""

from __future__ import annotations

from pathlib import Path

import pytest

_INFO = Path("/proc/cpuinfo")
_FLAGS = set(_INFO.read_text().split()) if _INFO.is_file() else {"avx512_bf16"}  # elsewhere: tried

NEEDS_BF16 = pytest.mark.skipif(
    not _FLAGS & {"avx512_bf16", "amx_bf16"},
    reason="this processor has no bf16: OpenVINO computes in f32, and is refused",
)
