"""Every small config teaches its task: on images that were held out it does better than chance."""

import statistics

import pytest
import torch

from visionlab import run
from visionlab.config.load import load
from visionlab.config.shipped import shipped
from visionlab.data.folder import ImageFolder
from visionlab.data.loader import EvalLoader, ViewSamples
from visionlab.tasks.pretrain import PretrainTask

# The accuracy of a blind guess in batches of 8 images.
CHANCE = {"patch_position": 1 / 8, "jigsaw": 1 / 24, "dim": 1 / 8, "cpc": 1 / (8 * 25)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANCE)
def test_held_out_accuracy_is_above_chance_by_three_standard_errors(name, tmp_path):
    config = load(shipped(f"examples/{name}_small.yaml"), [f"out={tmp_path / 'run'}", f"data.root={tmp_path / 'data'}"])
    run.execute(config)
    task = PretrainTask(config.pretext.build(config.backbone.build()))
    (newest, *_) = sorted((tmp_path / "run" / "checkpoints").glob("step_*.pt"), reverse=True)
    task.load_state_dict(torch.load(newest)["states"]["task"])
    task.eval()
    held_out = ViewSamples(ImageFolder(root=str(tmp_path / "data" / "val")), task.pretext.views)
    accuracies = []
    with torch.no_grad():
        for batch in EvalLoader(held_out, batch_size=8, workers=0):
            accuracies.append(float(task.pretext(batch).metrics["accuracy"]))
    error = statistics.stdev(accuracies) / len(accuracies) ** 0.5
    assert statistics.mean(accuracies) > CHANCE[name] + 3 * error
