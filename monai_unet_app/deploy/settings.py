"""What a site may choose of a packaged application: `segmentation:` in its app.yaml, "settings" of a mercure task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, cast

from dicom_io.kinds.encodings import SEG_ENCODINGS, SegEncoding
from dicom_io.read import ReadOptions
from monai_unet_app.config import OutputConfig, PredictConfig
from monai_unet_app.data.selection import compiled
from monai_unet_app.errors import UsageError

NUMBERS = ("time_point", "least_instances")


@dataclass(frozen=True)
class Settings:
    """How an application segments, and what it writes: the flags of `monai-unet predict`, by their names.

    Attributes:
        format: Some of `monai_unet_app.results.FORMATS`.
        tta: As in `PredictConfig`.
        probabilities: As in `OutputConfig`; so are cautious, explain, deliver_rejected, dicomize, seg_encoding.
        series: SeriesInstanceUID of the series to read where there are several.
        channels: SeriesInstanceUIDs of the series that are the channels of one case.
        time_point: As in `ReadOptions`; so are resample_gaps, resample_tilt, accept_incomplete.
        device: As in `monai_unet_app.config.resolve_device`.
        match: DICOM keyword -> pattern that its value must contain, as in a rule of a node; which series of a study are meant.
        least_instances: Series of fewer images are passed by.
    """

    format: tuple[str, ...] = ("seg", "sr")
    tta: bool = False
    probabilities: bool = False
    cautious: bool = False
    explain: str | None = None
    deliver_rejected: bool = False
    dicomize: bool = False
    seg_encoding: str = "binary"
    series: str | None = None
    channels: tuple[str, ...] = ()
    time_point: int | None = None
    resample_gaps: bool = False
    resample_tilt: bool = False
    accept_incomplete: bool = False
    device: str = "auto"
    match: Mapping[str, str] = field(default_factory=dict)
    least_instances: int = 1

    def __post_init__(self) -> None:
        if self.seg_encoding not in SEG_ENCODINGS:
            raise UsageError(f"seg_encoding {self.seg_encoding}: one of {', '.join(SEG_ENCODINGS)} is needed")
        if self.channels and (self.series or self.time_point or self.resample_gaps or self.resample_tilt):
            raise UsageError("channels names whole series; leave series, time_point and resample_... out")
        try:
            compiled(self.match)
        except ValueError as error:
            raise UsageError(str(error)) from error
        _ = self.what  # unknown formats are refused now, not after the first case

    @property
    def run(self) -> PredictConfig:
        """How each case is read and predicted."""
        reading = ReadOptions(
            self.series,
            self.time_point,
            self.resample_gaps,
            self.resample_tilt,
            self.channels,
            self.accept_incomplete,
        )
        return PredictConfig(self.tta, reading)

    @property
    def what(self) -> OutputConfig:
        """What is written of each case."""
        return OutputConfig(
            formats=self.format,
            probabilities=self.probabilities,
            cautious=self.cautious,
            explain=cast(Any, self.explain),
            deliver_rejected=self.deliver_rejected,
            dicomize=self.dicomize,
            seg_encoding=cast(SegEncoding, self.seg_encoding),
        )

    @property
    def chosen(self) -> dict[str, Any]:
        """What differs from the defaults, and the formats, as it stands in an app.yaml."""
        values = {one.name: (getattr(self, one.name), _usual(one)) for one in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for name, (value, usual) in values.items()
            if value != usual or name == "format"
        }


def settings_of(*levels: tuple[str, Any]) -> Settings:
    """The settings of several levels, each a place to name in messages and what stands there; a later one goes first.

    Raises:
        UsageError: A name that is no setting, or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    for where, found in levels:
        values |= _checked(found, where)
    return Settings(**values)


def _checked(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise UsageError(f"{where}: {found!r} is no mapping of settings; names with values are needed")
    usual = {one.name: _usual(one) for one in fields(Settings)}
    unknown = [str(name) for name in found if name not in usual]
    if unknown:
        raise UsageError(f"{where}: {', '.join(unknown)} is no setting; some of {', '.join(usual)} are possible")
    return {name: _fitting(name, value, usual[name], where) for name, value in found.items()}


def _usual(one: Field[Any]) -> Any:
    """The value of a setting where nobody says otherwise."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def _fitting(name: str, value: Any, usual: Any, where: str) -> Any:
    """The value, lists of words as tuples. Raises UsageError if it is of another kind than the setting."""
    if isinstance(usual, tuple):
        words = value.split(",") if isinstance(value, str) else value
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return tuple(word.strip() for word in words if word.strip())
        raise UsageError(f"{where}: {name} is {value!r}; a list of words is needed")
    if isinstance(usual, dict):
        if isinstance(value, Mapping):
            return dict(value)
        raise UsageError(f"{where}: {name} is {value!r}; DICOM keywords with patterns are needed")
    if isinstance(usual, bool):
        kind: type = bool
    else:
        kind = int if name in NUMBERS else str
    if (value is None and usual is None) or (isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
        return value
    needed = {bool: "true or false", int: "a whole number", str: "a word"}[kind]
    raise UsageError(f"{where}: {name} is {value!r}; {needed} is needed")
