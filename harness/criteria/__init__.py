"""Pruning criteria to compare CR-Diff's magnitudes with (the paper's Figure 8)."""
