"""A site file says what it means, or what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from nodes import write_site

from dicom_io.net.destination_file import read_site as read_destinations
from monai_unet_app.errors import UsageError
from monai_unet_app.service.site_file import read_site


def test_a_site_has_a_node_rules_and_destinations(tmp_path: Path) -> None:
    path = write_site(
        tmp_path, 11112, node='ae_title = "SEGMENT"\nnetworks = ["10.1.0.0/16"]', rule='formats = ["seg"]\ntta = true'
    )
    site = read_site(path)
    assert (site.node.ae_title, site.node.folder, site.node.networks) == (
        "SEGMENT",
        tmp_path / "node",
        ("10.1.0.0/16",),
    )
    (rule,) = site.rules
    assert (rule.formats, rule.tta, rule.destinations) == (("seg",), True, ("pacs",))
    assert rule.match["Modality"].search("ct")
    assert site.destinations["pacs"].label == "PACS@127.0.0.1:11112"
    assert list(read_destinations(path)) == ["pacs"]  # the same file serves `pacs send --site`


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('folder = "node"', "", "has no key folder"),
        ("stable_s = 1.5", "stabel_s = 1.5", "unknown key stabel_s"),
        ("stable_s = 1.5", "stable_s = -1", "stable_s is -1"),
        ("stable_s = 1.5", 'networks = ["10.1.0.0/99"]', "networks has '10.1.0.0/99'"),
        ("stable_s = 1.5", "workers = 0", "workers is 0"),
        ('match = {Modality = "CT"}', "", "matches every series"),
        ('Modality = "CT"', 'Modalty = "CT"', "a DICOM keyword and a pattern are needed"),
        ('Modality = "CT"', 'Modality = "(CT"', r"the pattern '\(CT' of Modality cannot be used"),
        ('name = "any"', 'name = "a/b"', "name is 'a/b'"),
        ('destinations = ["pacs"]', 'destinations = ["pax"]', "sends to pax; one of pacs is needed"),
        ('destinations = ["pacs"]', 'destinations = ["pacs"]\nformats = ["pdf"]', "formats is"),
        ('destinations = ["pacs"]', "notice = true", "has notice = true, and sends to no destination"),
        ('destinations = ["pacs"]', 'destinations = ["pacs"]\nnotice = "yes"', "notice is 'yes'"),
        (
            'destinations = ["pacs"]',
            'engine = "tensorrt"',
            "engine is 'tensorrt'; one of torch, openvino, onnxruntime is",
        ),
        (
            'destinations = ["pacs"]',
            'precision = "int4"',
            "precision is 'int4'; one of float32, bfloat16, float16, int8 is",
        ),
        ('destinations = ["pacs"]', 'engine = "openvino"', "the engine openvino and export_sha256 is missing"),
        ('destinations = ["pacs"]', f'export_sha256 = "{64 * "a"}"', "the engine torch and export_sha256 aaaaaaaaaaaa"),
        ("answer_s = 5.0", "notice = true", "unknown key notice"),
        ("[node]", "[nodes]", "has no table \\[node\\]"),
        (
            "[[rules]]",
            '[[rules]]\nname = "any"\nbundle = "x"\nmatch = {Modality = "MR"}\n[[rules]]',
            "two rules with the same name",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = write_site(tmp_path, 11112)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=said):
        read_site(path)


def test_a_notice_goes_to_the_destinations_that_take_captures(tmp_path: Path) -> None:
    path = write_site(tmp_path, 11112, rule="notice = true")
    viewer = """
[destinations.viewer]
host = "127.0.0.1"
port = 104
ae_title = "VIEWER"
[destinations.viewer.profile]
objects = ["SEG"]
"""
    path.write_text(path.read_text().replace('["pacs"]', '["viewer", "pacs"]') + viewer)
    site = read_site(path)
    (rule,) = site.rules
    assert site.noticed(rule) == ("pacs",)
    assert site.noticed(replace(rule, notice=False)) == ()
    path.write_text(path.read_text().replace('["viewer", "pacs"]', '["viewer"]'))
    with pytest.raises(UsageError, match="sends to viewer; a destination that takes SC is needed"):
        read_site(path)
