"""The processes of one run: who am I, and what do the others hold. The one file that says torch.distributed."""

from __future__ import annotations

import inspect
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: torch.device) -> None:
    """Join the processes that torchrun started; does nothing in a plain single process.

    Args:
        device: where this process computes; its GPU becomes the current one, which NCCL needs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(local_rank() if device.index is None else device.index)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """Return the device of this process.

    Args:
        name: auto, cpu or cuda; auto takes a GPU where there is one.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected a GPU that torch can use, got none; `visionlab doctor` says why")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Return the number of this process on its machine, from 0: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the process that writes files."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def average(value: Tensor) -> Tensor:
    """Return the mean of ``value`` over all processes, without gradient.

    A loss divided by ``average(count)`` has, after gradients are averaged over processes, the gradient of one process
    that holds the whole batch.
    """
    value = value.detach() if value.is_floating_point() else value.detach().float()
    value = value.clone(memory_format=torch.contiguous_format)
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        value = value.contiguous()
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, value)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(value: Tensor) -> Tensor:
    """Return the ``(N, ...)`` tensors of all processes as one ``(processes * N, ...)`` tensor, with gradient.

    The gradient of each process's rows is the sum of what all processes ask of them. All processes must hold the same
    shape.
    """
    return _Gather.apply(value) if dist.is_initialized() else value


def gather_objects(value: Any) -> list[Any]:
    """Return the picklable values of all processes, in the order of ranks, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Return the main process's picklable value on every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a module so that its gradients are averaged over processes; return it as it is in a single process."""
    if not dist.is_initialized():
        return module
    devices = [device] if device.type == "cuda" else None
    parameters = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    # Newer versions of torch warn of the setting's old name.
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    return nn.parallel.DistributedDataParallel(module, device_ids=devices, **{buffers: False})  # type: ignore[arg-type]


def unsynced(replica: nn.Module) -> AbstractContextManager[None]:
    """Let gradients add up on this process alone inside the ``with`` block, because more are to come."""
    return replica.no_sync() if isinstance(replica, nn.parallel.DistributedDataParallel) else nullcontext()


def share_buffers(module: nn.Module) -> None:
    """Give every process the main process's buffers, for example its running statistics.

    Only buffers that are part of the ``state_dict`` are shared, because others may differ in shape.
    """
    if dist.is_initialized():
        parameters = {name for name, _ in module.named_parameters()}
        for name, value in module.state_dict().items():
            if name not in parameters:
                dist.broadcast(value, 0)
