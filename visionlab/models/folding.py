"""A network's copy for inference: convolutions that do the frozen normalization, the sum and the ReLU after them."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from visionlab.precision import full_precision

TOLERANCE = 1e-3  # of the largest value; rounding makes about 1e-6, an error in what follows what far more


class FoldedConv(nn.Module):
    """A convolution that computes what follows it, too.

    Where the weights are fewer than the values of the map that they make of an image, folded ones are kept, from the
    first use in a precision on. Elsewhere, in the late stages, folding would save little and keeping would double the
    memory: what follows is computed after the convolution. Both depend on the image's size alone.

    Args:
        conv: the convolution; neither its weights nor those of the normalization are written.
        norm: the normalization after it, in evaluation mode.
        relu: a ReLU comes last.

    Attributes:
        on_trial: fold whatever the size, and keep nothing.
    """

    def __init__(self, conv: nn.Conv2d, norm: _BatchNorm | None = None, relu: bool = False) -> None:
        super().__init__()
        self.layers = conv, norm  # in a tuple, because they are the network's own
        self.relu, self.on_trial = relu, True
        self._kept: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        """Return ``relu(norm(conv(images)) + other)``, or what of it there is."""
        conv, norm = self.layers
        kind = images.device.type
        images = images.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else conv.weight.dtype)
        if self.on_trial:
            answer = self._convolve(images, *self._fold(images.dtype))
        elif not self._pays(images):
            answer = self._convolve(images, conv.weight.to(images.dtype), _to(conv.bias, images.dtype))
            if norm is not None:
                statistics = norm.running_mean, norm.running_var
                answer = F.batch_norm(answer, *statistics, norm.weight, norm.bias, False, 0.0, norm.eps)
        else:
            weight, bias = self._kept_for(images)
            if weight.is_mkldnn:
                return self._convolve_whole(images, weight, bias, other)
            answer = self._convolve(images, weight, bias)
        if other is not None:
            answer += other
        return answer.relu_() if self.relu else answer

    def _pays(self, images: Tensor) -> bool:
        conv = self.layers[0]
        height, width = (side // step for side, step in zip(images.shape[-2:], conv.stride, strict=True))
        return images.numel() > 0 and conv.weight.numel() <= conv.out_channels * height * width

    def _convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv: Any = self.layers[0]
        with full_precision(images):  # all are of one precision already
            return F.conv2d(images, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def _convolve_whole(self, images: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None) -> Tensor:
        """Let oneDNN compute all at once."""
        convolution, last = torch.ops.mkldnn._convolution_pointwise, "relu" if self.relu else None
        arguments = (weight, bias, *_geometry(self.layers[0]))
        if other is None:
            return convolution(images, *arguments, last or "none", [], "")
        return convolution.binary(images, other.to(images.dtype), *arguments, "add", 1.0, last, [], None)

    def _kept_for(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in the images' precision, on the CPU in the layout that oneDNN wants."""
        if images.dtype not in self._kept:
            weight, bias = self._fold(images.dtype)
            if _onednn_computes(images):
                reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
                weight = reorder(weight.to_mkldnn(), *_geometry(self.layers[0]), list(images.shape))
            elif images.is_contiguous(memory_format=torch.channels_last):
                weight = weight.contiguous(memory_format=torch.channels_last)
            self._kept[images.dtype] = weight, bias
        return self._kept[images.dtype]

    def _fold(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        conv, norm = self.layers
        weight, bias = conv.weight, conv.bias
        if norm is not None and norm.running_mean is not None and norm.running_var is not None:
            statistics = norm.running_mean, norm.running_var, norm.eps
            weight, bias = fuse_conv_bn_weights(weight, bias, *statistics, norm.weight, norm.bias)
        return weight.detach().to(dtype), _to(bias, dtype)


class FoldedBlock(nn.Module):
    """A residual block whose last convolution adds the shortcut.

    Args:
        convs: the block's convolutions.
        shortcut: what makes the shortcut of the block's input; None is the input itself.
    """

    def __init__(self, convs: list[FoldedConv], shortcut: nn.Module | None) -> None:
        super().__init__()
        convs[-1].relu = True
        self.convs, self.shortcut = nn.ModuleList(convs), shortcut

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's answer."""
        other = images if self.shortcut is None else self.shortcut(images)
        for conv in self.convs[:-1]:
            images = conv(images)
        return self.convs[-1](images, other)


class Folding:
    """Keeps a network's copy for inference, and makes it anew when the network has changed.

    A change is seen that torch itself sees: of a module, of a tensor, or in it. Who writes into a tensor behind torch's
    back, through ``.data`` or NumPy, calls ``drop`` afterwards. A copy of a Folding, a pickled one too, is empty.
    """

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Forget the copy."""
        self._seen: list[tuple[Any, ...]] = []
        self._copy: nn.Module | None = None

    def of(self, network: nn.Module, size: tuple[int, int]) -> nn.Module:
        """Return what computes the same as a network in evaluation mode, without gradients.

        Args:
            network: takes images, and returns a list of maps.
            size: height and width of images that the network takes, better small ones.

        Returns:
            The copy; the network itself where a copy would not do the same: it has hooks, or cannot be folded.
        """
        seen = _look_at(network)
        if self._copy is None or not _same(seen, self._seen):
            self.drop()
            self._copy, self._seen = network if seen is None else fold(network, size), seen or []
        return self._copy if seen else network

    def __reduce__(self) -> tuple[Any, ...]:
        return Folding, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Folding:
        return Folding()


@torch.no_grad()
def fold(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Return a copy of a network for inference, or the network itself where the copy would not compute the same.

    What follows what is found out with a small image: a normalization belongs to the convolution whose output it is
    given. The copy is tried on that image before it is returned.

    Args:
        network: in evaluation mode; takes images, and returns a list of maps. It is not touched.
        size: height and width of images that it takes.
    """
    like = next(network.parameters())
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    if like.device.type == "cpu":
        image = image.contiguous(memory_format=torch.channels_last)
    with full_precision(image):
        expected = network(image)
        twin = _twin(network, {})
        _replace(twin, _replacements(twin, image))
        try:
            found = twin(image)
        except (
            AttributeError,
            RuntimeError,
            TypeError,
            ValueError,
        ):  # a part that asks more of a layer than its answer
            return network
    for module in twin.modules():
        if isinstance(module, FoldedConv):
            module.on_trial = False
    close = (_close(one, other) for one, other in zip(found, expected, strict=True))
    return twin if all(close) else network


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * other.abs().max())


