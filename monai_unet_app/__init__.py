"""Train U-Nets as MONAI bundles; segment, measure and deliver with them."""

import os

__version__ = "0.1.0"

# Large pages for torch's large tensors; it reads this at its first one. Making one takes a quarter of the time on Linux
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
