"""Where the time of one query went."""

import time


class Laps:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.ms: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Everything since the last lap was `stage`."""
        now = time.perf_counter()
        self.ms[stage], self.last = round(1000 * (now - self.last), 3), now

    def total(self) -> dict[str, float]:
        """All laps, and their sum."""
        return {**self.ms, "total": round(1000 * (time.perf_counter() - self.started), 3)}
