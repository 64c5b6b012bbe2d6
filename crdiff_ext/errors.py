"""The one exception that CR-Diff raises for a person to read."""

from __future__ import annotations


class CRDiffError(ValueError):
    """One sentence that says what is wrong and what to do; never needs a traceback.

    It starts in lower case and has no full stop: the command line puts ``crdiff:`` before it, and
    other sentences quote it.
    """
