"""Shop the look: learns from links which products go together, and writes a look for every product, new ones too.

Reads   products, images, fetches, features; train_looks.links (JSONL, see jobs.looks.graph)
Writes  models/looks/<digest>/ (looks.arrow, report.json), models/looks/current: part of the next release
Engine  torch, torch_geometric, one process

    python -m jobs.train_looks --conf conf/local.yaml --set 'train_looks.links=[outfits.jsonl]'

Five models are measured on products whose links were all taken away; the simplest one that is not measurably worse than the best
is trained on every link and makes the looks. The same input makes the same looks.
"""

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch

from jobs.config import Config, JobError, run_job
from jobs.looks.compose import LookComposer
from jobs.looks.content import Content, read_content
from jobs.looks.graph import LookGraph, read_links
from jobs.looks.measure import TRAIN, choose, cross_validate
from jobs.looks.models import ORDER
from jobs.release_models import save_model
from jobs.runs import configure_logging, pairs
from jobs.tables import Tables
from serve.ranking.looks import LOOKS_FILE, write_looks
from serve.vision.assemble import assemble_bundle
from serve.vision.bundle import bundle_digest

log = logging.getLogger("jobs.train_looks")


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
    graph = links_of(config, content)
    report: dict[str, Any] = {"links": graph.num_edges, "products": content.num_nodes, "models": {}}
    name: str = looks.model
    if name == "auto":
        measured = cross_validate(content, graph, looks)
        report["models"] = {
            model: {"recall_at_10": round(score.recall_at_10, 4), "auc": round(score.auc, 4)} for model, score in measured.items()
        }
        for candidate in ORDER:
            log.info("model=%s held_out=%d %s", candidate, len(measured[candidate].auc_B), pairs(report["models"][candidate]))
        name = choose(measured, looks.seed)
    report["model"] = name
    model = TRAIN[name](content, graph, looks)
    composer = LookComposer(content, graph, looks.look_size)
    chosen = composer.looks(model, content.num_nodes)
    rows = {
        member: [content.members[node][0] for node in look]
        for own, look in zip(content.members, chosen, strict=True)
        for member in own
    }

    def write(folder: Any) -> None:
        write_looks(folder / LOOKS_FILE, rows)
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")

    saved = save_model(config.store, "looks", write)
    linked = set(graph.sources_E.tolist()) | set(graph.targets_E.tolist())
    figures = report["models"].get(name, {"recall_at_10": None, "auc": None})
    result = LooksResult(
        products=len(rows),
        links=graph.num_edges,
        isolated=content.num_nodes - len(linked),
        model=name,
        **figures,
        empty_looks=sum(not look for look in chosen),
        digest=saved,
    )
    log.info("train_looks %s", pairs(asdict(result)))
    return result


def links_of(config: Config, content: Content) -> LookGraph:
    """The links between products of this catalog. Raises JobError where there are none."""
    graph = read_links(
        config.train_looks.links,
        {name: node for node, name in enumerate(content.ids)},
        content.num_nodes,
        config.train_looks.types,
    )
    if not graph.num_edges:
        kind = "groups" if config.train_looks.by_group else "products"
        raise JobError(
            f"train_looks.links: no link joins two {kind} of this catalog; "
            "are its ids product_id or group_id (train_looks.by_group), and does train_looks.types name them?"
        )
    return graph


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run, prints_result=True)


if __name__ == "__main__":
    main()
