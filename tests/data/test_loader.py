"""Batches do not depend on workers or processes; faulty images are named and do not stop a run that tolerates them."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from visionlab import distributed
from visionlab.data import transport
from visionlab.data.coco import CocoDataset
from visionlab.data.folder import ImageFolder
from visionlab.data.loader import EvalLoader, TrainLoader
from visionlab.data.samples import DetectionSamples, ViewSamples, collate_images
from visionlab.data.synthetic import write_synthetic
from visionlab.data.transforms import DetectionTransform, EvaluationResize
from visionlab.data.views import Views
from visionlab.seeding import derive_seed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader") / "data"
    write_synthetic(folder, unlabelled=11, labelled=9, validation=7, image_size=48)
    return folder


@pytest.fixture
def folder(dataset, tmp_path):
    """A copy of the dataset that a test may damage."""
    return shutil.copytree(dataset, tmp_path / "data")


def detection(folder, policy="repair", split="train", transform=None):
    dataset = CocoDataset(
        annotations=str(folder / "annotations" / f"{split}.json"), images=str(folder / split), policy=policy
    )
    transform = transform or DetectionTransform(short_side=[32, 40], crop=0.1, color_strength=0.5)
    return DetectionSamples(dataset, transform, divisor=16)


def views(folder, policy="repair"):
    return ViewSamples(
        ImageFolder(root=str(folder / "unlabelled"), policy=policy), Views.crops(image_size=24, count=2, blur=0.5)
    )


def assert_same(one, other):
    assert type(one) is type(other)
    assert (one.ids, one.files, one.seeds) == (other.ids, other.files, other.seeds)
    if hasattr(one, "views"):
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
    else:
        assert torch.equal(one.pixels, other.pixels)
        assert (one.sizes, one.original_sizes) == (other.sizes, other.original_sizes)
        for a, b in zip(one.targets, other.targets, strict=True):
            assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "labels", "crowd"))


@pytest.mark.parametrize("make", [detection, views])
def test_workers_and_first_step_change_nothing(folder, make, monkeypatch):
    samples = make(folder)
    monkeypatch.setattr(transport, "SMALL_TENSOR", 10_000)  # so that there are tensors on both sides of it
    none = list(islice(TrainLoader(samples, 5, batch_size=4, workers=0).batches(), 7))
    two = list(islice(TrainLoader(samples, 5, batch_size=4, workers=2).batches(), 7))
    later = list(islice(TrainLoader(samples, 5, batch_size=4, workers=0).batches(3), 4))
    for one, other in zip(none, two, strict=True):
        assert_same(one, other)
    for one, other in zip(none[3:], later, strict=True):
        assert_same(one, other)
    other_seed = next(TrainLoader(samples, 6, batch_size=4, workers=0).batches())
    assert other_seed.seeds != none[0].seeds


def test_loading_leaves_the_global_generators_alone(folder):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    next(TrainLoader(views(folder), 0, batch_size=4, workers=0).batches())
    next(TrainLoader(views(folder), 0, batch_size=4, workers=1).batches())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize("make", [detection, views])
def test_processes_together_see_the_batches_of_one(folder, make, monkeypatch):
    samples = make(folder)
    whole = list(islice(TrainLoader(samples, 1, batch_size=6, workers=0).batches(), 6))
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(list(islice(TrainLoader(samples, 1, batch_size=6, workers=0).batches(), 6)))
    for step, batch in enumerate(whole):
        assert batch.seeds == [seed for part in parts for seed in part[step].seeds]
        assert batch.files == [file for part in parts for file in part[step].files]
        if make is views:
            assert torch.equal(batch.views[1], torch.cat([part[step].views[1] for part in parts]))
    with pytest.raises(ValueError, match="expected a multiple of 3"):
        TrainLoader(samples, 1, batch_size=4)


def test_seeds_belong_to_run_epoch_and_image(folder):
    loader = TrainLoader(views(folder), 3, batch_size=4, workers=0)
    batch = next(loader.batches(5))  # images 20 to 23 of 11: the end of epoch 1 and the start of epoch 2
    keys = loader.sampler.batch(5)
    assert {epoch for epoch, _ in keys} == {1, 2}
    assert batch.seeds == [derive_seed(3, epoch, index) for epoch, index in keys]
    assert batch.ids == [index for _, index in keys]


def test_fewer_images_than_a_batch(folder):
    batch = next(TrainLoader(detection(folder), 0, batch_size=20, workers=0).batches())
    assert len(batch) == 20
    assert len(set(batch.files)) == 9
    assert len(set(batch.seeds)) == 20


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_each_image_once(folder, world_size, workers, monkeypatch):
    samples = detection(folder, split="val", transform=EvaluationResize(short_side=48))
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    ids = []
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        loader = EvalLoader(samples, batch_size=2 * world_size, workers=workers)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert [batch.ids for batch in batches] == [batch.ids for batch in loader], "it can be gone through again"
        ids += [number for batch in batches for number in batch.ids]
    assert sorted(ids) == list(range(1, 8))


def test_batches_are_padded_with_zeros():
    images = [torch.full((3, 20, 33), 7, dtype=torch.uint8), torch.full((3, 31, 10), 9, dtype=torch.uint8)]
    batch = collate_images(images, divisor=16)
    assert batch.pixels.shape == (2, 3, 32, 48)
    assert batch.sizes == [(20, 33), (31, 10)]
    assert torch.equal(batch.pixels[0, :, :20, :33], images[0])
    assert int(batch.pixels.sum()) == sum(int(image.sum()) for image in images)


def test_batch_describes_its_images(folder):
    samples = detection(folder, transform=DetectionTransform(short_side=24, flip=0.0))
    batch = next(TrainLoader(samples, 0, batch_size=3, workers=0).batches())
    for row in range(3):
        record = next(r for r in samples.dataset.records if r.image_id == batch.ids[row])
        assert batch.files[row] == record.file
        assert batch.original_sizes[row] == (48, 48)
        assert batch.sizes[row] == (24, 24)
        large = (record.boxes[:, 2:] - record.boxes[:, :2] >= 2).all(1)
        np.testing.assert_allclose(batch.targets[row].boxes.numpy(), record.boxes[large] / 2, atol=1e-4)


def damage(samples, index):
    Path(samples.files[index]).write_bytes(b"no image")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("policy", ["repair", "skip"])
@pytest.mark.parametrize("make", [detection, views])
def test_next_image_takes_the_place_of_a_damaged_one(folder, make, policy, workers, caplog):
    samples = make(folder, policy)
    last = len(samples.files) - 1
    damage(samples, last)
    Path(samples.files[4]).unlink()
    damage(samples, 5)
    loader = TrainLoader(samples, 0, batch_size=4, workers=workers)
    with caplog.at_level(logging.WARNING):
        batches = list(islice(loader.batches(), 12))
    keys = [key for step in range(12) for key in loader.sampler.batch(step)]
    expected = [{4: 6, 5: 6, last: 0}.get(index, index) for _, index in keys]
    files = [file for batch in batches for file in batch.files]
    assert files == [samples.files[index] for index in expected]
    faulty = sorted(samples.files[index] for index in (4, 5, last))
    assert sorted(problem.file for problem in loader.problems) == faulty
    for file in faulty:
        assert sum(file in message and "takes its place" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [detection, views])
def test_under_fail_the_error_names_the_file(folder, make, workers):
    samples = make(folder, "fail")
    damage(samples, 3)
    with pytest.raises(ValueError, match=r"000003\.jpg") as caught:
        list(islice(TrainLoader(samples, 0, batch_size=4, workers=workers).batches(), 6))
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)


def test_nothing_readable_is_an_error(folder):
    samples = views(folder)
    for index in range(len(samples.files)):
        damage(samples, index)
    with pytest.raises(ValueError, match=r"11 images in a row cannot be read, the first: .*jpg"):
        next(TrainLoader(samples, 0, batch_size=2, workers=0).batches())


def test_evaluation_leaves_out_what_cannot_be_read(folder, caplog):
    samples = detection(folder, split="val", transform=EvaluationResize(short_side=48))
    damage(samples, 2)
    damage(samples, 6)
    loader = EvalLoader(samples, batch_size=2, workers=0)
    assert [number for batch in loader for number in batch.ids] == [1, 2, 4, 5, 6]
    list(loader)
    again = EvalLoader(samples, batch_size=2, workers=0)
    list(again)
    for problems in (loader.problems, again.problems):
        assert [Path(problem.file).name for problem in problems] == ["000002.jpg", "000006.jpg"]
    assert len(caplog.records) == 2


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_workers_end_with_their_batches(folder):
    before = set(children(os.getpid()))
    stream = TrainLoader(views(folder), 0, batch_size=4, workers=2).batches()
    next(stream)
    assert len(set(children(os.getpid())) - before) >= 2
    stream.close()
    del stream
    assert set(children(os.getpid())) <= before


def errors_of(process: subprocess.Popen) -> str:
    """Wait for a process that has a session of its own, but not for ever; return what it wrote to stderr."""
    try:
        return process.communicate(timeout=30)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


ENDLESS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs start without
from visionlab.data.folder import ImageFolder
from visionlab.data.loader import TrainLoader
from visionlab.data.samples import ViewSamples
from visionlab.data.views import Views

samples = ViewSamples(ImageFolder(root=sys.argv[1]), Views.crops(image_size=24))
for number, batch in enumerate(TrainLoader(samples, batch_size=4, workers=2).batches()):
    if number == 3:
        print("running", flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_interrupt_ends_main_process_and_workers(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder / "unlabelled")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "running\n"
    workers = children(process.pid)
    assert len(workers) >= 2
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: every process of the terminal gets it
    errors = errors_of(process)
    assert "KeyboardInterrupt" in errors
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


ORDERLY = """
import signal
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(number + 4))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_workers_leave_a_termination_to_the_main_process(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", ORDERLY + ENDLESS + "    if number in stop:\n        break\n", folder / "unlabelled"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "running\n"
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGTERM)  # as cluster schedulers do
    errors = errors_of(process)
    assert process.returncode == 0, errors
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def test_negative_workers_are_refused(folder):
    with pytest.raises(ValueError, match="workers: expected at least 0, got -1"):
        TrainLoader(views(folder), batch_size=2, workers=-1)


