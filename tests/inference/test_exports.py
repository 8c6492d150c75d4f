"""Exported networks answer as torch does, and what is not the certified export of these weights is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from exports import Template, exported_once, networks_written_once, shallow_template
from processor import NEEDS_BF16
from shell import Run, shell
from small_data import FEW, drawn_eyes, few_examples

from monai_unet_app import certify, export
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.bundle_folder import CARD_FIGURES
from monai_unet_app.calibration.fitted import change_fitted
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.confidence.statements import read_confidence
from monai_unet_app.config import PredictConfig, ResultSettings
from monai_unet_app.errors import BundleError, UsageError
from monai_unet_app.export import export_bundle, with_precise_norms
from monai_unet_app.inference.engines.certificate import PARITY, export_sha256
from monai_unet_app.inference.engines.chooser import ENGINES as ENGINES_AND_BITS
from monai_unet_app.inference.engines.chooser import check_device, engine_by_itself
from monai_unet_app.inference.engines.exported import reference_windows
from monai_unet_app.inference.engines.runtimes import RUNTIMES
from monai_unet_app.pipeline import segment_case
from monai_unet_app.report.card import CARD, card_rows, certificate_rows, put_certificate, put_figures
from monai_unet_app.training.checkpoints import forget_figures

run = pytest.fixture(shell)
VOLUMES, SLICES, EYES = "hippocampus_mri_unet3d", "hippocampus_mri_unet2d", "retina_vessel_unet2d"
ENGINES = tuple(RUNTIMES)
EXPORTED = {VOLUMES: ENGINES, SLICES: ("openvino",), EYES: ("onnxruntime",)}
"""Both engines meet windows with and without depth. A full grid finds no more, and exporting takes most of the time."""


written_once = pytest.fixture(scope="module", autouse=True)(networks_written_once)
tiny_template = pytest.fixture(scope="module")(shallow_template)


@pytest.fixture(scope="module")
def exported(tiny_template: Template, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny bundle, exported once for its engines of EXPORTED."""
    return lambda name: exported_once(tmp_path_factory, tiny_template, name, EXPORTED[name])


@pytest.fixture
def copied(exported: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(exported(VOLUMES), tmp_path / VOLUMES)


def image_for(name: str, folder: Path) -> Path:
    if name == EYES:
        return drawn_eyes(folder, 1) / "eye_1.png"
    return few_examples(folder, ("hippocampus_003",)) / "images/hippocampus_003.nii.gz"


@pytest.mark.parametrize(("name", "engine"), [(name, engine) for name in EXPORTED for engine in EXPORTED[name]])
def test_an_exported_network_gives_the_labels_and_probabilities_of_torch(
    exported: Callable[[str], Path], tmp_path: Path, name: str, engine: str
) -> None:
    bundle, image = load_bundle(exported(name)), image_for(name, tmp_path)
    cases = [
        segment_case(image, bundle, PredictConfig(ResultSettings(engine=one, tta=True)), keep="probabilities")
        for one in ("torch", engine)
    ]
    torchs, others = (np.asarray(case.segmentation.probabilities) for case in cases)
    np.testing.assert_allclose(others, torchs, atol=2e-5)
    labels = [np.asarray(case.segmentation.labels) for case in cases]
    assert np.mean(labels[0] != labels[1]) <= 1e-4
    assert cases[1].settings.engine == engine


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_layer_made_of_windows_is_answered_alike_and_other_sizes_are_refused(
    exported: Callable[[str], Path], engine: str
) -> None:
    bundle = load_bundle(exported(VOLUMES))
    windows = torch.randn(3, 1, *bundle.windows.window, generator=torch.Generator().manual_seed(1))
    torchs, others = (bundle.engine(ResultSettings(engine=one))(windows) for one in ("torch", engine))
    torch.testing.assert_close(others.logits, torchs.logits, atol=1e-4, rtol=1e-4)
    assert torchs.layer is not None
    torch.testing.assert_close(others.layer, torchs.layer, atol=1e-5, rtol=1e-4)
    with pytest.raises(UsageError, match="an export answers windows of"):
        bundle.engine(ResultSettings(engine=engine))(windows[:, :, 1:])


@pytest.mark.parametrize("shape", [(40, 50), (33, 1), (24, 9, 10)])
def test_precise_norms_are_those_of_torch_in_double_precision(shape: tuple[int, ...]) -> None:
    values = 50 + torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0)).double()
    kind = torch.nn.InstanceNorm2d if len(shape) == 2 else torch.nn.InstanceNorm3d
    norm = torch.nn.Sequential(kind(3, affine=True), kind(3)).double().eval()
    torch.nn.init.normal_(norm[0].weight)
    torch.nn.init.normal_(norm[0].bias)
    precise = with_precise_norms(norm)
    assert type(norm[0]) is kind
    torch.testing.assert_close(precise(values), norm(values), atol=1e-9, rtol=1e-9)


