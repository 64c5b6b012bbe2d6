"""The WebUI extension: panel, arguments, infotext, XYZ axes, API, and one adapter for each host.

Only ``ui``, ``editor``, ``xyz``, ``api``, ``options`` and the adapters import a host or gradio; the
rest is plain Python on the core.
"""
