"""Any timm model as feature levels, with its own pixel normalization, freezing and norm policy."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionlab.models.backbone_settings import BackboneSettings
from visionlab.models.deform_stages import deform_stages as make_deformable
from visionlab.models.encoder import Normalization
from visionlab.models.norm import NormPolicy, apply_norm_policy, batch_norms
from visionlab.models.roi_stage import RoIStage, find_stage
from visionlab.precision import full_precision
from visionlab.settings import flat_settings

# How timm's families are told to take images of any size; a model that knows neither takes them anyway, or never.
_ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class Backbone(nn.Module):
    """A timm model that turns images into feature maps, finest first.

    Parameters keep timm's names (``backbone.model``). The classifier and what only feeds it (a head's own norm or
    convolution) are removed, because dense features never reach them and a parameter without gradient stops
    distributed training; a final norm that timm applies to the feature map itself (ViT, Swin) is applied to the last
    level and trains. Pooled features are the mean of the last level, so both uses train the same parameters.

    Args:
        settings: what it is built from, see ``BackboneSettings``.

    Attributes:
        roi_stage: the stage that images do not go through, with the setting of that name; else None.

    Raises:
        ValueError: no such model, a model without feature levels, or a setting the model has no use for.
    """

    channels: list[int]
    fixed_size: tuple[int, int] | None
    multiple: int  # height and width that are no multiple of it are padded to one
    roi_stage: RoIStage | None
    _mean: Tensor
    _std: Tensor

    @flat_settings
    def __init__(self, *, settings: BackboneSettings) -> None:
        super().__init__()
        name = settings.name
        self.name = name
        self.norm: NormPolicy = settings.norm
        self.settings: dict[str, Any] = asdict(settings)
        self.model: Any = _create(settings).eval()
        self.normalization = Normalization(self.model.pretrained_cfg["mean"], self.model.pretrained_cfg["std"])

        self.timm_names = list(self.model.state_dict())
        strides, indices = _choose_levels(self.model, settings)
        if hasattr(self.model, "prune_intermediate_layers"):
            indices = self.model.prune_intermediate_layers(indices, prune_norm=False, prune_head=True)
        levels = len(strides) - settings.roi_stage
        self.strides, self._indices = strides[:levels], indices[:levels]
        if settings.deform_stages:
            make_deformable(self.model, settings)
        apply_norm_policy(self.model, self.norm, name)
        outputs = self._measure()
        self.roi_stage = self._find_stage(strides[-1], indices[-2:]) if settings.roi_stage else None
        if self.roi_stage is not None:
            with torch.enable_grad():
                outputs.append(self.roi_stage(outputs[-1]))
        _freeze_unused(self.model, outputs)
        self._fixed: list[nn.Module] = list(batch_norms(self.model)) if self.norm == "frozen" else []
        self._fixed += _freeze(self.model, settings.frozen_stages, name)
        self.train()

    @property
    def normalization(self) -> Normalization:
        """How ``normalize`` maps pixels; weights that were trained with another one bring it along."""
        return self._normalization

    @normalization.setter
    def normalization(self, value: Normalization) -> None:
        self._normalization = value
        # Not in the state dict, whose names are timm's alone; buffers only to follow the module's device and precision.
        like = next(self.model.parameters())
        for name, numbers in (("_mean", value.mean), ("_std", value.std)):
            tensor = torch.tensor(numbers, device=like.device, dtype=like.dtype)
            self.register_buffer(name, tensor.view(3, 1, 1), persistent=False)

    @property
    def num_features(self) -> int:
        """Channels of the last level, which are the pooled features."""
        return self.channels[-1]

    @property
    def small_size(self) -> tuple[int, int]:
        """Height and width of images that the model takes, small ones if it takes any size."""
        return self.fixed_size or (2 * self.strides[-1], 3 * self.strides[-1])

    def normalize(self, pixels: Tensor, sizes: list[tuple[int, int]] | Tensor | None = None) -> Tensor:
        """Turn pixels into what the model takes.

        Args:
            pixels: ``(N, 3, H, W)`` uint8, RGB.
            sizes: ``(height, width)`` of each image, as numbers or, for graphs, as an ``(N, 2)`` tensor; what lies
                beyond is padding and becomes 0.

        Returns:
            ``(N, 3, H, W)`` in the precision of the model.
        """
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels: expected (N, 3, H, W) uint8, got {tuple(pixels.shape)} {pixels.dtype}")
        images = pixels.to(self._mean.dtype).div_(255).sub_(self._mean).div_(self._std)
        if isinstance(sizes, Tensor):
            rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
            below, right = rows >= sizes[:, :1], columns >= sizes[:, 1:]
            images = images.masked_fill(below[:, None, :, None] | right[:, None, None, :], 0)
        elif sizes is not None:
            for image, (height, width) in zip(images, sizes, strict=True):
                image[:, height:] = 0
                image[:, :, width:] = 0
        return images

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the feature levels.

        Args:
            images: ``(N, 3, H, W)``, normalized; any H and W unless the model is of fixed size.

        Returns:
            One ``(N, channels[i], ceil(H / strides[i]), ceil(W / strides[i]))`` map per level, finest first.
        """
        height, width = images.shape[-2:]
        if self.fixed_size and (height, width) != self.fixed_size:
            raise ValueError(f"images: expected {self.fixed_size} pixels for {self.name}, got {(height, width)}")
        # A model that would drop pixels at the right and bottom gets zeros there, and their features are cut off.
        padding = (-width % self.multiple, -height % self.multiple)
        if any(padding):
            images = F.pad(images, (0, padding[0], 0, padding[1]))
        # On processors with AMX, oneDNN's convolutions in bfloat16 read memory that nobody wrote, so that outputs and
        # gradients may be NaN, where a map is narrower than the stride. No map is if the image is not.
        narrow = images.device.type == "cpu" and images.shape[-1] < self.strides[-1]
        with full_precision(images) if narrow else nullcontext():
            levels = self._levels(images)
        if any(padding):
            levels = [m[..., : -(-height // s), : -(-width // s)] for m, s in zip(levels, self.strides, strict=True)]
        return levels

    def pool(self, images: Tensor) -> Tensor:
        """Compute one feature vector per image: the mean of the last level, ``(N, num_features)``."""
        return self(images)[-1].mean((2, 3))

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._fixed:
            module.eval()
        return self

    def _levels(self, images: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(
            images,
            indices=self._indices,
            norm=self._final_norm,
            stop_early=self.settings["roi_stage"],
            intermediates_only=True,
        )

    def _find_stage(self, stride: int, indices: list[int]) -> RoIStage:
        """Find the stage between the last level and one of this stride; timm's indices of both are given."""

        def both(images: Tensor) -> list[Tensor]:
            return self.model.forward_intermediates(
                images, indices=indices, norm=self._final_norm, intermediates_only=True
            )

        size = self.fixed_size[0] if self.fixed_size else 2 * stride
        stage = find_stage(self.model, both, size, stride // self.strides[-1])
        if stage is None:
            raise ValueError(f"roi_stage: {self.name} has no modules that take stride {self.strides[-1]} to {stride}")
        return stage

    def _measure(self) -> list[Tensor]:
        """Find out, with one small image, which sizes the model takes and its channels; return the image's levels."""
        largest = self.strides[-1]
        native = self.settings["image_size"]
        native_size = (native, native) if native else tuple(self.model.pretrained_cfg["input_size"][1:])
        any_size, multiples = (2 * largest + 1, 3 * largest + 1), (2 * largest, 3 * largest)
        for self._final_norm in (True, False):
            for size, self.multiple in ((any_size, 1), (multiples, largest), (native_size, 1)):
                levels = self._try(size)
                if levels is not None:
                    self.fixed_size = size if size == native_size else None
                    self.channels = [level.shape[1] for level in levels]
                    return levels
        raise ValueError(f"name: expected a model with feature maps of strides {self.strides}, got {self.name}")

    def _try(self, size: tuple[int, int]) -> list[Tensor] | None:
        image = torch.zeros(1, 3, *size, device=next(self.model.parameters()).device)
        try:
            with torch.enable_grad():
                levels = self._levels(image)
        except NotImplementedError:  # not of the model's: the meta device cannot do what it asks for
            raise
        except (AssertionError, AttributeError, RuntimeError, ValueError):
            return None  # each of timm's families refuses a size in its own way
        expected = [tuple(-(-side // stride) for side in size) for stride in self.strides]
        return levels if [tuple(level.shape[2:]) for level in levels] == expected else None


def _create(settings: BackboneSettings) -> Any:
    import timm  # here and below, because it brings torchvision and torch._dynamo, which take seconds

    name, output_stride = settings.name, settings.output_stride
    options: dict[str, Any] = {} if settings.image_size is None else {"img_size": settings.image_size}
    if output_stride is not None:
        options["output_stride"] = output_stride
    options |= settings.options or {}
    reason: Exception | None = None
    for any_size in _ANY_SIZE:
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **{**any_size, **options})
        except TypeError as error:
            reason = error
        except (RuntimeError, ValueError, AssertionError) as error:
            if output_stride is not None and isinstance(error, AssertionError):
                raise ValueError(f"output_stride: timm cannot dilate {name} to {output_stride}") from error
            raise ValueError(f"timm cannot build {name}: {_one_line(error)}") from error
    if "'output_stride'" in str(reason):
        raise ValueError(f"output_stride: timm cannot dilate {name} to {output_stride}") from reason
    if "'img_size'" in str(reason):
        raise ValueError(f"image_size: would have no effect, {name} takes images of any size") from reason
    raise ValueError(f"timm cannot build {name}: {_one_line(reason)}") from reason


def _one_line(error: Exception | None) -> str:
    return " ".join(str(error).split())


def _choose_levels(model: Any, settings: BackboneSettings) -> tuple[list[int], list[int]]:
    """Return the strides and timm's indices of the levels, and of the RoI stage if there is one.

    Of several levels with one stride, the deepest is taken.
    """
    name, strides = settings.name, settings.strides
    if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
        raise ValueError(f"name: expected a model with feature levels, got {name}")
    infos = getattr(model.feature_info, "info", model.feature_info)
    deepest = {info["reduction"]: index for index, info in enumerate(infos)}
    if settings.output_stride is not None and max(deepest) != settings.output_stride:
        raise ValueError(f"output_stride: {name} has levels of strides {sorted(deepest)}, got {settings.output_stride}")
    there = sorted(deepest)
    levels = there[:-1] if settings.roi_stage else there
    if not levels:
        raise ValueError(f"roi_stage: expected a model with several levels, {name} has strides {there}")
    chosen = list(strides or [stride for stride in levels if stride >= 4] or levels)
    if chosen != sorted(set(chosen) & set(levels)):
        raise ValueError(f"strides: expected some of {levels} for {name}, got {strides}")
    if settings.roi_stage:
        chosen.append(there[there.index(chosen[-1]) + 1])
    return chosen, [deepest[stride] for stride in chosen]


def _freeze(model: Any, stages: int, name: str) -> list[nn.Module]:
    """Take the stem and the first stages out of training; return the modules to keep in evaluation mode."""
    if stages == 0:
        return []
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(coarse=True))
    if not 0 < stages < len(groups):
        raise ValueError(f"frozen_stages: expected 0 to {len(groups) - 1} for {name}, got {stages}")
    parameters = dict(model.named_parameters())
    frozen = {parameters[key] for group in sorted(groups)[: stages + 1] for key in groups[group]}
    for parameter in frozen:
        parameter.requires_grad_(False)
    return [module for module in model.modules() if (own := set(module.parameters())) and own <= frozen]


def _freeze_unused(model: nn.Module, levels: list[Tensor]) -> None:
    """Take parameters that no level depends on, which a few models keep, out of training."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = torch.stack([level.sum() for level in levels]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
