"""Which index, by rule or by hand."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

IndexKind = Literal["flat", "ivf_pq4", "ivf_pq8", "ivf_rabitq", "ivf_sq8", "lsh"]
VectorKind = Literal["fp16", "sq8", "none"]


class IndexConfig(BaseModel):
    """One section for every partition; 0, none or auto means: by rule (see `serve.index.plan`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "flat", "ivf_pq4", "ivf_pq8", "ivf_rabitq", "ivf_sq8", "lsh"] = "auto"
    vectors: Literal["auto", "fp16", "sq8", "none"] = Field(
        "auto", description="stored vectors that candidates are re-scored with, mapped from disk; none = the codes alone"
    )
    flat_below_rows: int = Field(1_000, ge=1, description="auto: smaller partitions are searched exactly")
    nlist: int = Field(0, ge=0)
    hnsw_lists: int = Field(16_384, ge=1, description="more lists than this are found by HNSW, not by comparing with all")
    pq_bytes: int = Field(0, ge=0, description="bytes of one PQ code")
    lsh_bits: int = Field(0, ge=0, description="bits of one LSH code, a multiple of 8")
    opq: bool = True
    max_ram_bytes: int = Field(
        0, ge=0, description="what codes and ids of all shards may take; codes shrink to fit; 0 = no limit"
    )
    refine_factor: int = Field(10, ge=1, description="candidates a result that are re-scored")
    target_recall: float = Field(0.95, gt=0, le=1, description="recall@10 that picks nprobe")
    train_rows: int = Field(200_000, ge=256, description="most rows of the training sample")
    train_on_gpu: bool = Field(False, description="k-means of the lists on all GPUs")
    max_drift_frac: float = Field(0.1, ge=0, description="a template is kept until its rows lie so much farther from its lists")
    share_template_below_rows: int = Field(20_000, ge=0, description="smaller partitions of one plan share one template")
    num_shards: int = Field(1, ge=1, description="buckets of product_id in one partition")
    partition_depth: int = Field(1, ge=0, description="category levels that name a partition; 0 = one partition")
    min_partition_rows: int = Field(256, ge=1, description="smaller partitions are packed together into `rest`")
    route_threshold: float = Field(0, ge=0, le=1, description="partitions are searched until their probability passes it")
    route_max_loss_frac: float = Field(0.01, ge=0, le=1, description="of the answers; picks the threshold from evaluate.queries")
    threads: int = Field(1, ge=1, description="CPUs of one training or one shard build")
    seed: int = 17