def test_reference_windows_are_those_of_their_formula_and_unlike_each_other() -> None:
    one, other, dark = reference_windows(2, (8, 6, 1))
    assert float(dark[:, :, :4].std()) == 0
    assert torch.equal(dark[:, :, 4:], other[:, :, 4:])
    assert one.shape == other.shape == (1, 2, 8, 6, 1)
    # First voxel: three waves at their top, and the ripple at its bottom
    assert one[0, 0, 0, 0, 0] == pytest.approx(0.6 * 3 - 0.5)
    assert float((one - other).abs().mean()) > 0.1
    assert float((one[0, 0] - one[0, 1]).abs().mean()) > 0.01


def refused(root: Path, engine: str = "openvino") -> str:
    with pytest.raises(BundleError) as refusal:
        load_bundle(root).engine(ResultSettings(engine=engine))
    assert f"run monai-unet bundle export --bundle {VOLUMES} --to {engine}" in str(refusal.value)
    return str(refusal.value)


def test_a_bundle_without_an_export_is_refused(tiny_bundle: Callable[[str], Path]) -> None:
    assert "it has no export for onnxruntime" in refused(tiny_bundle(VOLUMES), "onnxruntime")


def test_an_export_of_other_weights_is_refused(copied: Path) -> None:
    weights = torch.load(copied / "models/model.pt", weights_only=True)
    torch.save({name: value * 1.01 for name, value in weights.items()}, copied / "models/model.pt")
    (copied / "models/fitted.json").write_text((copied / "models/fitted.json").read_text())
    assert "its export for openvino is of other weights" in refused(copied)
    assert engine_by_itself(load_bundle(copied)) == ("torch", "its export for openvino is of other weights")


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        (r"^window: .*", "window: [16, 16, 16]"),
        (r"^feature_layer: .*", "feature_layer: input_block"),
        (r"\{affine: true\}", "{affine: true, eps: 0.1}"),
    ],
)
def test_an_export_of_another_network_window_or_layer_is_refused(copied: Path, there: str, instead: str) -> None:
    config = copied / "configs/inference.yaml"
    text, count = re.subn(there, instead, config.read_text(), flags=re.MULTILINE)
    assert count == 1
    config.write_text(text)
    assert "is of another network_def, window or feature_layer" in refused(copied)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_export_is_refused(copied: Path, engine: str) -> None:
    file = copied / RUNTIMES[engine].files[-1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)
    assert "is not the one that its certificate" in refused(copied, engine)
    file.unlink()
    assert "is not the one that its certificate" in refused(copied, engine)


def test_another_network_under_a_certificate_that_names_it_is_refused_by_its_answers(copied: Path) -> None:
    """Whoever can write the certificate can write its digests; the answers of torch in it are held against the network."""
    other = copied.parent / "other" / VOLUMES
    shutil.copytree(copied, other)
    weights = torch.load(other / "models/model.pt", weights_only=True)
    torch.save({name: value.float() * 1.05 for name, value in weights.items()}, other / "models/model.pt")
    export_bundle(load_bundle(other), "openvino")
    for name in RUNTIMES["openvino"].files:
        shutil.copyfile(other / name, copied / name)
    document = json.loads((copied / PARITY).read_text())
    document["exports"]["openvino"]["sha256"] = export_sha256(copied, RUNTIMES["openvino"].files)
    (copied / PARITY).write_text(json.dumps(document))
    assert "answers a reference window with probabilities that are" in refused(copied)


