"""A writer refuses a source whose headers hold what cannot be repeated, instead of ending with whatever a library raises.

Other programs write the headers of a source: with text where a number belongs, a sequence that ends too early, an unknown VR.
Optional attributes that cannot be read are left out of a result. Any other fault raises an error here, and ends its own case
only.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from dicom_io.errors import DicomIoError, LabelError
from dicom_io.reading.instances import READ_ERRORS, load_dataset
from dicom_io.volume import Volume

P = ParamSpec("P")
R = TypeVar("R")
_NAMED = 5


def refusing_odd_headers(write: Callable[P, R]) -> Callable[P, R]:
    """The writer, which raises LabelError where it would have raised what pydicom, highdicom or numpy raise on broken values.

    The message names attributes and never a value: that may be a patient's name. Errors of the disk and of a wrong call stay
    what they are.
    """

    @wraps(write)
    def refusing(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return write(*args, **kwargs)
        except DicomIoError:
            raise
        except READ_ERRORS as error:
            # A traceback of one frame: the arguments do not fit, and nothing in the writer ran. An OSError with errno
            # comes from the operating system, not from a header.
            called_wrongly = error.__traceback__ is not None and error.__traceback__.tb_next is None
            if called_wrongly or (isinstance(error, OSError) and error.errno is not None):
                raise
            odd = list(dict.fromkeys(_odd_keywords([*args, *kwargs.values()])))
            named = ", ".join(odd[:_NAMED]) + (" ..." if len(odd) > _NAMED else "") if odd else "an attribute"
            raise LabelError(
                f"a header of the source has a value that a result cannot repeat ({named}: {type(error).__name__}); values "
                "as the standard has them are needed; repair the source, or leave this kind of result out"
            ) from error

    return refusing


def _odd_keywords(arguments: Iterable[object]) -> Iterator[str]:
    """Attributes that cannot be read, or are no numbers where numbers belong, of the first image of each volume."""
    for argument in arguments:
        if isinstance(argument, Volume):
            for header in argument.provenance.headers[:1]:
                yield from _odd_of(header)
            for file in argument.provenance.files[:1]:
                with suppress(DicomIoError):
                    yield from _odd_of(load_dataset(Path(file)))


def _odd_of(header: Dataset) -> Iterator[str]:
    for tag in header.keys():  # noqa: SIM118 - to take the elements would convert them
        try:
            element = header[tag]
            if element.VR in ("DS", "IS") and element.value not in (None, ""):
                [float(str(value)) for value in (element.value if element.VM > 1 else [element.value])]
        except READ_ERRORS:
            yield keyword_for_tag(tag) or str(tag)
