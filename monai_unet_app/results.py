"""A segmented case to files: NIfTI, NRRD, MetaImage, DICOM objects, a picture, and always `result.json`.

Writing is a step of its own that can be repeated without a second inference. All files of a case are written into a temporary
folder inside the output and moved when they are whole, `result.json` last. So if `result.json` exists, all files that it names
exist too and are of the same run.
"""

import tempfile
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.openers import ImageOpener
from numpy.typing import NDArray
from PIL import Image

from dicom_io.itk_files import write_itk
from dicom_io.kinds import RESULT_KINDS
from dicom_io.objects import drawing
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.confidence.statements import Confidence, read_confidence
from monai_unet_app.config import OutputConfig, ResultSettings
from monai_unet_app.data.case_files import case_id
from monai_unet_app.data.nifti import nifti_image, write_nifti
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import write_json
from monai_unet_app.dicom_results import CaseOutput, write_dicom
from monai_unet_app.errors import UsageError, refusing_as
from monai_unet_app.gathering import decided
from monai_unet_app.pipeline import Case, assessed
from monai_unet_app.result_files import publish, result_document

if TYPE_CHECKING:
    import torch

    from monai_unet_app.inference.predict import Progress

_LEAST_SIDE, _GAP = 512, 16  # pixels: of a picture's longer side, and between it and its outlines
_SLICES = 32  # that are turned from our order to that of a NIfTI file at once


def formats_for(kinds: Sequence[str], *, planar: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The DICOM formats for the kinds of objects that a destination takes, and the formats that are left out.

    A format that pictures cannot have is left out, because the profile of a destination is for any image. `write_dicom` refuses
    such a format if a user names it.

    Args:
        kinds: The kinds of objects that the destination takes.
        planar: Whether results are of pictures.

    Raises:
        UsageError: The destination takes no kind of object that this program writes.
    """
    possible = [kind for kind in RESULT_KINDS if not (planar and kind.needs_patient_space)]
    formats = tuple(kind.format for kind in possible if kind.name in kinds)
    if not formats:
        raise UsageError(
            f"the destination takes {', '.join(kinds)}; one of {', '.join(kind.format for kind in possible)} is needed in its "
            "profile"
        )
    return formats, tuple(kind.format for kind in RESULT_KINDS if kind.name in kinds and kind.format not in formats)


def write_results(
    case: Case,
    case_id: str,
    config: OutputConfig,
    folder: Path,
    progress: "Progress | None" = None,
    request: str | None = None,
) -> dict[str, Any]:
    """Writes a case's files into a folder and gives the content of its `result.json`.

    For a result that the bundle's quality gate rejects, only `result.json` is written, with the reasons, unless
    `config.deliver_rejected` is set.

    Args:
        case: The segmented case.
        case_id: The beginning of its files' names.
        config: The files to write, and the DICOM series that they refer to.
        folder: Gets the files; created where it is absent.
        progress: Called with (windows done, number of windows) of an explanation, which runs the network again.
        request: Digest of everything that the result follows from, by which `--resume` knows it.

    Raises:
        UsageError: A DICOM format is requested, the input is no DICOM, and no DICOM series is named.
        InputRefusedError: The named series is at another place than the image, or an object cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The report that this one is about to replace is its predecessor, unless another is named
    config = replace(config, earlier_sr=config.earlier_sr or folder / f"{case_id}_sr.dcm")
    # Inside the output, so that files are moved within one file system, which is a rename
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        output = CaseOutput(case, case_id, config, Path(partial))
        files = {}
        if config.deliver_rejected or not is_rejected(case):
            files = _write_files(output) | _write_explanation(output, progress)
        document = _document(output, files) | ({"request_sha256": request} if request else {})
        write_json(document, output.file("result.json"), "result")
        publish(output.folder, folder, case_id)
    return document


def is_rejected(case: Case) -> bool:
    """Whether the bundle's quality gate rejects the result."""
    return case.assessment is not None and case.assessment.verdict == "reject"


def _document(output: CaseOutput, files: Mapping[str, str]) -> dict[str, Any]:
    """The content of `result.json`."""
    case, bundle = output.case, output.case.bundle
    made = {
        "bundle": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256, **_export_named(case)},
        "settings": case.settings.document(),
        "seconds": dict(case.seconds),
    }
    return result_document(output.case_id, made, case.segmentation, case.assessment, files, bundle.thresholds)


