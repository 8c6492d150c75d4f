"""C-STORE as user: every file has its own outcome, and nothing counts as sent that was not acknowledged."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path
from typing import Any, get_args

import imagecodecs
import numpy as np
import pydicom
import pytest
from net_peers import (
    PATIENT,
    PLAIN,
    Archive,
    ct_series,
    destination,
    mute_listener,
    same_data_set,
)
from phantoms import save, write_picture
from ports import free_port
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.presentation import PresentationContext
from result_phantoms import RESULT, oblique_case

from dicom_io.errors import NetworkError, UnreadableFileError
from dicom_io.kinds import LABEL_MAP_STORAGE
from dicom_io.kinds.encodings import SEG_ENCODINGS, SegEncoding
from dicom_io.net import storage_user
from dicom_io.net.association import MOST_CONTEXTS
from dicom_io.net.destination import Profile
from dicom_io.net.exchange import send
from dicom_io.net.outcome import Outcome
from dicom_io.net.outgoing import prepare_files
from dicom_io.net.scp import Listen, Provider
from dicom_io.seg import write_seg
from dicom_io.sr import write_sr


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_user, "PAUSE_S", 0.01)


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return ct_series(tmp_path / "series", 4)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A converted MR series with SEG and SR by this repository's writers."""
    folder = tmp_path_factory.mktemp("case")
    case = oblique_case(folder)
    seg = write_seg(case.labels, case.volume, folder / "result.dcm", RESULT)
    report = write_sr(case.labels, case.volume, folder / "sr.dcm", RESULT, seg=seg)
    return {"SEG": seg, "SR": report, "": case.volume.provenance.files[0]}


def compressed(path: Path, syntax: str) -> Path:
    """The same image in RLE, which pydicom writes itself."""
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    return path


def states(outcomes: tuple[Outcome, ...]) -> list[str]:
    return [one.state for one in outcomes]


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_what_arrives_is_what_was_sent(series: list[Path]) -> None:
    with Archive().running() as archive:
        outcomes = send(destination(archive.port), series)
    assert states(outcomes) == ["sent"] * 4
    assert [one.status for one in outcomes] == [0] * 4
    assert archive.associations == 1
    assert len(archive.received) == 4
    for path, arrived in zip(series, archive.received, strict=True):
        assert same_data_set(path, arrived)
        assert arrived.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_seg_goes_before_sr_and_images_before_both(results: dict[str, Path]) -> None:
    with Archive().running() as archive:
        outcomes = send(destination(archive.port), [results["SR"], results["SEG"], results[""]])
    assert [one.kind for one in outcomes] == ["", "SEG", "SR"]
    assert [one.Modality for one in archive.received] == ["MR", "SEG", "SR"]


def test_kinds_that_the_destination_does_not_want_are_left_out(results: dict[str, Path]) -> None:
    with Archive().running() as archive:
        profile = Profile(objects=("SEG",))
        outcomes = send(destination(archive.port, profile=profile), list(results.values()))
    assert [(one.kind, one.state) for one in outcomes] == [("", "sent"), ("SEG", "sent"), ("SR", "left out")]
    assert outcomes[-1].meaning == "the destination takes SEG"
    assert [one.Modality for one in archive.received] == ["MR", "SEG"]


def test_a_report_is_held_back_where_its_segmentation_did_not_arrive(results: dict[str, Path]) -> None:
    seg = str(pydicom.dcmread(results["SEG"], stop_before_pixels=True).SOPInstanceUID)
    files = list(results.values())
    with Archive(status={seg: 0xA700}).running() as archive:
        outcomes = send(destination(archive.port), files)
        assert [(one.kind, one.state) for one in outcomes] == [("", "sent"), ("SEG", "refused"), ("SR", "held back")]
        assert outcomes[-1].meaning == "an object that it reports on did not arrive; send both again"
        archive.status.clear()
        assert states(send(destination(archive.port), files)) == ["sent", "sent", "sent"]
    assert [one.Modality for one in archive.received[-2:]] == ["SEG", "SR"]


