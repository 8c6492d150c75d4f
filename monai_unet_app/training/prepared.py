"""Cases on which the deterministic work is done once and kept on disk, so that memory does not grow with their number."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose
from monai.utils import TraceKeys, convert_to_tensor

from dicom_io.files import replace_when_whole
from monai_unet_app.errors import InputRefusedError

_KINDS = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSU"]
_IN_METADATA: list[Any] = [np.zeros(0).__reduce__()[0], np.ndarray, np.dtype, *_KINDS, TraceKeys]
"""Classes of the arrays in the metadata of a MetaTensor; no other class or function in a file is called."""


class PreparedDataset(PersistentDataset):
    """MONAI's PersistentDataset, which also notices that a file was changed, and whose folder several processes may fill.

    The folder belongs to one list of transforms: `cache` of a bundle that is trained, whose recipe cannot change until then.

    Args:
        data: A dict for each case, for instance {"image": path, "label": path}.
        transform: Deterministic transforms.
        cache_dir: Holds a file for each case, made when the case is first asked for.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Sequence[Any] | Compose, cache_dir: str) -> None:
        rows = [{**row, "changed": [_changed(value) for value in row.values()]} for row in data]
        whole = transform if isinstance(transform, Compose) else Compose(list(transform))
        super().__init__(rows, whole, cache_dir, track_meta=True, weights_only=True)

    def _cachecheck(self, item_transformed: Any) -> Any:
        # MONAI moves a file from the system's folder for temporary files. Where that is another file system, the file grows
        # under its final name, and another process would read half of it.
        assert self.cache_dir is not None
        file = self.cache_dir / f"{self.hash_func(item_transformed).decode()}{self.transform_hash}.pt"
        if not file.is_file():
            made = self._pre_transform(deepcopy(item_transformed))  # type: ignore[no-untyped-call]
            with replace_when_whole(file, sync=True) as part:
                torch.save(convert_to_tensor(made, convert_numeric=False, track_meta=self.track_meta), part)
        try:
            with torch.serialization.safe_globals(_IN_METADATA):
                return torch.load(file, weights_only=True)
        except Exception as error:  # a damaged pickle or zip fails in any way
            raise InputRefusedError(
                f"{file.parent.name}/{file.name} is damaged, or holds more than arrays, numbers and text "
                f"({' '.join(str(error).split())[:200]}); remove the folder {file.parent.name}, which is made again"
            ) from error


def _changed(value: object) -> tuple[int, int]:
    """Newest change and size in bytes of the file or of all files of the folder that a value names; zeros if it names none."""
    path = Path(value) if isinstance(value, str) and value else None
    if path is None or not path.exists():
        return 0, 0
    files = [file.stat() for file in path.rglob("*")] if path.is_dir() else [path.stat()]
    return max((file.st_mtime_ns for file in files), default=0), sum(file.st_size for file in files)