def _export_named(case: Case) -> dict[str, str]:
    from monai_unet_app.inference.engines.certificate import export_named

    sha256 = export_named(case.bundle, case.settings.engine, case.settings.precision)
    return {} if sha256 is None else {"export_sha256": sha256}


def _write_files(output: CaseOutput) -> dict[str, str]:
    """Writes all files but the explanation and gives their names by format."""
    segmentation, config = output.case.segmentation, output.config
    image, labels = segmentation.image, segmentation.label_volume.array
    files: dict[str, Path] = {}
    if "nifti" in config.formats:
        files["nifti"] = write_nifti(labels, image, output.file("seg.nii.gz"))
    for ending in ("nrrd", "mha"):
        if ending in config.formats:
            files[ending] = output.file(f"seg.{ending}")
            with refusing_as(files[ending].name):
                write_itk(labels, image, files[ending])
    if config.probabilities:
        kept = segmentation.probabilities
        assert kept is not None
        files["probabilities"] = write_channels(kept, len(kept), image, output.file("prob.nii.gz"))
    if config.uncertainty:
        files["uncertainty"] = write_nifti(segmentation.uncertainty, image, output.file("uncertainty.nii.gz"))
    if config.cautious:
        files["cautious"] = write_channels(
            _cautious(output.case), len(segmentation.segments), image, output.file("cautious.nii.gz")
        )
    if "png" in config.formats:
        files["png"] = write_overlay(segmentation, output.case_id, output.file("overlay.png"))
        if image.planar:
            files["mask"] = write_mask_png(segmentation, output.file("seg.png"))
    dicom = write_dicom(output) if config.wants_dicom else {}
    return {kind: path.name for kind, path in files.items()} | dicom


def _write_explanation(output: CaseOutput, progress: "Progress | None") -> dict[str, str]:
    if output.config.explain is None:
        return {}
    from monai_unet_app.explain import explain_case, explanation_png

    case = output.case
    explanation = explain_case(case, progress)
    picture = output.file("why.png")
    picture.write_bytes(explanation_png(case.segmentation, output.case_id, explanation))
    count = len(explanation.maps)
    maps = write_channels(
        (explanation.on_grid(n, case.image.shape) for n in range(count)), count, case.image, output.file("why.nii.gz")
    )
    return {"why": picture.name, "why_map": maps.name}


def _cautious(case: Case) -> Iterator[NDArray[np.uint8]]:
    """Shape (I, J, K) each, 0 or 1: each structure at the threshold at which the bundle states that little of it is missed."""
    if case.cautious is not None:
        return (mask.view(np.uint8) for mask in case.cautious)
    stated = case.assessment.confidence if case.assessment else Confidence()
    pairs = zip(case.segmentation.segment_probabilities, stated.cautious_cuts(case.bundle.segments), strict=True)
    return ((p >= cut).view(np.uint8) for p, cut in pairs)


def write_channels(channels: Iterable[NDArray[Any]], count: int, volume: Volume, path: Path) -> Path:
    """As `write_nifti` of (I, J, K, C), from arrays (I, J, K), `count` of them, of which one at a time is in memory."""
    with ImageOpener(str(path), "wb") as file:
        # The last axis of a NIfTI file is the slowest: the channels follow each other
        for number, channel in enumerate(channels):
            if number == 0:
                image = nifti_image(np.broadcast_to(channel[..., None], (*channel.shape, count)), volume)
                image.update_header()
                image.header.set_slope_inter(1, 0)
                image.header.write_to(file)
            for start in range(0, channel.shape[2], _SLICES):
                file.write(channel[..., start : start + _SLICES].tobytes(order="F"))
    return path


