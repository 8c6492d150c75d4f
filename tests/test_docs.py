"""The documentation says what the code does: every command parses, every verb, flag and key of the site file is explained."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from shell import every_verb

from dicom_io.net import destination_file as site_of_dicom_io
from dicom_io.validators import dciodvfy_errors
from monai_unet_app.cli import main
from monai_unet_app.cli.parser import build_parser
from monai_unet_app.service.site import HttpConfig, NodeConfig, Rule
from monai_unet_app.service.site_file import read_site

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bundles/*/docs/*.md", "examples/**/*.md")
    for path in REPOSITORY.glob(pattern)
    if path.name != "CHANGELOG.md"
)
DECISIONS = REPOSITORY / "docs" / "decisions"
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(REPOSITORY)) for path in PAGES])


@cache
def parser() -> argparse.ArgumentParser:
    return build_parser()


@cache
def verbs() -> dict[str, argparse.ArgumentParser]:
    return every_verb()


@cache
def documentation() -> str:
    """All pages but the decisions."""
    return "\n".join(page.read_text() for page in PAGES if page.parent != DECISIONS)


def flags(verb: str) -> set[str]:
    """The long flags of a verb."""
    return {name for action in verbs()[verb]._actions for name in action.option_strings if name.startswith("--")}


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Fenced blocks of a page that have one of these languages; "" is none."""
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
        if language in languages:
            yield block


def commands(page: Path) -> Iterator[list[str]]:
    """Words of each `monai-unet` command in the fenced blocks of a page, without `monai-unet`, comments and pipes."""
    for block in blocks(page, "", "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if re.match(r" *(\S*/)?monai-unet ", line) else []
            if words:
                yield words[1 : next((n for n, word in enumerate(words) if word in ("|", ">", "&&", ";")), None)]


@each_page
def test_every_command_of_a_page_is_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page):
        assert _is_understood(words), (" ".join(words), capsys.readouterr().err)


def _is_understood(words: list[str]) -> bool:
    try:
        parser().parse_args(words)
    except SystemExit as ended:
        return ended.code == 0  # --help and --version end the program too
    return True


@each_page
def test_every_verb_and_flag_that_a_page_names_exists(page: Path) -> None:
    for said in re.findall(r"`monai-unet ([^`\n]*)`", page.read_text()):
        first, *rest = said.replace("...", "").split() or ["<verb>"]
        if first.startswith(("<", "-")):
            continue
        second = [f"{first} {word}" for word in rest[0].split("|")] if rest else []
        for verb in [name for name in second if name in verbs()] or [first]:
            assert verb in verbs(), said
            named = {word.split("=")[0].strip("[]") for word in rest if re.match(r"\[?--[a-z]", word)}
            assert named <= flags(verb) | {"--help", "--version"}, said


def test_the_readme_shows_the_verbs_as_the_help_does() -> None:
    (shown,) = (block for block in blocks(REPOSITORY / "README.md", "") if block.startswith("data:\n"))
    assert shown in parser().format_help()


@pytest.mark.parametrize("verb", sorted(every_verb()))
def test_every_flag_of_a_verb_is_explained_or_shown_somewhere_in_docs(verb: str) -> None:
    missing = {flag for flag in flags(verb) if not re.search(rf"{flag}(?![a-z-])", documentation())}
    assert missing <= {"--help"}


