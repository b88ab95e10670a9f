"""What precision costs and loses: by hand, and the choice between candidates."""

import numpy as np
import pytest

from jobs.evaluation.fidelity import Vectors, detector_fidelity, encoder_fidelity
from jobs.evaluation.latency import fastest_ms
from jobs.evaluation.precisions import Measured, choose, recall_loss
from serve.vision.detector import NOTHING, Detections
from serve.vision.spec import CpuRuntime

EYE = np.eye(4, dtype=np.float32)


def test_an_encoder_against_itself_and_against_one_that_swaps_two_photos() -> None:
    exact = Vectors(EYE[:3], EYE[[0, 1]])
    same = encoder_fidelity(exact, exact, np.array([7, 8, 9]), np.array([7, 8]))
    assert (same.num_photos, same.mean_cosine, same.same_neighbour_frac, same.recall_at_1_change) == (5, 1.0, 1.0, 0.0)
    swapped = encoder_fidelity(exact, Vectors(EYE[:3], EYE[[1, 0]]), np.array([7, 8, 9]), np.array([7, 8]))
    assert swapped.recall_at_1_change == swapped.mixed_recall_at_1_change == -1 and recall_loss(swapped) == 1
    both = encoder_fidelity(exact, Vectors(EYE[[1, 0, 2]], EYE[[1, 0]]), np.array([7, 8, 9]), np.array([7, 8]))
    assert (both.recall_at_1_change, both.mixed_recall_at_1_change) == (0, -1), "its own catalog moves with it"


def test_without_queries_the_loss_is_that_of_neighbours() -> None:
    catalog = np.stack([EYE[0], 0.8 * EYE[0] + 0.6 * EYE[1], EYE[2], 0.8 * EYE[2] + 0.6 * EYE[3]])
    moved = catalog.copy()
    moved[1] = 0.8 * EYE[2] + 0.6 * EYE[1]
    none = np.empty((0, 4), np.float32)
    lost = encoder_fidelity(Vectors(catalog, none), Vectors(moved, none), np.arange(4), np.empty(0, np.int64))
    assert lost.recall_at_1_change is None and lost.same_neighbour_frac < 1
    assert recall_loss(lost) == pytest.approx(1 - lost.same_neighbour_frac)


def test_boxes_lost_and_added() -> None:
    def found(boxes: list[list[float]], labels: tuple[str, ...]) -> Detections:
        return Detections(np.array(boxes, np.float32), np.linspace(0.9, 0.5, len(boxes)).astype(np.float32), labels)

    exact = [found([[0, 0, 10, 10], [20, 20, 40, 40]], ("shoe", "bag")), NOTHING]
    assert detector_fidelity(exact, exact).found_frac == 1
    other = [found([[0, 0, 10, 11], [20, 20, 40, 40]], ("shoe", "shoe")), found([[0, 0, 5, 5]], ("bag",))]
    lost = detector_fidelity(exact, other)
    assert (lost.num_photos, lost.num_boxes, lost.found_frac, lost.extra_frac) == (2, 2, 0.5, 1.0)


def test_the_fastest_within_the_bound() -> None:
    candidates = [
        Measured("f32", CpuRuntime(), {1: 10.0, 32: 10.0}, 0.0),
        Measured("int8", CpuRuntime(precision="int8", network="a.onnx"), {1: 2.0, 32: 1.0}, 0.02),
        Measured("bf16", CpuRuntime(precision="bf16"), {1: 9.0, 32: 2.5}, 0.005),
    ]
    assert choose(candidates, {1: 18.0, 32: 20.0}, 0.01).best.name == "bf16"
    assert choose(candidates, {1: 18.0, 32: 20.0}, 0.01).speedup == {1: 2.0, 32: 8.0}
    assert choose(candidates, None, 0.02).best.name == "int8" and choose(candidates, None, 0.02).speedup is None
    assert choose(candidates, None, 0.0).best.name == "f32"


def test_more_work_takes_longer() -> None:
    values = np.random.default_rng(0).random(10_000)  # sorted by one thread: threads of a product wait for each other under load
    ms = fastest_ms(
        {"one": lambda x: np.sort(values), "ten": lambda x: [np.sort(values) for _ in range(40)]}, np.zeros((2, 1)), 0.05
    )
    assert 0 < ms["one"] < ms["ten"]
