"""An encoder small enough to be written out by hand, in double precision."""

import torch
from torch import nn


class SmallEncoder(nn.Module):
    """What a backbone offers to pretext methods, with two levels of a convolution each and smooth activations."""

    name = "small"
    norm = "group"
    settings: dict = {}  # noqa: RUF012
    fixed_size = None
    strides = (2, 4)

    def __init__(self, channels=(4, 6), seed=0):
        super().__init__()
        self.channels, self.num_features = list(channels), channels[-1]
        self.model = nn.Sequential(
            nn.Conv2d(3, channels[0], 2, stride=2), nn.Conv2d(channels[0], channels[1], 2, stride=2)
        ).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)

    def normalize(self, pixels):
        return pixels.double() / 128 - 1

    def forward(self, images):
        fine = torch.tanh(self.model[0](images))
        return [fine, torch.tanh(self.model[1](fine))]

    def pool(self, images):
        return self(images)[-1].mean((2, 3))


def random_views(count, images=3, size=8, seed=0):
    """Return ``count`` views of ``(images, 3, size, size)`` random pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, images, 3, size, size), generator=generator, dtype=torch.uint8)
    return list(pixels)


def by_hand(head, rows):
    """Return what a head of linear layers, batch norm and ReLU makes of ``(N, D)`` rows, by the formula of each."""
    for layer in head:
        if isinstance(layer, nn.Linear):
            rows = rows @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        elif isinstance(layer, nn.ReLU):
            rows = rows.clamp_min(0)
        else:
            centered = rows - rows.mean(0)
            rows = centered / ((centered**2).mean(0) + layer.eps).sqrt() * layer.weight + layer.bias
    return rows


def cosine(a, b):
    """Return the cosine between two vectors."""
    return (a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt()


def gradients(loss, module):
    """Return the gradient of every parameter of a module that is trained, by name."""
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def assert_same_gradients(first, second):
    """Compare two results of ``gradients`` to nearly double precision."""
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        assert gradient is not None, name
        torch.testing.assert_close(
            gradient, second[name], rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )
