"""The parts that `train.yaml` of a bundle names: replayable windows, training step, checkpoints, curves, the run record."""

from monai_unet_app.training.checkpoints import Checkpoints
from monai_unet_app.training.pictures import WorstCases
from monai_unet_app.training.prepared import PreparedDataset
from monai_unet_app.training.progress import ProgressBar
from monai_unet_app.training.ranks import begin as join_ranks
from monai_unet_app.training.record import RunRecord
from monai_unet_app.training.replay import ReplayDataset, ReplayLoader
from monai_unet_app.training.tracking import Tracking
from monai_unet_app.training.transfer import rates_by_depth, started
from monai_unet_app.training.update import TrainingStep, ValidationStep, averaged_model, together
from monai_unet_app.training.watch_dog import WatchDog

__all__ = [
    "Checkpoints",
    "PreparedDataset",
    "ProgressBar",
    "ReplayDataset",
    "ReplayLoader",
    "RunRecord",
    "Tracking",
    "TrainingStep",
    "ValidationStep",
    "WatchDog",
    "WorstCases",
    "averaged_model",
    "join_ranks",
    "rates_by_depth",
    "started",
    "together",
]
