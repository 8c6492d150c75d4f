"""Destinations from a site file and from the command line: what is right is read, everything else is refused in words."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from dicom_io.kinds import NAMES
from dicom_io.net.destination import (
    Destination,
    DestinationError,
    DicomWeb,
    Dimse,
    Profile,
    Receive,
    Tls,
    parse_destination,
)
from dicom_io.net.destination_file import read_site

WHOLE = """
[destinations.archive]
host = "pacs.example.org"
port = 11112
ae_title = "ARCHIVE"
our_ae_title = "UNET1"
retrieve = "move"
connect_s = 3
answer_s = 90.5

[destinations.archive.receive]
host = "0.0.0.0"
port = 11113
senders = ["ARCHIVE", "ARCHIVE2"]

[destinations.archive.tls]
ca = "keys/ca.pem"
certificate = "keys/us.pem"
key = "/etc/keys/us.key"
check_hostname = false

[destinations.archive.profile]
objects = ["SEG", "SR"]
seg_encoding = "labelmap"
empty_frames = true

[destinations.web]
url = "https://pacs.example.org/dicom-web/"
token_env = "ARCHIVE_TOKEN"
"""
NODE = '[destinations.a]\nhost = "h"\nport = 104\nae_title = "A"\n'


def site(folder: Path, text: str) -> dict[str, Destination]:
    (folder / "site.toml").write_text(text)
    return read_site(folder / "site.toml")


def test_every_key_of_a_site_file_is_read_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    found = site(tmp_path, WHOLE)
    assert found["archive"] == Destination(
        "archive",
        Dimse(
            "pacs.example.org",
            11112,
            "ARCHIVE",
            "UNET1",
            Tls(tmp_path / "keys/ca.pem", tmp_path / "keys/us.pem", Path("/etc/keys/us.key"), check_hostname=False),
            "move",
            Receive("0.0.0.0", 11113, ("ARCHIVE", "ARCHIVE2")),
        ),
        Profile(("SEG", "SR"), "labelmap", empty_frames=True),
        connect_s=3.0,
        answer_s=90.5,
    )
    assert found["web"].peer == DicomWeb("https://pacs.example.org/dicom-web", None, "ARCHIVE_TOKEN")


def test_the_site_file_of_the_how_to_is_read_and_names_every_key(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/how-to/send-and-fetch.md").read_text()
    text = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    found = site(tmp_path, text)
    assert {type(one.peer) for one in found.values()} == {Dimse, DicomWeb}
    renamed = {"name": None, "peer": None, "profile": None, "tls": None, "receive": None}
    for kind in (Destination, Dimse, DicomWeb, Receive, Tls, Profile):
        for key in (field.name for field in fields(kind)):
            assert key in renamed or re.search(rf"^{key} = ", text, re.MULTILINE), key


def test_what_a_site_file_leaves_out_is_safe(tmp_path: Path) -> None:
    tables = '[destinations.a.tls]\nca = "ca.pem"\n[destinations.a.receive]\nport = 11113\n'
    found = site(tmp_path, NODE + tables)["a"]
    assert isinstance(found.peer, Dimse)
    assert found.peer.tls is not None
    assert found.peer.tls.check_hostname
    assert found.peer.receive == Receive("127.0.0.1", 11113, ())
    assert found.peer.our_ae_title == "MONAIUNET"
    assert (found.profile.seg_encoding, found.profile.empty_frames) == (None, False)


def test_the_kinds_are_those_that_can_be_written_and_seg_goes_before_sr() -> None:
    assert NAMES == ("SEG", "PM", "RTSTRUCT", "SR", "GSPS", "SC", "PDF", "KO")
    assert Profile().objects == NAMES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[destinations", "cannot be read .*; a site file in TOML is needed"),
        ("", "names no destination; a table \\[destinations.NAME\\] is needed"),
        (
            "[destination.a]\n",
            "has the unknown key destination; the known keys are destinations, http, node, rules; correct or remove it",
        ),
        ("[destinations]\na = 3\n", "site.toml: a is 3; a table is needed"),
        (NODE + "tsl = true\n", "has the unknown key tsl; the known keys are .*tls; correct or remove it"),
        (NODE + '[destinations.a.tls]\ncertificat = "x"\n', "site.toml: a: tls has the unknown key certificat"),
        (NODE + '[destinations.a.profile]\nobject = ["SEG"]\n', "has the unknown key object;"),
        (NODE + "[destinations.a.receive]\nport = 1\nfrom = []\n", "has the unknown key from"),
        ('[destinations.a]\nport = 104\nae_title = "A"\n', "has no key host; a host name .* is needed; add it"),
        ('[destinations.a]\nhost = "h"\nae_title = "A"\n', "has no key port; a TCP port is needed"),
        ('[destinations.a]\nhost = "h"\nport = 104\n', "has no key ae_title"),
        (NODE.replace("104", "70000"), "the port is 70000; a TCP port from 1 to 65535 is needed"),
        (NODE.replace("104", "true"), "port is True; a TCP port is needed"),
        (NODE.replace("104", '"104"'), "port is '104'; a TCP port is needed"),
        (NODE.replace('"A"', '"SEVENTEEN CHARS !"'), "the AE title is 'SEVENTEEN CHARS !'; 1 to 16 characters"),
        (NODE.replace('"A"', r'"A\\B"'), "without a backslash"),
        (NODE.replace('"A"', '"  "'), "1 to 16 characters"),
        (NODE.replace('"h"', '"h/x"'), "host is 'h/x'; a host name or address is needed"),
        (NODE + "answer_s = 0\n", "answer_s is 0; more than 0"),
        (NODE + 'retrieve = "push"\n', "retrieve is 'push'; one of get, move is needed"),
        (NODE + 'retrieve = "move"\n', "retrieves by C-MOVE and has no table receive"),
        (
            NODE + '[destinations.a.tls]\nkey = "k.pem"\n',
            "has one of certificate and key; either both or none are needed",
        ),
        (NODE + '[destinations.a.tls]\ncheck_hostname = "no"\n', "check_hostname is 'no'; true or false is needed"),
        (NODE + '[destinations.a.profile]\nobjects = ["SR", "SEG"]\n', "in the order SR, SEG; SEG before SR is needed"),
        (NODE + '[destinations.a.profile]\nobjects = ["SEG", "SEG"]\n', "each once, is needed"),
        (NODE + '[destinations.a.profile]\nobjects = ["XYZ"]\n', "objects is \\['XYZ'\\]; a list of SEG, PM"),
        (NODE + "[destinations.a.profile]\nobjects = []\n", "objects is \\[\\]"),
        (
            NODE + '[destinations.a.profile]\nseg_encoding = "rle"\n',
            "one of binary, binary-deflated, labelmap, labelmap-rle, labelmap-jpegls, fractional is needed",
        ),
        (NODE + "[destinations.a.profile]\nempty_frames = 1\n", "empty_frames is 1; true or false is needed"),
        (NODE + 'url = "http://x"\n', "has the unknown key"),
        ('[destinations.a]\nurl = "ftp://x"\n', "the URL is not one of a DICOMweb service"),
        ('[destinations.a]\nurl = "https://x/?a=b"\n', "without a password, a query"),
        ('[destinations.a]\nurl = "http://pacs/dw"\ntoken_env = "T"\n', "has a token .*; https is needed"),
    ],
)
def test_a_wrong_site_file_is_refused_with_what_to_do(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=message):
        site(tmp_path, text)


def test_a_token_or_password_in_the_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    for line in ('url = "https://x/"\ntoken_env = "eyJhb.GciOi.J9"', 'url = "https://me:hunter2@x/"'):
        with pytest.raises(DestinationError) as refusal:
            site(tmp_path, f"[destinations.a]\n{line}\n")
        assert "eyJ" not in str(refusal.value)
        assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "peer", "label"),
    [
        (
            "ARCHIVE@pacs.example.org:11112",
            Dimse("pacs.example.org", 11112, "ARCHIVE"),
            "ARCHIVE@pacs.example.org:11112",
        ),
        ("MY PACS@10.0.0.7:104", Dimse("10.0.0.7", 104, "MY PACS"), "MY PACS@10.0.0.7:104"),
        ("A@[fe80::1]:104", Dimse("fe80::1", 104, "A"), "A@[fe80::1]:104"),
        (
            "http://localhost:8042/dicom-web/",
            DicomWeb("http://localhost:8042/dicom-web"),
            "http://localhost:8042/dicom-web",
        ),
    ],
)
def test_a_destination_can_be_one_word(text: str, peer: object, label: str) -> None:
    found = parse_destination(text)
    assert found.peer == peer
    assert found.label == label


@pytest.mark.parametrize(
    "text",
    [
        "",
        "archive",
        "ARCHIVE@host",
        "host:104",
        "@host:104",
        "A@host:0",
        "A@host:99999",
        "A@h o:1",
        "http://",
        "https://u:p@h",
    ],
)
def test_another_word_is_refused(text: str) -> None:
    with pytest.raises(DestinationError, match="needed"):
        parse_destination(text)


def test_our_ae_title_of_the_command_line_is_used_and_checked() -> None:
    peer = parse_destination("A@h:1", "OURS").peer
    assert isinstance(peer, Dimse)
    assert peer.our_ae_title == "OURS"
    with pytest.raises(DestinationError, match="1 to 16 characters"):
        parse_destination("A@h:1", "X" * 17)
