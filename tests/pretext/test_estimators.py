"""The bounds against formulas written as loops, against densities that are known, and with critics that are trained."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from visionlab.pretext.estimators import ESTIMATORS, donsker_varadhan, info_nce, jensen_shannon, nwj, own_columns

# ------------------------------------------------------------------------------- value and gradient, pair by pair


def pairs(mask):
    return [(i, j) for i in range(len(mask)) for j in range(len(mask[0])) if mask[i][j]]


def dv_by_hand(s, positive, negative):
    total = sum(math.exp(s[i][j]) for i, j in negative)
    gradient = np.zeros_like(s)
    for i, j in positive:
        gradient[i][j] += 1 / len(positive)
    for i, j in negative:
        gradient[i][j] -= math.exp(s[i][j]) / total
    return sum(s[i][j] for i, j in positive) / len(positive) - math.log(total / len(negative)), gradient


def nwj_by_hand(s, positive, negative):
    gradient = np.zeros_like(s)
    for i, j in positive:
        gradient[i][j] += 1 / len(positive)
    for i, j in negative:
        gradient[i][j] -= math.exp(s[i][j]) / math.e / len(negative)
    first = sum(s[i][j] for i, j in positive) / len(positive)
    return first - sum(math.exp(s[i][j]) / math.e for i, j in negative) / len(negative), gradient


def jsd_by_hand(s, positive, negative):
    value, gradient = math.log(4), np.zeros_like(s)
    for i, j in positive:  # log D with D = sigmoid(s), whose derivative is 1 - D
        d = 1 / (1 + math.exp(-s[i][j]))
        value += math.log(d) / len(positive)
        gradient[i][j] += (1 - d) / len(positive)
    for i, j in negative:
        d = 1 / (1 + math.exp(-s[i][j]))
        value += math.log(1 - d) / len(negative)
        gradient[i][j] -= d / len(negative)
    return value, gradient


def infonce_by_hand(s, positive, negative):
    value, gradient = 0.0, np.zeros_like(s)
    for i, j in positive:
        candidates = [(i, j)] + [(a, b) for a, b in negative if a == i]
        total = sum(math.exp(s[a][b]) for a, b in candidates)
        value += (math.log(math.exp(s[i][j]) / total) + math.log(len(candidates))) / len(positive)
        gradient[i][j] += 1 / len(positive)
        for a, b in candidates:
            gradient[a][b] -= math.exp(s[a][b]) / total / len(positive)
    return value, gradient


BY_HAND = {"dv": dv_by_hand, "nwj": nwj_by_hand, "jsd": jsd_by_hand, "infonce": infonce_by_hand}


def masks(kind):
    if kind == "diagonal":
        return torch.eye(5, dtype=torch.bool), None
    if kind == "three columns for each row":
        return torch.eye(5, dtype=torch.bool).repeat_interleave(3, dim=1), None
    generator = torch.Generator().manual_seed(9)
    drawn = torch.randint(3, (5, 8), generator=generator)
    drawn[:, 0], drawn[:, 1] = 0, 1
    return drawn == 0, drawn == 1


@pytest.mark.parametrize("kind", ["diagonal", "three columns for each row", "masks with pairs of neither kind"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_value_and_gradient_are_those_of_the_formula(name, kind):
    positives, negatives = masks(kind)
    scores = 2 * torch.randn(positives.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores.requires_grad_()
    bound = ESTIMATORS[name](scores, *((positives, negatives) if negatives is not None else ()))
    bound.backward()
    negative = pairs((~positives if negatives is None else negatives).tolist())
    value, gradient = BY_HAND[name](scores.detach().numpy(), pairs(positives.tolist()), negative)
    assert bound.item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(scores.grad.numpy(), gradient, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_half_precision_computes_in_float32(name):
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert ESTIMATORS[name](scores) == ESTIMATORS[name](scores.float())
    assert ESTIMATORS[name](scores).dtype == torch.float32


@pytest.mark.parametrize("name", ESTIMATORS)
def test_scores_of_any_size_give_finite_gradients(name):
    scores = torch.tensor([[80.0, -80.0], [-80.0, 80.0]], requires_grad=True)
    ESTIMATORS[name](scores).backward()
    assert scores.grad.isfinite().all()


def test_shapes_that_cannot_be():
    with pytest.raises(ValueError, match=r"^scores: expected \(N, M\), got \(3,\)$"):
        nwj(torch.zeros(3))
    with pytest.raises(ValueError, match=r"^scores: expected equally many columns for each of 3 rows, got 4$"):
        nwj(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"^positives: expected \(2, 2\) bool, got \(2, 2\) torch.float32$"):
        nwj(torch.zeros(2, 2), torch.eye(2))
    with pytest.raises(ValueError, match=r"^negatives: expected \(2, 2\) bool, got \(2, 3\) torch.bool$"):
        nwj(torch.zeros(2, 2), None, torch.ones(2, 3, dtype=torch.bool))


def test_own_columns():
    expected = [[True, True, False, False], [False, False, True, True]]
    assert own_columns(2, 4).tolist() == expected


# --------------------------------------------------------------------- Gaussians, whose mutual information is known

DIMENSIONS = 4


class Gaussians:
    """Pairs of Gaussian vectors, correlated by rho in each dimension: the truth is -d/2 log(1 - rho^2)."""

    def __init__(self, nats: float, seed: int):
        self.nats = nats
        self.rho = math.sqrt(1 - math.exp(-2 * nats / DIMENSIONS))
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int):
        x, noise = torch.randn(2, count, DIMENSIONS, generator=self.generator)
        return x, self.rho * x + math.sqrt(1 - self.rho**2) * noise

    def log_ratio(self, x, y):
        """The log of joint density over product of marginals: the best critic there is."""
        quadratic = self.rho**2 * (x**2 + y**2) - 2 * self.rho * x * y
        return self.nats - (quadratic / (1 - self.rho**2) / 2).sum(-1)

    def critic_pairs(self, critic, count: int):
        """Scores of pairs that belong together, and as many of pairs that do not: ``(count, 2)``."""
        x, y = self.draw(count)
        _, stranger = self.draw(count)
        return torch.stack([critic(x, y), critic(x, stranger)], dim=1)


POSITIVE = torch.tensor([True, False])


def of_pairs(estimator, scores):
    return estimator(scores, POSITIVE.expand(len(scores), 2)).item()


def standard_error(values, axis=0):
    return float(np.std(values, axis=axis, ddof=1)) / math.sqrt(len(values))


def test_the_best_critic_makes_the_bounds_tight():
    truth = Gaussians(1.0, seed=11)
    scores = truth.critic_pairs(truth.log_ratio, 200_000).double()
    assert of_pairs(donsker_varadhan, scores) == pytest.approx(1.0, abs=0.03)
    assert of_pairs(nwj, scores + 1) == pytest.approx(1.0, abs=0.03)


class Critic(nn.Module):
    """Scores ``f(x) . g(y) + a(x) + b(y)``, so that all pairs of a batch cost no more than its samples."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Linear(DIMENSIONS, 64), nn.ReLU(), nn.Linear(64, 17)) for _ in "xy")

    def forward(self, x, y):
        left, right = self.left(x), self.right(y)
        return (left[..., 1:] * right[..., 1:]).sum(-1) + left[..., 0] + right[..., 0]

    def matrix(self, x, y):
        left, right = self.left(x), self.right(y)
        return left[:, 1:] @ right[:, 1:].T + left[:, :1] + right[:, 0]


