"""The paper's tables and figures, with its values, ours and the difference: ``crdiff tables``."""
