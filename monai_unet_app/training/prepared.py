"""Cases on which the deterministic work is done once and kept on disk, so that memory does not grow with their number."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from monai.data import PersistentDataset
from monai.transforms import Compose
from monai.utils import convert_to_tensor

from dicom_io.files import replace_when_whole


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
        # The metadata of a MetaTensor holds numpy arrays, which torch.load refuses as unsafe; MONAI would then make the case
        # anew for each draw. These files are our own.
        super().__init__(rows, whole, cache_dir, track_meta=True, weights_only=False)

    def _cachecheck(self, item_transformed: Any) -> Any:
        # MONAI moves a file from the system's folder for temporary files. Where that is another file system, the file grows
        # under its final name, and another process would read half of it.
        assert self.cache_dir is not None
        file = self.cache_dir / f"{self.hash_func(item_transformed).decode()}{self.transform_hash}.pt"
        if not file.is_file():
            made = self._pre_transform(deepcopy(item_transformed))  # type: ignore[no-untyped-call]
            with replace_when_whole(file, sync=True) as part:
                torch.save(convert_to_tensor(made, convert_numeric=False, track_meta=self.track_meta), part)
        return torch.load(file, weights_only=self.weights_only)


def _changed(value: object) -> tuple[int, int]:
    """Newest change and size in bytes of the file or of all files of the folder that a value names; zeros if it names none."""
    path = Path(value) if isinstance(value, str) and value else None
    if path is None or not path.exists():
        return 0, 0
    files = [file.stat() for file in path.rglob("*")] if path.is_dir() else [path.stat()]
    return max((file.st_mtime_ns for file in files), default=0), sum(file.st_size for file in files)