@pytest.mark.parametrize("kind", ["SEG", ""])
def test_what_the_archive_has_already_does_not_hold_the_report_back(kind: str, results: dict[str, Path]) -> None:
    uid = str(pydicom.dcmread(results[kind], stop_before_pixels=True).SOPInstanceUID)
    with Archive(held=[results[kind]], status={uid: 0x0111}).running() as archive:
        outcomes = send(destination(archive.port), list(results.values()))
    assert {one.kind: one.state for one in outcomes} == {"": "sent", "SEG": "sent", "SR": "sent", kind: "already there"}
    (there,) = (one for one in outcomes if one.kind == kind)
    assert there.is_delivered
    assert there.meaning == "0x0111 (Duplicate SOP Instance): it has an instance with this UID, and it is this instance"


OTHERS = {
    "PatientID": ("PatientID", "SOMEBODY-ELSE"),
    "study": ("StudyInstanceUID", "1.2.3"),
    "series": ("SeriesInstanceUID", "1.2.3.4"),
    "content": ("SeriesDescription", "another model"),
    "pixels": ("PixelData", b"\1" * 40),
}


def held_with(path: Path, folder: Path, keyword: str, value: object) -> Path:
    """An archive's copy of an instance that says something else."""
    dataset = pydicom.dcmread(path)
    setattr(dataset, keyword, value)
    dataset.save_as(folder / "held.dcm")
    return folder / "held.dcm"


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("get", [True, False], ids=["can be fetched", "can be found"])
def test_another_instance_under_the_same_uid_is_no_delivery(
    other: str, get: bool, results: dict[str, Path], tmp_path: Path
) -> None:
    uid = str(pydicom.dcmread(results["SEG"], stop_before_pixels=True).SOPInstanceUID)
    copy = held_with(results["SEG"], tmp_path, *OTHERS[other])
    with Archive(held=[copy], status={uid: 0x0111}, get=get).running() as archive:
        outcomes = send(destination(archive.port), [results["SEG"], results["SR"]])
    seg, report = outcomes
    if not get and other in ("content", "pixels"):  # all that can be asked says that it is this one
        assert (seg.state, seg.note, report.state) == (
            "already there", "found in its study and series, not compared", "sent",
        )  # fmt: skip
        return
    assert (seg.state, seg.status, report.state) == ("refused", 0x0111, "held back")
    assert "SOMEBODY" not in seg.meaning


def test_a_duplicate_of_which_an_archive_says_no_more_is_no_delivery(results: dict[str, Path]) -> None:
    uid = str(pydicom.dcmread(results["SEG"], stop_before_pixels=True).SOPInstanceUID)
    only_storage = AllStoragePresentationContexts[:1] + [
        context for context in AllStoragePresentationContexts if "Segmentation" in str(context.abstract_syntax.name)
    ]
    with Archive(status={uid: 0x0111}, contexts=only_storage).running() as archive:
        (seg,) = send(destination(archive.port), [results["SEG"]])
    assert seg.state == "refused"
    assert "the archive could not be asked what it has" in seg.meaning


def test_an_image_is_looked_up_once_for_its_series(series: list[Path]) -> None:
    with Archive(held=series, status={"": 0x0111}).running() as archive:
        outcomes = send(destination(archive.port), series)
    assert states(outcomes) == ["already there"] * 4
    assert [query.QueryRetrieveLevel for query in archive.queries] == ["IMAGE", "STUDY"]


def test_a_segmentation_that_arrives_at_the_second_offer_does_not_hold_the_report_back(
    results: dict[str, Path], tmp_path: Path
) -> None:
    again = Path(shutil.copy(results["SEG"], tmp_path / "again.dcm"))
    with Archive(refusals=1, status={"": 0xA700}).running() as archive:
        outcomes = send(destination(archive.port), [results["SEG"], again, results["SR"]])
    assert [(one.kind, one.state) for one in outcomes] == [("SEG", "refused"), ("SEG", "sent"), ("SR", "sent")]


