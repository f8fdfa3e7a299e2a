"""Losses against the equations of their papers, written as loops, and NT-Xent against itself on two processes."""

import math

import pytest
import torch
from small_encoder import cosine

from visionlab.pretext.losses import contrast_with_queue, noise_contrastive, nt_xent, vicreg_terms


def equation_1(first, second, temperature):
    """Mean over all 2N ordered positive pairs of -log(exp(s_ij / t) / sum over k != i of exp(s_ik / t))."""
    rows = torch.cat([first, second]).tolist()
    n = len(first)

    def similarity(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = sum(math.exp(similarity(rows[i], rows[k]) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(similarity(rows[i], rows[j]) / temperature) / others)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_equation_1(temperature):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    loss, _ = nt_xent(first, second, temperature)
    assert loss.item() == pytest.approx(equation_1(first, second, temperature), rel=1e-12)


def test_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5)[0], (first, second))


def test_accuracy_counts_positives_that_are_nearest():
    first = torch.eye(4)
    assert nt_xent(first, first.clone(), 0.1)[1] == 1
    assert nt_xent(first, first.roll(1, dims=0), 0.1)[1] == 0


def test_a_single_image_has_no_negatives():
    with pytest.raises(
        ValueError, match=r"^batch_size: expected at least 2 images over all processes to contrast, got 1$"
    ):
        nt_xent(torch.ones(1, 3), torch.ones(1, 3), 0.1)


def test_half_precision_computes_in_float32():
    first, second = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
    half, _ = nt_xent(first.bfloat16(), second.bfloat16(), 0.1)
    assert half.dtype == torch.float32
    assert half == nt_xent(first.bfloat16().float(), second.bfloat16().float(), 0.1)[0]


def test_autocast_does_not_narrow_the_logits():
    first, second = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
    expected, _ = nt_xent(first, second, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert nt_xent(first, second, 0.1)[0] == expected


# ------------------------------------------------------------------------------------------------------- a queue


def test_a_queue_gives_every_query_the_same_negatives():
    generator = torch.Generator().manual_seed(4)
    queries, keys = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    queries.requires_grad_()
    queue = torch.nn.functional.normalize(torch.randn(5, 4, generator=generator, dtype=torch.float64))
    total, hits = 0, 0
    for query, key in zip(queries, keys, strict=True):
        exponents = [cosine(query, candidate) / 0.3 for candidate in (key, *queue)]
        total = total - exponents[0] + sum(exponent.exp() for exponent in exponents).log()
        hits += max(exponents) == exponents[0]
    loss, accuracy = contrast_with_queue(queries, keys, queue, 0.3)
    torch.testing.assert_close(loss, total / 3, rtol=1e-12, atol=0)
    (gradient,), (expected,) = (torch.autograd.grad(each, queries) for each in (loss, total / 3))
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=0)
    assert accuracy.item() == pytest.approx(hits / 3)


def test_autocast_does_not_narrow_a_queue():
    queries, keys = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(5))
    expected, _ = contrast_with_queue(queries, keys, torch.eye(8), 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        assert contrast_with_queue(queries, keys, torch.eye(8), 0.07)[0] == expected


# ------------------------------------------------------------------------------------------------------- VICReg


def test_vicreg_terms_are_those_of_the_paper():
    generator = torch.Generator().manual_seed(6)
    views = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64) * torch.tensor([0.3, 0.8, 2.0])
    n, d = 6, 3
    variance = covariance = 0.0
    for rows in views.tolist():
        mean = [sum(row[j] for row in rows) / n for j in range(d)]
        matrix = [
            [sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / (n - 1) for j in range(d)] for i in range(d)
        ]
        variance += sum(max(0, 1 - math.sqrt(matrix[j][j] + 1e-4)) for j in range(d)) / d / 2
        covariance += sum(matrix[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    pairs = zip(*(rows.flatten().tolist() for rows in views), strict=True)
    terms = vicreg_terms(*views)
    assert terms["invariance"].item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / n / d, rel=1e-12)
    assert terms["variance"].item() == pytest.approx(variance, rel=1e-12)
    assert terms["covariance"].item() == pytest.approx(covariance, rel=1e-12)


def test_vicreg_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(7)
    views = [torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda a, b: tuple(vicreg_terms(0.5 * a, 2 * b).values()), views)


def test_vicreg_terms_meter_a_collapse():
    point = vicreg_terms(*torch.ones(2, 16, 4))
    assert point["variance"] == pytest.approx(0.99)
    assert point["invariance"] == point["covariance"] == 0
    line = vicreg_terms(*(3 * torch.randn(16, 1, generator=torch.Generator().manual_seed(8)).expand(2, 16, 4)))
    assert line["variance"] == 0
    assert line["covariance"] > 10


def test_a_single_image_has_no_variance():
    with pytest.raises(ValueError, match=r"^batch_size: expected at least 2 images over all processes to vary, got 1$"):
        vicreg_terms(torch.ones(1, 3), torch.ones(1, 3))


# ------------------------------------------------------------------------------------------------------- noise


def test_noise_contrastive_is_the_likelihood_of_telling_data_from_noise():
    generator = torch.Generator().manual_seed(9)
    data, noise = torch.randn(3, generator=generator).double(), torch.randn(3, 5, generator=generator).double()
    log_z, q = 0.7, 0.05

    def share(score):
        p = math.exp(score) / math.exp(log_z)
        return p / (p + 5 * q)

    expected = -sum(math.log(share(score)) for score in data.tolist()) / 3
    expected -= sum(math.log(1 - share(score)) for row in noise.tolist() for score in row) / 3
    leaves = [data.requires_grad_(), noise.requires_grad_(), torch.tensor(log_z).double().requires_grad_()]
    loss = noise_contrastive(*leaves, math.log(q))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.gradcheck(lambda *each: noise_contrastive(*each, math.log(q)), leaves)
    (gradient,) = torch.autograd.grad(loss, data)
    assert gradient.tolist() == pytest.approx([-(1 - share(score)) / 3 for score in data.tolist()], rel=1e-6)


def test_a_learned_normalizer_finds_the_true_one():
    """Gutmann and Hyvärinen: the loss is least where the model with its normalizer is the distribution of the data."""
    scores = torch.tensor([0.3, -1.0, 2.0, 0.5, 1.2, -0.4], dtype=torch.float64)  # of six outcomes
    generator = torch.Generator().manual_seed(10)
    data = scores[torch.multinomial(scores.softmax(0), 20_000, replacement=True, generator=generator)]
    noise = scores[torch.randint(6, (20_000, 4), generator=generator)]
    log_normalizer = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_normalizer], max_iter=30)

    def loss():
        optimizer.zero_grad()
        value = noise_contrastive(data, noise, log_normalizer, math.log(1 / 6))
        value.backward()
        return value

    optimizer.step(loss)
    assert log_normalizer.item() == pytest.approx(scores.logsumexp(0).item(), abs=0.03)
