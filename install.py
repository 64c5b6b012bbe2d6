"""The WebUI's install hook: looks at the host and changes nothing.

The extension needs no packages besides those that every host brings (torch, safetensors). A host
runs this file in a subprocess at each start and shows what it prints, so it prints one line if the
host is too old, and otherwise nothing. It has to run on an older Python 3, to be able to say so.
"""

import os
import re
import sys
from typing import Optional, Tuple

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 1)


def python_complaint(version: Tuple[int, int]) -> Optional[str]:
    """Return a line if the host's Python, (major, minor), is too old."""
    if version >= OLDEST_PYTHON:
        return None
    return "CR-Diff needs Python {}.{} or newer, this is {}.{}: it stays inactive.".format(
        *(OLDEST_PYTHON + version)
    )


def torch_complaint(version: Optional[str]) -> Optional[str]:
    """Return a line if the host's torch ("2.1.2+cu121") is too old, or missing (None)."""
    if version is None:
        return "CR-Diff found no torch in this Python: it stays inactive."
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers.group(1)), int(numbers.group(2))) >= OLDEST_TORCH:
        return None
    return "CR-Diff needs torch {}.{} or newer, this is {}: it stays inactive.".format(
        *OLDEST_TORCH, version
    )


def installed_torch() -> Optional[str]:
    """Return torch's version without importing it (that takes seconds), None if it is missing."""
    from importlib import metadata  # not in Python 3.7, which `main` has turned away by now

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def host_complaint(folder: str) -> Optional[str]:
    """Return a line if ``folder`` is a WebUI's that is too old (AUTOMATIC1111 before 1.6)."""
    modules = os.path.join(folder, "modules")
    if not os.path.isfile(os.path.join(modules, "processing.py")):
        return None  # not run by a host
    known = ("sd_samplers_cfg_denoiser.py", "processing_diffusers.py")  # the second: SD.Next
    if any(os.path.isfile(os.path.join(modules, name)) for name in known):
        return None
    return "CR-Diff needs AUTOMATIC1111 1.6 or newer, Forge or SD.Next: update this WebUI."


def main() -> None:
    """Print the complaint, if there is one."""
    line = (
        python_complaint(sys.version_info[:2])
        or torch_complaint(installed_torch())
        or host_complaint(os.getcwd())
    )
    if line:
        print(line)


if __name__ == "__main__":
    main()
