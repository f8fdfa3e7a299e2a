"""A network's faster copy: convolutions that do the frozen normalization, the sum and the ReLU after them."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from visionlab.models.evaluation import evaluating
from visionlab.models.folded_layers import FoldedBlock, FoldedConv
from visionlab.models.norm import batch_norms
from visionlab.precision import full_precision

# How a part fails that asks more of a layer than its answer, such as its weight.
ASKS_FOR_MORE = (AttributeError, RuntimeError, TypeError, ValueError)
TOLERANCE = 1e-3  # of the largest value; rounding makes about 1e-6, an error in what follows what far more


class Folding:
    """Keeps a network's faster copy, and makes it anew when the network has changed.

    A change is seen that torch itself sees: of a module, of a tensor, or in it. Who writes into a tensor behind torch's
    back, through ``.data`` or NumPy, calls ``drop`` afterwards. A copy of a Folding, a pickled one too, is empty.

    Args:
        trained: the copy is for training, and only what is frozen is folded; else for inference. It looks up all
            weights when it is called.
    """

    def __init__(self, trained: bool = False) -> None:
        self.trained = trained
        self.drop()

    def drop(self) -> None:
        """Forget the copy."""
        self._seen: list[tuple[Any, ...]] = []
        self._copy: nn.Module | None = None

    def of(self, network: nn.Module, size: tuple[int, int]) -> nn.Module:
        """Return what computes the same as a network.

        Args:
            network: takes images, and returns a list of maps.
            size: height and width of images that the network takes, better small ones.

        Returns:
            The copy; the network itself where a copy would not do the same: it has hooks, or cannot be folded.
        """
        if torch.compiler.is_compiling():
            return network
        seen = _look_at(network, self.trained)
        if self._copy is None or not _same(seen, self._seen):
            self.drop()
            self._copy, self._seen = network if seen is None else fold(network, size, self.trained), seen or []
        return self._copy if seen else network

    def __reduce__(self) -> tuple[Any, ...]:
        return Folding, (self.trained,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Folding:
        return Folding(self.trained)


@torch.no_grad()
def fold(network: nn.Module, size: tuple[int, int], trained: bool = False) -> nn.Module:
    """Return a faster copy of a network, or the network itself where the copy would not compute the same.

    What follows what is found out with a small image: a normalization belongs to the convolution whose output it is
    given. The copy is tried on that image before it is returned, in evaluation mode.

    Args:
        network: takes images, and returns a list of maps. It is not touched.
        size: height and width of images that it takes.
        trained: the copy is for training; a normalization that is trained, or whose statistics are, stays as it is.
    """
    like = next(network.parameters())
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    if like.device.type == "cpu":
        image = image.contiguous(memory_format=torch.channels_last)
    known: dict[nn.Module, nn.Module] = {}
    twin = _twin(network, known)
    kept = {known[norm] for norm in batch_norms(network) if trained and not _frozen(norm)}
    if trained and len(kept) == len(batch_norms(network)):
        return network  # nothing to gain
    with full_precision(image), evaluating(network), evaluating(twin):
        expected = network(image)
        _replace(twin, _replacements(twin, image, kept, trained))
        try:
            found = twin(image)
        except ASKS_FOR_MORE:
            return network
    for module in twin.modules():
        if isinstance(module, FoldedConv):
            module.on_trial = False
    close = (_close(one, other) for one, other in zip(found, expected, strict=True))
    return twin if all(close) else network


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * other.abs().max())


def _frozen(norm: _BatchNorm) -> bool:
    return not norm.training and not any(parameter.requires_grad for parameter in norm.parameters())


def _replacements(network: nn.Module, image: Tensor, kept: set[nn.Module], trained: bool) -> dict[nn.Module, nn.Module]:
    """Run a network on an image and return what may stand for some of its modules, others than those to keep."""
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
            convs[module] = FoldedConv(module, trained=trained)
    norms: dict[nn.Module, nn.Sequential] = {}
    for norm, conv in before.items():
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm in kept:
            continue
        if conv in convs and {norm, conv} <= once:
            children = list(norm.children())  # timm's activation may be one
            rest = [child for child in children if not isinstance(child, nn.ReLU)]
            relu = len(rest) < len(children)
            convs[conv] = FoldedConv(conv, norm, relu, trained)  # type: ignore[arg-type]
            norms[norm] = nn.Sequential(*rest)
    relus: dict[nn.Module, nn.Module] = {}
    for act, last in before.items():
        conv = before[last] if last in norms and not norms[last] else last
        if isinstance(act, nn.ReLU) and conv in convs and {act, last, conv} <= once:
            convs[conv].relu = True
            relus[act] = nn.Identity()
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


def _look_at(network: nn.Module, trained: bool) -> list[tuple[Any, ...]] | None:
    """Return what a copy of a network depends on; None where there must be none."""
    modules = list(network.modules())[1:]
    tensors = [*network.parameters(), *network.buffers()]
    if not tensors or tensors[0].device.type == "meta":
        return None
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return None
    if trained:
        if any(module._compiled_call_impl for module in modules):
            return None
        return [
            *((module, module.training) for module in modules),
            *((parameter, parameter.requires_grad) for parameter in network.parameters()),
        ]
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
