"""Pictures of the worst cases of a validation: which cases, when, in which colours, and where they go."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from PIL import Image

from monai_unet_app.errors import UsageError
from monai_unet_app.training import Tracking, WatchDog, WorstCases

LABELS = ("Liver", "Spleen")
COLOURS = ((250, 60, 200), (30, 230, 90))
AFFINE = torch.diag(torch.tensor([1.5, 1.0, 3.0, 1.0]))


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    document = json.loads((REPOSITORY / "bundles/hippocampus_mri_unet3d/configs/segments.json").read_text())
    document.pop("wholes", None)
    for item, label, colour in zip(document["segmentAttributes"][0], LABELS, COLOURS, strict=True):
        item.update(SegmentLabel=label, recommendedDisplayRGBValue=list(colour))
    path = tmp_path / "segments.json"
    path.write_text(json.dumps(document))
    return path


def truth(planar: bool) -> torch.Tensor:
    """Background, liver and spleen: lopsided boxes."""
    label = torch.zeros(3, 24, 20, *([] if planar else [12]))
    label[1, 3:14, 2:9], label[2, 16:22, 11:18] = 1, 1
    label[0] = 1 - label[1:].sum(0)
    return label


def item(missed: int, planar: bool = False, channels: int = 1) -> dict[str, Any]:
    """A case of which the first `missed` columns of both structures are not found."""
    label = truth(planar)
    found = label.clone()
    found[1, 3 : 3 + missed], found[2, 16 : 16 + missed] = 0, 0
    found[0] = 1 - found[1:].sum(0)
    image = 3 * label[1:2] - 2 * label[2:3] + torch.randn(channels, *label.shape[1:])
    return {"image": image if planar else MetaTensor(image, affine=AFFINE), "pred": found, "label": label}


def validation(items: list[dict[str, Any]], segments: Path, count: int = 2) -> WorstCases:
    """What is kept after a validation of these cases, named c0, c1 and so on."""
    validator: Any = Engine(lambda engine, batch: [items[batch]])
    validator.add_event_handler(
        Events.ITERATION_STARTED,
        lambda: setattr(validator.state, "batch", [{"id": f"c{validator.state.iteration - 1}"}]),
    )
    validator.run_cases = lambda: validator.run(list(range(len(items))))
    # The number of the case is given to the step; its name stands in the batch, as after MONAI's decollation
    validator._process_function = lambda engine, batch: [items[engine.state.iteration - 1]]
    dog = WatchDog(validator, LABELS)
    dog.attach(Engine(lambda engine, batch: None))
    worst = WorstCases(validator, dog, segments, count)
    worst.attach()
    validator.run_cases()
    return worst


def opened(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def has_colour(picture: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture - np.array(colour)).max(-1) < 12).any())


def test_the_worst_cases_are_kept_the_worst_first(segments: Path) -> None:
    worst = validation([item(n) for n in (1, 4, 0, 5, 2)], segments)
    assert [case.name for case in worst._kept] == ["c3", "c1"]
    assert worst._kept[0].dice == pytest.approx((2 * 6 / (11 + 6), 2 * 1 / (6 + 1)))
    assert len(worst.drawn()) == 2
    assert worst.drawn() == []  # they are forgotten


def test_a_case_without_structures_is_no_bad_case_unless_something_is_invented(segments: Path) -> None:
    empty, invented = item(0), item(0)
    for case in (empty, invented):
        case["label"] = torch.zeros_like(case["label"])
        case["label"][0] = 1
    empty["pred"] = empty["label"]
    assert [case.name for case in validation([empty, item(1), item(2)], segments)._kept] == ["c2", "c1"]
    assert [case.name for case in validation([item(5), item(1), invented], segments, 1)._kept] == ["c2"]


@pytest.mark.parametrize(("planar", "channels"), [(False, 1), (False, 3), (True, 1), (True, 3)])
def test_a_picture_outlines_the_prediction_in_the_colours_of_the_segments(
    segments: Path, planar: bool, channels: int
) -> None:
    (png,) = validation([item(3, planar, channels)], segments, 1).drawn()
    picture = opened(png)
    assert all(has_colour(picture, colour) for colour in COLOURS)
    if not planar:  # there the lines are too thin for one plain pixel of white
        assert has_colour(picture, (255, 255, 255))  # the label
    absent = item(3, planar, channels)
    absent["pred"] = torch.zeros_like(absent["pred"])
    absent["pred"][0] = 1
    (png,) = validation([absent], segments, 1).drawn()
    above = opened(png)[:-60]  # without the legend
    assert not any(has_colour(above, colour) for colour in COLOURS)


def test_structures_that_overlap_are_drawn_too(segments: Path) -> None:
    case = item(2)
    both = {key: case[key][1:] for key in ("pred", "label")}
    both["pred"] = both["pred"].clone()
    both["pred"][1, 4:16, 4:6] = 1  # through the liver, and beyond
    (png,) = validation([{**case, **both}], segments, 1).drawn()
    assert all(has_colour(opened(png)[:-60], colour) for colour in COLOURS)


def test_a_negative_number_of_pictures_is_refused(segments: Path) -> None:
    with pytest.raises(UsageError, match="pictures is -1"):
        WorstCases(None, SimpleNamespace(), segments, -1)  # type: ignore[arg-type]


# --- when, and where to


class Drawn:
    """Stands for `WorstCases`."""

    def attach(self) -> None:
        pass

    def drawn(self) -> list[bytes]:
        stream = io.BytesIO()
        Image.new("RGB", (5, 4), (9, 8, 7)).save(stream, "png")
        return [stream.getvalue()] * 2


def track(kind: str, folder: Path, metrics: list[float | None], stop: int = 0) -> None:
    history: list[dict[str, Any]] = []
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.EPOCH_COMPLETED)
    def note(engine: Engine) -> None:
        history.append({"epoch": engine.state.epoch, "loss": 1.0, "metric": metrics[engine.state.epoch - 1]})
        if engine.state.epoch == stop:
            engine.terminate()

    Tracking(kind, folder, SimpleNamespace(history=history), None, Drawn()).attach(engine)  # type: ignore[arg-type]
    engine.run([0], max_epochs=len(metrics))


def shown(folder: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


def test_the_best_so_far_and_the_last_validation_are_shown(tmp_path: Path) -> None:
    track("tensorboard", tmp_path / "all", [None, 0.5, None, 0.4, 0.6, 0.55, 0.52])
    assert shown(tmp_path / "all") == {"selection/worst_1": [2, 5, 7], "selection/worst_2": [2, 5, 7]}
    track("tensorboard", tmp_path / "ended", [0.5, 0.4, 0.3, 0.2], stop=3)
    assert shown(tmp_path / "ended")["selection/worst_1"] == [1, 3]


def test_mlflow_keeps_pictures_in_a_folder_and_sends_none_to_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra `mlflow` is not installed")
    track("mlflow", tmp_path / "here", [0.5, 0.4])
    files = sorted(path.name for path in (tmp_path / "here/mlflow").rglob("*.png"))
    assert files == [f"worst_{rank}_epoch_00{epoch}.png" for rank in (1, 2) for epoch in (1, 2)]

    sent: list[str] = []
    run = SimpleNamespace(info=SimpleNamespace(run_id="7"), data=SimpleNamespace(params={}))

    class Server:
        def __init__(self, tracking_uri: str) -> None:
            self.get_experiment_by_name = lambda name: SimpleNamespace(experiment_id="1")
            self.create_run = lambda *_, **__: run
            self.get_run = lambda *_: run
            self.log_metric = lambda *_, **__: sent.append("metric")
            self.log_image = lambda *_, **__: sent.append("image")
            self.set_terminated = lambda *_: None

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(tracking, "MlflowClient", Server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    track("mlflow", tmp_path / "there", [0.5, 0.4])
    assert set(sent) == {"metric"}
