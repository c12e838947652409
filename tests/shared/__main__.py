"""python -m tests.shared: record the functions of this interpreter's asyncio, or of another's by its sources

    python -m tests.shared [FOLDER RELEASE]

as read. It needs nothing but Python's own library. Best run by the interpreter that the sources are of.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.shared import fingerprints

folder, release = sys.argv[1:] or (str(Path(asyncio.__file__).parent), ".".join(map(str, sys.version_info[:3])))
record = fingerprints.load() if fingerprints.RECORD.exists() else {}
now = fingerprints.take(Path(folder))
for name in fingerprints.changed(record, release, now):
    print(f"{name}: {now.get(name, fingerprints.ABSENT)}")
record[release] = now
fingerprints.save(record)
print(f"{len(now)} functions of asyncio in Python {release} are recorded")
