"""What a catalog of N photos costs: bytes by part, seconds, machines, money; from an index plan and measured rates.

Bytes follow from the formats, those of the records from the champion's own. Seconds are those of a calibration run, scaled:
adding a row compares it with every list, k-means compares its sample with every list, a search compares with every list and
with the rows of the same number of lists, which grow where index.train_rows allows no more lists; what it costs to begin with
each of these lists, and to re-score the same number of candidates, stays.
"""

import math
from dataclasses import dataclass

from serve.index.hash_table import BUCKETS, NUM_TABLES, SCAN_BELOW
from serve.index.plan import VECTOR_BYTES, IndexPlan, plan_index
from serve.index.spec import IndexConfig
from serve.vision.hash import COLOUR_BYTES, HASH_BYTES

FAST_SCAN_BLOCK = 32  # rows; the last block of each list is half empty on average


@dataclass(frozen=True)
class Rates:
    """What one machine was measured to do, on one core, with `nlist` lists."""

    nlist: int
    train_rows: int
    train_s: float
    lists_train_s: float  # of train_s: k-means of the lists; rotation and code cost the same whatever the sample
    add_s_per_row: float  # at `nlist` lists
    coarse_frac: float  # of add_s_per_row: comparing with the lists
    list_ms: float  # of one query, for each list there is
    row_ms: float  # of one query, for each row of a list
    fixed_ms: float  # of one query, whatever there is


@dataclass(frozen=True)
class ShardCost:
    """One shard."""

    rows: int
    plan: IndexPlan
    disk_bytes: dict[str, int]  # by part
    ram_bytes: int  # what searching keeps in memory: codes, ids, centroids; the rest is mapped
    build_cpu_s: float
    search_ms: float

    @property
    def total_disk_bytes(self) -> int:
        return sum(self.disk_bytes.values())


def shard_cost(
    rows: int, images: int, dim: int, index: IndexConfig, rates: Rates, record_bytes: float, num_shards: int = 1
) -> ShardCost:
    """Of one of so many shards of so many crops of so many photos, with `record_bytes` a crop in its .arrow files."""
    plan = plan_index(rows, dim, index, total_rows=rows * num_shards)
    list_rows = rows + (plan.nlist * FAST_SCAN_BLOCK // 2 if plan.kind in ("ivf_pq4", "ivf_rabitq") else 0)
    codes = list_rows * plan.code_bytes + rows * (plan.ram_bytes - plan.code_bytes)
    centroids = plan.nlist * dim * 4 + (dim * dim * 4 if plan.factory.startswith(("OPQ", "RR")) else 0) if plan.nlist > 1 else 0
    tables = 4 * NUM_TABLES * (images + BUCKETS + 1) if images >= SCAN_BELOW else 0
    disk = {
        "codes_and_ids": codes,
        "centroids": centroids,
        "vectors": rows * (VECTOR_BYTES[plan.vectors] * dim + (0 if plan.is_flat or plan.vectors == "none" else 4)),
        "hashes": images * (HASH_BYTES + COLOUR_BYTES) + tables,
        "records": int(rows * record_bytes),
    }
    lists = plan.nlist / rates.nlist
    add_s = rows * rates.add_s_per_row * (rates.coarse_frac * lists + 1 - rates.coarse_frac) if not plan.is_flat else 0.0
    sample = min(rows, plan.train_rows)
    more = (sample * plan.nlist) / (rates.train_rows * rates.nlist)
    train_s = rates.train_s - rates.lists_train_s * (1 - more) if not plan.is_flat else 0.0
    search_ms = rates.list_ms * plan.nlist + rates.row_ms * rows / plan.nlist + rates.fixed_ms
    return ShardCost(rows, plan, disk, codes + centroids, train_s + add_s, search_ms)


@dataclass(frozen=True)
class Machines:
    """What can be rented, and what it is to do."""

    gpus: int
    images_per_gpu_s: float
    gpu_price_per_hour: float
    night_hours: float
    node_cores: int
    node_ram_bytes: int
    node_disk_bytes: int
    node_price_per_hour: float
    target_qps: float
    target_ms: float  # of one query's searches on a node that does nothing else


@dataclass(frozen=True)
class CapacityPlan:
    """The answer for one number of photos."""

    num_images: int
    gpu_hours: float
    nights: float
    num_shards: int
    shard: ShardCost
    ram_bytes: int
    disk_bytes: dict[str, int]
    build_core_hours: float
    nodes: int
    replicas: int
    first_build_price: float
    price_per_month: float
    price_per_1000_queries: float


HOURS_PER_MONTH = 730
RAM_FRAC = 0.7  # of a node for codes; the rest for mapped vectors and the process
CPU_FRAC = 0.6  # of its cores for searching: above, queues grow


def plan_capacity(
    num_images: int,
    crops_per_image: float,
    record_bytes: float,
    rows_per_shard: int,
    dim: int,
    index: IndexConfig,
    rates: Rates,
    machines: Machines,
) -> CapacityPlan:
    """Shards of at most `rows_per_shard` rows on as many nodes as memory, disk, rate and latency need.

    Raises ValueError where one shard alone is slower than the target.
    """
    rows = math.ceil(num_images * crops_per_image)
    num_shards = max(math.ceil(rows / rows_per_shard), 1)
    shard = shard_cost(
        math.ceil(rows / num_shards),
        math.ceil(num_images / num_shards),
        dim,
        index,
        rates,
        record_bytes,
        num_shards,
    )
    disk = {part: num * num_shards for part, num in shard.disk_bytes.items()}
    if shard.search_ms > machines.target_ms:
        raise ValueError(
            f"capacity.rows_per_shard={rows_per_shard}: one search takes {shard.search_ms:.1f} ms, capacity.target_ms is "
            f"{machines.target_ms:g}: lower the one or raise the other"
        )
    shards_a_node = machines.node_cores * int(machines.target_ms / shard.search_ms)  # one after the other on each core
    needed = max(
        math.ceil(shard.ram_bytes * num_shards / (RAM_FRAC * machines.node_ram_bytes)),
        math.ceil(2 * sum(disk.values()) / machines.node_disk_bytes),  # the champion and the next one
        math.ceil(num_shards / shards_a_node),
    )
    core_ms = shard.search_ms * num_shards  # every shard answers every query
    by_rate = machines.target_qps * core_ms / 1000 / (CPU_FRAC * machines.node_cores)
    replicas = max(math.ceil(by_rate / needed), 1)
    nodes = needed * replicas
    gpu_hours = num_images / machines.images_per_gpu_s / 3600
    build_hours = shard.build_cpu_s * num_shards / 3600
    month = nodes * machines.node_price_per_hour * HOURS_PER_MONTH
    first = gpu_hours * machines.gpu_price_per_hour + build_hours / machines.node_cores * machines.node_price_per_hour
    return CapacityPlan(
        num_images=num_images,
        gpu_hours=gpu_hours,
        nights=gpu_hours / machines.gpus / machines.night_hours,
        num_shards=num_shards,
        shard=shard,
        ram_bytes=shard.ram_bytes * num_shards,
        disk_bytes=disk,
        build_core_hours=build_hours,
        nodes=nodes,
        replicas=replicas,
        first_build_price=first,
        price_per_month=month,
        price_per_1000_queries=month / (machines.target_qps * HOURS_PER_MONTH * 3600) * 1000,
    )
