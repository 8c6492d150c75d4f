"""Cases on which the deterministic work is done once and kept on disk, so that memory does not grow with their number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import PersistentDataset
from monai.transforms import Compose


class PreparedDataset(PersistentDataset):
    """MONAI's PersistentDataset, which also notices that a file was changed.

    The folder belongs to one list of transforms: `run/cache` of a run, whose recipe cannot change while it goes on.

    Args:
        data: A dict for each case, for instance {"image": path, "label": path}.
        transform: Deterministic transforms.
        cache_dir: Holds a file for each case, made when the case is first asked for.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Sequence[Any] | Compose, cache_dir: str) -> None:
        rows = [{**row, "changed": [_changed(value) for value in row.values()]} for row in data]
        whole = transform if isinstance(transform, Compose) else Compose(list(transform))
        super().__init__(rows, whole, cache_dir, track_meta=True)


def _changed(value: object) -> tuple[int, int]:
    """Newest change and size in bytes of the file or of all files of the folder that a value names; zeros if it names none."""
    path = Path(value) if isinstance(value, str) and value else None
    if path is None or not path.exists():
        return 0, 0
    files = [file.stat() for file in path.rglob("*")] if path.is_dir() else [path.stat()]
    return max((file.st_mtime_ns for file in files), default=0), sum(file.st_size for file in files)
