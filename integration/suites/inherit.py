"""Imported at the start of every process in the environment of a suite: those that tests start get the loop, too."""

import os

if "SUITE_LOOP" in os.environ:
    from integration.suites.inject import inject

    inject(os.environ["SUITE_LOOP"])
