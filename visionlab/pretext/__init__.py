"""Self-supervised methods; a new one is a file, a row in ``PRETEXTS`` and a config."""

from visionlab.pretext.jigsaw import Jigsaw
from visionlab.pretext.patch_position import PatchPosition
from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.pretext.rotation import Rotation
from visionlab.pretext.simclr import SimCLR

PRETEXTS: dict[str, type[Pretext]] = {
    "rotation": Rotation,
    "patch_position": PatchPosition,
    "jigsaw": Jigsaw,
    "simclr": SimCLR,
}

__all__ = ["PRETEXTS", "Jigsaw", "PatchPosition", "Pretext", "PretextOutput", "Rotation", "SimCLR"]
