"""What an encoder in training is worth on held-out crops: recall of photos, texts and both, and categories.

A query's score for a product is its best cosine over the product's catalog crops, as in an index that holds crop 0 and the
detected crop of each photo.
Letters: N crops, Q queries (crops of users' photos), P products, T of them with texts, C categories, D numbers of a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from jobs.evaluation.scores import concatenated_scores, recall
from jobs.training.crops import USER, CropSet
from jobs.training.texts import TextTask
from jobs.training.word_fusion import WordFusion

TEXT_WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))  # tried where photo and text are summed


@dataclass(frozen=True)
class Seen:
    """Held-out crops with their unit vectors, on the CPU."""

    crops: CropSet
    unit_ND: Tensor

    @cached_property
    def users_N(self) -> Tensor:
        return torch.from_numpy(self.crops.domains_N == USER)

    @cached_property
    def products_N(self) -> Tensor:
        return torch.from_numpy(self.crops.products_N)

    @property
    def true_Q(self) -> Tensor:
        return self.products_N[self.users_N]

    @property
    def photo_QD(self) -> Tensor:
        return self.unit_ND[self.users_N]

    def by_product(self, query_QD: Tensor, catalog_ND: Tensor | None = None) -> np.ndarray:
        """(Q, P) best cosine over each product's catalog crops (`catalog_ND` instead of their own vectors); -inf where none."""
        scores_QN = query_QD @ (self.unit_ND[~self.users_N] if catalog_ND is None else catalog_ND).T
        best_QP = torch.full((len(query_QD), len(self.crops.products)), -torch.inf)
        of_crop_QN = self.products_N[~self.users_N].expand(len(query_QD), -1)
        return best_QP.scatter_reduce(1, of_crop_QN, scores_QN, "amax").numpy()


def photo_figures(seen: Seen, unseen_Q: np.ndarray) -> dict[str, float]:
    """Recall of each query's product; apart for queries of products that training never saw (`unseen_Q`)."""
    scores_QP, true_Q = seen.by_product(seen.photo_QD), seen.true_Q.numpy()
    figures = {f"recall_at_{k}": recall(scores_QP, true_Q, k) for k in (1, 5, 10)} | {"num_queries": float(len(true_Q))}
    if unseen_Q.any() and not unseen_Q.all():
        figures |= {f"unseen_recall_at_{k}": recall(scores_QP[unseen_Q], true_Q[unseen_Q], k) for k in (1, 5)}
    return figures


def category_figures(seen: Seen, logits_NC: Tensor | None, labels: Sequence[str]) -> dict[str, float]:
    """Share of queries with the right category, of those whose category training knew; empty where there is no head."""
    rows = {label: row for row, label in enumerate(labels)}
    true_Q = torch.tensor([rows.get(product.category or "", -1) for product in seen.crops.products])[seen.true_Q]
    known_Q = true_Q >= 0
    if logits_NC is None or not bool(known_Q.any()):
        return {}
    return {"category_accuracy": float((logits_NC[seen.users_N].argmax(1) == true_Q)[known_Q].float().mean())}


def text_figures(seen: Seen, text: TextTask, fusion: WordFusion | None, device: torch.device) -> dict[str, float]:
    """Each product's last text (its description) against the catalog's photos; queries of photo and title; products of photo
    and description, side by side and by attention. The weights of sums are the best of TEXT_WEIGHTS on these very queries.
    """
    products = seen.crops.products
    texts = [[t for t in product.texts if t.strip()] for product in products]
    told = torch.tensor([row for row, of_product in enumerate(texts) if of_product])
    if not len(told):
        return {}
    described_PD, titled_PD = (torch.zeros(len(products), seen.unit_ND.shape[1]) for _ in range(2))
    described_PD[told] = text.embed([texts[row][-1] for row in told], device)
    titled_PD[told] = text.embed([texts[row][0] for row in told], device)
    by_description_TP = seen.by_product(described_PD[told])
    figures = {f"text_recall_at_{k}": recall(by_description_TP, told.numpy(), k) for k in (1, 10)}
    asked_Q = torch.isin(seen.true_Q, told)
    photo_QD, true_Q = seen.photo_QD[asked_Q], seen.true_Q[asked_Q].numpy()
    photo_QP, title_QP = seen.by_product(photo_QD), seen.by_product(titled_PD[true_Q])
    fused = {weight: recall((1 - weight) * photo_QP + weight * title_QP, true_Q, 1) for weight in TEXT_WEIGHTS}
    best = max(fused, key=lambda weight: (fused[weight], -abs(weight - 0.5)))
    joined = [concatenated_scores(photo_QP, photo_QD.numpy(), described_PD.numpy(), weight) for weight in TEXT_WEIGHTS]
    figures |= {
        "photo_only_recall_at_1": fused[0.0],
        "title_only_recall_at_1": fused[1.0],
        "photo_and_title_recall_at_1": fused[best],
        "text_query_weight": best,
        "concatenated_recall_at_1": max(recall(scores_QP, true_Q, 1) for scores_QP in joined),
    }
    if fusion is not None:
        of_crop = [texts[product][-1] if texts[product] else "" for product in seen.products_N[~seen.users_N]]
        fused_ND = fusion.fused(seen.unit_ND[~seen.users_N], of_crop, text, device)
        figures["attended_recall_at_1"] = recall(seen.by_product(photo_QD, fused_ND), true_Q, 1)
    return figures
