"""What every differentiable operator must hold: an operator's tests subclass Contract and say how it is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from visionlab.ops.register import REFERENCES

FORMATS = [False, True]  # channels_last


def randn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    """The same normal numbers for every dtype and memory format."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if channels_last else values


def leaves(tensors: tuple[Tensor, ...], positions: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The tensors, detached; those at the positions ask for a gradient."""
    return tuple(tensor.detach().requires_grad_(i in positions) for i, tensor in enumerate(tensors))


class Recorder(TorchDispatchMode):
    """Keeps what visionlab's operators were called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "visionlab":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


class Contract:
    """Subclasses set the attributes and write the two methods; the tests are inherited.

    ``tensors`` gives the tensors of a call, ``(N, C, H, W)`` map first. ``call`` calls the function with them.
    """

    gradients: tuple[int, ...] = (0,)  # positions of the tensors that have a gradient
    linear = True  # double backward works; where False, it raises
    fused = False  # multiplication and addition are fused where the CPU can, so instruction sets differ in the last bit
    dynamic: dict[int, dict[int, str]] = {1: {0: "K"}}  # noqa: RUF012 - dimensions that `count` changes
    batched: tuple[int, ...] = (0,)  # positions that vmap runs over

    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        raise NotImplementedError

    def call(self, *tensors: Tensor) -> Tensor:
        raise NotImplementedError

    def run(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """The answer and the gradients for a fixed gradient of the answer."""
        tensors = leaves(tensors, self.gradients)
        output = self.call(*tensors)
        grad = randn(output.shape, 99, output.dtype).to(output.device)
        inputs = [tensors[i] for i in self.gradients]
        return [output.detach(), *torch.autograd.grad(output, inputs, grad)]

    def recorded(self, tensors: tuple[Tensor, ...]) -> list[tuple[Any, tuple]]:
        with Recorder() as recorder:
            self.run(tensors)
        assert len(recorder.calls) >= 2
        return recorder.calls

    @pytest.mark.parametrize("channels_last", FORMATS)
    @pytest.mark.parametrize("needs_grad", [False, True])
    def test_opcheck(self, channels_last: bool, needs_grad: bool):
        for op, args in self.recorded(self.tensors(channels_last=channels_last)):
            floating = [isinstance(arg, Tensor) and arg.is_floating_point() for arg in args]
            wanted = needs_grad and not (op._schema.name.endswith("_backward") and not self.linear)
            first = floating.index(True)
            args = tuple(
                arg.detach().requires_grad_(wanted and i == first) if isinstance(arg, Tensor) else arg
                for i, arg in enumerate(args)
            )
            torch.library.opcheck(op, args)

    def test_gradcheck(self):
        tensors = leaves(self.tensors(torch.float64), self.gradients)
        torch.autograd.gradcheck(self.call, tensors)

    def test_double_backward_works_or_raises(self):
        tensors = leaves(self.tensors(torch.float64, count=2), self.gradients)
        if self.linear:
            torch.autograd.gradgradcheck(self.call, tensors)
            return
        inputs = [tensors[i] for i in self.gradients]
        grads = torch.autograd.grad(self.call(*tensors).square().sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not implemented"):
            sum(grad.sum() for grad in grads).backward()

    @pytest.mark.parametrize("channels_last", FORMATS)
    def test_reference_equals_kernel(self, channels_last: bool):
        for op, args in self.recorded(self.tensors(torch.float64, channels_last)):
            expected, plain = op(*args), REFERENCES[op._schema.name.removeprefix("visionlab::")](*args)
            pairs = [(plain, expected)] if isinstance(expected, Tensor) else zip(plain, expected, strict=True)
            for ours, kernel in pairs:
                torch.testing.assert_close(ours, kernel, rtol=1e-9, atol=1e-11)
                assert ours.stride() == kernel.stride()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, dtype: torch.dtype):
        tensors = self.tensors(dtype)
        output = self.call(*tensors)
        assert output.dtype == dtype
        assert output.equal(self.call(*[tensor.float() for tensor in tensors]).to(dtype))
        for gradient, i in zip(self.run(tensors)[1:], self.gradients, strict=True):
            assert gradient.dtype == dtype
            assert gradient.isfinite().all(), i

    def test_autocast_takes_mixed_dtypes_and_keeps_that_of_the_input(self):
        input, *others = self.tensors()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = self.call(input.bfloat16(), *others)
            assert self.call(input, *others).dtype == torch.float32
        assert output.dtype == torch.bfloat16
        assert output.equal(self.call(input.bfloat16().float(), *others).bfloat16())

    @pytest.mark.parametrize("channels_last", FORMATS)
    def test_answers_in_the_memory_format_of_the_input(self, channels_last: bool):
        output, gradient, *_ = self.run(self.tensors(channels_last=channels_last))
        for tensor in (output, gradient):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last

    def test_formats_agree(self):
        for a, b in zip(self.run(self.tensors()), self.run(self.tensors(channels_last=True)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_strides_do_not_matter(self):
        tensors = self.tensors()
        expected = self.run(tensors)
        for i, tensor in enumerate(tensors):
            wide = torch.full([2 * size for size in tensor.shape], torch.nan, dtype=tensor.dtype)
            view = wide[tuple(slice(None, None, 2) for _ in tensor.shape)]
            view.copy_(tensor)
            turned = tensor.permute(*reversed(range(tensor.dim()))).contiguous()
            turned = turned.permute(*reversed(range(tensor.dim())))
            for other in (view, turned):
                answers = self.run((*tensors[:i], other, *tensors[i + 1 :]))
                assert all(torch.equal(a, b) for a, b in zip(answers, expected, strict=True)), i

    @pytest.mark.parametrize("channels_last", FORMATS)
    def test_same_bits_for_any_number_of_threads(self, threads: None, channels_last: bool):
        tensors = self.tensors(channels_last=channels_last, count=40)
        answers = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            answers.append(self.run(tensors))
        for answer in answers[1:]:
            assert all(torch.equal(a, b) for a, b in zip(answers[0], answer, strict=True))

    @pytest.mark.parametrize("channels_last", FORMATS)
    def test_empty(self, channels_last: bool):
        output, *gradients = self.run(self.tensors(channels_last=channels_last, count=0))
        assert output.numel() == 0
        assert all(gradient.count_nonzero() == 0 for gradient in gradients)

    def test_vmap(self):
        tensors = self.tensors()
        stacked = tuple(torch.stack([t, t.flip(-1)]) if i in self.batched else t for i, t in enumerate(tensors))
        dims = tuple(0 if i in self.batched else None for i in range(len(tensors)))
        output = torch.func.vmap(self.call, in_dims=dims)(*stacked)
        for j in range(2):
            one = tuple(t[j] if i in self.batched else t for i, t in enumerate(stacked))
            torch.testing.assert_close(output[j], self.call(*one))

    def test_transforms(self):
        tensors = self.tensors()
        loss = lambda *tensors: self.call(*tensors).sin().sum()  # noqa: E731
        gradients = torch.func.grad(loss, self.gradients)(*tensors)
        ours = leaves(tensors, self.gradients)
        expected = torch.autograd.grad(loss(*ours), [ours[i] for i in self.gradients])
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a, b)
        stacked = tuple(torch.stack([t, t]) if i in self.batched else t for i, t in enumerate(tensors))
        dims = tuple(0 if i in self.batched else None for i in range(len(tensors)))
        each = torch.func.vmap(torch.func.grad(loss, self.gradients), in_dims=dims)(*stacked)
        for a, b in zip(each, expected, strict=True):
            torch.testing.assert_close(a[1], b)

    def test_compiles_in_one_graph(self):
        torch._dynamo.reset()

        def loss(*tensors: Tensor) -> Tensor:
            return self.call(*tensors).square().sum()

        compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
        for count in (4, 6):
            tensors = leaves(self.tensors(count=count), self.gradients)
            inputs = [tensors[i] for i in self.gradients]
            answers = [torch.autograd.grad(function(*tensors), inputs) for function in (compiled, loss)]
            for a, b in zip(*answers, strict=True):
                torch.testing.assert_close(a, b)

    def module(self) -> torch.nn.Module:
        call = self.call

        class Module(torch.nn.Module):
            def forward(self, *tensors: Tensor) -> Tensor:
                return call(*tensors)

        return Module()

    def dynamic_shapes(self) -> tuple:
        names = {name for dims in self.dynamic.values() for name in dims.values()}
        dims = {name: torch.export.Dim(name, min=2, max=1000) for name in names}
        shapes = [{d: dims[n] for d, n in self.dynamic.get(i, {}).items()} for i in range(len(self.tensors()))]
        return (tuple(shapes),)

    def test_exports(self):
        exported = torch.export.export(self.module(), self.tensors(), dynamic_shapes=self.dynamic_shapes()).module()
        for count in (4, 7):
            tensors = self.tensors(count=count)
            assert torch.equal(exported(*tensors), self.call(*tensors))

    @pytest.mark.filterwarnings("ignore")
    def test_onnx(self):
        pytest.importorskip("onnxscript")
        onnxruntime = pytest.importorskip("onnxruntime")
        program = torch.onnx.export(
            self.module(), self.tensors(), dynamic_shapes=self.dynamic_shapes(), dynamo=True, verbose=False
        )
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        names = [input.name for input in session.get_inputs()]
        for count in (4, 7):
            tensors = self.tensors(count=count)
            (output,) = session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))
            torch.testing.assert_close(torch.from_numpy(output), self.call(*tensors), rtol=1e-4, atol=1e-5)

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    @pytest.mark.parametrize("deterministic", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("channels_last", FORMATS)
    def test_cuda_equals_cpu(self, channels_last: bool, dtype: torch.dtype, deterministic: bool):
        tensors = self.tensors(dtype, channels_last, count=40)
        on_gpu = tuple(tensor.cuda() for tensor in tensors)
        torch.use_deterministic_algorithms(deterministic)
        try:
            answers = [self.run(on_gpu) for _ in range(2 + deterministic)]
        finally:
            torch.use_deterministic_algorithms(False)
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
        for ours, expected in zip(answers[0], self.run(tensors), strict=True):
            torch.testing.assert_close(ours.cpu(), expected, rtol=tolerance, atol=tolerance)
        if deterministic:
            assert all(torch.equal(a, b) for a, b in zip(answers[1], answers[2], strict=True))
