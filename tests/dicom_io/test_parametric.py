from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace

import highdicom as hd
import numpy as np
import pydicom
import pytest
from phantoms import oblique_affine
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from result_phantoms import RESULT, dciodvfy_errors, tool
from source_phantoms import (
    AFFINES,
    NAMES,
    PLACED,
    frame_of,
    kept_source,
    oblique_mr,
    radiograph,
    raw_name,
    resampled_mr,
    source_file,
)

from dicom_io.errors import GeometryProofError, LabelError, UnreadableFileError
from dicom_io.objects.source_images import images_of
from dicom_io.parametric import NO_UNIT, PROBABILITY, UNCERTAINTY, MapMeaning, read_parametric_map, write_parametric_map
from dicom_io.parametric import write as parametric
from dicom_io.read import read_series
from dicom_io.volume import Provenance, Volume

MEANING = {"quantity": PROBABILITY, "unit": NO_UNIT, "label": "P(Front part)"}


def values_on(source: Volume) -> Volume:
    """A probability without symmetry: no two voxels are alike."""
    i, j, k = np.indices(source.shape)
    return source.with_array(((1 + i + 13 * j + 171 * k) / 1500.0).astype(np.float32))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return oblique_mr(tmp_path_factory.mktemp("mr"))


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    return write_parametric_map(
        values_on(source), source, tmp_path_factory.mktemp("pm") / "map.dcm", RESULT, MapMeaning(**MEANING)
    )


@pytest.mark.parametrize("kind", PLACED)
def test_a_map_of_every_kind_of_series_is_valid_and_is_read_back_bit_for_bit(kind, tmp_path_factory, tmp_path):
    source = kept_source(tmp_path_factory, kind)
    path = write_parametric_map(values_on(source), source, tmp_path / "map.dcm", RESULT, MapMeaning(**MEANING))
    assert dciodvfy_errors(path) == []
    found = read_parametric_map(path, source)
    assert found.array.dtype == np.float32
    np.testing.assert_array_equal(found.array, values_on(source).array)


@pytest.mark.parametrize("kind", PLACED)
def test_each_frame_stands_in_the_plane_of_the_instance_that_it_names(kind, tmp_path_factory, tmp_path):
    source = kept_source(tmp_path_factory, kind)
    path = write_parametric_map(values_on(source), source, tmp_path / "map.dcm", RESULT, MapMeaning(**MEANING))
    dataset = pydicom.dcmread(path)
    assert dataset.FrameOfReferenceUID == source.provenance.frame_of_reference_uid
    seen = []
    for group, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        column, row, k = np.linalg.solve(AFFINES[kind], [*position, 1.0])[:3]
        np.testing.assert_allclose((column, row, k), (0, 0, round(k)), atol=1e-4)
        seen.append(round(k))
        np.testing.assert_array_equal(pixels, values_on(source).array[:, :, seen[-1]].T)
        named = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert named.ReferencedSOPInstanceUID == source_file(source, seen[-1]).SOPInstanceUID
        assert named.get("ReferencedFrameNumber") == frame_of(kind, seen[-1])
    assert seen == list(range(7))  # upwards along the normal, as readers that ignore positions take them


def test_dcmqi_reads_the_same_values_at_the_same_millimetres(source, written, tmp_path):
    import SimpleITK

    command = [tool("paramap2itkimage"), "-t", "nrrd", "--inputDICOM", str(written), "--outputDirectory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert list(tmp_path.glob("*.nrrd")), done.stderr[-500:]
    image = SimpleITK.ReadImage(str(next(tmp_path.glob("*.nrrd"))))
    for index in ((0, 0, 0), (10, 0, 0), (0, 8, 0), (0, 0, 6), (4, 5, 3)):
        place_mm = image.TransformIndexToPhysicalPoint(index)
        own = np.rint(np.linalg.solve(oblique_affine(), [*place_mm, 1.0])[:3]).astype(int)
        assert image.GetPixel(index) == pytest.approx(values_on(source).array[tuple(own)], rel=1e-6)


def test_a_map_says_quantity_and_unit_in_published_codes(written):
    (mapping,) = pydicom.dcmread(written).SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    quantity, unit = (
        mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0],
        mapping.MeasurementUnitsCodeSequence[0],
    )
    assert (quantity.CodeValue, quantity.CodingSchemeDesignator, quantity.CodeMeaning) == (
        "122157",
        "DCM",
        "Probability",
    )
    assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("1", "UCUM")
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
    assert mapping.LUTLabel == "P(Front part)"


