"""Self-supervised methods; a new one is a file, a row in ``PRETEXTS`` and a config."""

from visionlab.pretext.cpc import ContrastivePredictiveCoding
from visionlab.pretext.dim import DeepInfoMax
from visionlab.pretext.instance_discrimination import InstanceDiscrimination
from visionlab.pretext.jigsaw import Jigsaw
from visionlab.pretext.moco import MoCo
from visionlab.pretext.patch_position import PatchPosition
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.pretext.rotation import Rotation
from visionlab.pretext.simclr import SimCLR
from visionlab.pretext.vicreg import VICReg

PRETEXTS: dict[str, type[Pretext]] = {
    "rotation": Rotation,
    "patch_position": PatchPosition,
    "jigsaw": Jigsaw,
    "dim": DeepInfoMax,
    "cpc": ContrastivePredictiveCoding,
    "instance_discrimination": InstanceDiscrimination,
    "simclr": SimCLR,
    "moco": MoCo,
    "vicreg": VICReg,
}

__all__ = [
    "PRETEXTS",
    "ContrastivePredictiveCoding",
    "DeepInfoMax",
    "InstanceDiscrimination",
    "Jigsaw",
    "MoCo",
    "PatchPosition",
    "Pretext",
    "PretextOutput",
    "Rotation",
    "SimCLR",
    "VICReg",
]
