"""Deep InfoMax against the paper's formulas, pair by pair, and against one process and two optimizers."""

import copy
import math
import os

import pytest
import torch
import torch.multiprocessing as mp
from small_encoder import SmallEncoder, assert_same_gradients, gradients, random_views

from visionlab import distributed
from visionlab.models.backbone import Backbone
from visionlab.pretext.dim import DeepInfoMax
from visionlab.pretext.prior import uniform_samples
from visionlab.pretext.scorers import EncodeAndDot
from visionlab.structures import ViewBatch

ESTIMATORS = ("infonce", "jsd", "dv", "nwj")
SCORERS = ("dot", "concat")


def small(**settings):
    torch.manual_seed(0)
    defaults = {"image_size": 8, "code_dim": 5, "hidden_dim": 6, "prior_weight": 0.0}
    return DeepInfoMax(SmallEncoder(), **(defaults | settings)).double()


def batch_of(images=4):
    return ViewBatch(random_views(1, images), seeds=list(range(images)))


def score(scorer, code, place):
    """The critic of one pair."""
    if hasattr(scorer, "rest"):
        _, second, _, third = scorer.rest
        first = torch.cat([scorer.code.weight, scorer.feature.weight], 1)
        hidden = (first @ torch.cat([code, place]) + scorer.feature.bias).clamp_min(0)
        return (third.weight @ (second.weight @ hidden + second.bias).clamp_min(0) + third.bias)[0]
    ends = []
    for network, vector in ((scorer.code, code), (scorer.feature, place)):
        first, _, last = network.hidden
        hidden = (first.weight @ vector + first.bias).clamp_min(0)
        ends.append(last.weight @ hidden + network.shortcut.weight @ vector + network.shortcut.bias)
    return (ends[0] * ends[1]).sum()


def information(estimator, own, others):
    """The estimate from the scores of own places, a list for each code, and of other images' places, likewise."""
    if estimator == "infonce":
        terms = []
        for mine, theirs in zip(own, others, strict=True):
            for positive in mine:
                candidates = torch.stack([positive, *theirs]).exp()
                terms.append((positive.exp() / candidates.sum()).log() + math.log(len(candidates)))
        return torch.stack(terms).mean()
    positives, negatives = (torch.stack([s for row in rows for s in row]) for rows in (own, others))
    if estimator == "jsd":
        fake = (1 + negatives.exp()).log().mean()
        return math.log(4) - (1 + (-positives).exp()).log().mean() - fake
    if estimator == "dv":
        return positives.mean() - negatives.exp().mean().log()
    return positives.mean() - (negatives - 1).exp().mean()


def places_of(method, name, local_map):
    """The vectors of one image's ``(C, H, W)`` map that the code is compared with."""
    if name == "local":
        return [local_map[:, y, x] for y in range(local_map.shape[1]) for x in range(local_map.shape[2])]
    first, _, second = method.summary.convolutions
    hidden = torch.nn.functional.conv2d(local_map[None], first.weight, first.bias, padding=1).clamp_min(0)
    return [torch.nn.functional.conv2d(hidden, second.weight, second.bias, padding=1).reshape(-1)]


def formula(method, name, estimator, batch, negatives=None):
    images = method.encoder.normalize(batch.views[0])
    fine, coarse = method.encoder(images)
    codes = [method.code.weight @ level.mean((1, 2)) + method.code.bias for level in coarse]
    places = [places_of(method, name, level) for level in fine]
    scorer, count = method.scorers[name], len(codes)
    own = [[score(scorer, codes[i], place) for place in places[i]] for i in range(count)]
    others = [
        [
            score(scorer, codes[i], place)
            for k in range(1, (negatives or count - 1) + 1)
            for place in places[(i + k) % count]
        ]
        for i in range(count)
    ]
    return information(estimator, own, others)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("name", "negatives"), [("local", None), ("local", 2), ("global", None), ("global", 1)])