def test_a_map_says_which_part_of_the_body_it_shows(tmp_path):
    """Mandatory by PS3.3 table A.75-2, though no validator here asks for it."""

    def anatomy(number: int, **header: object) -> tuple[str, str]:
        source = oblique_mr(tmp_path / f"mr{number}", header)
        path = write_parametric_map(values_on(source), source, tmp_path / "map.dcm", RESULT, MapMeaning(**MEANING))
        assert dciodvfy_errors(path) == []
        (item,) = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].FrameAnatomySequence
        return item.AnatomicRegionSequence[0].CodeValue, item.FrameLaterality

    knee = Dataset()
    knee.CodeValue, knee.CodingSchemeDesignator, knee.CodeMeaning = "72696002", "SCT", "Knee"
    assert anatomy(1, BodyPartExamined="BRAIN") == ("12738006", "U")
    assert anatomy(2, BodyPartExamined="KNEE") == ("38266002", "U")  # side unknown: entire body
    assert anatomy(3, BodyPartExamined="KNEE", Laterality="L", AnatomicRegionSequence=[knee]) == ("72696002", "L")


def test_a_map_is_placed_on_a_grid_with_swapped_and_turned_axes(source, written):
    """The reference counts slices, then columns backwards, then rows; millimetres decide."""
    turn = np.array([[0, -1, 0, 10], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    reference = Volume(np.zeros((7, 11, 9)), oblique_affine() @ turn, Provenance("nifti"))
    found = read_parametric_map(written, reference).array
    np.testing.assert_array_equal(found, values_on(source).array.transpose(2, 0, 1)[:, ::-1])


def test_the_same_input_gives_the_same_bytes(source, written, tmp_path):
    again = write_parametric_map(values_on(source), source, tmp_path / "again.dcm", RESULT, MapMeaning(**MEANING))
    assert again.read_bytes() == written.read_bytes()


def test_a_map_on_a_resampled_series_has_a_frame_for_each_slice_that_exists(tmp_path):
    source = resampled_mr(tmp_path / "mr")
    path = write_parametric_map(values_on(source), source, tmp_path / "map.dcm", RESULT, MapMeaning(**MEANING))
    assert dciodvfy_errors(path) == []
    found = read_parametric_map(path, source).array
    existing = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(found[:, :, existing], values_on(source).array[:, :, existing])
    assert np.isnan(found[:, :, 3]).all()


def test_other_values_are_another_instance(source, written, tmp_path):
    other = values_on(source).array.copy()
    other[1, 2, 3] += 0.25
    path = write_parametric_map(source.with_array(other), source, tmp_path / "map.dcm", RESULT, MapMeaning(**MEANING))
    assert pydicom.dcmread(path).SOPInstanceUID != pydicom.dcmread(written).SOPInstanceUID


def test_maps_of_one_result_share_their_series_and_nothing_else(source, written, tmp_path):
    other = {"quantity": UNCERTAINTY, "unit": NO_UNIT, "label": "P(Front part)"}
    path = write_parametric_map(values_on(source), source, tmp_path / "u.dcm", RESULT, MapMeaning(number=2, **other))
    first, second = pydicom.dcmread(written), pydicom.dcmread(path)
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)
    assert (first.SeriesNumber, first.ContentQualification) == (11003, "RESEARCH")


@pytest.mark.parametrize("name", NAMES)
def test_the_patient_is_carried_over_byte_for_byte(name, tmp_path):
    characters, text = NAMES[name]
    source = oblique_mr(tmp_path / "mr", {"SpecificCharacterSet": characters, "PatientName": text})
    path = write_parametric_map(values_on(source), source, tmp_path / "map.dcm", RESULT, MapMeaning(**MEANING))
    assert raw_name(path) == raw_name(source.provenance.files[0])
    assert pydicom.dcmread(path).PatientName == text
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda array: np.roll(array, 1, axis=0),
        lambda array: array[:, :, ::-1].copy(),
        lambda array: np.nextafter(array, np.float32(2)),
    ],
    ids=["slices in another order", "mirrored", "one unit in the last place"],
)
def test_a_map_that_is_not_what_was_meant_is_never_there(source, tmp_path, monkeypatch, wrong):
    right = parametric._planes
    monkeypatch.setattr(parametric, "_planes", lambda *given: wrong(right(*given)))
    (tmp_path / "map.dcm").write_bytes(b"earlier")
    with pytest.raises(GeometryProofError, match=r"of 99 values of frame \d differ"):
        write_parametric_map(values_on(source), source, tmp_path / "map.dcm", RESULT, MapMeaning(**MEANING))
    assert [file.name for file in tmp_path.iterdir()] == ["map.dcm"]
    assert (tmp_path / "map.dcm").read_bytes() == b"earlier"


