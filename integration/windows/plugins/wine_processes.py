"""A plugin of pytest for tests under wine, which now and then cannot start a process: it says "internal error" then,
and can a moment later. Windows does not say so.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

ERROR_INTERNAL_ERROR = 1359
ATTEMPTS = 3

if sys.platform == "win32":
    import _winapi

    create_process = _winapi.CreateProcess

    def create_process_again(*arguments: Any) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                return create_process(*arguments)
            except OSError as error:
                if error.winerror != ERROR_INTERNAL_ERROR or attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    subprocess._winapi.CreateProcess = create_process_again  # type: ignore[attr-defined]
