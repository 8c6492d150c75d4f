"""Parts that several verbs share: exit codes, objects made from flags, and checks before work starts."""

import re
import shlex
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_unet_app.cli import show
from monai_unet_app.cli.dataclass_parser import Options
from monai_unet_app.cli.flags import Calibrate, Cheaper, Data, Engine, Evaluate, Network, Predict, Reading
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.processes import load_monai

if TYPE_CHECKING:
    from dicom_io.read import ReadOptions
    from monai_unet_app.bundle import Bundle
    from monai_unet_app.bundle_folder import BundleFiles
    from monai_unet_app.config import ResultSettings
    from monai_unet_app.data.case_files import CaseFiles
    from monai_unet_app.planning.family import NetworkChoice

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED = 0, 1, 2, 3
Answer = tuple[dict[str, Any], int]
"""The result of a verb for --json, and its exit code."""


def loaded_bundle(
    bundle: Path | str, device: str | None = None, *, by_folds: bool = False, overrides: Mapping[str, Any] | None = None
) -> "Bundle":
    """The bundle with its network, checked. This takes seconds, so flags and paths are checked before.

    Args:
        bundle: A name, a folder or a zip.
        device: Where the network is to run; None checks the configs alone and builds no network.
        by_folds: As in `trained_bundle`.
        overrides: As in `load_bundle`.
    """
    load_monai()
    from monai_unet_app.bundle import load_bundle

    loaded = load_bundle(bundle, device, **(overrides or {}))
    if device:
        # built on first use: a bundle that cannot be built fails here
        _ = loaded.folds[0].network if by_folds and loaded.folds else loaded.network
    else:
        loaded.check_configs()
    return loaded


def trained_bundle(bundle: str, *, by_folds: bool = False) -> "BundleFiles":
    """The files of a bundle that has weights: an untrained one is refused before anything is read, and before torch is loaded.

    Args:
        bundle: A name, a folder or a zip.
        by_folds: The networks of folds are asked for; the bundle's own may be absent.

    Raises:
        UsageError, BundleError: As `bundle_files`.
        UntrainedError: There are no weights.
    """
    from monai_unet_app.bundle_folder import bundle_files

    files = bundle_files(bundle)
    if not (by_folds and (files.root / "folds").is_dir()):
        files.check_trained()
    return files


def cheaper(options: Cheaper, files: "BundleFiles") -> dict[str, Any]:
    """What --overlap and --fast replace in a bundle's inference.yaml. Raises UsageError if it names no coarser grid."""
    is_other = options.overlap not in (None, files.inference_document.get("inferer", {}).get("overlap"))
    replaced = {"inferer::overlap": options.overlap} if is_other else {}
    if not options.fast:
        return replaced
    coarse = files.inference_document.get("coarse_spacing_mm")
    if coarse is None:
        raise UsageError(
            f"--fast: {files.name} names no coarser grid; coarse_spacing_mm beside spacing_mm in its configs/inference.yaml is "
            "needed; write it there, and see with evaluate --fast what it costs, or leave --fast out"
        )
    return replaced | {"spacing_mm": coarse}


def put_certificate(bundle: "Bundle") -> None:
    """Puts the certificate into the card of the bundle, if the card has the marks of figures."""
    from monai_unet_app.report.card import put_certificate

    if written := put_certificate(bundle):
        show.wrote(written)


def check_bundle_folder(bundle: str, why: str) -> None:
    """Raises UsageError if a bundle that will be changed is not given as a folder."""
    if not Path(bundle).is_dir():
        raise UsageError(f"--bundle {bundle}: a folder is needed, {why}; copy it first")


def check_folds_alone(options: Calibrate | Evaluate) -> None:
    """Raises UsageError for --folds beside a flag that names other cases, or an engine that runs no fold."""
    named = [flag for flag in ("partition", "splits") if getattr(options, flag)]
    if options.folds and named:
        raise UsageError(
            f"--folds takes the cases that the folds have tested; leave --{' and --'.join(named)} out, or --folds"
        )
    if options.folds and options.engine != "torch":
        raise UsageError(
            f"--folds takes the networks of the folds, and the export for {options.engine} is of the bundle's own; leave "
            "--engine out, or --folds"
        )


def check_elsewhere(options: Evaluate) -> None:
    """Raises UsageError for --elsewhere beside --folds."""
    if options.folds and options.elsewhere:
        raise UsageError(
            "--elsewhere measures wider intervals, and with --folds no interval is measured, since the bundle's are fitted on "
            "the same cases; leave one of the two out"
        )