def test_loss_and_gradient_are_those_of_the_formula(name, estimator, scorer, negatives):
    weights = {"global_weight": 0.0, "local_weight": 0.0} | {f"{name}_weight": 0.7}
    method = small(estimator=estimator, scorer=scorer, num_negatives=negatives, **weights)
    batch = batch_of()
    output = method(batch)
    assert list(output.losses) == [name]
    expected = -0.7 * formula(method, name, estimator, batch, negatives)
    torch.testing.assert_close(output.losses[name], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.metrics[f"{name}_information"], expected / -0.7, rtol=1e-10, atol=1e-12)
    assert_same_gradients(gradients(output.losses[name], method), gradients(expected, method))


def prior_losses(method, batch):
    """The two players' losses as equation 7 and the loss that does not saturate have them."""
    pooled = method.encoder.pool(method.encoder.normalize(batch.views[0]))
    codes = 1 / (1 + (-method.code(pooled)).exp())
    samples = uniform_samples(batch.seeds, codes.shape[1]).double()
    discriminator = method.prior.discriminator
    telling = -((discriminator(samples).sigmoid()).log() + (1 - discriminator(codes.detach()).sigmoid()).log()).mean()
    adversarial = -(discriminator(codes).sigmoid()).log().mean()
    return adversarial, telling


def test_one_backward_equals_two_optimizers():
    method = small(prior_weight=0.3, estimator="jsd")
    reference = copy.deepcopy(method)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    of_prior = {id(parameter) for parameter in reference.prior.parameters()}
    players = [p for p in reference.parameters() if id(p) not in of_prior]
    encoders = torch.optim.Adam(players, lr=0.01)
    discriminators = torch.optim.Adam(reference.prior.parameters(), lr=0.01)
    for step in range(3):
        batch = ViewBatch(random_views(1, 4, seed=step), seeds=[10 * step + i for i in range(4)])
        losses = method(batch).losses
        adversarial, telling = prior_losses(reference, batch)
        torch.testing.assert_close(losses["prior"], 0.3 * adversarial, rtol=1e-9, atol=0)
        torch.testing.assert_close(losses["discriminator"], 0.3 * telling, rtol=1e-9, atol=0)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        encoders.zero_grad()
        (0.3 * adversarial + reference(batch).losses["local"]).backward(inputs=players)
        discriminators.zero_grad()
        (0.3 * telling).backward(inputs=list(reference.prior.parameters()))
        for (name, one), two in zip(method.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-12, msg=name)
        optimizer.step()
        encoders.step()
        discriminators.step()
    for one, two in zip(method.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)


def test_prior_samples_are_even_and_those_of_the_seeds():
    samples = uniform_samples(range(400), 25)
    histogram = torch.histc(samples, 10, 0, 1)
    assert (histogram - 1000).abs().max() < 150
    assert torch.equal(uniform_samples([7], 25)[0], samples[7])
    assert abs(torch.corrcoef(samples.T)[0, 1]) < 0.2


@pytest.mark.slow
def test_codes_become_even():
    """The term alone spreads codes that begin crowded."""
    torch.manual_seed(0)
    method = small(prior_weight=1.0, code_dim=2)
    codes = torch.nn.Parameter(2 + 0.1 * torch.randn(64, 2, dtype=torch.float64))
    optimizer = torch.optim.Adam([codes, *method.prior.parameters()], lr=0.02)
    for step in range(200):
        optimizer.zero_grad()
        sum(method.prior(codes, [100 * step + i for i in range(64)])).backward()
        optimizer.step()
    points = codes.detach().sigmoid()
    assert (points.mean(0) - 0.5).abs().max() < 0.2
    assert points.std() > 0.15


@pytest.mark.parametrize("shape", [(5, 3, 8), (4, 5, 3, 8)])
def test_autocast_does_not_narrow_dot_products(shape):
    generator = torch.Generator().manual_seed(0)
    scorer = EncodeAndDot(2, 2, 8)
    codes, features = torch.randn(4, 8, generator=generator), torch.randn(shape, generator=generator)
    expected = scorer.compare(codes, features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scorer.compare(codes, features), expected)


