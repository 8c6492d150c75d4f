"""A program of somebody else in the place of a network.

A bundle of `kind: external` says how it is started, within which limits, and what its label files are worth.
`docs/how-to/any-model.md` shows one.
"""

import os
import string
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from dicom_io.volume import Volume
from monai_unet_app.bundle_folder import EXTERNAL, bundle_root, kind_of
from monai_unet_app.confidence.json_document import JsonDocument
from monai_unet_app.confidence.results_bundle import COMMAND, ResultsBundle
from monai_unet_app.data.nifti import write_nifti
from monai_unet_app.data.nnunet_folder import smallest
from monai_unet_app.data.read import VOLUME_ENDINGS, has_ending
from monai_unet_app.data.schemas import json_of, validate, write_json
from monai_unet_app.errors import AppError, InputRefusedError, UsageError
from monai_unet_app.label_results import LabelRequest, Maker

if TYPE_CHECKING:
    from monai_unet_app.supervisor import Ended

_VERSION_S, _VERSION_GB = 120.0, 1.0
_SAID_CHARACTERS = 400  # of what a program printed, in a message of the command line


@dataclass(frozen=True)
class Command(JsonDocument):
    """How a program is started; nothing of it goes through a shell.

    Attributes:
        words: The program and its arguments; {image} stands for the NIfTI file that it reads, {output} for what it writes.
        version_words: Prints the version.
        output: Name of the label map that it writes: NIfTI, NRRD or MetaImage.
        seconds: It may take for one image.
        memory_gb: It may take, with the process that calls it.
        disk_gb: It may write.
    """

    words: tuple[str, ...]
    version_words: tuple[str, ...]
    output: str = "labels.nii.gz"
    seconds: float = 600.0
    memory_gb: float = 8.0
    disk_gb: float = 4.0

    def __post_init__(self) -> None:
        named = {name for word in self.words for _, name, _, _ in string.Formatter().parse(word) if name is not None}
        if not self.version_words or named != {"image", "output"}:
            raise UsageError(
                f"the command {' '.join(self.words)!r} names {', '.join(sorted(named)) or 'nothing'} in braces; {{image}} and "
                "{output}, and a command that prints the version, are needed; correct it"
            )
        if Path(self.output).name != self.output or not has_ending(Path(self.output), VOLUME_ENDINGS):
            raise UsageError(
                f"output is {self.output!r}; the name of a label map in NIfTI, NRRD or MetaImage is needed; correct it"
            )

    def told(self, image: Path, output: Path) -> list[str]:
        """The words for one image."""
        return [word.format(image=image, output=output) for word in self.words]


class ExternalBundle(ResultsBundle):
    """Its files."""

    @cached_property
    def command(self) -> Command:
        """How the program is started. Raises BundleError if the file is damaged."""
        with self._needed():
            document = json_of(self.root / COMMAND)
            validate(document, "external")
            return Command.from_document(document)


def external_bundle(name: str | Path) -> ExternalBundle | None:
    """The bundle that a name or a folder stands for, if it names a program; None for others.

    Raises:
        UsageError: It is in a zip: a file that comes from somewhere must not say what is started here.
        UsageError, BundleError: As `bundle_files`.
    """
    root = bundle_root(str(name))
    if kind_of(root) != EXTERNAL:
        return None
    if Path(name).is_file():
        raise UsageError(
            f"{name} starts a program, and comes in a zip; such a bundle is only taken as a folder; unpack it and read its "
            f"{COMMAND}"
        )
    return ExternalBundle(root)


def write_external(model: ResultsBundle, command: Command, root: Path) -> None:
    """Makes `root`, a copy of the folder of `model`, a bundle of `kind: external`."""
    metadata = {**model.metadata, "kind": EXTERNAL, "task": f"results of {model.program}, with what they are worth"}
    write_json(metadata, root / "configs/metadata.json")
    write_json({"schema_version": "1.0", **command.document()}, root / COMMAND, "external")


@dataclass(frozen=True)
class Surroundings:
    """Where a program runs.

    Attributes:
        path: Folders in which programs are looked for, separated by colons.
        home: Its home folder: where it finds its weights.
        threads: It is told to use.
        environment: Further variables.
        memory_bytes: It may take with its caller, whatever the bundle says.
        isolated: It does not start where it could reach a network.
    """

    path: str = os.defpath
    home: str = "/nonexistent"
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: float = float("inf")
    isolated: bool = False

    def variables(self, folder: Path) -> dict[str, str]:
        """All environment variables of a program that runs in a folder."""
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        usual = {"PATH": self.path, "HOME": self.home, "TMPDIR": str(folder), "LANG": "C.UTF-8"}
        return usual | dict.fromkeys(names, str(self.threads)) | dict(self.environment)


