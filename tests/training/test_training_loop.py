"""The loop: a killed training goes on where it was, and a loss that is not a number stops it."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from ray.train.v2.api.exceptions import WorkerGroupError
from torch import Tensor, nn

from jobs.config import JobError
from jobs.training.loop import Averaged, Plan, train

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


@dataclass
class LineTask:
    """Fits one weight to 3. Dies once at `die_at`, says NaN at `nan_at`, and notes each epoch it runs."""

    notes: Path
    die_at: int = -1
    nan_at: int = -1
    num_steps: int = 4

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(1, 1, bias=False)

    def shipped(self) -> nn.Module:
        return self.network

    def kept(self) -> AbstractContextManager[None]:
        return nullcontext()

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": learning_rate}]

    def losses(self, epoch: int, device: torch.device) -> Iterator[Tensor]:
        died = self.notes / "died"
        if epoch == self.die_at and not died.exists():
            died.touch()
            time.sleep(3)  # Ray Train notes a report once a second; a death before that costs one epoch more
            os._exit(1)
        with (self.notes / "epochs").open("a") as file:
            file.write(f"{epoch}\n")
        for _ in range(self.num_steps):
            yield (self.network.weight - 3).square().sum() * (float("nan") if epoch == self.nan_at else 1.0)

    def figures(self, device: torch.device) -> dict[str, float]:
        return {"weight": float(self.network.weight)}


def plan(folder: Path) -> Plan:
    return Plan("line", "test", folder, epochs=4, learning_rate=0.5, threads=1, use_gpu=False, seed=0)


@pytest.mark.drill
def test_a_killed_training_resumes(ray_local: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="jobs")
    with pytest.raises(WorkerGroupError):
        train(partial(LineTask, tmp_path, die_at=2), plan(tmp_path / "runs"))
    assert (tmp_path / "epochs").read_text().split() == ["0", "1"]
    trained = train(partial(LineTask, tmp_path, die_at=2), plan(tmp_path / "runs"))
    assert (tmp_path / "epochs").read_text().split() == ["0", "1", "2", "3"], "no finished epoch is run twice"
    assert "training=line resumed_after_epoch=2" in caplog.text, "the worker's lines are shown"
    assert [entry["epoch"] for entry in trained.history] == [1, 2, 3, 4]
    assert abs(float(trained.weights["weight"]) - 3) < abs(trained.history[0]["weight"] - 3)


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_is_a_job_error(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"the loss of line became nan in epoch 2 .*set a lower train_line\.learning_rate"):
        train(partial(LineTask, tmp_path, nan_at=1), plan(tmp_path / "runs"))


def test_another_plan_is_another_training(tmp_path: Path) -> None:
    first = plan(tmp_path)
    assert first.run_name == Plan(**{**first.__dict__, "threads": 2, "folder": tmp_path / "moved"}).run_name
    assert first.run_name != Plan(**{**first.__dict__, "epochs": 5}).run_name


def test_the_average_follows_the_weights_and_is_shown_only_for_a_while() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    averaged = Averaged(network, 0.5)
    network.weight.data.fill_(1.0)
    averaged.update()
    averaged.update()
    with averaged.shown():
        shown = float(network.weight.detach())
    assert 0.9 < shown < 1 and float(network.weight.detach()) == 1
    again = Averaged(network, 0.5)
    again.load_state_dict(averaged.state_dict())
    with again.shown():
        assert float(network.weight.detach()) == shown