@cache
def trained(estimator, nats: float, batch: int = 64, steps: int = 400) -> Critic:
    """A critic trained on fresh samples, drawn with other seeds than the tests measure with."""
    torch.manual_seed(0)
    critic, truth = Critic(), Gaussians(nats, seed=1)
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        loss = -estimator(critic.matrix(*truth.draw(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic.requires_grad_(False)


def batch_bounds(estimator, critic, nats, batch):
    truth = Gaussians(nats, seed=2)
    return [estimator(critic.matrix(*truth.draw(batch)).double()).item() for _ in range(300)]


@pytest.mark.parametrize("nats", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("estimator", [nwj, info_nce])
def test_trained_bounds_stay_below_the_truth(estimator, nats):
    bounds = batch_bounds(estimator, trained(estimator, nats), nats, batch=128)
    assert np.mean(bounds) <= nats + 3 * standard_error(bounds)
    assert np.mean(bounds) > 0.8 * nats  # a bound that says nothing would also stay below


def test_info_nce_saturates_at_the_log_of_the_batch():
    nats, critic = 2.0, trained(info_nce, 2.0)
    small, large = (batch_bounds(info_nce, critic, nats, batch) for batch in (4, 128))
    assert max(small) <= math.log(4) < nats
    assert np.mean(small) > 0.6 * math.log(4)
    assert np.mean(large) > math.log(4)


@pytest.mark.parametrize("nats", [0.5, 2.0])
def test_donsker_varadhan_on_many_held_out_pairs(nats):
    scores = Gaussians(nats, seed=2).critic_pairs(trained(donsker_varadhan, nats), 60_000).double()
    exponents = scores[:, 1].exp()
    error = math.hypot(standard_error(scores[:, 0].numpy()), standard_error((exponents / exponents.mean()).numpy()))
    bound = of_pairs(donsker_varadhan, scores)
    assert bound <= nats + 3 * error
    assert bound > 0.8 * nats


def test_minibatches_of_donsker_varadhan_are_too_high():
    truth = Gaussians(2.0, seed=4)
    scores = truth.critic_pairs(truth.log_ratio, 64_000).double()
    small = [of_pairs(donsker_varadhan, part) for part in scores.split(16)]
    assert np.mean(small) > of_pairs(donsker_varadhan, scores) + 5 * standard_error(small)
    assert np.mean(small) > truth.nats + 5 * standard_error(small)


@pytest.mark.parametrize("nats", [0.5, 2.0])
def test_jensen_shannon_is_a_bound_on_the_divergence(nats):
    truth = Gaussians(nats, seed=5)
    ratios = truth.critic_pairs(truth.log_ratio, 200_000).double()
    # E log(2p / (p + q)) under p, and the same with q under q, where log(p / q) is the ratio.
    halves = torch.stack(
        [math.log(2) - (1 + (-ratios[:, 0]).exp()).log(), math.log(2) - (1 + ratios[:, 1].exp()).log()]
    )
    divergence = halves.mean(1).mean().item()
    assert 0 < divergence < math.log(2)
    assert of_pairs(jensen_shannon, ratios) == pytest.approx(2 * divergence, rel=1e-9)
    scores = Gaussians(nats, seed=2).critic_pairs(trained(jensen_shannon, nats), 60_000).double()
    parts = -torch.nn.functional.softplus(scores * torch.tensor([-1, 1]))
    error = math.hypot(*(standard_error(part.numpy()) for part in parts.T))
    error = math.hypot(error, *(standard_error(half.numpy()) for half in halves))
    bound = of_pairs(jensen_shannon, scores)
    assert bound <= 2 * divergence + 3 * error
    assert bound > 0.8 * 2 * divergence
