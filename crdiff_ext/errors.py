"""The one exception that CR-Diff raises for a person to read."""

from __future__ import annotations


class CRDiffError(ValueError):
    """One sentence that says what is wrong and what to do; never needs a traceback."""
