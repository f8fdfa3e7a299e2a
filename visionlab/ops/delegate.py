"""Names of ``torchvision.ops`` that visionlab has nothing faster for: torchvision's own, imported on first use."""

from __future__ import annotations

from typing import Any

NAMES = (
    "Conv2dNormActivation",
    "Conv3dNormActivation",
    "DropBlock2d",
    "DropBlock3d",
    "FeaturePyramidNetwork",
    "FrozenBatchNorm2d",
    "MLP",
    "Permute",
    "SqueezeExcitation",
    "StochasticDepth",
    "box_convert",
    "complete_box_iou",
    "complete_box_iou_loss",
    "distance_box_iou",
    "distance_box_iou_loss",
    "drop_block2d",
    "drop_block3d",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "masks_to_boxes",
    "sigmoid_focal_loss",
    "stochastic_depth",
)


def torchvision_name(name: str, wish: str = "") -> Any:
    """Return ``torchvision.ops.NAME``.

    Args:
        name: what is looked up in ``torchvision.ops``.
        wish: what it is wanted for, if that is not the name itself; the message begins with it.

    Raises:
        ImportError: if torchvision is missing, does not import, or is too old to have the name. An ``AttributeError``
            would be the rule for modules, but ``from visionlab.ops import NAME`` drops its text.
    """
    wanted = f"{wish or f'visionlab.ops.{name}'} is torchvision's own"
    try:
        from torchvision import ops
    except ModuleNotFoundError as error:
        missing = "torchvision is not installed" if error.name == "torchvision" else str(error)
        raise ImportError(f"{wanted}, but {missing}") from error
    except Exception as error:  # a torchvision of another torch fails in many ways, RuntimeError and OSError among them
        reason = " ".join(str(error).split())
        hint = "; it was built for another torch" if "torchvision::" in reason or "undefined symbol" in reason else ""
        raise ImportError(f"{wanted}, but torchvision does not import here: {reason}{hint}") from error
    try:
        return getattr(ops, name)
    except AttributeError as error:
        import torchvision

        raise ImportError(f"{wanted}, but torchvision {torchvision.__version__} does not have it yet") from error
