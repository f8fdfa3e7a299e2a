"""Where the deformable parts of a detector look: the taps of its convolutions, and the bins of its RoI pools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visionlab.models.deformable_pools import DeformablePSRoIPool, DeformableRoIPool
from visionlab.models.evaluation import evaluating
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.ops import DeformConv2dPack
from visionlab.ops.reference import deform_ps_roi_pool, deform_roi_pool
from visionlab.structures import ImageBatch

LAYERS = 3  # in figure 6 of Dai et al. 2017
DeformablePool = DeformableRoIPool | DeformablePSRoIPool


@dataclass(frozen=True)
class SamplingPlaces:
    """Where a detector looks for some boxes, in pixels of the image; the middle of the first pixel is (0.5, 0.5).

    Args:
        taps: for each box ``(P, 2)``, x and y of what the last deformable layers sample for the middle of the box.
            Nothing in a detector without such layers.
        layers: how many layers these are.
        bins: ``(N, k, k, 4)``, ``x1, y1, x2, y2`` of the moved bins of each box as a RoI; None in a detector whose
            pool does not move them.
    """

    taps: list[Tensor] = field(default_factory=list)
    layers: int = 0
    bins: Tensor | None = None

    def scaled(self, x: float, y: float) -> SamplingPlaces:
        """Return the places in an image whose sides are so many times as long."""
        taps = [places * places.new_tensor([x, y]) for places in self.taps]
        bins = None if self.bins is None else self.bins * self.bins.new_tensor([x, y, x, y])
        return SamplingPlaces(taps, self.layers, bins)


def has_deformable_parts(detector: nn.Module) -> bool:
    """Return whether any part of a detector samples where it learned to."""
    return any(isinstance(module, DeformConv2dPack | DeformablePool) for module in detector.modules())


@torch.no_grad()
def sampling_places(
    detector: TwoStageDetector, batch: ImageBatch, boxes: Tensor, labels: Tensor, *, layers: int = LAYERS
) -> SamplingPlaces:
    """Say where a detector looks for some boxes.

    As in figures 6 and 7 of Dai et al., Deformable Convolutional Networks, 2017, arXiv:1703.06211: each of the taps of
    the last deformable layer, at the place nearest to the middle of a box, falls on a place of the layer before, whose
    own taps at that place are followed in turn. Where the head runs deformable layers on RoIs, these are the last, and
    the box is the RoI. Three layers of 3x3 taps make 9 * 9 * 9 places for each group of offsets. A tap beyond the
    border sees zeros and is left out. What lies between the layers is taken to look straight.

    Args:
        detector: in any mode; it is in evaluation mode for the call.
        batch: one image.
        boxes: ``(N, 4)``, ``x1, y1, x2, y2`` in pixels of the batch.
        labels: ``(N,)``, the class of each box, whose offsets are meant where classes have their own.
        layers: how many of the last deformable layers are followed.
    """
    boxes, labels = boxes.to(batch.pixels.device), labels.to(batch.pixels.device)
    with evaluating(detector):
        with _calls(detector, DeformConv2dPack) as on_image:
            features = detector.features(batch)
        rois = torch.cat((boxes.new_zeros(len(boxes), 1), boxes), 1).to(features[0].dtype)
        with _calls(detector.head, DeformablePool) as pools, _calls(detector, DeformConv2dPack) as on_rois:
            maps = detector.head.maps([features[level] for level in detector.neck.pooled_levels])
            detector.head.hidden(maps, rois)
    whole = _chain(on_image, 0, boxes.new_zeros(2), boxes.new_tensor(batch.padded_size), centered=False)
    chains = [
        [*whole, *_chain(on_rois, row, box[:2].flip(0), (box[2:] - box[:2]).flip(0), centered=True)][-layers:]
        for row, box in enumerate(boxes)
    ]
    taps = [_follow(chain, (box[:2] + box[2:]) / 2).cpu() for chain, box in zip(chains, boxes, strict=True) if chain]
    bins = _moved_bins(*pools[0], labels).cpu() if pools else None
    return SamplingPlaces(taps, len(chains[0]) if taps else 0, bins)


@contextmanager
def _calls(network: nn.Module, kind: Any) -> Iterator[list[tuple[Any, tuple[Any, ...]]]]:
    """Collect the calls of modules of a kind, with what they are given, in the order in which they answer."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, _: calls.append((module, inputs)))
        for module in network.modules()
        if isinstance(module, kind)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