def _replacements(network: nn.Module, image: Tensor) -> dict[nn.Module, nn.Module]:
    """Run a network on an image and return what may stand for some of its modules."""
    calls: Counter[nn.Module] = Counter()
    made: dict[int, tuple[nn.Module, Tensor, int]] = {}
    before: dict[nn.Module, nn.Module] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[module] += 1
        producer = made.get(id(inputs[0]))
        if producer and producer[2] == inputs[0]._version:  # nobody wrote into it since
            before[module] = producer[0]

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        made[id(output)] = module, output, output._version

    handles = []
    for module in network.modules():
        if type(module) is nn.Conv2d or isinstance(module, _BatchNorm | nn.ReLU):
            handles += [module.register_forward_pre_hook(look), module.register_forward_hook(note)]
    network(image)
    for handle in handles:
        handle.remove()

    once = {module for module, count in calls.items() if count == 1}
    convs: dict[nn.Module, FoldedConv] = {}
    for module in calls:
        if type(module) is nn.Conv2d and _plain(module):
            convs[module] = FoldedConv(module)
    norms: dict[nn.Module, nn.Sequential] = {}
    for norm, conv in before.items():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and conv in convs and {norm, conv} <= once:
            children = list(norm.children())  # timm's activation may be one
            rest = [child for child in children if not isinstance(child, nn.ReLU)]
            convs[conv] = FoldedConv(conv, norm, relu=len(rest) < len(children))  # type: ignore[arg-type]
            norms[norm] = nn.Sequential(*rest)
    relus: dict[nn.Module, nn.Module] = {}
    for relu, last in before.items():
        conv = before[last] if last in norms and not norms[last] else last
        if isinstance(relu, nn.ReLU) and conv in convs and {relu, last, conv} <= once:
            convs[conv].relu = True
            relus[relu] = nn.Identity()
    return {**convs, **norms, **relus}


def _plain(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and isinstance(conv.padding, tuple) and "forward" not in vars(conv)


def _replace(module: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    for name, child in module.named_children():
        if child in replacements:
            module._modules[name] = replacements[child]
        else:
            _replace(child, replacements)
            module._modules[name] = _folded_block(child) or child


def _folded_block(block: nn.Module) -> FoldedBlock | None:
    """Return what stands for one of timm's residual blocks, if it is as plain as ResNet's."""
    if type(block).__module__ != "timm.models.resnet" or type(block).__name__ not in ("BasicBlock", "Bottleneck"):
        return None
    parts = dict(block._modules)
    convs = [parts.pop(name) for name in ("conv1", "conv2", "conv3") if name in parts]
    last, shortcut = parts.pop(f"act{len(convs)}"), parts.pop("downsample", None)
    folded = [conv for conv in convs if isinstance(conv, FoldedConv)]
    if len(folded) < len(convs) or not isinstance(last, nn.ReLU) or not all(map(_does_nothing, parts.values())):
        return None
    return FoldedBlock(folded, shortcut)


def _does_nothing(part: nn.Module | None) -> bool:
    return part is None or isinstance(part, nn.Identity) or (isinstance(part, nn.Sequential) and not part)


def _twin(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy of a tree of modules that shares its tensors."""
    if module not in known:
        known[module] = twin = copy.copy(module)
        twin._forward_hooks, twin._forward_pre_hooks = OrderedDict(), OrderedDict()
        twin._modules = {name: child and _twin(child, known) for name, child in module._modules.items()}
    return known[module]


def _look_at(network: nn.Module) -> list[tuple[Any, ...]] | None:
    """Return what a copy of a network depends on; None where there must be none."""
    modules = list(network.modules())[1:]
    tensors = [*network.parameters(), *network.buffers()]
    if torch.compiler.is_compiling() or not tensors or tensors[0].device.type == "meta":
        return None
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return None
    if any(tensor.is_inference() for tensor in tensors):  # torch does not see changes in these
        return None
    # The aliases keep the memory from becoming that of another tensor.
    return [
        *((module, getattr(module, "eps", None)) for module in modules),
        *((tensor.detach(), tensor._version) for tensor in tensors),
    ]


def _same(one: list[tuple[Any, ...]] | None, other: list[tuple[Any, ...]]) -> bool:
    return one is not None and len(one) == len(other) and all(map(_identical, one, other))


def _identical(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    if isinstance(one[0], Tensor) and isinstance(other[0], Tensor):
        alike = one[0].data_ptr() == other[0].data_ptr() and one[0].shape == other[0].shape
        return alike and one[0].dtype == other[0].dtype and one[1] == other[1]
    return one[0] is other[0] and one[1] == other[1]


def _geometry(conv: nn.Conv2d) -> tuple[Any, ...]:
    return conv.padding, conv.stride, conv.dilation, conv.groups


def _to(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.detach().to(dtype)


def _onednn_computes(images: Tensor) -> bool:
    if images.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    narrow = images.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return images.dtype == torch.float32 or narrow