def test_a_frame_that_names_another_slice_than_it_lies_in_is_refused(source, written, tmp_path, monkeypatch):
    dataset = pydicom.dcmread(written)
    first, second = dataset.PerFrameFunctionalGroupsSequence[:2]
    named = [group.DerivationImageSequence for group in (first, second)]
    first.DerivationImageSequence, second.DerivationImageSequence = named[::-1]
    dataset.save_as(tmp_path / "swapped.dcm")
    with pytest.raises(LabelError, match="frame 1 names slice"):
        read_parametric_map(tmp_path / "swapped.dcm", source)
    with pytest.raises(GeometryProofError, match=r"lies 2\.50 mm away from the slice"):
        parametric.prove_map(tmp_path / "swapped.dcm", values_on(source), images_of(source), MapMeaning(**MEANING))
    assert not (tmp_path / "swapped.dcm").exists()


def test_values_that_cannot_be_kept_or_named_are_refused(source, tmp_path):
    nan = values_on(source).array.copy()
    nan[1, 2, 3] = np.nan
    moved = source.affine_lps.copy()
    moved[:3, 3] += 0.3
    private = Code("1", "99OWN", "own")
    for values, change, says in (
        (source.with_array(nan), {}, "1 of 693 values are NaN"),
        (source.with_array(np.full(source.shape, 1e300)), {}, "693 of 693 values"),
        (source.with_array(np.zeros((*source.shape, 2))), {}, "2 channels"),
        (Volume(nan, moved, source.provenance), {}, "1 of 693"),
        (Volume(values_on(source).array, moved, source.provenance), {}, r"0\.52 mm away"),
        (values_on(source), {"unit": Code("mm", "SCT", "mm")}, "UCUM is needed"),
        (values_on(source), {"quantity": private}, "99OWN"),
        (values_on(source), {"label": "größer"}, "ASCII"),
        (values_on(source), {"label": "x" * 65}, "1 to 64"),
        (values_on(source), {"number": 0}, "number of the map is 0"),
    ):
        with pytest.raises(LabelError, match=says):
            write_parametric_map(values, source, tmp_path / "map.dcm", RESULT, MapMeaning(**(MEANING | change)))
    assert list(tmp_path.iterdir()) == []


def test_a_picture_without_patient_space_is_refused(tmp_path):
    source = radiograph(tmp_path)
    with pytest.raises(LabelError, match="without patient space"):
        write_parametric_map(values_on(source), source, tmp_path / "map.dcm", RESULT, MapMeaning(**MEANING))


def test_a_single_slice_has_no_spacing_between_slices(source, tmp_path):
    source = read_series(source.provenance.files[2])
    path = write_parametric_map(values_on(source), source, tmp_path / "map.dcm", RESULT, MapMeaning(**MEANING))
    measures = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert "SpacingBetweenSlices" not in measures
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_parametric_map(path, source).array, values_on(source).array)


def test_voxels_without_a_frame_are_read_as_nan(source, written, tmp_path):
    dataset = pydicom.dcmread(written)
    del dataset.PerFrameFunctionalGroupsSequence[-1]
    dataset.NumberOfFrames = 6
    dataset.FloatPixelData = dataset.FloatPixelData[: 6 * 9 * 11 * 4]
    dataset.save_as(tmp_path / "part.dcm")
    found = read_parametric_map(tmp_path / "part.dcm", source).array
    assert np.isnan(found[:, :, 6]).all()
    np.testing.assert_array_equal(found[:, :, :6], values_on(source).array[:, :, :6])


def test_an_integer_map_by_highdicom_is_read_through_its_slope(source, tmp_path):
    stored = np.arange(693, dtype=np.uint16).reshape(11, 9, 7)
    integer_map(source, stored, tmp_path / "m.dcm", value_range=(0, 692))
    np.testing.assert_array_equal(read_parametric_map(tmp_path / "m.dcm", source).array, stored * 0.5 - 3.0)


def test_two_quantities_in_one_object_are_refused(source, tmp_path):
    mappings = [
        [hd.pm.RealWorldValueMapping(name, name, codes.UCUM.NoUnits, value_range=(0.0, 1.0))] for name in ("a", "b")
    ]
    window = hd.VOILUTTransformation(window_center=1.0, window_width=2.0)
    array = np.zeros((7, 9, 11, 2), dtype=np.float32)
    hd.pm.ParametricMap(
        [source_file(source, k) for k in range(7)], array, hd.UID(), 1, hd.UID(), 1, "m", "n", "1", "2", False,
        mappings, voi_lut_transformations=[window],
    ).save_as(tmp_path / "m.dcm")  # fmt: skip
    with pytest.raises(LabelError, match="2 quantities"):
        read_parametric_map(tmp_path / "m.dcm", source)


def test_files_that_are_no_map_of_this_image_are_refused(source, written, tmp_path):
    elsewhere = replace(source, provenance=replace(source.provenance, frame_of_reference_uid="1.2.3"))
    stretched = Volume(source.array, source.affine_lps @ np.diag([1.2, 1, 1, 1]))
    aside = np.eye(4)
    aside[1, 3] = 0.3
    moved = Volume(source.array, source.affine_lps @ aside)
    smaller = Volume(source.array[:, :, :4], source.affine_lps)
    for reference, says in (
        (elsewhere, "frame of reference"),
        (stretched, r"pixels of 1\.25 x 0\.75 mm, the voxels of the image are 1\.50 x 0\.75 mm"),
        (moved, "0.30 voxels away"),
        (smaller, "outside the image"),
    ):
        with pytest.raises(LabelError, match=says):
            read_parametric_map(written, reference)
    with pytest.raises(LabelError, match="a Parametric Map is needed"):
        read_parametric_map(source.provenance.files[0], source)
    (tmp_path / "cut.dcm").write_bytes(written.read_bytes()[:-40])
    with pytest.raises(UnreadableFileError):
        read_parametric_map(tmp_path / "cut.dcm", source)


# --- what a map stores, and what it is


def edited(written, path, edit):
    dataset = pydicom.dcmread(written)
    edit(dataset)
    dataset.save_as(path)
    return path


def mapping_of(dataset: Dataset) -> Dataset:
    return dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]


@pytest.mark.parametrize(
    ("value", "limit", "stored"),
    [(-1e30, None, -1e30), (-9.0, -5.0, -6.5), (-5.0, -9.0, -9.0), (np.nan, np.nan, np.nan), (np.inf, np.inf, np.inf)],
    ids=str,
)
def test_padding_is_no_value(source, written, tmp_path, value, limit, stored):
    """PS3.3 C.7.6.24.1: padding value and limit are the ends of a range, both inclusive, NaN and infinity welcome."""

    def pad(dataset):
        values = np.frombuffer(dataset.FloatPixelData, "<f4").reshape(7, 9, 11).copy()
        values[4, 2:5, 3] = stored
        dataset.FloatPixelData, dataset.FloatPixelPaddingValue = values.tobytes(), value
        if limit is not None:
            dataset.FloatPixelPaddingRangeLimit = limit

    found = read_parametric_map(edited(written, tmp_path / "m.dcm", pad), source).array
    wanted = values_on(source).array.copy()
    wanted[3, 2:5, 4] = np.nan
    np.testing.assert_array_equal(found, wanted)


def test_padding_of_whole_numbers_is_no_value(source, tmp_path):
    stored = np.arange(693, dtype=np.uint16).reshape(11, 9, 7)
    path = integer_map(source, stored, tmp_path / "m.dcm", value_range=(10, 692))
    with pytest.raises(LabelError, match="outside of 10 to 692"):
        read_parametric_map(path, source)

    def pad(dataset):
        dataset.add_new("PixelPaddingValue", "US", 0)
        dataset.add_new("PixelPaddingRangeLimit", "US", 9)

    found = read_parametric_map(edited(path, path, pad), source).array
    np.testing.assert_array_equal(found, np.where(stored < 10, np.nan, stored * 0.5 - 3.0).astype(np.float32))