# --- convolutions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """A deformable convolution of one image, or of one RoI; pairs are along y and x.

    Args:
        taps: ``(groups, H', W', K, 2)``: where the taps of each place lie, in cells of its input.
        size: rows and columns of the input.
        origin: place of the middle of the first cell in pixels of the image, ``(2,)``.
        steps: pixels of the image per cell of the input, ``(2,)``.
        output_steps: the same of the output.
    """

    taps: Tensor
    size: tuple[int, int]
    origin: Tensor
    steps: Tensor
    output_steps: Tensor

    @property
    def output_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.taps.shape[1], self.taps.shape[2]


def _chain(
    calls: list[tuple[Any, tuple[Any, ...]]], row: int, corner: Tensor, sides: Tensor, *, centered: bool
) -> list[_Layer]:
    """Return deformable convolutions as they were called, one after another.

    Args:
        calls: of ``_calls``.
        row: which of the maps that they were given.
        corner: where the map begins in pixels of the image, y and x.
        sides: its height and width, likewise.
        centered: whether the middle of the first cell lies in the middle of its pixels, as in a pooled RoI; else it
            lies in the middle of the first pixel, as after convolutions with a border.
    """
    chain: list[_Layer] = []
    origin = corner + 0.5
    for module, inputs in calls:
        size = inputs[0].shape[2], inputs[0].shape[3]
        steps = sides / sides.new_tensor(size)
        if chain and chain[-1].output_size == size:
            steps = chain[-1].output_steps
        if centered and not chain:
            origin = corner + steps / 2
        output_steps = steps * steps.new_tensor(module.stride)
        chain.append(_Layer(_taps(module, inputs[0][row : row + 1]), size, origin, steps, output_steps))
    return chain


def _taps(module: DeformConv2dPack, images: Tensor) -> Tensor:
    """Return where the taps of each place of a map lie; see ``_Layer``."""
    kernel = module.kernel_size[0] * module.kernel_size[1]
    offsets = module.offset_conv(images)[0, : 2 * module.offset_groups * kernel]
    height, width = offsets.shape[1:]
    along = [
        torch.arange(count, device=images.device)[:, None] * stride
        + torch.arange(taps, device=images.device) * dilation
        - padding
        for count, stride, padding, taps, dilation in zip(
            (height, width), module.stride, module.padding, module.kernel_size, module.dilation, strict=True
        )
    ]
    rows, columns = along[0][:, None, :, None], along[1][None, :, None, :]
    still = torch.stack(torch.broadcast_tensors(rows, columns), -1).flatten(2, 3)
    return still + offsets.reshape(module.offset_groups, kernel, 2, height, width).permute(0, 3, 4, 1, 2)


def _follow(chain: list[_Layer], middle: Tensor) -> Tensor:
    """Return x and y of what the last layers sample for a place ``(x, y)``, those of all groups of offsets."""
    found = []
    for group in range(max(len(layer.taps) for layer in chain)):
        places = middle.flip(0)[None]
        for layer in reversed(chain):
            last = places.new_tensor(layer.output_size) - 1
            cells = ((places - layer.origin) / layer.output_steps).round()
            at = cells.clamp(min=torch.zeros_like(last), max=last).long()
            taps = layer.taps[group % len(layer.taps), at[:, 0], at[:, 1]].flatten(0, 1)
            inside = ((taps > -1) & (taps < taps.new_tensor(layer.size))).all(1)
            places = taps[inside] * layer.steps + layer.origin
        found.append(places.flip(1))
    return torch.cat(found)


# --- RoI pools -------------------------------------------------------------------------------------------------------


def _moved_bins(pool: DeformablePool, inputs: tuple[Any, ...], labels: Tensor) -> Tensor:
    """Return the bins of each RoI that a pool was given, ``(N, k, k, 4)`` in pixels of the image."""
    features, rois = inputs[:2]
    offset, _ = pool.bin_moves(*inputs)
    if offset.shape[1] > 2:  # of each class its own
        rows = torch.arange(len(offset), device=offset.device)
        offset = offset.unflatten(1, (-1, 2))[rows, labels]
    return pool.by_level(partial(_bins_at, pool), features, rois, offset)


def _bins_at(pool: DeformablePool, feature: Tensor, rois: Tensor, scale: float, offset: Tensor) -> Tensor:
    size = pool.output_size
    if isinstance(pool, DeformableRoIPool):
        bins = deform_roi_pool.bins_of(feature, rois, offset, scale, pool.sampling_ratio, pool.gamma, most=1)
    else:
        settings = (size, size, scale, size, size, pool.sample_per_part, pool.gamma)
        bins = deform_ps_roi_pool.bins_of(feature, rois, offset, *settings)
    sides = []
    for side in (bins.columns, bins.rows):
        start = (side.origin + side.shift)[:, :1].expand(-1, 1, size, size)
        sides.append((start, start + side.step * side.samples))
    (x1, x2), (y1, y2) = sides
    return (torch.cat((x1, y1, x2, y2), 1).permute(0, 2, 3, 1) + 0.5) / scale