def test_what_comes_after_a_break_has_failed_and_is_told(results: dict[str, Path]) -> None:
    seen: list[Outcome] = []
    with Archive().running() as archive:

        def each(outcome: Outcome) -> None:
            seen.append(outcome)
            if len(seen) == 1:
                archive.close()

        outcomes = send(destination(archive.port), [results["SEG"], results["SR"]], each)
    assert (states(outcomes), states(tuple(seen))) == (["sent", "failed"], ["sent", "failed"])


@pytest.mark.parametrize("encoding", SEG_ENCODINGS)
def test_a_segmentation_goes_only_where_its_encoding_is_wanted(tmp_path: Path, encoding: SegEncoding) -> None:
    case = oblique_case(tmp_path / "case")
    labels = case.labels if encoding != "fractional" else case.volume.with_array(np.eye(3)[case.labels.array][..., 1:])
    path = write_seg(labels, case.volume, tmp_path / "seg.dcm", RESULT, encoding=encoding)
    for wanted in (None, *SEG_ENCODINGS):
        taken, left_out = prepare_files([path], Profile(seg_encoding=wanted))
        assert (len(taken), len(left_out)) == ((1, 0) if wanted in (None, encoding) else (0, 1))
        assert all(f"takes a SEG as {wanted}, this one is {encoding};" in one.meaning for one in left_out)


def test_a_report_is_held_back_where_its_segmentation_is_in_another_encoding(results: dict[str, Path]) -> None:
    with Archive().running() as archive:
        there = destination(archive.port, profile=Profile(("SEG", "SR"), seg_encoding="labelmap"))
        outcomes = send(there, list(results.values()))
    assert [(one.kind, one.state) for one in outcomes] == [("", "sent"), ("SR", "held back"), ("SEG", "left out")]
    assert "left out, in an encoding that the destination does not take" in outcomes[1].meaning
    assert [one.Modality for one in archive.received] == ["MR"]


def test_a_report_goes_alone_where_no_segmentation_is_taken_and_says_so(results: dict[str, Path]) -> None:
    with Archive().running() as archive:
        there = destination(archive.port, profile=Profile(("SR",)))
        outcomes = send(there, list(results.values()))
        alone = send(there, [results["SR"]])
    assert [(one.kind, one.state) for one in outcomes] == [("", "sent"), ("SR", "sent"), ("SEG", "left out")]
    assert outcomes[1].note == "it refers to SEG, which the destination does not take"
    assert [(one.state, one.note) for one in alone] == [("sent", "")]


def test_the_profile_knows_every_encoding_that_is_written() -> None:
    assert set(SEG_ENCODINGS) == set(get_args(SegEncoding))


