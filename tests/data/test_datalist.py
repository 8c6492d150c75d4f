"""Lists of cases, and the folders of nnU-Net and of the Medical Segmentation Decathlon."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.cases import by_partition, plan_of, subjects_of
from monai_unet_app.data.datalist import facts_of, modality_of, read_datalist, read_dataset_json
from monai_unet_app.errors import InputRefusedError


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_numbers_at_the_end_of_a_name_are_channels_only_where_labels_lack_them(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{folder}/ct_{n:04}.nii.gz" for folder in ("imagesTr", "labelsTr") for n in (1, 2)))
    assert [case.id for case in find_data(tmp_path)] == ["ct_0001", "ct_0002"]


def pairs(cases: Any) -> list[tuple[str, str, str]]:
    return [(case.id, case.image.name, case.label.name) for case in cases]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "image,label,id,subject\na.nii.gz,la.nii.gz,one,P1\nb.nii.gz,lb.nii.gz,two,P1\n"),
        ("list.csv", "\ufeffid;image;label;subject\r\none;a.nii.gz;la.nii.gz;P1\r\ntwo;b.nii.gz;lb.nii.gz;P1\r\n"),
        ("list.json", {"training": [{"image": "a.nii.gz", "label": "la.nii.gz", "id": "one", "subject": "P1"},
                                    {"image": "b.nii.gz", "label": "lb.nii.gz", "id": "two", "subject": "P1"}]}),
        ("LIST.JSON", [{"image": "b.nii.gz", "label": "lb.nii.gz", "id": "two", "subject": "P1"},
                       {"image": "a.nii.gz", "label": "la.nii.gz", "id": "one", "subject": "P1"}]),
    ],
)  # fmt: skip
def test_a_list_names_images_labels_and_who_they_are_of(name: str, text: Any, tmp_path: Path) -> None:
    touch(*(tmp_path / file for file in ("a.nii.gz", "b.nii.gz", "la.nii.gz", "lb.nii.gz")))
    (tmp_path / name).write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    cases = find_data(tmp_path / name)
    assert pairs(cases) == [("one", "a.nii.gz", "la.nii.gz"), ("two", "b.nii.gz", "lb.nii.gz")]
    assert subjects_of(cases) == {"one": "P1", "two": "P1"}


def test_a_list_with_partitions_is_the_plan(tmp_path: Path) -> None:
    rows = ["image,label,subject,partition,fold"]
    for number, part in enumerate(("train", "selection", "calibration", "test")):
        touch(tmp_path / f"{number}.nii.gz", tmp_path / f"l{number}.nii.gz")
        rows.append(f"{number}.nii.gz,l{number}.nii.gz,s{number},{part},{3 - number}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    found = by_partition(tmp_path / "list.csv")
    assert {part: [row["id"] for row in cases] for part, cases in found.items()} == {
        "train": ["0"], "selection": ["1"], "calibration": ["2"], "test": ["3"],
    }  # fmt: skip
    assert [plan_of(find_data(tmp_path / "list.csv"), None)[str(n)].fold for n in range(4)] == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,label\n", "lists no case"),
        ("picture,label\na.nii.gz,la.nii.gz\n", "case 1 has no image.*picture, label"),
        ("image,label\na.nii.gz,la.nii.gz\ngone.nii.gz,also.nii.gz\n", r"2 file\(s\) that do not exist: gone.*also"),
        ("image,label\na.nii.gz,\n", "1 of 1 case.*no label: a.nii.gz"),
        ("image,label,partition\na.nii.gz,la.nii.gz,validation\n", "'validation'; train, selection, calibration, test"),
        ("image,label,partition\na.nii.gz,la.nii.gz,train\nb.nii.gz,lb.nii.gz,\n", r"partition of 1 of 2 case\(s\)"),
        ("image,label,fold\na.nii.gz,la.nii.gz,first\n", "fold 'first'"),
        ("image,label,fold\na.nii.gz,la.nii.gz,0.5\n", "fold '0.5'"),
        ("image,label\na.nii.gz,la.nii.gz\na.nii.gz,lb.nii.gz\n", "2 cases of .* are called a"),
        (
            "image,label,subject,partition\na.nii.gz,la.nii.gz,P,train\nb.nii.gz,lb.nii.gz,P,test\n",
            "P is in train and in test",
        ),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(text: str, says: str, tmp_path: Path) -> None:
    touch(*(tmp_path / file for file in ("a.nii.gz", "b.nii.gz", "la.nii.gz", "lb.nii.gz")))
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputRefusedError, match=says):
        plan_of(find_data(tmp_path / "list.csv"), None)


@pytest.mark.parametrize(
    "text", ["{", '{"validation": []}', "[1, 2]", '{"training": [{"image": "a"}], "validation": ["b.nii.gz"]}']
)
def test_json_that_is_no_list_of_cases_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(InputRefusedError, match="cannot be read as a list of cases"):
        read_datalist(tmp_path / "list.json")


@pytest.mark.parametrize("channel", ["_0000", ""])
def test_a_raw_folder_of_nnunet_or_of_the_decathlon_is_taken_as_it_is(channel: str, tmp_path: Path) -> None:
    for name in ("la_003", "la_004"):
        touch(tmp_path / "imagesTr" / f"{name}{channel}.nii.gz", tmp_path / "labelsTr" / f"{name}.nii.gz")
    touch(
        tmp_path / "imagesTs/la_001.nii.gz",
        tmp_path / "imagesTr/._la_003.nii.gz",
        tmp_path / "labelsTr/._la_003.nii.gz",
    )
    (tmp_path / "dataset.json").write_text("{}")
    assert pairs(find_data(tmp_path)) == [
        ("la_003", f"la_003{channel}.nii.gz", "la_003.nii.gz"),
        ("la_004", f"la_004{channel}.nii.gz", "la_004.nii.gz"),
    ]


@pytest.mark.parametrize(
    ("document", "names", "modality"),
    [
        ({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}}, {1: "liver", 2: "tumour"}, "CT"),
        ({"modality": {"0": "MRI"}, "labels": {"0": "background", "2": "Posterior", "1": "Anterior"}},
         {1: "Anterior", 2: "Posterior"}, "MR"),
        ({"channel_names": {"0": "zscore"}, "labels": {"background": 0, "vessel": 1}}, {1: "vessel"}, None),
    ],
)  # fmt: skip
def test_dataset_json_tells_the_names_of_labels(
    document: Mapping[str, Any], names: Mapping[int, str], modality: str | None, tmp_path: Path
) -> None:
    assert read_dataset_json(tmp_path) is None
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    facts = read_dataset_json(tmp_path)
    assert facts is not None
    assert facts.names == names
    assert [modality_of(channel) for channel in facts.channels] == [modality]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"labels": {"background": 0, "liver": 1, "ignore": 1}}', "the value 1 to ignore and to a structure"),
        (
            '{"labels": {"background": 0, "all": [1, 2], "liver": 1, "ignore": 2}}',
            "the value 2 to ignore and to a struc",
        ),
        ('{"labels": {"0": "background", "1": "lung", "2": "lung"}}', "two label values the name 'lung'"),
        ('{"labels": [1, 2]}', "does not state its labels"),
        ("{", "does not state its labels"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused_by_name(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputRefusedError, match=says):
        read_dataset_json(tmp_path)


def listed(folder: Path, **lists: list[dict[str, Any]]) -> Path:
    """A JSON list of cases whose files are there."""
    for rows in lists.values():
        for row in rows:
            touch(*(folder / row[what] for what in ("image", "label") if what in row))
    (folder / "list.json").write_text(json.dumps(lists))
    return folder / "list.json"


def case_row(name: str, **more: Any) -> dict[str, Any]:
    return {"image": f"{name}.nii.gz", "label": f"l_{name}.nii.gz", **more}


def test_folds_of_a_list_are_the_folds(tmp_path: Path) -> None:
    folds = {"a": 2, "b": 0, "c": 2, "d": 1}
    data = listed(tmp_path, training=[case_row(name, fold=fold) for name, fold in folds.items()], testing=[])
    plan = plan_of(find_data(data), None)
    assert {name: (entry.fold, entry.partition) for name, entry in plan.items()} == {
        name: (fold, "train") for name, fold in folds.items()
    }


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([case_row("a", fold=0), case_row("b", fold=0)], "to train on in fold 0; two to 10"),
        ([case_row("a", fold=0.5), case_row("b", fold=1.5)], "has the fold 0.5"),
        ([case_row("a", fold=0), case_row("b", fold=10)], "to train on in fold 0, 10; two to 10"),
        ([case_row("a", fold=0, subject="P"), case_row("b", fold=1, subject="P")], "subject P is in fold 0 and"),
    ],
)
def test_folds_that_cannot_be_are_refused(rows: list[dict[str, Any]], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match=reason):
        plan_of(find_data(listed(tmp_path, training=rows)), None)


def test_the_lists_of_a_file_say_what_their_cases_are_for(tmp_path: Path) -> None:
    unlabelled = {"image": "d.nii.gz"}
    data = listed(tmp_path, training=[case_row("a")], validation=[case_row("b")], testing=[case_row("c"), unlabelled])
    plan = plan_of(find_data(data), None)
    assert {name: entry.partition for name, entry in plan.items()} == {"a": "train", "b": "selection", "c": "test"}
    alone = listed(tmp_path, training=[case_row("a")], testing=[unlabelled])
    assert [(case.id, case.listed and case.listed.partition) for case in find_data(alone)] == [("a", None)]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lable", "label"),
        ("patient_id", "subject"),
        ("split", "partition"),
        ("folds", "fold"),
        ("Label", "label"),
        ("Patient ID", "subject"),
        ("participant_id", "subject"),
    ],
)
def test_a_key_that_says_what_a_known_one_says_is_refused_with_its_name(key: str, nearest: str, tmp_path: Path) -> None:
    data = listed(tmp_path, training=[case_row("a", age=61, **{key: "x"})])
    with pytest.raises(InputRefusedError, match=f"the key '{key}', which is not known; '{nearest}' is the nearest"):
        find_data(data)


def test_a_list_under_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="'val' is not known; 'validation' is the nearest known list"):
        find_data(listed(tmp_path, training=[case_row("a")], val=[case_row("b")]))


def test_labels_that_dataset_json_lists_elsewhere_are_never_replaced_by_others(tmp_path: Path) -> None:
    files = {"image": "imagesTr/a.nii.gz", "label": "labelsTr2/a.nii.gz"}
    touch(*(tmp_path / name for name in (*files.values(), "labelsTr/a.nii.gz")))
    document = {"labels": {"0": "background", "1": "liver"}, "training": [files]}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputRefusedError, match=r"lists labelsTr2/a\.nii\.gz as the label of a, and labelsTr/a"):
        find_data(tmp_path)
    (case,) = find_data(tmp_path / "imagesTr", tmp_path / "labelsTr2")
    assert case.label == tmp_path / "labelsTr2/a.nii.gz"
    (tmp_path / "dataset.json").write_text(
        json.dumps(document | {"training": [files | {"label": "./labelsTr/a.nii.gz"}]})
    )
    assert find_data(tmp_path)[0].label == tmp_path / "labelsTr/a.nii.gz"


def test_files_that_nnunet_2_takes_from_elsewhere_are_never_replaced_by_others(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr_corrected/a.nii.gz")))
    listed = {"a": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr_corrected/a.nii.gz"}}
    document = {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}, "dataset": listed}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputRefusedError, match=r"lists labelsTr_corrected/a\.nii\.gz as the label of a"):
        find_data(tmp_path)


def test_a_list_names_its_label_values_itself_or_by_the_file_beside_it(tmp_path: Path) -> None:
    data = listed(tmp_path, training=[case_row("a")])
    assert facts_of(data) is None
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "spleen": 1}, "modality": {"0": "CT"}})
    )
    facts = facts_of(data)
    assert facts is not None
    assert (facts.names, facts.channels) == ({1: "spleen"}, ("CT",))
    own = {"labels": {"0": "background", "1": "liver"}, "modality": {"0": "MRI"}, "training": [case_row("a")]}
    data.write_text(json.dumps(own))
    with pytest.raises(
        InputRefusedError, match=r"list.json names the label values \{1: 'liver'\}, dataset.json beside it"
    ):
        facts_of(data)
    (tmp_path / "dataset.json").unlink()
    assert facts_of(data) == replace(facts, names={1: "liver"}, channels=("MRI",))


@pytest.mark.parametrize(("one", "other"), [("001", "1"), ("6.0", "6"), ("P0", "P0 "), ("p1", "P1")])
def test_a_person_has_one_spelling(one: str, other: str, tmp_path: Path) -> None:
    rows = [case_row("a", subject=one), case_row("b", subject=other)]
    with pytest.raises(InputRefusedError, match=f"the subjects '{one}' and '{other}', which may be one person"):
        find_data(listed(tmp_path, training=rows))


@pytest.mark.parametrize("missing", ["", None, float("nan")])
def test_a_list_that_names_some_persons_only_is_refused(missing: Any, tmp_path: Path) -> None:
    rows = [case_row("a", subject="P"), case_row("b", subject=missing)]
    with pytest.raises(InputRefusedError, match=r"states the subject of 1 of 2 case\(s\)"):
        find_data(listed(tmp_path, training=rows))


def test_what_spreadsheets_add_to_a_list_is_no_case(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{name}.nii.gz" for name in "abcd"))
    (tmp_path / "list.csv").write_text("sep=;\nimage;label;fold\na.nii.gz;b.nii.gz;0.0\nc.nii.gz;d.nii.gz;1.0\n;;\n")
    (tmp_path / "list.tsv").write_text("image\tlabel\tfold\na.nii.gz\tb.nii.gz\t0\nc.nii.gz\td.nii.gz\t1\n")
    cases = [find_data(tmp_path / name) for name in ("list.csv", "list.tsv")]
    assert [[case.listed and case.listed.fold for case in found] for found in cases] == [[0, 1]] * 2


def test_test_cases_of_a_list_need_no_fold(tmp_path: Path) -> None:
    """As Auto3DSeg's lists have them."""
    rows = [case_row("a", fold=0), case_row("b", fold=1)]
    plan = plan_of(find_data(listed(tmp_path, training=rows, testing=[case_row("c")])), None)
    assert {name: entry.partition for name, entry in plan.items()} == {"a": "train", "b": "train", "c": "test"}
    assert [plan[name].fold for name in "ab"] == [0, 1]


