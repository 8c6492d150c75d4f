"""Versions are kept whole, promoted by an approver who passes the gate, and every move can be read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

from challenged import keys
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from empty_registry import empty_registry
from test_compare import people, write_evaluation

from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.cli import main
from monai_unet_app.errors import AppError, InputRefusedError, UsageError
from monai_unet_app.lifecycle.registry import Registry, open_registry
from monai_unet_app.service.audit import entries, verify
from monai_unet_app.service.tokens import new_token

MARGINS = {"dice": 0.01, "boundary_iou": 0.01, "ece_whole": 0.01, "ece_band": 0.01}
Made = Callable[..., Path]


@pytest.fixture
def bundle(tiny_bundle: Callable[[], Path]) -> Made:
    """A bundle of some version, whose bytes differ from those of another."""
    root = tiny_bundle()

    def made(version: int = 1) -> Path:
        config = root / "configs/inference.yaml"
        config.write_text(config.read_text().split("# version")[0] + f"# version {version}\n")
        return root

    return made


@pytest.fixture(autouse=True)
def _registry(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """A registry without models in `registry`; the verbs make one of their own."""
    empty_registry(tmp_path_factory, tmp_path / "registry")


def evaluation_of(root: Path, folder: Path, dice: float = 0.9) -> Path:
    """An evaluation that was made of a bundle; every person has a Dice of their own."""
    place = write_evaluation(folder, people(30, scores=lambda n: {"dice": dice + 0.002 * (n % 5)}))
    document = json.loads((place / "metrics.json").read_text())
    document["bundle"]["sha256"] = bundle_files(root).sha256
    (place / "metrics.json").write_text(json.dumps(document))
    return place


def filled(registry: Registry, bundle: Made, folder: Path, *dice: float) -> None:
    """A version for each Dice; the first is champion."""
    for number, value in enumerate(dice, 1):
        root = bundle(number)
        registry.add(root, "liver", evaluation_of(root, folder / f"evaluation{number}", value))
    registry.promote("liver", "1", "champion", "Bianchi^Eva", {}, "the first")


def test_a_version_comes_out_as_it_went_in(bundle: Made, tmp_path: Path) -> None:
    root = bundle()
    with open_registry(tmp_path / "registry") as registry:
        version = registry.add(root, "liver")
        assert (version.number, version.sha256, version.aliases) == (1, bundle_files(root).sha256, ())
        assert version.facts["version"] == bundle_files(root).version
        with pytest.raises(InputRefusedError, match="is version 1 of liver already"):
            registry.add(root, "liver")
        assert registry.add(bundle(2), "liver").number == 2
        out = registry.export("liver", "2", tmp_path / "out")
        assert out == tmp_path / "out" / root.name
        assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} == {
            p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()
        }
        with pytest.raises(InputRefusedError, match="exists; a new folder is needed"):
            registry.export("liver", "2", tmp_path / "out")
        with pytest.raises(InputRefusedError, match="liver has no version '3'"):
            registry.export("liver", "3", tmp_path / "other")
        with pytest.raises(InputRefusedError, match="the registry does not have it"):
            registry.version("spleen", "1")


def test_bytes_that_changed_in_the_store_do_not_come_out(bundle: Made, tmp_path: Path) -> None:
    with open_registry(tmp_path / "registry") as registry:
        registry.add(bundle(), "liver")
        (config,) = (tmp_path / "registry/artifacts").rglob("inference.yaml")
        config.write_text(config.read_text() + "# changed\n")
        with pytest.raises(InputRefusedError, match="its files were changed; nothing was written"):
            registry.export("liver", "1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_better_version_is_promoted_by_the_gate_and_rolled_back(bundle: Made, tmp_path: Path) -> None:
    with open_registry(tmp_path / "registry") as registry:
        filled(registry, bundle, tmp_path, 0.90, 0.91)
        outcome = registry.promote("liver", "2", "champion", "Bianchi^Eva", MARGINS)
        assert outcome is not None
        assert outcome.state == "passed"
        assert {one.number: one.aliases for one in registry.versions("liver")} == {1: ("archived",), 2: ("champion",)}
        assert registry.roll_back("liver", "Bianchi^Eva", "misses small ones").number == 1
        assert {one.number: one.aliases for one in registry.versions("liver")} == {1: ("champion",), 2: ("archived",)}
        events = [(line["event"], line["version"], line.get("who")) for line in registry.history("liver")]
        assert events == [
            ("registered", 1, None),
            ("registered", 2, None),
            ("promoted", 1, "Bianchi^Eva"),
            ("promoted", 2, "Bianchi^Eva"),
            ("rolled back", 1, "Bianchi^Eva"),
        ]
        assert registry.looks("liver") == {"a" * 64: 2}
    lines = list(entries(tmp_path / "registry/audit.jsonl"))
    assert verify(tmp_path / "registry/audit.jsonl").lines == len(lines)
    assert lines[-2]["gate"]["outcome"] == "passed"


@pytest.mark.parametrize(
    ("dice", "margins", "says"),
    [
        (0.85, MARGINS, "did not pass the release gate against version 1: dice got worse by more than 0.01"),
        (0.91, {}, "no margin for boundary_iou, dice, ece_band, ece_whole"),
        (0.91, {"dice": 0.01}, "without one, too few subjects would pass as 'not shown to be worse'"),
    ],
)
def test_a_version_that_does_not_pass_stays(
    dice: float, margins: dict[str, float], says: str, bundle: Made, tmp_path: Path
) -> None:
    with open_registry(tmp_path / "registry") as registry:
        filled(registry, bundle, tmp_path, 0.90, dice)
        before = len(registry.history("liver"))
        with pytest.raises(InputRefusedError) as refused:
            registry.promote("liver", "2", "champion", "Bianchi^Eva", margins)
        assert says in str(refused.value)
        assert registry.version("liver", "champion").number == 1
        assert len(registry.history("liver")) == before
        # a written reason stands in the trail in place of the gate
        registry.promote("liver", "2", "challenger", "Bianchi^Eva", {}, "to see it fail")
        assert registry.history("liver")[-1]["reason"] == "to see it fail"
        assert registry.version("liver", "challenger").number == 2
        with pytest.raises(InputRefusedError, match="has no version 'archived'"):
            registry.roll_back("liver", "Bianchi^Eva", "back")


def test_an_evaluation_belongs_to_its_bundle_and_is_needed_for_the_gate(bundle: Made, tmp_path: Path) -> None:
    with open_registry(tmp_path / "registry") as registry:
        other = evaluation_of(bundle(1), tmp_path / "other")
        with pytest.raises(InputRefusedError, match="is the evaluation of a bundle with sha256"):
            registry.add(bundle(2), "liver", other)
        registry.add(bundle(1), "liver")
        registry.add(bundle(2), "liver")
        with pytest.raises(InputRefusedError, match="has no champion that version 1 could be compared with"):
            registry.promote("liver", "1", "champion", "Bianchi^Eva", MARGINS)
        registry.promote("liver", "1", "champion", "Bianchi^Eva", {}, "the first")
        with pytest.raises(InputRefusedError, match="was registered without an evaluation"):
            registry.promote("liver", "2", "champion", "Bianchi^Eva", MARGINS)
        with pytest.raises(InputRefusedError, match="is the champion already"):
            registry.promote("liver", "1", "champion", "Bianchi^Eva", {}, "again")


def test_a_signature_covers_files_that_the_digest_does_not(bundle: Made, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "ours")
    _, other = keys(tmp_path, "theirs")
    with open_registry(tmp_path / "registry") as registry:
        registry.add(bundle(1), "liver", key=private)
        registry.add(bundle(2), "liver")
        assert registry.export("liver", "1", tmp_path / "out", public).is_dir()
        with pytest.raises(InputRefusedError, match=r"does not fit theirs\.pem"):
            registry.export("liver", "1", tmp_path / "wrong", other)
        with pytest.raises(InputRefusedError, match="is not signed, and a signature is asked for"):
            registry.export("liver", "2", tmp_path / "unsigned", public)
        (card,) = (
            p for p in (tmp_path / "registry/artifacts").rglob("LICENSE") if (p.parents[1] / "bundle.sig").exists()
        )
        card.write_text("changed")
        with pytest.raises(InputRefusedError, match=r"the signature of version 1 of liver does not fit ours\.pem"):
            registry.export("liver", "1", tmp_path / "changed", public)
        with pytest.raises(UsageError, match="cannot sign"):
            registry.add(bundle(3), "liver", key=public)


def test_aliases_follow_each_other(bundle: Made, tmp_path: Path) -> None:
    with open_registry(tmp_path / "registry") as registry:
        filled(registry, bundle, tmp_path, 0.90, 0.91)
        registry.promote("liver", "2", "champion", "Bianchi^Eva", MARGINS)
        with pytest.raises(InputRefusedError, match="version 2 of liver is the champion; another version is needed"):
            registry.promote("liver", "2", "challenger", "Bianchi^Eva", {}, "a slip")
        registry.promote("liver", "archived", "champion", "Bianchi^Eva", {}, "back")
        assert {one.number: one.aliases for one in registry.versions("liver")} == {1: ("champion",), 2: ("archived",)}


def test_the_gate_takes_evaluations_on_unseen_cases_as_they_were_registered(bundle: Made, tmp_path: Path) -> None:
    with open_registry(tmp_path / "registry") as registry:
        filled(registry, bundle, tmp_path, 0.90, 0.91)
        seen = evaluation_of(bundle(3), tmp_path / "seen", 0.95)
        document = json.loads((seen / "metrics.json").read_text())
        document["data"]["seen"] = {"train": 8}
        (seen / "metrics.json").write_text(json.dumps(document))
        registry.add(bundle(3), "liver", seen)
        with pytest.raises(InputRefusedError, match=r"8 of the \d+ cases on which version 3 of liver was evaluated"):
            registry.promote("liver", "3", "champion", "Bianchi^Eva", MARGINS)
        assert registry.version("liver", "2").facts["evaluation"]["dice"] == pytest.approx(0.914, abs=0.002)
        run = registry.version("liver", "2").run
        (stored,) = (tmp_path / "registry/artifacts" / run).rglob("cases.csv")
        stored.write_text(stored.read_text().replace("0.9", "1.0"))
        with pytest.raises(InputRefusedError, match="is not the one that was registered; its files were changed"):
            registry.promote("liver", "2", "champion", "Bianchi^Eva", MARGINS)


def test_the_trail_is_believed_and_not_the_tags_of_the_store(bundle: Made, tmp_path: Path) -> None:
    with open_registry(tmp_path / "registry") as registry:
        version = registry.add(bundle(), "liver")
        registry._client.set_model_version_tag("liver", "1", "sha256", "f" * 64)
        assert registry.version("liver", "1").sha256 == version.sha256
        facts = json.dumps({**version.facts, "name": "../../elsewhere"})
        registry._client.set_model_version_tag("liver", "1", "facts", facts)
        assert registry.export("liver", "1", tmp_path / "a/b") == tmp_path / "a/b/elsewhere"


def test_a_registry_that_moved_has_its_files_with_it(bundle: Made, tmp_path: Path) -> None:
    with open_registry(tmp_path / "registry") as registry:
        filled(registry, bundle, tmp_path, 0.90)
    (tmp_path / "registry").rename(tmp_path / "moved")
    with open_registry(tmp_path / "moved", new=False) as registry:
        assert registry.export("liver", "1", tmp_path / "out").is_dir()
        root = bundle(2)
        registry.add(root, "liver", evaluation_of(root, tmp_path / "evaluation2", 0.91))
        assert registry.promote("liver", "2", "champion", "Bianchi^Eva", MARGINS)
    assert not (tmp_path / "registry").exists()
    with (
        pytest.raises(InputRefusedError, match="registry holds no registry"),
        open_registry(tmp_path / "registry", new=False),
    ):
        pass
    assert not (tmp_path / "registry").exists()


def test_a_bundle_is_registered_once_more_if_that_adds_something(bundle: Made, tmp_path: Path) -> None:
    private, _ = keys(tmp_path, "ours")
    with open_registry(tmp_path / "registry") as registry:
        root = bundle()
        assert registry.add(root, "liver").number == 1
        assert registry.add(root, "liver", evaluation_of(root, tmp_path / "evaluation")).number == 2
        assert registry.add(root, "liver", tmp_path / "evaluation", private).number == 3
        assert registry.add(root, "liver", evaluation_of(root, tmp_path / "later", 0.8)).number == 4
        with pytest.raises(InputRefusedError, match="there is nothing to add"):
            registry.add(root, "liver", tmp_path / "evaluation", private)
        for config in (tmp_path / "registry/artifacts").rglob("inference.yaml"):
            config.write_text(config.read_text() + "# changed\n")
        assert registry.add(root, "liver").number == 5
        rsa_key = tmp_path / "rsa.key"
        made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form, clear = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        rsa_key.write_bytes(made.private_bytes(serialization.Encoding.PEM, form, clear))
        kept = sorted((tmp_path / "registry/artifacts").iterdir())
        for name, key, says in (("liver", rsa_key, "cannot sign"), ("a b/x", None, "letters, digits")):
            with pytest.raises(UsageError, match=says):
                registry.add(bundle(2), name, key=key)
        assert sorted((tmp_path / "registry/artifacts").iterdir()) == kept


def test_one_process_at_a_time_and_a_server_that_is_away(tmp_path: Path) -> None:
    with (
        open_registry(tmp_path / "registry"),
        pytest.raises(UsageError, match="is in use by another process"),
        open_registry(tmp_path / "registry"),
    ):
        pass
    with (
        pytest.MonkeyPatch.context() as patch,
        open_registry(tmp_path / "registry", "http://127.0.0.1:9") as registry,
    ):
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(AppError, match="the registry does not answer as it should"):
            registry.models()


def test_the_verbs_add_promote_and_roll_back_for_an_approver_only(
    bundle: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    approver, line = new_token("Bianchi^Eva", ["approver"])
    reviewer, other = new_token("Rossi^Anna", ["reviewer"])
    (tmp_path / "tokens").write_text(f"{line}\n{other}\n")
    (tmp_path / "token").write_text(approver)
    (tmp_path / "reviewers").write_text(reviewer)
    place = ["--registry", str(tmp_path / "made")]
    person = ["--tokens", str(tmp_path / "tokens"), "--token-file"]

    def called(*words: object) -> tuple[int, Any, str]:
        code = main(["registry", *map(str, words), *place, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if code == 0 else None, said.err

    for number, dice in ((1, 0.90), (2, 0.91)):
        root = bundle(number)
        place_of = evaluation_of(root, tmp_path / f"evaluation{number}", dice)
        assert called("add", "--bundle", root, "--name", "liver", "--evaluation", place_of)[1]["looks"] == number
    first = ("promote", "--name", "liver", "--version", "1", "--reason", "the first")
    assert "not valid for that" in called(*first, *person, tmp_path / "reviewers")[2]
    assert called(*first, *person, tmp_path / "token")[0] == 0
    second = ("promote", "--name", "liver", "--version", "2", "--margin", "0.01")
    assert called(*second, *person, tmp_path / "token")[1]["gate"]["outcome"] == "passed"
    shown = called("show", "--name", "liver")[1]
    assert (shown["version"], shown["aliases"]) == (2, ["champion"])
    assert "--reason is missing" in called("rollback", "--name", "liver", *person, tmp_path / "token")[2]
    assert called("rollback", "--name", "liver", "--reason", "worse", *person, tmp_path / "token")[1]["version"] == 1
    assert Path(called("export", "--name", "liver", "--output", tmp_path / "out")[1]["folder"]).is_dir()
    assert [one["version"] for one in called("list")[1]["versions"]] == [1, 2]
    assert main(["registry", "list", *place]) == 0
    assert "champion" in capsys.readouterr().out
    assert main(["registry", "show", "--name", "liver", *place]) == 0
    shown_as_text = capsys.readouterr().out
    assert "    dice: 0.90" in shown_as_text
    assert "event promoted, version 1, alias champion, who Bianchi^Eva, reason the first" in shown_as_text
    assert "{" not in shown_as_text.partition("event promoted, version 2")[0]
    trail = tmp_path / "made/audit.jsonl"
    assert main(["trace", "--audit", str(trail)]) == 0
    trail.write_text("".join(trail.read_text().splitlines(keepends=True)[:-1]))
    assert main(["trace", "--audit", str(trail)]) == 3
    assert "records line" in capsys.readouterr().err
    assert main(["registry", "list", "--registry", str(tmp_path / "none")]) == 3
    assert "none holds no registry" in capsys.readouterr().err