def test_a_label_map_segmentation_arrives(results: dict[str, Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(results["SEG"])
    dataset.SOPClassUID = LABEL_MAP_STORAGE
    path = save(dataset, tmp_path / "labelmap.dcm")
    with Provider(tmp_path / "kept", Listen("ARCHIVE", port=0)) as provider:
        assert states(send(destination(provider.port), [path])) == ["sent"]
    kept = next((tmp_path / "kept").rglob("*.dcm"))
    assert pydicom.dcmread(kept).SOPClassUID == LABEL_MAP_STORAGE


def test_a_peer_that_takes_implicit_vr_only_gets_it_and_the_outcome_says_so(series: list[Path]) -> None:
    with Archive(syntaxes=[ImplicitVRLittleEndian]).running() as archive:
        outcomes = send(destination(archive.port), series)
    assert states(outcomes) == ["sent"] * 4
    assert {one.note for one in outcomes} == {"rewritten from Explicit VR Little Endian to Implicit VR Little Endian"}
    for path, arrived in zip(series, archive.received, strict=True):
        assert arrived.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert same_data_set(path, arrived)


def test_a_compressed_file_goes_as_it_is_to_a_peer_that_takes_it(series: list[Path]) -> None:
    path = compressed(series[0], RLELossless)
    with Archive(syntaxes=[*PLAIN, RLELossless]).running() as archive:
        outcomes = send(destination(archive.port), [path])
    assert (outcomes[0].state, outcomes[0].note) == ("sent", "")
    assert archive.received[0].file_meta.TransferSyntaxUID == RLELossless
    assert archive.received[0].PixelData == pydicom.dcmread(path).PixelData


def test_a_compressed_file_is_decompressed_for_a_peer_that_takes_no_other(series: list[Path]) -> None:
    before = pydicom.dcmread(series[0])
    path = compressed(series[0], RLELossless)
    with Archive().running() as archive:
        outcomes = send(destination(archive.port), [path])
    assert outcomes[0].state == "sent"
    assert outcomes[0].note == "decompressed from RLE Lossless to Explicit VR Little Endian"
    arrived = archive.received[0]
    assert arrived.SOPInstanceUID == before.SOPInstanceUID
    np.testing.assert_array_equal(arrived.pixel_array, before.pixel_array)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEGLSLossless, imagecodecs.jpegls_encode),
        (JPEGLosslessSV1, imagecodecs.ljpeg_encode),
        (JPEG2000Lossless, lambda array: imagecodecs.jpeg2k_encode(array, codecformat="j2k", reversible=True, level=0)),
    ],
)
def test_the_usual_compressions_of_archives_are_decompressed(syntax: str, encode: Any, series: list[Path]) -> None:
    before = pydicom.dcmread(series[0])
    dataset = pydicom.dcmread(series[0])
    dataset.PixelData = encapsulate([bytes(encode(before.pixel_array.astype(np.uint16)))])
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(series[0])
    with Archive().running() as archive:
        outcomes = send(destination(archive.port), series[:1])
    assert outcomes[0].state == "sent"
    assert outcomes[0].note.startswith("decompressed from JPEG")
    assert same_data_set(before, archive.received[0])


def test_colour_is_decompressed_to_rgb(tmp_path: Path) -> None:
    colours = np.random.default_rng(5).integers(0, 255, (9, 7, 3)).astype(np.uint8)
    path = write_picture(tmp_path / "rgb.dcm", colours)
    before = pydicom.dcmread(path)
    compressed(path, RLELossless)
    with Archive().running() as archive:
        assert states(send(destination(archive.port), [path])) == ["sent"]
    arrived = archive.received[0]
    assert (arrived.PhotometricInterpretation, arrived.PlanarConfiguration) == ("RGB", 0)
    np.testing.assert_array_equal(arrived.pixel_array, before.pixel_array)


def test_a_file_that_cannot_be_decompressed_is_not_sent(series: list[Path]) -> None:
    dataset = pydicom.dcmread(series[0])
    dataset.PixelData = encapsulate([b"\xff\xd8 this is no picture \xff\xd9"])
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.save_as(series[0])
    with Archive().running() as archive:
        outcomes = send(destination(archive.port), series[:2])
    assert states(outcomes) == ["refused", "sent"]
    assert "the peer does not take JPEG 2000" in outcomes[0].meaning
    assert len(archive.received) == 1


def test_a_peer_that_takes_compressed_images_only_gets_no_other(series: list[Path]) -> None:
    with Archive(syntaxes=[JPEGLSLossless]).running() as archive:
        outcomes = send(destination(archive.port), series[:1])
    assert states(outcomes) == ["refused"]
    assert "the peer does not take CT Image Storage" in outcomes[0].meaning
    assert archive.received == []


# --- what does not ----------------------------------------------------------------------------------------------------


def test_each_status_is_told_file_by_file_with_its_meaning(series: list[Path]) -> None:
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in series]
    status = {uids[0]: 0xA700, uids[1]: 0xB000, uids[3]: 0xC123}
    with Archive(status=status).running() as archive:
        outcomes = send(destination(archive.port), series)
    assert states(outcomes) == ["refused", "warning", "sent", "refused"]
    assert [one.is_delivered for one in outcomes] == [False, True, True, False]
    assert outcomes[0].meaning == "0xA700 (Failure: Refused: Out of Resources)"
    assert outcomes[1].meaning == "0xB000 (Warning: Coercion of Data Elements)"
    assert outcomes[3].meaning == "0xC123 (Failure: Cannot Understand)"
    assert [one.sop_instance_uid for one in outcomes] == uids


