"""Shop the look: learns from links which products go together, and writes a look for every product, new ones too.

Reads   products, images, fetches, features; train_looks.links, train_looks.judged_by (JSONL, see jobs.looks.graph)
Writes  models/looks/<digest>/ (looks.arrow, report.json), models/looks/current: part of the next release
Engine  torch, torch_geometric, one process

    python -m jobs.train_looks --conf conf/local.yaml --set 'train_looks.links=[outfits.jsonl]'

Five models are measured on products whose links were all taken away; the simplest one that is not measurably worse than the best
is trained on every link and makes the looks. The same input makes the same looks, and trains nothing.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from jobs.config import Config, JobError, TrainLooksConfig, run_job
from jobs.looks.compose import LookComposer
from jobs.looks.content import Content, read_content
from jobs.looks.graph import LookGraph, read_links
from jobs.looks.measure import TRAIN, LookScore, choose, cross_validate, judge
from jobs.looks.models import ORDER
from jobs.release_models import current_folder, save_model
from jobs.runs import configure_logging, pairs
from jobs.tables import Tables
from serve.ranking.looks import LOOKS_FILE, write_looks
from serve.vision.assemble import assemble_bundle
from serve.vision.bundle import bundle_digest

log = logging.getLogger("jobs.train_looks")

REPORT = "report.json"


@dataclass(frozen=True)
class LooksResult:
    """What was learned. Figures are of held-out products; none where the model was chosen by hand."""

    products: int
    links: int
    isolated: int  # products without any link
    model: str
    recall_at_10: float | None
    auc: float | None
    empty_looks: int
    digest: str


def run(config: Config) -> LooksResult:
    """Measures, trains, writes. Without train_looks.links it does nothing."""
    looks = config.train_looks
    if not looks.links:
        log.info("no train_looks.links: this catalog has no looks")
        return LooksResult(0, 0, 0, "", None, None, 0, "")
    torch.set_num_threads(looks.threads)
    digest = bundle_digest(assemble_bundle(config.bundle, config.store.bundles, config.registry.uri))
    content = read_content(Tables(config.store.tables), digest, looks.by_group)
    graph = links_of(config, content, "links")
    truth = links_of(config, content, "judged_by") if looks.judged_by else None
    inputs = digest_of(content, graph, truth, looks)
    if (kept := result_of_same(config, inputs)) is not None:
        log.info("nothing changed: the looks of these products, links and settings are there")
        return kept
    report: dict[str, Any] = {"inputs": inputs, "models": {}}
    name: str = looks.model
    if name == "auto":
        measured = cross_validate(content, graph, looks, truth)
        report["models"] = {model: figures_of(score) for model, score in measured.items()}
        for candidate in ORDER:
            log.info("model=%s held_out=%d %s", candidate, len(measured[candidate].auc_B), pairs(report["models"][candidate]))
        name = choose(measured, looks.seed)
    model = TRAIN[name](content, graph, looks)
    if truth is not None:
        report["trained_on_all_links"] = figures_of(judge(model, truth, np.ones(content.num_nodes, bool)))
        log.info("model=%s trained_on_all_links %s", name, pairs(report["trained_on_all_links"]))
    composer = LookComposer(content, graph, looks.look_size)
    chosen = composer.looks(model, content.num_nodes)
    rows = {
        member: [content.members[node][0] for node in look]
        for own, look in zip(content.members, chosen, strict=True)
        for member in own
    }
    linked = set(graph.sources_E.tolist()) | set(graph.targets_E.tolist())
    figures = report["models"].get(name, {"recall_at_10": None, "auc": None})
    report["result"] = {
        "products": len(rows),
        "links": graph.num_edges,
        "isolated": content.num_nodes - len(linked),
        "model": name,
        **figures,
        "empty_looks": sum(not look for look in chosen),
    }

    def write(folder: Path) -> None:
        write_looks(folder / LOOKS_FILE, rows)
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")

    result = LooksResult(**report["result"], digest=save_model(config.store, "looks", write))
    log.info("train_looks %s", pairs(asdict(result)))
    return result


def figures_of(score: LookScore) -> dict[str, float]:
    """As they are logged and kept."""
    return {"recall_at_10": round(score.recall_at_10, 4), "auc": round(score.auc, 4)}


def digest_of(content: Content, graph: LookGraph, truth: LookGraph | None, looks: TrainLooksConfig) -> str:
    """SHA-256 of everything that decides the looks."""
    digest = hashlib.sha256(json.dumps([content.ids, content.members, content.kinds, looks.model_dump(mode="json")]).encode())
    for array in (content.features_NF, content.embeddings_ND):
        digest.update(array.tobytes())
    for links in (graph, truth):
        if links is not None:
            digest.update(links.sources_E.tobytes() + b"|" + links.targets_E.tobytes())
    return digest.hexdigest()


def result_of_same(config: Config, inputs: str) -> LooksResult | None:
    """What the current looks were said to be, where they were made of the same inputs."""
    folder = current_folder(config.store, "looks")
    report = json.loads((folder / REPORT).read_text()) if folder is not None and (folder / REPORT).is_file() else {}
    if folder is None or report.get("inputs") != inputs:
        return None
    return LooksResult(**report["result"], digest=folder.name)


def links_of(config: Config, content: Content, setting: Literal["links", "judged_by"]) -> LookGraph:
    """The links between products of this catalog that the files of a setting name. Raises JobError where there are none."""
    graph = read_links(
        getattr(config.train_looks, setting),
        {name: node for node, name in enumerate(content.ids)},
        content.num_nodes,
        config.train_looks.types,
    )
    if not graph.num_edges:
        kind = "groups" if config.train_looks.by_group else "products"
        raise JobError(
            f"train_looks.{setting}: no link joins two {kind} of this catalog; "
            "are its ids product_id or group_id (train_looks.by_group), and does train_looks.types name them?"
        )
    return graph


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run, prints_result=True)


if __name__ == "__main__":
    main()
