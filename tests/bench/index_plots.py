"""Pictures of the index benchmarks."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt


def plot(systems: dict[str, dict[str, Any]], num: int, path: Path) -> None:
    """Recall against rate, and bytes a vector against the rate at recall 0.95."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for name, found in systems.items():
        points = found.get("points", [])
        left.plot([p["recall"] for p in points], [p["qps"] for p in points], marker="o", label=name)
        good = [p["qps"] for p in points if p["recall"] >= 0.95]
        if good and "disk_bytes_per_vector" in found:
            right.scatter(found["disk_bytes_per_vector"], max(good))
            right.annotate(name, (found["disk_bytes_per_vector"], max(good)))
    left.set(xlabel="recall@10", ylabel="queries a CPU second", yscale="log", title=f"{num:,} vectors, one core")
    right.set(xlabel="bytes a vector on disk", ylabel="queries a CPU second at recall 0.95", yscale="log", title="speed for size")
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
