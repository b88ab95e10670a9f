"""Which index, by rule or by hand."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class IndexConfig(BaseModel):
    """One section for every partition; 0 or none means: by rule (see `plan_index`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "flat", "ivf_pq"] = "auto"
    flat_below_rows: int = Field(1_000, ge=1, description="auto: smaller partitions are searched exactly")
    nlist: int = Field(0, ge=0)
    pq_bytes: int = Field(0, ge=0, description="bytes of one code")
    opq: bool = True
    refine_factor: int = Field(10, ge=1, description="candidates a result that are re-scored exactly")
    target_recall: float = Field(0.95, gt=0, le=1, description="recall@10 that picks nprobe")
    train_rows: int = Field(200_000, ge=256, description="most rows of the training sample")
    num_shards: int = Field(1, ge=1, description="buckets of product_id in one partition")
    partition_depth: int = Field(1, ge=0, description="category levels that name a partition; 0 = one partition")
    min_partition_rows: int = Field(256, ge=1, description="smaller partitions are packed together into `rest`")
    route_threshold: float = Field(0.98, gt=0, le=1, description="partitions are searched until their probability passes it")
    threads: int = Field(1, ge=1, description="CPUs of one training or one shard build")
    seed: int = 17
