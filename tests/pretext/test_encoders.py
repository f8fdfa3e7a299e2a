"""Every method trains encoders of every kind, or says why not."""

import pytest
import torch
from small_methods import batch_of, section

from visionlab.models.backbone import Backbone
from visionlab.pretext import PRETEXTS

ENCODERS = {
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]},
    "mobilenetv3_small_050": {},
    "efficientnet_b0": {},
    "densenet121": {"growth_rate": 4, "block_config": [1, 1, 1, 1]},
    "vgg11": {},
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 12},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 1, 1], "embed_dim": 12, "num_heads": [1, 1, 2, 2]},
}
SIZES = {"patch_position": 150, "jigsaw": 120}


@pytest.mark.slow
@pytest.mark.parametrize("method", [*PRETEXTS, "moco dense"])
@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_gets_gradients(method, name):
    norm = "group" if method == "cpc" and not name.startswith(("conv", "vgg", "vit", "swin")) else "train"
    encoder = Backbone(name=name, norm=norm, options=ENCODERS[name])
    settings = section(method) | {"image_size": SIZES.get(method, 64)}
    if (method, name) == ("dim", "vit_tiny_patch16_224"):
        with pytest.raises(ValueError, match="local_stride: expected a feature level below the last"):
            PRETEXTS[settings.pop("name")](encoder, **settings)
        return
    pretext = PRETEXTS[settings.pop("name")](encoder, **settings)
    pretext.prepare(3, 1)
    sum(pretext(batch_of(pretext, range(3))).losses.values()).backward()
    gradients = [p.grad for p in pretext.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    first = next(p.grad for p in encoder.parameters() if p.requires_grad)
    assert torch.count_nonzero(first) > 0
    pretext.after_step(0, 1)
