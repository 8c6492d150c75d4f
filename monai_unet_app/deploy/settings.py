"""The settings of a packaged application: `segmentation:` in its app.yaml, and "settings" of a mercure task."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from dicom_io.kinds.encodings import SEG_ENCODINGS
from dicom_io.read import ReadOptions
from monai_unet_app.config import OutputConfig, PredictConfig, ResultSettings
from monai_unet_app.data.selection import compiled
from monai_unet_app.errors import UsageError

NUMBERS = ("time_point", "least_instances")


@dataclass(frozen=True)
class Settings:
    """How an application segments and what it writes: the flags of `monai-unet predict` by their names.

    Attributes:
        format: Some of `monai_unet_app.config.FORMATS`.
        tta, elsewhere: As in `ResultSettings`.
        probabilities: As in `OutputConfig`; so are cautious, explain, deliver_rejected, dicomize, seg_encoding.
        series: SeriesInstanceUID of the series to read where there are several.
        channels: SeriesInstanceUIDs of the series that are the channels of one case.
        time_point: As in `ReadOptions`; so are resample_gaps, resample_tilt, accept_incomplete.
        device: As in `monai_unet_app.config.resolve_device`.
        match: DICOM keyword -> pattern that its value must contain, as in a rule of a node; picks the series of a study.
        match_channels: Name of each further channel of the bundle -> patterns as of `match`: its series lies in the study and
            frame of reference of the picked one.
        least_instances: Series with fewer images are ignored.
    """

    format: tuple[str, ...] = ("seg", "sr")
    tta: bool = False
    elsewhere: bool = False
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
    match_channels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    least_instances: int = 1

    def __post_init__(self) -> None:
        if self.seg_encoding not in SEG_ENCODINGS:
            raise UsageError(f"seg_encoding {self.seg_encoding}: one of {', '.join(SEG_ENCODINGS)} is needed")
        has_time_point = self.time_point is not None
        if self.channels and (self.series or has_time_point or self.resample_gaps or self.resample_tilt):
            raise UsageError("channels names whole series; leave series, time_point and resample_... out")
        if self.match_channels and (self.channels or not self.match):
            raise UsageError(
                "match_channels picks series beside the one that match picks; give match, and leave channels out"
            )
        try:
            for patterns in (self.match, *self.match_channels.values()):
                compiled(patterns)
        except (ValueError, AttributeError) as error:
            raise UsageError(f"match, match_channels: {error}") from error
        _ = self.output_config  # unknown formats are refused now, not after the first case

    @property
    def run(self) -> PredictConfig:
        """How each case is read and predicted."""
        reading = ReadOptions(**self._named_as_in(ReadOptions), series_instance_uid=self.series)
        return PredictConfig(ResultSettings(tta=self.tta, elsewhere=self.elsewhere), reading)

    @property
    def output_config(self) -> OutputConfig:
        """What is written of each case."""
        return OutputConfig(formats=self.format, **self._named_as_in(OutputConfig))

    def _named_as_in(self, config: type[ReadOptions | OutputConfig]) -> dict[str, Any]:
        """The settings that have the same names as fields of `config`."""
        return {row.name: getattr(self, row.name) for row in fields(config) if hasattr(self, row.name)}

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that differ from the defaults, and the formats, in the form of an app.yaml."""
        usual = vars(Settings())
        return {
            name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for name, value in vars(self).items()
            if value != usual[name] or name == "format"
        }


def settings_of(*levels: tuple[str, Any]) -> Settings:
    """The settings of several levels, each with its place for messages and its values; a later level overrides an earlier one.

    Raises:
        UsageError: A name that is no setting, or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    for where, level in levels:
        values |= _checked(level, where)
    return Settings(**values)


def _checked(level: Any, where: str) -> dict[str, Any]:
    if not isinstance(level, Mapping):
        raise UsageError(f"{where}: {level!r} is not a mapping of settings; names with values are needed")
    defaults = vars(Settings())
    unknown = [str(name) for name in level if name not in defaults]
    if unknown:
        raise UsageError(f"{where}: {', '.join(unknown)} is not a setting; some of {', '.join(defaults)} are possible")
    return {name: _checked_value(name, value, defaults[name], where) for name, value in level.items()}


def _checked_value(name: str, value: Any, default: Any, where: str) -> Any:
    """The value, with a list of words as a tuple. Raises UsageError for a value of another type than the setting's."""
    if isinstance(default, tuple):
        words = value.split(",") if isinstance(value, str) else value
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return tuple(word.strip() for word in words if word.strip())
        raise UsageError(f"{where}: {name} is {value!r}; a list of words is needed")
    if isinstance(default, dict):
        if isinstance(value, Mapping):
            return dict(value)
        raise UsageError(f"{where}: {name} is {value!r}; DICOM keywords with patterns are needed")
    kind: type = bool if isinstance(default, bool) else int if name in NUMBERS else str
    # Not isinstance: in Python a bool is an int, and `true` is no number of images.
    if (value is None and default is None) or type(value) is kind:
        return value
    needed = {bool: "true or false", int: "a whole number", str: "a word"}[kind]
    raise UsageError(f"{where}: {name} is {value!r}; {needed} is needed")


def template(name: str) -> str:
    """A file of `templates/`."""
    return (files("monai_unet_app.deploy") / "templates" / name).read_text(encoding="utf-8")


def common_manifest() -> dict[str, Any]:
    """The parts of app.json that are the same in all packages."""
    return dict(json.loads(template("app.json")))


def image_paths() -> dict[str, str]:
    """Environment variable -> absolute path in an image."""
    manifest = common_manifest()
    return {name: str(Path(manifest["workingDirectory"], path)) for name, path in manifest["environment"].items()}