def check_version(bundle: ExternalBundle, where: Surroundings, folder: Path) -> None:
    """Runs the version command.

    Args:
        bundle: Names the version that it was fitted to.
        where: Where the program runs.
        folder: Gets a temporary folder.

    Raises:
        AppError: The program is not there, or is of another version.
    """
    command, program = bundle.command, bundle.program
    with _places(folder) as (place, _):
        ended, said = _run(command.version_words, where, place, _VERSION_S, command.memory_gb, _VERSION_GB)
    words = said.replace(",", " ").replace("(", " ").replace(")", " ").split()
    if ended.how != "done" or ended.code != 0 or not {program.version, f"v{program.version}"} & set(words):
        found = _why(ended) if ended.how != "done" or ended.code else f"it printed {said[:_SAID_CHARACTERS].strip()!r}"
        raise AppError(
            f"{bundle.name} is about {program}, and {' '.join(command.version_words)} does not tell that version ({found}); "
            "what was fitted to it holds for no other; install that version, or fit and name the new one"
        )


@contextmanager
def labels_of(image: Volume, bundle: ExternalBundle, where: Surroundings, folder: Path) -> Iterator[LabelRequest]:
    """Runs the program on an image. Inside, the label map that it has written is there, as a request to write it.

    Args:
        image: One channel.
        bundle: Names the program.
        where: Where it runs.
        folder: Gets a temporary folder, and what the request writes, if nothing else is said.

    Raises:
        InputRefusedError: It broke a limit, failed, or wrote nothing that can be taken.
        AppError: It is not there, or may not start here.
    """
    if image.array.ndim != 3 or image.planar:
        raise InputRefusedError(f"{bundle.program} gets one volume of one channel; the image has another form")
    command = bundle.command
    with _places(folder) as (place, given):
        # 16 bits, as most scanners store: they are compressed in a fraction of the time
        source, output = write_nifti(smallest(image.array), image, given / "image.nii.gz"), place / command.output
        ended, _ = _run(command.told(source, output), where, place, command.seconds, command.memory_gb, command.disk_gb)
        if ended.how == "absent":
            raise AppError(
                f"{command.words[0]} is not there or cannot be started; {bundle.program} is needed; install it"
            )
        if ended.how != "done" or ended.code:
            raise InputRefusedError(f"{bundle.program} gave no result: {_why(ended)}; nothing of it was used")
        _check_output(output, bundle)
        maker, seconds = Maker(bundle.program.name, bundle.program.version), {"program": ended.seconds}
        yield LabelRequest(output, image, folder, maker, statements=bundle, seconds=seconds)


@contextmanager
def _places(folder: Path) -> Iterator[tuple[Path, Path]]:
    """An empty folder in which a program runs, and one for what it is given; both are gone afterwards."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".external-") as both:
        run, given = Path(both) / "run", Path(both) / "given"
        run.mkdir()
        given.mkdir()
        yield run, given


def _run(
    words: Sequence[str], where: Surroundings, place: Path, seconds: float, memory_gb: float, disk_gb: float
) -> tuple["Ended", str]:
    """How the program ended, and what it printed."""
    if sys.platform != "linux":
        raise AppError(f"{words[0]} is not started: what watches and ends a program needs Linux; run this on Linux")
    from monai_unet_app.supervisor import NotIsolatedError, Order, supervise

    log, short = place.parent / "log", Path(tempfile.gettempdir()) / f"external-{token_hex(4)}"
    limits = seconds, min(memory_gb * 1e9, where.memory_bytes), disk_gb * 1e9
    order = Order(tuple(words), str(place), where.variables(short), str(log), *limits, isolated=where.isolated)
    try:
        short.symlink_to(place)  # programs make sockets in TMPDIR, whose names have at most 108 characters
        return supervise(order), log.read_text(encoding="utf-8", errors="replace")
    except NotIsolatedError as error:
        raise AppError(
            f"{words[0]} would run without a network of its own, since {error}; the rule asks for network = none; allow user "
            "namespaces on this machine, or write network = any"
        ) from error
    finally:
        short.unlink(missing_ok=True)


def _why(ended: "Ended") -> str:
    """In words; nothing that it printed, which may hold a patient's data."""
    return {
        "done": f"exit code {ended.code}",
        "absent": "the program is not there",
        "time": f"it was ended after {ended.seconds:.0f} s, its limit",
        "memory": f"it was ended at {ended.peak_memory_bytes / 1e9:.1f} GB of memory, beyond its limit",
        "disk": f"it was ended when it had written {ended.peak_disk_bytes / 1e9:.1f} GB, beyond its limit",
    }[ended.how]


def _check_output(output: Path, bundle: ExternalBundle) -> None:
    """Refuses what is no plain file: a link could lead to any file of this machine."""
    if not os.path.lexists(output):
        raise InputRefusedError(f"{bundle.program} has written no {output.name}; it is needed; nothing was used")
    if output.is_symlink() or not output.is_file():
        raise InputRefusedError(f"{output.name} of {bundle.program} is a link or no plain file; nothing was used")
