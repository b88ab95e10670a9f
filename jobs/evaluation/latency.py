"""What a run of a network costs, by candidates that take turns: a machine that is disturbed disturbs them alike."""

import time
from collections.abc import Callable, Mapping

import numpy as np

WARM_UP_RUNS = 2  # the first ones allocate, and pick kernels
MIN_ROUNDS = 3


def fastest_ms(runs: Mapping[str, Callable[[np.ndarray], object]], inputs: np.ndarray, seconds: float) -> dict[str, float]:
    """Milliseconds of CPU time an image of each candidate's least disturbed run on `inputs` (N, ...), all of them one thread.

    CPU time, for what a neighbour on the machine takes is not the network's. About `seconds` a candidate, at least MIN_ROUNDS.
    """
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        for _ in range(WARM_UP_RUNS):
            run(inputs)
    rounds, start = 0, time.process_time()
    while rounds < MIN_ROUNDS or time.process_time() - start < seconds * len(runs):
        for name, run in runs.items():
            begin = time.process_time()
            run(inputs)
            best[name] = min(best[name], time.process_time() - begin)
        rounds += 1
    return {name: round(1000 * value / len(inputs), 3) for name, value in best.items()}