def test_an_export_that_answers_otherwise_is_not_written(
    tiny_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_bundle(VOLUMES)
    before = sorted(root.rglob("*"))

    def other_answers(bundle: Bundle, engine: str, file: Path) -> None:
        with torch.no_grad():
            for weight in bundle.network.parameters():
                weight.mul_(1.05)
        write(bundle, engine, file)
        bundle.network.load_state_dict(torch.load(bundle.weights, weights_only=True))

    write = export._write
    monkeypatch.setattr(export, "_write", other_answers)
    with pytest.raises(BundleError, match=r"from those of torch; 0\.0001 at most is needed, so nothing was written"):
        export_bundle(load_bundle(root), "openvino")
    assert sorted(root.rglob("*")) == before


def test_an_engine_of_the_cpu_is_refused_elsewhere() -> None:
    check_device(ResultSettings(engine="torch"), "cuda")
    with pytest.raises(UsageError, match="--engine openvino runs on the CPU, and the device is cuda"):
        check_device(ResultSettings(engine="openvino"), "cuda")


def test_auto_takes_a_certified_export_and_says_so(
    run: Run, tiny_bundle: Callable[[str], Path], exported: Callable[[str], Path], tmp_path: Path
) -> None:
    image = image_for(VOLUMES, tmp_path / "in")
    for number, (bundle, engine) in enumerate(((tiny_bundle(VOLUMES), "torch"), (exported(VOLUMES), "openvino"))):
        words = ["predict", "--bundle", bundle, "--input", image, "--output", tmp_path / f"out{number}"]
        answer = run(*words, "--device", "cpu", "--deliver-rejected")
        assert answer.code == 0, answer.err
        assert ("engine openvino: its export is certified" in answer.err) == (engine == "openvino")
        document = json.loads(next((tmp_path / f"out{number}").glob("*result.json")).read_text())
        assert document["settings"]["engine"] == engine


def test_the_verb_exports_and_tells_how_far_the_answers_are_apart(run: Run, tiny_bundle: Callable[[str], Path]) -> None:
    root = tiny_bundle(VOLUMES)
    answer = run("bundle", "export", "--bundle", root, "--to", "openvino")
    assert answer.code == 0, answer.err
    assert re.search(
        r"within \S+e-0[5-9] of those of torch, and \d of 147456 labels differ", " ".join(answer.out.split())
    )
    assert (root / PARITY).is_file()
    answer = run("predict", "--bundle", root, "--input", root, "--output", root / "no", "--engine", "onnxruntime")
    assert answer.code != 0


FEWER_BITS = ResultSettings(engine="openvino", precision="bfloat16")


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=NEEDS_BF16)])
def test_fewer_bits_change_probabilities_a_little(exported: Callable[[str], Path], engine: str) -> None:
    bundle = load_bundle(exported(VOLUMES))
    windows = torch.randn(2, 1, *bundle.windows.window, generator=torch.Generator().manual_seed(1))
    usual, fewer = (
        bundle.engine(ResultSettings(engine=one, precision=precision))(windows)
        for one, precision in (("torch", "float32"), (engine, "bfloat16"))
    )
    assert fewer.logits.dtype == torch.float32
    apart = (bundle.outputs.probabilities(fewer.logits[0]) - bundle.outputs.probabilities(usual.logits[0])).abs().max()
    assert 1e-4 < apart < 0.1
    torch.testing.assert_close(fewer.layer, usual.layer, atol=0.02, rtol=0.02)


