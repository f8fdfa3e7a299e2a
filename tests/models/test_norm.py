"""Norm policies: what BatchNorm becomes, and that joined statistics equal those of one process."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from visionlab.models.norm import GroupNorm, SyncBatchNorm, apply_norm_policy, batch_norms


def _network(policy: str) -> nn.Module:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        for layer in batch_norms(network):
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.uniform_(-1, 1)
    apply_norm_policy(network, policy, "network")
    return network.double()


def _step(network: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    images = images.clone().requires_grad_()
    ((network(images) - targets) ** 2).sum().backward()
    return {
        "images": images.grad,
        **{f"grad {key}": value.grad for key, value in network.named_parameters()},
        **{key: value.clone() for key, value in network.named_buffers()},
    }


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = 3 + 2 * torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randn(5, 4, 4, 4, generator=generator, dtype=torch.float64)


def _process(rank: int, port: int, splits: list[slice], results) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(splits))
    images, targets = _data()
    result = _step(_network("sync"), images[splits[rank]], targets[splits[rank]])
    for key, value in result.items():
        if key.startswith("grad"):
            dist.all_reduce(value)
    results.put((rank, {key: value.tolist() for key, value in result.items()}))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_are_one(free_port):
    """Values, gradients (of parameters and of images) and statistics of 3 + 2 images equal plain BatchNorm on 5."""
    splits = [slice(0, 3), slice(3, 5)]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    workers = mp.spawn(_process, (free_port, splits, results), nprocs=2, join=False)
    found = dict(results.get() for _ in splits)
    workers.join()

    expected = _step(_network("train"), *_data())
    for rank, part in enumerate(splits):
        for key, value in expected.items():
            wanted = value[part] if key == "images" else value
            torch.testing.assert_close(torch.tensor(found[rank][key], dtype=value.dtype), wanted, rtol=1e-9, atol=1e-9)


def test_sync_in_one_process_is_batch_norm():
    images, targets = _data()
    ours, theirs = (_step(_network(policy), images, targets) for policy in ("sync", "train"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
@pytest.mark.parametrize(("policy", "kind"), [("sync", SyncBatchNorm), ("group", GroupNorm)])
def test_replacement_keeps_names_affine_parameters_and_activations(name, policy, kind):
    import timm  # here, so that the processes above start without it

    model = timm.create_model(name, num_classes=0).eval()
    with torch.no_grad():
        for layer in batch_norms(model):
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.uniform_(-1, 1)
    plain = copy.deepcopy(model)
    apply_norm_policy(model, policy, name)
    assert not [layer for layer in batch_norms(model) if not isinstance(layer, kind)]
    assert sum(isinstance(layer, kind) for layer in model.modules()) == len(batch_norms(plain))
    state, before = model.state_dict(), plain.state_dict()
    assert all(torch.equal(state[key], before[key]) for key in state)
    assert {key for key in before if key not in state} == (
        set() if policy == "sync" else {key for key in before if "running_" in key or "num_batches" in key}
    )
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        if policy == "sync":
            assert torch.equal(model(images), plain(images))
        else:
            assert model(images).isfinite().all()


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (40, 8), (7, 1)])
def test_group_norm_takes_32_groups_or_the_largest_divisor(channels, groups):
    network = nn.Sequential(nn.BatchNorm2d(channels))
    apply_norm_policy(network, "group", "network")
    assert network[0].num_groups == groups


def test_group_norm_agrees_with_the_formula():
    network = nn.Sequential(nn.BatchNorm2d(64, eps=1e-3))
    apply_norm_policy(network, "group", "network")
    images = torch.randn(2, 64, 3, 5)
    groups = images.reshape(2, 32, -1)
    mean, variance = groups.mean(2, keepdim=True), groups.var(2, keepdim=True, correction=0)
    expected = ((groups - mean) / (variance + 1e-3).sqrt()).reshape(images.shape)
    torch.testing.assert_close(network(images), expected)
