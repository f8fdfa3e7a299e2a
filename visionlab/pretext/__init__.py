"""Self-supervised methods; a new one is a file, a row in ``PRETEXTS`` and a config."""

from visionlab.pretext.pretext import Pretext, PretextOutput
from visionlab.pretext.rotation import Rotation
from visionlab.pretext.simclr import SimCLR

PRETEXTS: dict[str, type[Pretext]] = {
    "rotation": Rotation,
    "simclr": SimCLR,
}

__all__ = ["PRETEXTS", "Pretext", "PretextOutput", "Rotation", "SimCLR"]