@pytest.mark.parametrize("policy", ["repair", "skip"])
def test_odd_images_stop_no_run(test_data, policy):
    dataset = ImageFolder(root=str(test_data / "odd_images"), policy=policy)
    loader = TrainLoader(ViewSamples(dataset, Views.crops(image_size=16)), 0, batch_size=16, workers=0)
    epochs = list(islice(loader.batches(), 2 * len(dataset) // 16 + 1))
    assert {tuple(batch.views[0].shape) for batch in epochs} == {(16, 3, 16, 16)}
    named = [problem.file for problem in loader.problems]
    assert len(named) == len(set(named))
    assert not set(named) & {file for batch in epochs for file in batch.files}


def test_real_boxes_stay_in_their_images(test_data):
    root = test_data / "coco_mini"
    annotations = next(root.rglob("*train*.json"))
    images = next(path.parent for path in root.rglob("*.jpg") if "train" in str(path.relative_to(root)))
    dataset = CocoDataset(annotations=str(annotations), images=str(images))
    transform = DetectionTransform(short_side=[128, 160], max_size=256, crop=0.2, color_strength=0.5)
    loader = TrainLoader(DetectionSamples(dataset, transform), 0, batch_size=8, workers=0)
    objects = crowds = mixed = 0
    for batch in islice(loader.batches(), 13):
        mixed += len({width >= height for height, width in batch.original_sizes}) > 1
        for (height, width), target in zip(batch.sizes, batch.targets, strict=True):
            assert (target.boxes >= -1e-3).all()
            assert (target.boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
            objects, crowds = objects + len(target.boxes), crowds + int(target.crowd.sum())
    assert objects > 500
    assert crowds > 3
    assert mixed <= 2
