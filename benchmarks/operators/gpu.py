"""Checks that need a GPU: one function and one process for each.

`python -m operators.gpu NAME` runs one. A check returns what it found in one line, raises AssertionError where
something is wrong and Skipped where this machine cannot tell.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from operators import fuzz
from operators.names import OPERATORS
from operators.samples import Sample, samples

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Skipped(Exception):
    """A check that this machine cannot run."""


def results(sample: Sample) -> list[Tensor]:
    """The answer of a sample, and its gradients."""
    answer = sample.call()
    answers = list(answer) if isinstance(answer, tuple) else [answer]
    return answers + list(sample.gradients(answer) if sample.leaves and answer.requires_grad else ())


def same(name: str, found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Refuse answers that differ by more than ``tolerance`` times the largest number."""
    for part, (left, right) in enumerate(zip(found, expected, strict=True)):
        left, right = left.detach().double().cpu(), right.detach().double().cpu()
        scale = max(1.0, right.abs().max().item() if right.numel() else 1.0)
        assert left.shape == right.shape, f"{name}: part {part} has shape {left.shape}, expected {right.shape}"
        error = (left - right).abs().max().item() / scale if left.numel() else 0.0
        assert error <= tolerance, f"{name}: part {part} differs by {error:.2g} of the largest number"


def compiled() -> str:
    """Every operator has CUDA kernels, not the PyTorch path."""
    from visionlab import _native

    assert _native.cuda_library().loaded, _native.cuda_library().reason
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("visionlab::")]
    kernels = {
        key: {name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)}
        for key in ("CPU", "CUDA")
    }
    missing = sorted(kernels["CPU"] - kernels["CUDA"])
    assert not missing, f"no CUDA kernel: {', '.join(missing)}"
    return f"{len(kernels['CUDA'])} kernels, {torch.ops.visionlab.cuda_build()}"


def agreement(device: str = "cuda") -> str:
    """CUDA and CPU give the same answers and gradients, in every dtype and both memory formats."""
    count = 0
    for dtype, tolerance in TOLERANCE.items():
        for here, there in zip(samples(device, dtype), samples("cpu", dtype), strict=True):
            if dtype in (torch.float16, torch.bfloat16) and not here.leaves:
                continue  # which of two boxes is suppressed may hang on the last bit
            same(f"{here.op} {dtype}", results(here), results(there), tolerance)
            count += 1
        for here, there in zip(samples(device, dtype, layout="channels_last"), samples("cpu", dtype), strict=True):
            if here.leaves:
                same(f"{here.op} {dtype} channels_last", results(here), results(there), tolerance)
                count += 1
    return f"{count} calls agree with the CPU"


def hostile(device: str = "cuda", cases: int = 150) -> str:
    """Random and hostile arguments break nothing."""
    for op in OPERATORS:
        for number in range(cases):
            try:
                fuzz.run(op, 0, number, device)
            except fuzz.FuzzFailure as fault:
                raise AssertionError(f"{op} case {number}: {fault}") from fault
    if device == "cuda":
        torch.cuda.synchronize()
    return f"{cases} cases of each of {len(OPERATORS)} operators"


def streams() -> str:
    """An operator runs on the current stream: it waits for what was queued there before it."""
    expected = [results(sample) for sample in samples("cuda")]
    ours = samples("cuda")
    torch.cuda.synchronize()
    for sample, right in zip(ours, expected, strict=True):
        tensors = [tensor for tensor in flat(sample.arguments) if tensor.is_floating_point()]
        kept = [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            for tensor in tensors:
                tensor.zero_()
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)  # about 10 ms, so that a kernel on another stream would see the zeros
            with torch.no_grad():
                for tensor, values in zip(tensors, kept, strict=True):
                    tensor.copy_(values)
            found = results(sample)
        side.synchronize()
        same(f"{sample.op} on a side stream", found, right, 1e-4)
    return f"{len(ours)} operators wait for their stream"


def graphs() -> str:
    """Calls whose answer has a known size, and their gradients, replay from a CUDA graph on new values."""
    fixed = [sample for sample in samples("cuda") if sample.fixed_size]
    for sample in fixed:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                results(sample)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results(sample)
        with torch.no_grad():
            for leaf in sample.leaves:
                leaf.mul_(0.5)
        expected = [part.detach().clone() for part in results(sample)]
        graph.replay()
        torch.cuda.synchronize()
        same(f"{sample.op} replayed", captured, expected, 1e-4)
    return f"{len(fixed)} operators replay: {', '.join(sample.op for sample in fixed)}"


def guard() -> str:
    """A tensor on another GPU than the current one is worked on where it lies."""
    if torch.cuda.device_count() < 2:
        raise Skipped("there is one GPU")
    with torch.cuda.device(0):
        for here, there in zip(samples("cuda:1"), samples("cuda:0"), strict=True):
            found = results(here)
            assert all(part.device.index == 1 for part in found), f"{here.op}: the answer left its GPU"
            same(f"{here.op} on cuda:1", found, results(there), 1e-4)
        assert torch.cuda.current_device() == 0, "the current device was changed"
    return "all operators work on cuda:1 while cuda:0 is current"


def determinism() -> str:
    """Under use_deterministic_algorithms the same call gives the same bits, or raises and says why."""
    torch.use_deterministic_algorithms(True)
    raised = []
    ours = [sample for sample in samples("cuda", side=24) if sample.leaves]
    for sample in ours:
        try:
            first = results(sample)
            for _ in range(20):
                for left, right in zip(results(sample), first, strict=True):
                    assert torch.equal(left, right), f"{sample.op}: the bits differ from run to run"
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            raised.append(sample.op)
    return f"{len(ours) - len(raised)} repeat bit for bit" + (f"; raised: {', '.join(raised)}" if raised else "")


def synchronization() -> str:
    """nms waits for the GPU once, for its count; operators whose answer has a known size never do."""
    counts = {}
    for sample in samples("cuda"):
        results(sample)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results(sample)
        torch.cuda.set_sync_debug_mode("default")
        counts[sample.op] = sum("synchroniz" in str(warning.message) for warning in caught)
        most = 0 if sample.fixed_size else 1 if sample.op in ("nms", "batched_nms") else None
        assert most is None or counts[sample.op] <= most, (
            f"{sample.op} waits {counts[sample.op]} times, expected {most}"
        )
    return "waits that torch sees: " + ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def flat(arguments: Any) -> list[Tensor]:
    if isinstance(arguments, Tensor):
        return [arguments]
    return [tensor for part in arguments for tensor in flat(part)] if isinstance(arguments, tuple | list) else []


CHECKS: dict[str, Callable[..., str]] = {
    "compiled": compiled,
    "agreement": agreement,
    "hostile": hostile,
    "streams": streams,
    "graphs": graphs,
    "guard": guard,
    "determinism": determinism,
    "synchronization": synchronization,
}


def main(name: str, *numbers: str) -> int:
    """Run a check and print its verdict as the last line."""
    try:
        settings = {"cases": int(numbers[0])} if numbers else {}
        verdict = {"status": "passed", "detail": CHECKS[name](**settings)}
    except Skipped as why:
        verdict = {"status": "skipped", "detail": str(why)}
    except Exception as error:
        verdict = {"status": "failed", "detail": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps(verdict))
    return verdict["status"] == "failed"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