def check_writable(folder: Path) -> None:
    """Raises InputRefusedError if no file can be made in the folder, or in its nearest parent that exists."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        # A file is really made: the bits of a mode do not show a read-only mount or an access list.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputRefusedError(
            f"output {folder} cannot be written ({error.strerror}); a folder with write permission is needed; choose another"
        ) from error


def read_options(options: Reading) -> "ReadOptions":
    """Which series and time point to read, and what may be repaired, from the flags that several verbs share."""
    from dicom_io.read import ReadOptions

    channels = tuple(uid.strip() for uid in options.channels.split(",") if uid.strip())
    if channels and (options.series or options.time_point or options.resample_gaps or options.resample_tilt):
        raise UsageError("--channels names whole series; leave --series, --time-point and --resample-... out")
    renamed = {"series_instance_uid": options.series, "channels": channels}
    return ReadOptions(**set_fields(options, ReadOptions) | renamed)


def labelled_cases(options: Data) -> "list[CaseFiles]":
    """The labelled cases that --data, or --images and --labels, name. Raises UsageError without both."""
    from monai_unet_app.data.case_files import find_data

    return find_data(options.source, options.labels, options.label_suffix)


def say_plain_ids(cases: "Sequence[CaseFiles]") -> None:
    """Says which cases have another name in the series that is made of them, whose PatientID needs ASCII."""
    from dicom_io.dicomize import plain_case_id

    for case in cases:
        if (name := plain_case_id(case.id)) != case.id:
            show.say(
                f"{case.id}: the PatientID in its series is DEMO-{name}; 1 to 48 letters, digits and ' _-.' are possible"
            )


def with_engine(settings: "ResultSettings", bundle: "Bundle", options: Engine | Predict) -> "ResultSettings":
    """The settings with --engine and --precision; the engine is loaded, and what auto chose is said."""
    from monai_unet_app.inference.engines import chooser

    chosen, why = chooser.with_engine(replace(settings, precision=options.precision), bundle, options.engine)
    bundle.engine(chosen)  # refused before the first image is read
    if why:
        show.say(f"engine {chosen.engine}: {why}")
    return chosen


def set_fields(options: Options, settings: type[Any]) -> dict[str, Any]:
    """The flags that were given and have the name of a field of `settings`, a dataclass: name -> value."""
    values = {entry.name: getattr(options, entry.name, None) for entry in fields(settings)}
    return {name: value for name, value in values.items() if value not in (None, "")}


def network_of(options: Network) -> "NetworkChoice | None":
    """The network that --network and --network-value name; None if neither was given."""
    from monai_unet_app.planning.family import DEFAULT, NetworkChoice, checked_values, known

    if options.network is None and not options.network_value:
        return None
    choice = NetworkChoice(options.network or DEFAULT, dict(map(_named_value, options.network_value)))
    checked_values(known(choice.name), choice.values)
    return choice


def networks_listed() -> str:
    """The networks for --network, each with what --network-value sets; 80 columns wide."""
    from monai_unet_app.planning.family import known, names

    lines = ["networks, and what --network-value sets, the usual value first:"]
    for network in map(known, names()):
        lines += textwrap.wrap(f"{network.name}: {network.about}", 78, initial_indent="  ", subsequent_indent="    ")
        lines += textwrap.wrap(" ".join(network.value_texts()), 78, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _named_value(pair: str) -> tuple[str, str]:
    name, sign, value = pair.partition("=")
    if not sign:
        raise UsageError(f"--network-value {pair}: a name, = and a value are needed, such as norm=batch")
    return name.strip(), value.strip()


_CASES = ("data", "images", "labels", "label_suffix", "splits")


def next_command(verb: str, bundle: Path, options: object, more: Sequence[str] = (), *, by_folds: bool = False) -> str:
    """The command that comes next, with the flags that both verbs have and more, quoted for a shell.

    Args:
        verb: Of the command.
        bundle: Its --bundle.
        options: Flags of the verb that has run.
        more: Further words.
        by_folds: Add --folds, which takes the cases that the folds have tested, whatever --splits says.
    """
    words = ["monai-unet", verb, "--bundle", str(bundle)]
    # A planned bundle holds its splits, and a bundle with folds knows their cases
    names = () if verb == "predict" else _CASES[:-1] if by_folds or verb == "train" else _CASES
    for name in (*names, "device"):
        value = str(getattr(options, name, None) or "")
        flag = f"--{name.replace('_', '-')}"
        if value not in ("", "auto"):
            # A value that begins with a dash is taken for a flag, unless it is joined to its flag.
            words += [f"{flag}={value}"] if value.startswith("-") else [flag, value]
    if verb == "evaluate":
        words += ["--output", f"{bundle.resolve().name}_evaluation"]
    words += ["--folds"] if by_folds else []
    words += more
    return "next: " + shlex.join(words + (["--tta"] if getattr(options, "tta", False) else []))


def regions(pairs: list[str]) -> dict[str, tuple[int, ...]]:
    """Name -> label values, of VALUE+VALUE=NAME beside VALUE=NAME; empty where no structure has several values."""
    if not any("+" in pair.partition("=")[0] for pair in pairs):
        return {}
    found = {}
    for pair in pairs:
        values, _, name = pair.partition("=")
        named = [structures([f"{value}={name}"]) for value in values.split("+")]
        found[name.strip()] = tuple(value for one in named for value in one)
    return found


def structures(pairs: list[str], least: int = 1) -> dict[int, str]:
    """Label value -> name, of VALUE=NAME. Raises UsageError for values below `least`."""
    named = {}
    for pair in pairs:
        value, sign, name = pair.partition("=")
        if not (sign and name.strip() and re.fullmatch(r"[0-9]{1,9}", value) and int(value) >= least):
            number = "label value above 0" if least else "channel from 0 on"
            raise UsageError(f"--structure {pair}: a {number}, = and a name are needed, such as 1=liver")
        named[int(value)] = name.strip()
    return named
