"""Measurements behind ``crdiff bench``."""
