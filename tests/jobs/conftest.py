from collections.abc import Iterator

import pytest

from cliploc import backbones
from tests.commands import create_once


@pytest.fixture(scope="module")
def one_model() -> Iterator[None]:
    """Each model is made once for all tests and fixtures of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "create", create_once)
        yield