def test_accuracy_is_how_often_a_place_finds_its_code():
    method = small()
    method.scorers["local"].forward = lambda codes, places, candidates: torch.stack(
        [torch.eye(4), torch.eye(4), torch.eye(4), 1 - torch.eye(4)], 2
    ).double()
    assert method(batch_of()).metrics["accuracy"] == 0.75


def test_each_term_has_an_accuracy_of_its_own():
    method = small(global_weight=1.0)
    never, always = torch.zeros(4, 4, 1), torch.eye(4)[..., None].expand(4, 4, 4)
    never[torch.arange(4), torch.arange(4) - 1] = 1
    method.scorers["global"].forward = lambda codes, places, candidates: never.double()
    method.scorers["local"].forward = lambda codes, places, candidates: always.double()
    metrics = method(batch_of()).metrics
    assert (metrics["global_accuracy"], metrics["local_accuracy"], metrics["accuracy"]) == (0, 1, 0.5)


def _two_processes(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    results = {}
    whole = batch_of()
    mine = slice(2 * rank, 2 * rank + 2)
    batch = ViewBatch([view[mine] for view in whole.views], seeds=whole.seeds[mine])
    for case in CASES:
        method = small(**CASES[case])
        losses = method(batch).losses
        sum(losses.values()).backward()
        averages = {name: distributed.average(loss) for name, loss in losses.items()}
        results[case] = averages, {name: distributed.average(p.grad) for name, p in method.named_parameters()}
    if rank == 0:
        torch.save(results, f"{folder}/output.pt")
    distributed.stop()


BOTH = {"global_weight": 0.5, "prior_weight": 0.2}
CASES = {estimator: BOTH | {"estimator": estimator} for estimator in ESTIMATORS}
CASES |= {"few": BOTH | {"num_negatives": 2, "scorer": "concat"}}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, free_port):
    mp.spawn(_two_processes, (free_port, str(tmp_path)), nprocs=2)
    results = torch.load(tmp_path / "output.pt")
    for case, (losses, slopes) in results.items():
        method = small(**CASES[case])
        whole = method(batch_of()).losses
        sum(whole.values()).backward()
        for name, loss in whole.items():
            torch.testing.assert_close(losses[name], loss.detach(), rtol=1e-10, atol=1e-12)
        for name, parameter in method.named_parameters():
            torch.testing.assert_close(slopes[name], parameter.grad, rtol=1e-9, atol=1e-13)


def test_the_local_level_is_a_choice():
    backbone = {"name": "resnet18", "options": {"channels": [4, 8, 12, 16]}}
    for stride, channels in ((None, 12), (4, 4), (8, 8)):
        method = DeepInfoMax(Backbone(**backbone), local_stride=stride)
        assert method.encoder.channels[method.level] == channels
    with pytest.raises(ValueError, match=r"^local_stride: expected one of \[4, 8, 16\] for resnet18, got 32"):
        DeepInfoMax(Backbone(**backbone), local_stride=32)


def test_a_plain_transformer_is_refused():
    backbone = Backbone(name="vit_tiny_patch16_224", image_size=32, options={"depth": 1, "embed_dim": 12})
    with pytest.raises(
        ValueError, match=r"^local_stride: expected a feature level below the last, vit_tiny_patch16_224"
    ):
        DeepInfoMax(backbone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_weight": 0.0}, "local_weight: expected more than 0, or else global_weight"),
        ({"prior_weight": -1.0}, "prior_weight: expected at least 0"),
        ({"num_negatives": 0}, "num_negatives: expected at least 1"),
        ({"code_dim": 0}, "code_dim: expected at least 1"),
    ],
)
def test_faulty_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        small(**settings)


def test_there_must_be_images_to_contrast():
    with pytest.raises(ValueError, match=r"^batch_size: expected at least 2 images over all processes, got 1$"):
        small()(batch_of(1))
    with pytest.raises(ValueError, match=r"^batch_size: expected at least 5 images over all processes, got 4$"):
        small(num_negatives=4)(batch_of(4))
