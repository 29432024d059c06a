"""Times of the programs, RFC 3339 in UTC, and times of the package, milliseconds since 1970."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def milliseconds(text: Any) -> float | None:
    """Returns milliseconds since 1970; `None` for a time that is missing or has another form."""
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    whole, fraction, zone = found.groups()
    time = datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone))
    return (time - _EPOCH) / timedelta(milliseconds=1) + float(f"0.{fraction or 0}") * 1000


def rfc3339(ms: float) -> str:
    """Returns a time as the programs read it."""
    time = _EPOCH + timedelta(milliseconds=ms)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
