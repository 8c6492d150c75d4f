"""The plain engine gives what the network gives, and another engine is one row of a table."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from dicom_io.volume import Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.config import PredictConfig, ResultSettings
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.inference.engines import Answer, Source, chooser, torch_engine
from monai_unet_app.inference.engines.torch_engine import TorchEngine
from monai_unet_app.inference.predict import _place_of_sums
from monai_unet_app.inference.windows import plan_windows
from monai_unet_app.pipeline import segment_case


class Head(torch.nn.Module):
    """A layer before a head of 1 x 1 x 1; notes whether oneDNN was on in each."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.Conv3d(4, 9, 1)
        self.on: dict[str, bool] = {}
        for name in ("body", "head"):
            getattr(self, name).register_forward_hook(
                lambda *_, name=name: self.on.__setitem__(name, torch.backends.mkldnn.enabled)
            )

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.body(windows))
        return answer


@pytest.mark.parametrize(("large", "plain"), [(1 << 27, True), (4 * 9 * 12**3, False), (4 * 9 * 12**3 + 1, True)])
def test_a_head_with_a_large_output_leaves_onednn_out_and_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch, large: int, plain: bool
) -> None:
    monkeypatch.setattr(torch_engine, "_LARGE_BYTES", large)
    network, windows = Head(), torch.randn(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    answer = TorchEngine(network, torch.device("cpu"))(windows).logits
    assert network.on == {"body": True, "head": plain}
    assert torch.backends.mkldnn.enabled
    torch.testing.assert_close(answer, network(windows), atol=1e-6, rtol=0)
    assert not any(part._forward_pre_hooks for part in network.modules())


def test_onednn_is_on_again_after_a_network_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "_LARGE_BYTES", 1)
    with pytest.raises(RuntimeError):  # two channels where one is needed
        TorchEngine(torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1)), torch.device("cpu"))(torch.zeros(1, 2, 8, 8, 8))
    assert torch.backends.mkldnn.enabled


class Full(torch.nn.Module):
    """A network on a device that has memory for so many windows; the first `tries` calls with fewer fail as well."""

    def __init__(self, most: int, tries: int = 0) -> None:
        super().__init__()
        self.body, self.most, self.tries, self.calls = torch.nn.Conv3d(1, 3, 1), most, tries, 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if len(windows) > self.most or self.calls <= self.tries:
            raise torch.OutOfMemoryError("no memory")
        answer: torch.Tensor = self.body(windows)
        return answer


def test_a_batch_for_which_the_device_has_no_memory_runs_window_by_window() -> None:
    network, windows = Full(1), torch.randn(3, 1, 4, 5, 6)
    answer = TorchEngine(network, torch.device("cpu"), feature_layer="body")(windows)
    torch.testing.assert_close(answer.logits, network.body(windows))
    assert answer.layer is not None
    assert answer.layer.shape == (3, 6)
    assert network.calls == 4


def test_a_window_for_which_the_device_has_no_memory_is_refused_or_runs_on_the_cpu_where_that_is_allowed() -> None:
    windows = torch.randn(2, 1, 4, 5, 6)
    with pytest.raises(InputRefusedError, match=r"cpu has no memory for one window of 4 x 5 x 6; .*--device cpu"):
        TorchEngine(Full(0), torch.device("cpu"))(windows)
    network = Full(1, tries=2)  # the batch, the first window; then that window on the CPU, and the second window
    answer = TorchEngine(network, torch.device("cpu"), may_leave=True)(windows)
    torch.testing.assert_close(answer.logits, network.body(windows))
    assert network.calls == 4


@pytest.mark.parametrize(("free", "place"), [(2.1, "cuda"), (1.9, "cpu")])
def test_sums_stay_on_an_accelerator_that_has_twice_their_memory(
    monkeypatch: pytest.MonkeyPatch, free: float, place: str
) -> None:
    plan = plan_windows((40, 30, 20), (16, 16, 16), 0.5)
    size = 4 * (7 + 1) * 16 * 30 * 20
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * size), 0))
    assert _place_of_sums(plan, 7, torch.device("cuda")).type == place
    assert _place_of_sums(plan, 7, torch.device("cpu")).type == "cpu"


@pytest.mark.parametrize(
    ("device", "may_leave"), [("auto", True), ("cpu", False), (torch.device("cpu"), False), (None, False)]
)
def test_only_where_no_device_is_named_a_window_may_leave_it(
    device: str | torch.device | None, may_leave: bool
) -> None:
    assert load_bundle("hippocampus_mri_unet3d", device).engine(ResultSettings()).may_leave is may_leave  # type: ignore[attr-defined]


class ToyEngine:
    """Runs the network in double precision, window by window."""

    runs = 0

    def __init__(self, source: Source, settings: ResultSettings) -> None:
        self.network, self.device = deepcopy(source.network).double(), source.device

    @torch.no_grad()
    def __call__(self, windows: torch.Tensor) -> Answer:
        type(self).runs += 1
        return Answer(torch.cat([self.network(window.double()).float() for window in torch.split(windows, 1)]))


def test_another_engine_is_a_row_of_the_table_and_gives_the_voxels_of_torch(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Callable[[str], Path], crop: Volume
) -> None:
    monkeypatch.setitem(chooser.ENGINES, ("toy", "float32"), ToyEngine)
    bundle, run = load_bundle(tiny_bundle("hippocampus_mri_unet3d")), PredictConfig(ResultSettings(engine="toy"))
    torchs, toys = (segment_case(crop, bundle, one, keep="probabilities") for one in (PredictConfig(), run))
    assert ToyEngine.runs > 0
    assert np.array_equal(toys.segmentation.labels, torchs.segmentation.labels)
    np.testing.assert_allclose(toys.segmentation.probabilities, torchs.segmentation.probabilities, atol=1e-6)
    assert (torchs.settings.engine, toys.settings.engine) == ("torch", "toy")


def test_an_engine_that_the_table_lacks_is_refused_with_those_that_it_has(
    tiny_bundle: Callable[[str], Path], crop: Volume
) -> None:
    run = PredictConfig(ResultSettings(engine="onnxruntime", precision="bfloat16"))
    with pytest.raises(UsageError, match="no engine onnxruntime in bfloat16; one of these is needed: torch in float32"):
        segment_case(crop, load_bundle(tiny_bundle("hippocampus_mri_unet3d")), run)
