"""How many graphs a compiler makes of a detector's training step, and that they compute the same."""

import pytest
import torch
from test_two_stage_detector import make_detector, rectangles


@pytest.mark.slow
def test_training_forward():
    detector, batch = make_detector(norm="frozen"), rectangles(2)
    expected = detector.losses(batch)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    losses = torch.compile(detector, backend=count)(batch)
    assert len(graphs) <= 4
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-6)  # what runs as it is, is folded
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)