def test_cases_of_a_list_have_the_same_channels_in_one_order(tmp_path: Path) -> None:
    rows = [{"image": dict.fromkeys(names, "a.nii.gz"), "label": "a.nii.gz", "id": names} for names in ("xy", "yx")]
    touch(tmp_path / "a.nii.gz")
    (tmp_path / "list.json").write_text(json.dumps(rows))
    with pytest.raises(InputRefusedError, match=r"the channels of the cases are x, y \(xy\) and y, x \(yx\)"):
        find_data(tmp_path / "list.json")


def test_numbered_channels_may_lie_in_any_folder(tmp_path: Path) -> None:
    touch(*(tmp_path / f"images/c{n}_000{k}.nii.gz" for n in "01" for k in "01"))
    touch(*(tmp_path / f"labels/c{n}.nii.gz" for n in "01"))
    assert [[file.name for file in case.files] for case in find_data(tmp_path)] == [
        [f"c{n}_0000.nii.gz", f"c{n}_0001.nii.gz"] for n in "01"
    ]


def test_as_many_channels_are_named_as_there_are(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")))
    document = {"labels": {"background": 0, "x": 1}, "channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputRefusedError, match=r"name 3 channel\(s\) \(T1, T2, FLAIR\), and the images have 2"):
        find_data(tmp_path)


def test_the_list_of_nnunet_1_is_that_of_the_folder_without_the_numbers_of_channels(tmp_path: Path) -> None:
    files = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr2/a.nii.gz"}
    touch(*(tmp_path / name for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr2/a.nii.gz")))
    document = {"labels": {"0": "background", "1": "liver"}, "training": [files]}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputRefusedError, match=r"lists labelsTr2/a\.nii\.gz as the label of a, and labelsTr/a"):
        find_data(tmp_path)
    (tmp_path / "labelsTr2/a.nii.gz").rename(tmp_path / "labelsTr2/b.nii.gz")
    document["training"] = [files | {"label": "labelsTr/a.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    assert [case.id for case in find_data(tmp_path)] == ["a"]
    touch(tmp_path / "imagesTr/c_0000.nii.gz", tmp_path / "labelsTr/c.nii.gz")
    with pytest.raises(InputRefusedError, match="is not among the 1 cases that dataset"):
        find_data(tmp_path)


def test_numbers_that_are_no_channels_tell_listed_cases_apart(tmp_path: Path) -> None:
    rows = [{"image": f"imagesTr/a_000{n}.nii.gz", "label": f"labelsTr/a_000{n}.nii.gz"} for n in (1, 2)]
    touch(*(tmp_path / file for row in rows for file in row.values()))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver"}, "training": rows}))
    assert [case.id for case in find_data(tmp_path)] == ["a_0001", "a_0002"]


def test_names_match_whichever_way_umlauts_are_written(tmp_path: Path) -> None:
    touch(
        tmp_path / "images" / f"{normalize('NFC', 'Mädchen')}.nii.gz",
        tmp_path / "labels" / f"{normalize('NFD', 'Mädchen')}.nii.gz",
    )
    (case,) = find_data(tmp_path)
    assert case.label is not None


def test_channels_are_in_the_order_of_their_numbers_whichever_way_round_they_are_named(tmp_path: Path) -> None:
    for names in ({"1": "FLAIR", "0": "T1", "10": "T2"}, {"FLAIR": 1, "T2": 10, "T1": 0}):
        (tmp_path / "dataset.json").write_text(
            json.dumps({"channel_names": names, "labels": {"background": 0, "x": 1}})
        )
        facts = read_dataset_json(tmp_path)
        assert facts is not None
        assert facts.channels == ("T1", "FLAIR", "T2")


def test_a_list_of_one_value_is_the_value(tmp_path: Path) -> None:
    """As nnU-Net takes it: regions are where a list has several."""
    several = {"organ": (1, 2), "lesion": (2,)}
    for labels, regions in (({"organ": [1], "lesion": 2}, {}), ({"organ": [1, 2], "lesion": [2]}, several)):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}}))
        facts = read_dataset_json(tmp_path)
        assert facts is not None
        assert (facts.regions, facts.names) == (regions, {} if regions else {1: "organ", 2: "lesion"})
