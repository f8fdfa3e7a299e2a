"""Fixtures that every room's tests share."""

import os
import socket
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images and annotations; its tests skip where no one says where it is."""
    folder = os.environ.get("VISIONLAB_TEST_DATA")
    if not folder:
        pytest.skip("VISIONLAB_TEST_DATA does not name a folder of test data")
    path = Path(os.path.abspath(folder))
    if not path.is_dir():
        pytest.fail(f"VISIONLAB_TEST_DATA is {folder}, which is not a folder")
    return path


@pytest.fixture
def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def no_report(monkeypatch):
    """Reports take longer than the smallest runs."""
    from visionlab import run  # here, because most tests need none

    monkeypatch.setattr(run, "write_report", lambda folder: folder / "report.html")