def test_a_class_that_the_peer_does_not_take_is_refused_and_the_rest_goes(results: dict[str, Path]) -> None:
    contexts = [one for one in AllStoragePresentationContexts if "Segmentation" not in one.abstract_syntax.name]
    for one in contexts:
        one.transfer_syntax = list(PLAIN)
    with Archive(contexts=contexts).running() as archive:
        outcomes = send(destination(archive.port), [results["SEG"], results[""]])
    assert [(one.kind, one.state) for one in outcomes] == [("", "sent"), ("SEG", "refused")]
    assert outcomes[1].meaning == "the peer does not take Segmentation Storage"


def test_a_broken_association_is_opened_again_for_the_rest(series: list[Path]) -> None:
    with Archive(abort_at=3).running() as archive:
        outcomes = send(destination(archive.port), series)
    assert states(outcomes) == ["sent"] * 4
    assert archive.associations == 2
    uids = [str(one.SOPInstanceUID) for one in archive.received]
    assert uids == [one.sop_instance_uid for one in outcomes]


def test_a_peer_that_aborts_every_time_is_given_up_and_nothing_more_counts_as_sent(series: list[Path]) -> None:
    told: list[str] = []
    with Archive(abort_at=3, aborts=99).running() as archive:
        outcomes = send(destination(archive.port), series, lambda one: told.append(one.state))
    assert states(outcomes) == ["sent", "sent", "failed", "failed"] == told
    assert archive.associations == storage_user.TRIES
    assert "aborted the association (by its service user)" in outcomes[2].meaning
    assert len(archive.received) == 2


def test_an_instance_without_an_answer_does_not_count_as_sent(series: list[Path], tmp_path: Path) -> None:
    def too_slow(stored: object) -> None:
        time.sleep(2.5)

    from dicom_io.net.instance_store import InstanceStore

    with Provider(InstanceStore(tmp_path / "kept", stored=too_slow), Listen("ARCHIVE", port=0)) as provider:
        outcomes = send(destination(provider.port, answer_s=1.0), series[:1])
    assert states(outcomes) == ["failed"]
    assert "gave no answer within 1 s" in outcomes[0].meaning


def test_a_file_that_vanishes_on_the_way_fails_and_the_rest_goes(series: list[Path]) -> None:
    def vanish(outcome: Outcome) -> None:
        series[2].unlink(missing_ok=True)

    with Archive().running() as archive:
        outcomes = send(destination(archive.port), series, vanish)
    assert states(outcomes) == ["sent", "sent", "failed", "sent"]


