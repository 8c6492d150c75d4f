"""What goes wrong in a training is said, and ends it where it cannot come right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from monai_unet_app.errors import AppError
from monai_unet_app.training.watch_dog import WatchDog

TRUE = torch.zeros(3, 4, 4)
TRUE[1, :2], TRUE[2, 2:3] = 1, 1  # 8 and 4 pixels
ABSENT = torch.stack([TRUE[0], TRUE[1], torch.zeros(4, 4)])
HALF = torch.stack([TRUE[0], TRUE[1], TRUE[2] * torch.tensor([1.0, 1, 0, 0])])


after: list[str] = []


def run(
    predictions: list[torch.Tensor],
    metrics: list[float],
    losses: list[float],
    begin: dict[str, Any] | None = None,
    **said: Any,
) -> tuple[WatchDog, Engine]:
    """A training of one step an epoch, each validated with this prediction, metric and loss."""
    validator = Engine(lambda engine, batch: [{"pred": batch, "label": TRUE}])
    validator.state.metrics = {}  # type: ignore[assignment]
    dog = WatchDog(validator, ["liver", "spleen"], **said)
    if begin:
        dog.load_state_dict(begin)
    trainer = Engine(lambda engine, batch: {"loss": losses[engine.state.epoch - 1]})

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        epoch = engine.state.epoch
        validator.run([predictions[epoch - 1]])
        validator.state.epoch = epoch
        validator.state.metrics, validator.state.key_metric_name = {"dice": metrics[epoch - 1]}, "dice"  # type: ignore[attr-defined]

    dog.attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: after.append("saved"))
    trainer.add_event_handler(Events.COMPLETED, lambda: after.append("delivered"))
    after.clear()
    trainer.run([0], max_epochs=len(predictions))
    return dog, trainer


def test_dice_of_each_structure() -> None:
    dog, _ = run([HALF], [0.8], [1.0])
    assert dog.per_class == {"liver": 1.0, "spleen": pytest.approx(2 * 2 / (2 + 4))}


def test_a_structure_that_is_predicted_nowhere_is_told_and_then_ends_the_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run([ABSENT] * 2, [0.5] * 2, [1.0] * 2)
    assert "nowhere" not in capsys.readouterr().err
    dog, _ = run([ABSENT] * 3, [0.5] * 3, [1.0] * 3)
    assert "warning: spleen: predicted nowhere in 3 validations in a row" in capsys.readouterr().err
    with pytest.raises(AppError, match="spleen: predicted nowhere in 6 validations"):
        run([ABSENT] * 3, [0.5] * 3, [1.0] * 3, begin=dog.state_dict())  # resumed
    run([ABSENT, ABSENT, HALF] * 3, [0.5] * 9, [1.0] * 9)  # it comes back


def test_training_and_validation_that_part(capsys: pytest.CaptureFixture[str]) -> None:
    falling = [1.0, 0.8, 0.6, 0.4, 0.2]
    run([TRUE] * 5, [0.8, 0.7, 0.7, 0.7, 0.7], falling)
    assert (
        "have diverged: the loss fell from 1.0000 to 0.4000, the metric from 0.8000 to 0.7000"
        in capsys.readouterr().err
    )
    run([TRUE] * 5, [0.8, 0.79, 0.79, 0.79, 0.79], falling)  # as good as the best
    run([TRUE] * 5, [0.8, 0.7, 0.7, 0.7, 0.7], [1.0] * 5)  # the loss does not fall
    assert "parted" not in capsys.readouterr().err


def test_good_enough_ends_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    _, trainer = run([TRUE] * 5, [0.5, 0.91, 0.92, 0.93, 0.94], [1.0] * 5, stop_at=0.9)
    assert trainer.state.epoch == 2
    assert after == ["saved", "saved", "delivered"]
    assert "good enough: the metric is 0.9100" in capsys.readouterr().err


def test_a_training_without_gain_ends_after_the_patience(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = [0.5, 0.6, 0.6, 0.7, 0.69, 0.7, 0.65, 0.8]
    _, trainer = run([TRUE] * 8, metrics, [1.0] * 8, stop_patience=3)
    assert trainer.state.epoch == 7  # 0.7 of epoch 4 is three validations old
    assert "no gain: the best metric, 0.7000, is 3 validations old" in capsys.readouterr().err
    assert after[-1] == "delivered"
    _, trainer = run([TRUE] * 8, metrics, [1.0] * 8, stop_patience=4)
    assert trainer.state.epoch == 8
    _, trainer = run([TRUE] * 8, [0.5] * 8, [1.0] * 8)  # by default it goes on
    assert trainer.state.epoch == 8


def test_a_resumed_training_waits_on_from_where_it_was() -> None:
    dog, _ = run([TRUE] * 3, [0.7, 0.6, 0.6], [1.0] * 3, stop_patience=3)
    _, trainer = run([TRUE] * 3, [0.6, 0.8, 0.8], [1.0] * 3, begin=dog.state_dict(), stop_patience=3)
    assert trainer.state.epoch == 1


def test_a_training_that_ended_early_has_nothing_left_to_do_when_it_is_started_again() -> None:
    dog, _ = run([TRUE] * 3, [0.5, 0.95, 0.5], [1.0] * 3, stop_at=0.9)
    run([TRUE] * 3, [0.5] * 3, [1.0] * 3, begin=dog.state_dict(), stop_at=0.9)
    assert after == ["delivered"]
