"""How a fitted statement is written into `configs/confidence.json` and read from it: field by field, in their order."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from itertools import repeat
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

import numpy as np


class JsonDocument:
    """Base of frozen dataclasses that JSON can hold.

    Their fields are numbers, texts, arrays, tuples, mappings, other documents, or None. A field that is None is left out.
    Numbers of arrays have six significant digits.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        """The fields by name, as `from_document` reads them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _to_json(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The statement in a `document`. Raises KeyError, TypeError or ValueError for anything else."""
        types = get_type_hints(cls)
        # An absent optional field gets its default; an absent required field raises KeyError below.
        names = [field.name for field in fields(cls) if field.name in document or _is_required(field)]
        return cls(**{name: _from_json(types[name], document[name]) for name in names})


def _is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _to_json(value: Any) -> Any:
    match value:
        case JsonDocument():
            return value.document()
        case Mapping():
            return {str(key): _to_json(entry) for key, entry in value.items()}
        case tuple():
            return [_to_json(entry) for entry in value]
        case np.ndarray():
            return np.vectorize(lambda number: float(f"{number:.6g}"), otypes=[float])(value).tolist()
    return value


def _from_json(kind: Any, value: Any) -> Any:
    """The value as an annotation of the dataclass, such as `Mapping[int, tuple[float, ...]]`, says."""
    origin, parts = get_origin(kind), get_args(kind)
    if type(None) in parts:
        return None if value is None else _from_json(parts[0], value)
    if origin is tuple:
        kinds = repeat(parts[0], len(value)) if parts[-1] is Ellipsis else parts
        return tuple(_from_json(part, entry) for part, entry in zip(kinds, value, strict=True))
    if origin is np.ndarray:
        return np.array(value, dtype=np.float64)
    if origin is not None:
        # JSON has texts as keys only; numbers of structures become whole numbers again.
        return {parts[0](key): _from_json(parts[1], entry) for key, entry in value.items()}
    return kind.from_document(value) if issubclass(kind, JsonDocument) else kind(value)