EXAMPLE = "examples/msd_hippocampus/images/hippocampus_035.nii.gz"
MEANT = {"IMAGE": EXAMPLE, "INPUT": EXAMPLE, "SERIES": "dicom/hippocampus_035/mr", "OUTPUT": "out", "OUT": "out"}


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/faq.md", "docs/getting-started.md", "docs/how-to/predict.md"])
def test_what_the_first_pages_show_runs_as_it_stands_there(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _examples_with_few_test_cases(tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("monai_unet_app.planning.speed.seconds_of_a_window", lambda *of, **named: 0.02)
    make_series = ["dicomize", "--images", EXAMPLE, "--output", "dicom"]
    shown = [[MEANT.get(word, word) for word in words] for words in commands(REPOSITORY / page)]
    alone = [words for words in shown if _needs_nothing_else(words)]
    assert "predict" in {words[0] for words in alone}
    for words in dict.fromkeys(map(tuple, [make_series, *alone])):
        assert main(list(words)) == 0, (words, capsys.readouterr().err)
    names: dict[str, Any] = {}
    for block in blocks(REPOSITORY / page, "python"):
        exec(block, names)
    for path in Path("out").glob("*_seg.dcm"):
        assert dciodvfy_errors(path) == []


def _examples_with_few_test_cases(folder: Path) -> None:
    """Three of them: the tests of the shipped figures measure them all."""
    shutil.copytree(REPOSITORY / "examples", folder)
    rows = json.loads((folder / "splits.json").read_text())["datasets"]["msd_hippocampus"]["cases"]
    there = [file for row in rows if row["partition"] == "test" for file in folder.rglob(f"{row['id']}.nii.gz")]
    for file in there:
        if not re.match(r"hippocampus_03[567]", file.name):
            file.unlink()


def _needs_nothing_else(words: list[str]) -> bool:
    """A command without a word in capitals that stands for something of the user's; the demo takes minutes."""
    return words[0] not in ("demo", "doctor") and not re.search(r"\b(?:[A-Z]{3,}|my_bundle|case)\b", " ".join(words))


def test_every_question_of_the_faq_has_a_short_answer_and_a_command() -> None:
    sections = re.split(r"^### ", (REPOSITORY / "docs/faq.md").read_text(), flags=re.MULTILINE)[1:]
    for section in sections:
        question, answer = re.sub(r"^## .*", "", section, flags=re.MULTILINE).split("\n", 1)
        text, *fenced = answer.split("```")
        assert question.rstrip().endswith("?"), question
        assert 1 <= len(text.strip().splitlines()) <= 3, question
        assert any(re.search(r"^(monai-unet|python|curl|cat) ", block, re.MULTILINE) for block in fenced), question


def site_keys(kind: type) -> set[str]:
    """Keys of a table of the site file: the fields of the dataclass that it becomes."""
    return {one.name for one in fields(kind)}


@pytest.mark.parametrize(("table", "kind"), [("node", NodeConfig), ("rules", Rule), ("http", HttpConfig)])
def test_the_site_file_of_the_how_to_shows_every_key(table: str, kind: type) -> None:
    text = _site_file()
    part = re.search(rf"^\[+{table}\]+(.*?)(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE)
    assert part is not None
    shown = set(re.findall(r"^(?:# )?([a-z_0-9]+) = ", part[1], re.MULTILINE))
    assert shown == site_keys(kind)


def test_the_site_file_of_the_how_to_is_accepted_and_states_the_true_defaults(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(_site_file())
    site = read_site(path)
    assert site.http is not None
    document = tomllib.loads(_site_file())
    for kind, content in ((NodeConfig, document["node"]), (Rule, document["rules"][0]), (HttpConfig, document["http"])):
        usual = {one.name: one.default for one in fields(kind) if one.default is not MISSING}
        usual |= {one.name: one.default_factory() for one in fields(kind) if one.default_factory is not MISSING}
        for key in _stated_as_default(content):
            told = tuple(content[key]) if isinstance(content[key], list) else content[key]
            assert told == usual[key], f"{key} is said to be {told} by default, it is {usual[key]}"


def _stated_as_default(content: dict[str, Any]) -> list[str]:
    """Keys of the shown site file whose comment says that the value is the default."""
    lines = _site_file().splitlines()
    marked = [line.split(" = ")[0] for line in lines if re.search(r"= [^#]+#.*\bdefault\b(?!:)", line)]
    return [key for key in marked if key in content]


def _site_file() -> str:
    (found,) = (block for block in blocks(REPOSITORY / "docs/how-to/node.md", "toml") if "[node]" in block)
    return found


def test_the_how_to_on_sending_shows_every_key_of_a_destination(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known: set[str] = set()
    close = site_of_dicom_io.TomlTable.close

    def noting(self: site_of_dicom_io.TomlTable) -> None:
        known.update(self.known)
        close(self)

    monkeypatch.setattr(site_of_dicom_io.TomlTable, "close", noting)
    page = REPOSITORY / "docs/how-to/send-and-fetch.md"
    (text,) = (block for block in blocks(page, "toml"))
    (tmp_path / "site.toml").write_text(text)
    site_of_dicom_io.read_site(tmp_path / "site.toml")
    known -= {"destinations", "node", "rules", "http"}
    missing = {key for key in known if not re.search(rf"\b{key}\b", page.read_text())}
    assert not missing


def test_performance_says_what_still_wants_all_probabilities() -> None:
    kept = (REPOSITORY / "benchmarks/all_probabilities.md").read_text()
    assert kept.rstrip() in (REPOSITORY / "docs/performance.md").read_text()
    assert all(
        what in kept for what in ("--probabilities", "--cautious", "fractional", "tidy", "evaluate", "calibrate")
    )
