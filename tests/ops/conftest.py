"""Fixtures of the operators' tests."""

from collections.abc import Iterator

import pytest
import torch

pytest.register_assert_rewrite("contract")


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