def integer_map(source, stored, path, value_range):
    mapping = hd.pm.RealWorldValueMapping(
        "half", "half", codes.UCUM.Millimeter, value_range=value_range, slope=0.5, intercept=-3.0
    )
    window = hd.VOILUTTransformation(window_center=300.0, window_width=600.0)
    slices = [source_file(source, k) for k in range(7)]
    hd.pm.ParametricMap(
        slices, np.ascontiguousarray(stored.transpose(2, 1, 0)), hd.UID(), 1, hd.UID(), 1, "m", "n", "1", "2", False,
        [mapping], voi_lut_transformations=[window],
    ).save_as(path)  # fmt: skip
    return path


def test_stored_values_outside_of_the_mapped_range_are_refused(source, written, tmp_path):
    """They have no real world value. The largest is (1 + 10 + 13 x 8 + 171 x 6) / 1500 = 0.7607."""

    def narrow(dataset):
        mapping_of(dataset).DoubleFloatRealWorldValueLastValueMapped = 0.76

    with pytest.raises(LabelError, match=r"frame 7 .* stores 1 values outside of .* to 0\.76,"):
        read_parametric_map(edited(written, tmp_path / "m.dcm", narrow), source)


def test_whole_numbers_are_no_range_of_floats(source, written, tmp_path):
    """As dcmqi writes them beside floats: modulo 65536, without what stands behind the point."""

    def wrap(dataset):
        mapping = mapping_of(dataset)
        del mapping.DoubleFloatRealWorldValueFirstValueMapped, mapping.DoubleFloatRealWorldValueLastValueMapped
        mapping.add_new("RealWorldValueFirstValueMapped", "US", 65534)
        mapping.add_new("RealWorldValueLastValueMapped", "US", 1)

    found = read_parametric_map(edited(written, tmp_path / "m.dcm", wrap), source)
    np.testing.assert_array_equal(found.array, values_on(source).array)


def test_several_mappings_are_refused_by_their_codes_unless_they_are_the_same(source, written, tmp_path):
    def doubled(dataset, **other):
        groups = dataset.SharedFunctionalGroupsSequence[0]
        second = Dataset()
        second.update(mapping_of(dataset))
        for keyword, value in other.items():
            setattr(second, keyword, value)
        groups.RealWorldValueMappingSequence = [second, mapping_of(dataset)]

    unit = Dataset()
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "ms", "UCUM", "Doe^Jane"
    path = edited(written, tmp_path / "m.dcm", doubled)
    np.testing.assert_array_equal(read_parametric_map(path, source).array, values_on(source).array)
    for other, says in (
        ({"RealWorldValueSlope": 1000.0}, r"2 real world value mappings: .*slope 1000\.0 .*slope 1\.0 "),
        ({"MeasurementUnitsCodeSequence": [unit]}, r"2 real world value mappings: .*UCUM ms .*UCUM 1 "),
    ):
        with pytest.raises(LabelError, match=says) as refusal:
            read_parametric_map(edited(written, path, lambda dataset, other=other: doubled(dataset, **other)), source)
        assert "Doe" not in str(refusal.value)


def test_a_mapping_that_is_not_finite_is_refused(source, written, tmp_path):
    def endless(dataset):
        mapping_of(dataset).RealWorldValueSlope = float("nan")

    with pytest.raises(LabelError, match="no finite RealWorldValueSlope"):
        read_parametric_map(edited(written, tmp_path / "m.dcm", endless), source)


# --- with the larger data beside the repository ---


def test_a_map_written_by_dcmqi_is_read_as_dcmqi_meant_it(shared_data, tmp_path):
    import SimpleITK

    folder = shared_data / "dicom_objects" / "dcmqi"
    with zipfile.ZipFile(folder / "paramaps" / "pm-example-dcm.zip") as archive:
        archive.extractall(tmp_path)
    image, series = folder / "paramaps" / "pm-example-float.nrrd", tmp_path / "701-ADCb500"
    meaning = folder / "json" / "examples" / "pm-example-float.json"
    command = [tool("itkimage2paramap"), "--inputImage", str(image), "--inputMetadata", str(meaning)]
    command += ["--inputDICOMDirectory", str(series), "--outputDICOM", str(tmp_path / "map.dcm")]
    subprocess.run(command, capture_output=True, check=False)
    wanted = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(image))).transpose(2, 1, 0)
    np.testing.assert_array_equal(read_parametric_map(tmp_path / "map.dcm", read_series(series)).array, wanted)
