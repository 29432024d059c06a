"""A fixture for pytest: one sandbox for each test, or one for a session.

usage: copy the fixture into conftest.py, then

    def test_it(sandbox):
        assert sandbox.exec("true").success
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager

from microsandbox.sync import Sandbox

IMAGE = os.environ.get("MSB_TEST_IMAGE", "alpine:3.20")


@contextmanager
def new_sandbox() -> Generator[Sandbox, None, None]:
    """Makes a sandbox with a name of its own, and removes it."""
    with Sandbox.create(f"pytest-{uuid.uuid4().hex[:8]}", image=IMAGE) as sandbox:
        yield sandbox


try:
    import pytest
except ImportError:
    # The fixture is for pytest; `new_sandbox` works without it.
    pass
else:

    @pytest.fixture
    def sandbox() -> Generator[Sandbox, None, None]:
        """A sandbox for one test."""
        with new_sandbox() as made:
            yield made
