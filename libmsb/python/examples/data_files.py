"""Data analysis: files go in, a program runs, results come out.

usage: python data_files.py [IMAGE]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from microsandbox import Sandbox

PROGRAM = """
awk -F, 'NR > 1 { sum[$1] += $2 } END { for (k in sum) print k "," sum[k] }' in.csv |
    sort > out.csv
"""


async def main(image: str) -> str:
    """Sums a table in the guest. Returns the result."""
    with tempfile.TemporaryDirectory() as directory:
        table = Path(directory, "in.csv")
        table.write_text("name,count\nred,1\nblue,2\nred,40\n")
        result = Path(directory, "out.csv")
        async with await Sandbox.create("example-data", image=image, replace=True) as sandbox:
            await sandbox.fs.copy_from_host(table, "/root/in.csv")
            output = await sandbox.shell(PROGRAM, cwd="/root")
            if not output.success:
                raise SystemExit(output.stderr_text)
            await sandbox.fs.copy_to_host("/root/out.csv", result)
        print(result.read_text(), end="")
        return result.read_text()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "alpine:3.20"))