def test_nothing_is_sent_if_one_file_is_no_dicom_object(series: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with Archive().running() as archive, pytest.raises(UnreadableFileError, match="is not a DICOM file"):
        send(destination(archive.port), [*series, tmp_path / "notes.txt"])
    assert archive.associations == 0


# --- no association ---------------------------------------------------------------------------------------------------


def test_a_peer_that_is_not_there_is_named(series: list[Path]) -> None:
    port = free_port()
    with pytest.raises(
        NetworkError, match=f"^ARCHIVE@127.0.0.1:{port} refused the connection; a DICOM node .* is needed; check"
    ):
        send(destination(port), series)


def test_a_host_that_has_no_address_is_named(series: list[Path]) -> None:
    with pytest.raises(NetworkError, match=r"the host name is not known here .*; check name and network"):
        send(destination(104, host="no.such.host.invalid"), series)


def test_a_peer_that_does_not_know_us_is_quoted(series: list[Path]) -> None:
    message = r"rejected the association .*Calling AE title not recognised.*MONAIUNET"
    with Archive(calling=["SOMEONE"]).running() as archive, pytest.raises(NetworkError, match=message):
        send(destination(archive.port), series)


def test_a_peer_that_says_nothing_is_waited_for_only_so_long(series: list[Path]) -> None:
    with mute_listener() as port:
        started = time.monotonic()
        with pytest.raises(NetworkError, match="took the connection and was silent for 1 s"):
            send(destination(port, connect_s=1.0), series)
        assert time.monotonic() - started < 6


def test_a_peer_that_stops_in_the_middle_of_its_answer_is_waited_for_only_so_long(series: list[Path]) -> None:
    half = b"\x02\x00\x00\x00\x01\x00\x00\x01"  # an A-ASSOCIATE-AC of 256 bytes, of which 2 come
    with mute_listener(half) as port:
        started = time.monotonic()
        with pytest.raises(NetworkError, match=f"^ARCHIVE@127.0.0.1:{port} took the connection"):
            send(destination(port, connect_s=1.0, answer_s=1.0), series)
        assert time.monotonic() - started < 10


def test_a_peer_that_speaks_something_else_is_named(series: list[Path]) -> None:
    message = r"^ARCHIVE@127.0.0.1:\d+ .*; check host, port"
    with mute_listener(b"SSH-2.0-OpenSSH_9.2\r\n") as port, pytest.raises(NetworkError, match=message):
        send(destination(port, connect_s=2.0), series)


def test_a_peer_that_takes_none_of_the_services_is_named(series: list[Path]) -> None:
    worklist = PresentationContext()
    worklist.abstract_syntax, worklist.transfer_syntax = "1.2.840.10008.5.1.4.31", list(PLAIN)
    with Archive(contexts=[worklist]).running() as archive:
        message = r"accepts none of the proposed services \(.*CT Image Storage\)"
        with pytest.raises(NetworkError, match=message):
            send(destination(archive.port), series)


# --- many kinds of objects --------------------------------------------------------------------------------------------


def test_more_classes_than_one_association_holds_take_several(tmp_path: Path) -> None:
    classes = [str(one.abstract_syntax) for one in AllStoragePresentationContexts][:66]
    files = []
    for number, sop_class in enumerate(classes):
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
        files.append(save(dataset, tmp_path / f"{number}.dcm"))
    wanted, _ = prepare_files(files, Profile())
    batches = list(storage_user.batches(wanted))
    assert [item for batch in batches for item in batch] == wanted
    assert max(len(storage_user.proposals(batch)) for batch in batches) <= MOST_CONTEXTS
    with Archive().running() as archive:
        outcomes = send(destination(archive.port), files)
    assert set(states(outcomes)) == {"sent"}
    assert archive.associations == len(batches) == 2
    assert len(archive.received) == 66


def test_a_file_is_proposed_in_its_own_syntax_and_uncompressed(series: list[Path]) -> None:
    items, _ = prepare_files([compressed(series[0], RLELossless), series[1]], Profile())
    proposed = [(one.abstract_syntax.name, one.transfer_syntax) for one in storage_user.proposals(items)]
    assert proposed == [
        ("Verification SOP Class", list(PLAIN)),
        ("CT Image Storage", [RLELossless]),
        ("CT Image Storage", [ExplicitVRLittleEndian]),
        ("CT Image Storage", list(PLAIN)),
    ]


def test_no_name_of_a_patient_is_in_a_message_or_log(series: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"), Archive(status={"": 0xA700}, abort_at=3, aborts=9).running() as archive:
        outcomes = send(destination(archive.port), series)
    text = caplog.text + repr(outcomes)
    assert not any(value in text for value in PATIENT.values())


def test_only_the_named_peer_is_called(series: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda own, to: (called.append(to), connect(own, to))[1])
    with mute_listener() as port:
        dataset = pydicom.dcmread(series[0])
        dataset.RetrieveURL = f"http://127.0.0.1:{port}/x"
        dataset.save_as(series[0])
        with Archive().running() as archive:
            send(destination(archive.port), series)
    assert called == [("127.0.0.1", archive.port)]