@NEEDS_BF16
def test_few_subjects_certify_nothing(run: Run, copied: Path, tmp_path: Path) -> None:
    words = ["--bundle", copied, "--data", few_examples(tmp_path / "data", FEW[-1:]), "--device", "cpu"]
    answer = run("bundle", "certify", *words, "--engine", "openvino", "--precision", "bfloat16", "--partition", "all")
    assert answer.code == 1, answer.err
    assert (
        "openvino in bfloat16: undecided; dice, boundary_iou, ece_whole, ece_band has 1 subject(s), at least"
        in " ".join(answer.out.split())
    )
    entry = json.loads((copied / PARITY).read_text())["results"]["openvino bfloat16 plain"]
    assert (entry["outcome"], entry["cases"]) == ("undecided", 1)
    card, sha256 = (copied / CARD).read_text(), entry["export_sha256"][:16]
    assert f"**openvino in bfloat16: undecided** (setting plain, export `{sha256}…`), on 1 case of 1 subject; " in card
    assert re.search(r"^\| Dice \| [\d.]+ \| [\d.]+ \| -?[\d.]+ \| none \| 0\.001 \| undecided \|$", card, re.MULTILINE)
    answer = run("bundle", "certify", *words, "--engine", "openvino")
    assert (answer.code, "a certificate is for fewer bits" in answer.err) == (2, True)


def test_a_bundle_states_nothing_in_fewer_bits_unless_its_certificate_holds(copied: Path) -> None:
    """The bundle's own statements were fitted to other weights, so that they are made anew here."""
    shutil.copy(REPOSITORY / f"bundles/{VOLUMES}/configs/confidence.json", copied / "configs")
    stated = json.loads((copied / "configs/confidence.json").read_text())
    for setting, entry in stated["settings"].items():
        entry["fitted_to"] = fitted_to(load_bundle(copied), setting)
    (copied / "configs/confidence.json").write_text(json.dumps(stated))

    def why() -> str | None:
        return read_confidence(load_bundle(copied), FEWER_BITS).why_not.get("gate")

    def note(**changes: object) -> None:
        document = json.loads((copied / PARITY).read_text())
        document["results"] = {"openvino bfloat16 plain": entry | changes}
        (copied / PARITY).write_text(json.dumps(document))

    entry = {
        "export_sha256": json.loads((copied / PARITY).read_text())["exports"]["openvino"]["sha256"],
        "fitted_to": fitted_to(load_bundle(copied), "plain"),
        "data": {}, "cases": 30, "subjects": 20, "outcome": "passed", "reason": "", "figures": [], "changed": {},
    }  # fmt: skip
    assert read_confidence(load_bundle(copied), replace(FEWER_BITS, precision="float32")).gate is not None
    assert "has no certificate for openvino in bfloat16" in str(why())
    note(outcome="failed", reason="dice may be worse")
    assert "has failed its certificate for openvino in bfloat16 (dice may be worse)" in str(why())
    note(export_sha256="0" * 64)
    assert "has no certificate for openvino in bfloat16" in str(why())
    note()
    assert why() is None
    assert read_confidence(load_bundle(copied), FEWER_BITS).gate is not None
    assert "has no certificate" in str(
        read_confidence(load_bundle(copied), replace(FEWER_BITS, tta=True)).why_not.get("gate")
    )
    plain = load_bundle(copied).fitted["calibration"]["plain"]
    change_fitted(copied, "calibration", plain={name: value * 1.1 for name, value in plain.items()})
    assert "was changed after it was certified" in str(why())


