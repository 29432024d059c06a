"""Sandboxes for tests: the image, and one sandbox that the tests of a module share."""

from __future__ import annotations

import os
import unittest

IMAGE = os.environ.get("MSB_TEST_IMAGE", "busybox:test")
"""An image with a shell."""


def needs_programs() -> None:
    """Skips a module if the programs or the image are not there."""
    from microsandbox.sync import Image
    from microsandbox import is_installed

    if not is_installed():
        raise unittest.SkipTest("msb is not installed")
    if not Image.exists(IMAGE):
        raise unittest.SkipTest(f"there is no image '{IMAGE}'")
