"""Probes of a frozen encoder: nearest neighbors and a linear classifier on the features of every level.

A probe knows nothing of encoders: it takes a function from images to features, or features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visionlab.checks import check_above, check_at_least
from visionlab.structures import ViewBatch

Encode = Callable[[Tensor], Mapping[str, Tensor] | Tensor]
"""Turns images ``(N, 3, H, W)`` uint8 into features ``(N, D)``: of every level by its name, or of a single level."""

ONLY_LEVEL = "features"
"""The name of the level of an encoder that has a single one."""

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Features:
    """The features of labelled images, or of labelled boxes.

    Args:
        levels: ``(M, D)`` float32 by the name of the level.
        labels: ``(M,)`` int64.
    """

    levels: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Tensor) -> Features:
        """Return the rows of ``(K,)`` indices."""
        return Features({name: level[rows] for name, level in self.levels.items()}, self.labels[rows])


@torch.no_grad()
def extract(
    encode: Encode, batches: Iterable[ViewBatch], labels: Sequence[int], device: torch.device | str = "cpu"
) -> Features:
    """Compute the features of all images, once.

    Args:
        encode: images on ``device`` -> features.
        batches: their first views are the images; ``ids`` are places in ``labels``.
        labels: the class of each image of the dataset.
        device: where to compute; the features come back to the CPU.
    """
    parts: dict[str, list[Tensor]] = {}
    ids: list[int] = []
    for batch in batches:
        found = encode(batch.views[0].to(device))
        for name, level in ({ONLY_LEVEL: found} if isinstance(found, Tensor) else found).items():
            parts.setdefault(name, []).append(level.float().cpu())
        ids += batch.ids
    if not ids:
        raise ValueError("a probe needs images, got none that can be read")
    order = torch.tensor(ids).argsort()
    chosen = torch.tensor(labels)[torch.tensor(ids)]
    return Features({name: torch.cat(part) for name, part in parts.items()}, chosen).subset(order)


def pool_levels(maps: Sequence[Tensor], strides: Sequence[int], grid: int = 2) -> dict[str, Tensor]:
    """Return feature maps as vectors: means over a grid of parts, and the mean of the last map as ``pooled``.

    A mean over the whole map would hide what early levels contain, since they have few channels and many places.

    Args:
        maps: one ``(N, C, H, W)`` for each level.
        strides: of each level.
        grid: parts along each side; fewer where the map is smaller.
    """
    levels = {}
    for level, stride in zip(maps, strides, strict=True):
        size = (min(grid, level.shape[2]), min(grid, level.shape[3]))
        levels[f"stride {stride}"] = F.adaptive_avg_pool2d(level, size).flatten(1)
    return levels | {"pooled": maps[-1].mean((2, 3))}


def draw_per_class(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return the places of ``count`` examples of each class, drawn at random, in ascending order.

    Raises:
        ValueError: a class has fewer.
    """
    check_at_least(1, labels_per_class=count)
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique().tolist():
        places = (labels == label).nonzero().flatten()
        if len(places) < count:
            raise ValueError(f"labels_per_class: expected at most {len(places)}, as many as class {label} has")
        chosen.append(places[torch.randperm(len(places), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def knn_predictions(
    train: Tensor, labels: Tensor, test: Tensor, *, neighbors: int = 20, temperature: float = 0.07
) -> Tensor:
    """Return the classes that the nearest training examples vote for, each with the weight ``exp(cosine / t)``.

    Args:
        train: ``(M, D)`` features.
        labels: ``(M,)`` their classes.
        test: ``(K, D)`` features.
        neighbors: how many vote; at most M.
        temperature: t, above 0.

    Returns:
        ``(K,)`` int64.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018,
    arXiv:1805.01978, section 3.4.
    """
    check_above(0, temperature=temperature)
    if not 1 <= neighbors <= len(train):
        raise ValueError(f"neighbors: expected 1 to {len(train)}, the number of training examples, got {neighbors}")
    train = F.normalize(train)
    predictions = []
    for part in F.normalize(test).split(1024):
        cosines, places = (part @ train.T).topk(neighbors)
        votes = part.new_zeros(len(part), int(labels.max()) + 1)
        votes.scatter_add_(1, labels[places], ((cosines - 1) / temperature).exp())
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def linear_predictions(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Return the predictions of logistic regression, with a weight decay chosen on every fifth training example.

    Features are standardized by the training examples. The problem is convex and solved to the end from zero, so
    nothing is random.

    Args:
        train: ``(M, D)`` features.
        labels: ``(M,)`` their classes.
        test: ``(K, D)`` features.

    Returns:
        ``(K,)`` int64.
    """
    mean, std = train.mean(0), train.std(0, correction=0).clamp_min(1e-6)
    train, test = (train - mean) / std, (test - mean) / std
    held_out = torch.arange(len(train)) % 5 == 4
    best, most = DECAYS[0], -1.0
    if held_out.any():
        solution = None
        for decay in DECAYS:
            solution = fit_logistic(train[~held_out], labels[~held_out], decay, int(labels.max()) + 1, solution)
            correct = accuracy(_predict(solution, train[held_out]), labels[held_out])
            if correct > most:
                best, most = decay, correct
    return _predict(fit_logistic(train, labels, best, int(labels.max()) + 1), test)


def fit_logistic(
    features: Tensor, labels: Tensor, decay: float, classes: int, start: Tensor | None = None, steps: int = 100
) -> Tensor:
    """Return the weights that minimize the mean cross entropy plus ``decay / 2`` times their squared norm.

    Args:
        features: ``(M, D)``.
        labels: ``(M,)``.
        decay: of all weights but the biases, above 0.
        classes: number of classes, C.
        start: where to begin; zeros by default.
        steps: iterations of L-BFGS at most.

    Returns:
        ``(D + 1, C)``, the biases in the last row.
    """
    weights = features.new_zeros(features.shape[1] + 1, classes) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(torch.addmm(weights[-1], features, weights[:-1]), labels)
        value = value + decay / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    return weights.detach()


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the share of predictions that are right."""
    return float((predictions == labels).double().mean())


def balanced_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes that occur of the share of their examples that are right."""
    shares = [accuracy(predictions[labels == label], labels[labels == label]) for label in labels.unique()]
    return sum(shares) / len(shares)


def probe(
    train: Features,
    test: Features,
    *,
    neighbors: int = 20,
    temperature: float = 0.07,
    labels_per_class: int | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Measure every level of features by nearest neighbors and by a linear classifier.

    Args:
        train: what the classifiers are made of.
        test: what they are measured on.
        neighbors: how many vote.
        temperature: of the votes' weights.
        labels_per_class: train on so many examples of each class, drawn by ``seed``; by default on all.
        seed: of that draw.

    Returns:
        level -> ``knn`` and ``linear``, accuracies in [0, 1].
    """
    if labels_per_class is not None:
        train = train.subset(draw_per_class(train.labels, labels_per_class, seed))
    scores = {}
    for name, level in train.levels.items():
        near = knn_predictions(level, train.labels, test.levels[name], neighbors=neighbors, temperature=temperature)
        linear = linear_predictions(level, train.labels, test.levels[name])
        scores[name] = {"knn": accuracy(near, test.labels), "linear": accuracy(linear, test.labels)}
    return scores


def _predict(weights: Tensor, features: Tensor) -> Tensor:
    return torch.addmm(weights[-1], features, weights[:-1]).argmax(dim=1)