@NEEDS_BF16
def test_an_engine_in_fewer_bits_has_a_calibration_and_statements_of_its_own(
    run: Run, copied: Path, tmp_path: Path
) -> None:
    words = [
        "calibrate",
        "--bundle",
        copied,
        "--data",
        few_examples(tmp_path / "data"),
        "--partition",
        "all",
        "--device",
        "cpu",
    ]
    own = ["--engine", "openvino", "--precision", "bfloat16"]
    answer = run(*words, *own)
    assert answer.code == 3
    assert "run monai-unet calibrate on these without --precision first" in answer.err
    assert run(*words).code == 0
    before = load_bundle(copied)
    plain, record = before.confidence_document["settings"]["plain"], (copied / "models/calibration.json").read_bytes()
    known = json.loads((copied / PARITY).read_text())
    entry = {
        "export_sha256": known["exports"]["openvino"]["sha256"], "fitted_to": fitted_to(before, "plain"), "data": {},
        "cases": 30, "subjects": 20, "outcome": "passed", "reason": "fine", "changed": {}, "figures": [],
    }  # fmt: skip
    (copied / PARITY).write_text(json.dumps(known | {"results": {"openvino bfloat16 plain": entry}}))
    put_certificate(load_bundle(copied))
    assert "; fine." in (copied / CARD).read_text()
    answer = run(*words, *own)
    assert answer.code == 0, answer.err
    assert "; fine." not in (copied / CARD).read_text()  # of numbers that are no longer the engine's
    after = load_bundle(copied)
    assert after.confidence_document["settings"]["plain"] == plain
    assert plain["fitted_to"] == fitted_to(after, "plain")
    assert (copied / "models/calibration.json").read_bytes() == record
    assert read_confidence(after, FEWER_BITS).risk is not None
    numbers = after.fitted["calibration"]["engines"]["openvino bfloat16"]
    assert numbers.keys() == after.fitted["calibration"]["plain"].keys()

    def certainty(bundle: Bundle, settings: ResultSettings) -> float:
        image = tmp_path / "data/images" / f"{FEW[0]}.nii.gz"
        return float(
            np.asarray(segment_case(image, bundle, PredictConfig(settings)).segmentation.known.certainty).mean()
        )

    fewer, usual = certainty(after, FEWER_BITS), certainty(after, ResultSettings())
    sharper = {name: value - 1.0 if isinstance(value, float) else value for name, value in numbers.items()}
    change_fitted(copied, "calibration", engines={"openvino bfloat16": sharper})
    changed = load_bundle(copied)
    assert certainty(changed, FEWER_BITS) > fewer
    assert certainty(changed, ResultSettings()) == usual
    assert "was changed after its statements were fitted (models/fitted.json)" in str(
        read_confidence(changed, FEWER_BITS).why_not["risk"]
    )
    assert run(*words).code == 0
    assert load_bundle(copied).fitted["calibration"]["engines"] == {}
    assert load_bundle(copied).confidence_document["settings"].keys() == {"plain"}


def test_what_fits_nothing_for_an_engine_is_refused(run: Run, copied: Path, tmp_path: Path) -> None:
    words = ["calibrate", "--bundle", copied, "--data", tmp_path, "--engine", "openvino"]
    answer = run(*words)
    assert (answer.code, "leave --engine out, or give --precision bfloat16" in answer.err) == (2, True)
    answer = run(*words, "--precision", "bfloat16", "--folds", "--tta")
    assert answer.code == 2
    answer = run(*words, "--precision", "bfloat16", "--tta")
    assert (answer.code, "leave --tta out" in answer.err) == (2, True)


def test_the_card_tells_of_the_exports_until_the_bundle_is_trained_anew(run: Run, copied: Path) -> None:
    def parts() -> list[str]:
        return re.split(r"<!-- .* -->\n", (copied / CARD).read_text())

    before = parts()
    assert len(before) == 3  # what stands before, between and behind the marks
    answer = run("bundle", "export", "--bundle", copied, "--to", "openvino")
    assert answer.code == 0, answer.err
    assert CARD.split("/")[-1] in answer.out
    document = json.loads((copied / PARITY).read_text())
    lines = (copied / CARD).read_text().splitlines()
    for entry in document["exports"].values():
        (line,) = [
            one for one in lines if one.startswith(f"| {entry['made_with']} | float32 | `{entry['sha256'][:16]}…` | ")
        ]
        assert line.endswith(f" | {entry['float32']['labels_changed']} of {entry['float32']['labels']} |")
    assert run("bundle", "bench", "--bundle", copied, "--rounds", "1", "--device", "cpu", "--into-bundle").code == 0
    figures, certificate, speed, behind = parts()[1:]
    assert (parts()[0], figures, behind) == (*before[:2], before[2])
    window = " x ".join(map(str, load_bundle(copied).windows.window))
    assert re.match(rf"Time for one image of {window} voxels on \S.*, \d+ threads, 1 rounds:\n\n\| engine \|", speed)
    assert re.search(
        r"^\| onnxruntime \| float32 \| [\d.]+ \| [\d.]+ \| [\d.]+ \| \d+ \| [\d.]+ \|$", speed, re.MULTILINE
    )
    put_figures(card_rows({}, load_bundle(copied)), copied / CARD)  # as `evaluate --into-bundle`
    assert parts()[2:] == [certificate, speed, behind]
    forget_figures(copied)
    assert parts() == [before[0], "Not measured yet.\n", before[2]]