def write_overlay(segmentation: Segmentation, case_id: str, path: Path) -> Path:
    """The image with the structures outlined in their colours: planes of a volume, or a picture without and with outlines."""
    if segmentation.image.planar:
        Image.fromarray(_outlined_picture(segmentation)).save(path, format="png", compress_level=1)
        return path
    from monai_unet_app.report.case_pictures import case_figure, png
    from monai_unet_app.report.evaluation_report import CasePicture

    image, labels, segments = segmentation.image, segmentation.drawn, segmentation.segments
    picture = CasePicture.of(case_id, "best", image, np.zeros_like(labels), labels)
    names, colours = [segment.label for segment in segments], [segment.colour for segment in segments]
    path.write_bytes(png(case_figure(picture, names, colours, legend=True), compress_level=1))
    return path


def _outlined_picture(segmentation: Segmentation) -> drawing.Pixels:
    """Shape (rows, columns, 3): a picture, and beside it the same with outlines of a pixel; a legend below."""
    image, segments = segmentation.image, segmentation.segments
    values = np.moveaxis(image.array.reshape(*image.shape[:2], -1), 0, 1)
    shown = drawing.grey_or_colour(values / 255.0 if values.shape[-1] == 3 else values)
    pixels = np.rint(255.0 * np.broadcast_to(shown.reshape(*shown.shape[:2], -1), (*shown.shape[:2], 3))).astype(
        np.uint8
    )
    across, down = image.axis_spacing[:2]
    plain = drawing.smooth(pixels, drawing.picture_size(pixels.shape[1::-1], (across, down), _LEAST_SIDE))
    labels = image.without_flat_axis(segmentation.drawn)
    masks = labels if labels.dtype == np.bool_ else labels == np.arange(1, len(segments) + 1)[:, None, None]
    named = [(segment.label, segment.rgb, mask.T) for segment, mask in zip(segments, masks, strict=True)]
    outlined, legend = drawing.with_masks(plain.astype(np.float64), named, 0.0, outline=1 / 1024)
    both = np.concatenate([plain, np.zeros((len(plain), _GAP, 3), np.uint8), outlined], axis=1)
    return drawing.framed(both, None, [], legend).pixels


def write_mask_png(segmentation: Segmentation, path: Path) -> Path:
    """The labels of a picture as a grey PNG that `read_labels` can read: white for a single structure, else class numbers.

    Objects are numbered, in 16 bits. Overlapping structures are drawn side by side, in the order of their numbers.
    """
    maps = segmentation.maps
    numbers = len(maps[0].structures) > 1 or segmentation.objects is not None
    planes = [held.labels if numbers else held.labels > 0 for held in maps]
    plane = np.concatenate([segmentation.image.without_flat_axis(labels) for labels in planes], axis=0)
    # I runs along the width; Pillow takes (row, column)
    kind = np.uint8 if segmentation.objects is None else np.uint16
    Image.fromarray((plane.T * (1 if numbers else 255)).astype(kind)).save(path)
    return path


class SaveDicomd:
    """A transform of `inference_dicom.yaml`: writes "pred" as DICOM onto the series that "image" was read from.

    Args:
        keys: "pred", on the source grid; "prob" must be beside it and "image" must come from `VolumeReader`.
        bundle_root: The bundle that predicted.
        output_dir: Gets the files, as from `monai-unet predict`.
        formats: Some of `config.FORMATS`.
        device: The device of the network; a setting of the result.
    """

    def __init__(
        self,
        keys: str,
        bundle_root: str,
        output_dir: str,
        formats: tuple[str, ...] | list[str] = ("seg", "sr"),
        device: "torch.device | str" = "cpu",
    ) -> None:
        import torch

        self.key = keys
        self.bundle = load_bundle(bundle_root, torch.device(device))
        self.output = Path(output_dir)
        self.config = OutputConfig(tuple(formats))

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        source = Path(data["image"].meta["filename_or_obj"])
        volume = read_volume(source)
        decision, probabilities = (np.asarray(data[key].detach().cpu(), dtype=np.float32) for key in (self.key, "prob"))
        segmentation = decided(volume, probabilities, decision, self.bundle)
        # As on the command line, but without the shift detector, which needs the features of the running network
        case = assessed(Case(segmentation, self.bundle), read_confidence(self.bundle, ResultSettings()))
        write_results(case, str(data.get("id", case_id(source))), self.config, self.output)
        return data
