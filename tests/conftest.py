"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images and annotations; its tests skip where no one says where it is."""
    folder = os.environ.get("VISIONLAB_TEST_DATA")
    if not folder:
        pytest.skip("VISIONLAB_TEST_DATA does not name a folder of test data")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"VISIONLAB_TEST_DATA is {folder}, which is not a folder")
    return path
