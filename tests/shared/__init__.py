"""What notifyloop shares with asyncio, written down and watched.

The loop derives from asyncio's, and calls and is called by what asyncio does not document. These tests say what that
is: `overrides` finds what we have put in the place of asyncio's own, `fingerprints` whether CPython has changed that
since somebody looked, `names` which private names we use. They fail where we are worked on, never where we are used.

When CPython has changed a function, read the change, mend ours if it has the fault, and then, with that interpreter,

    python -m tests.shared
"""