def test_a_card_has_no_result_of_another_export_or_another_calibration(copied: Path) -> None:
    document, bundle = json.loads((copied / PARITY).read_text()), load_bundle(copied)
    entry = {
        "export_sha256": document["exports"]["openvino"]["sha256"], "fitted_to": fitted_to(bundle, "plain"),
        "data": {}, "cases": 30, "subjects": 20, "outcome": "passed", "reason": "fine", "changed": {"verdict": 1},
        "figures": [
            {"score": "ece_band", "old": 0.1, "new": 0.2, "difference": 0.1, "interval": [0.05, 0.15], "margin": 0.003}
            | {"outcome": "passed"}
        ],
    }  # fmt: skip

    def rows(**changes: object) -> str:
        document["results"] = {"openvino bfloat16 plain": entry | changes}
        (copied / PARITY).write_text(json.dumps(document))
        return "\n".join(certificate_rows(load_bundle(copied)))

    told = rows()
    assert "on 30 cases of 20 subjects; fine. What differs: verdict in 1 case." in told
    band = (
        "| ECE, band around the predicted surface | 0.1000 | 0.2000 | 0.10000 | 0.05000 to 0.15000 | 0.003 | passed |"
    )
    assert band in told
    for other in ({"export_sha256": "0" * 64}, {"fitted_to": {}}):
        assert "bfloat16" not in rows(**other)


def test_the_bench_refuses_a_card_without_marks_before_it_measures(run: Run, copied: Path) -> None:
    card = copied / CARD
    card.write_text(CARD_FIGURES.sub("", card.read_text()))
    answer = run("bundle", "bench", "--bundle", copied, "--device", "cpu", "--into-bundle")
    assert (answer.code, "has 0 figure block(s)" in answer.err) == (3, True)
    before = card.read_text()
    assert run("bundle", "export", "--bundle", copied, "--to", "openvino").code == 0  # its card is left alone
    assert card.read_text() == before
    answer = run("bundle", "bench", "--bundle", VOLUMES, "--into-bundle")
    assert (answer.code, "a folder is needed, its card is rewritten" in answer.err) == (2, True)


def test_statements_that_differ_are_counted_by_case() -> None:
    def outcome(verdict: str, size: float, *, flagged: bool = False) -> SimpleNamespace:
        stated = SimpleNamespace(size_interval=(1.0, 2.0))
        assessment = SimpleNamespace(verdict=verdict, is_shifted=flagged, structures=[stated])
        return SimpleNamespace(assessment=assessment, true=[SimpleNamespace(size=size)])

    one = {name: outcome("accept", 1.5) for name in "abcd"}
    other = {
        "a": outcome("accept", 1.9), "b": outcome("review", 1.5), "c": outcome("accept", 2.5),
        "d": outcome("accept", 1.5, flagged=True),
    }  # fmt: skip
    assert certify.statements_changed(one, other) == {"verdict": 1, "flag": 1, "interval": 1}


def test_the_bench_times_what_can_be_had_and_says_why_the_rest_cannot(run: Run, copied: Path) -> None:
    words = ["bundle", "bench", "--bundle", copied, "--size", "24x30", "--rounds", "2", "--device", "cpu", "--json"]
    answer = run(*words)
    assert answer.code == 0, answer.err
    found = {(one["engine"], one["precision"]): one for one in json.loads(answer.out)["paces"]}
    assert set(found) == set(ENGINES_AND_BITS)
    for one in found.values():
        if one["why_not"] is None:
            assert 0 < one["p50_s"] <= one["p95_s"]
            assert one["file_mb"] > 0
    assert "runs on cuda" in found["torch", "float16"]["why_not"]
    assert found["onnxruntime", "float32"]["why_not"] is None
    assert run(*words, "--budget", "0.001ms").code == 1
    answer = run("bundle", "bench", "--bundle", copied, "--size", "1x2x3x4")
    assert (answer.code, "--size 1x2x3x4: up to 3 sizes" in answer.err) == (2, True)
