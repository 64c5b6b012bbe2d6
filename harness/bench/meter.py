"""A clock and a peak of memory that can be started anew, on a CPU and on CUDA."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path

import torch

from harness.bench.plan_memory import status

_CLEAR = Path("/proc/self/clear_refs")


class Meter:
    """Seconds and peaks for one device.

    In one thread on a CPU, seconds are of CPU time, which other programs disturb least; else of
    wall time, with everything on the device finished.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._device = device
        self._cpu_time = device == "cpu" and torch.get_num_threads() == 1

    @property
    def clock(self) -> str:
        """Which seconds ``now`` counts: "CPU time" or "wall time"."""
        return "CPU time" if self._cpu_time else "wall time"

    @property
    def memory(self) -> str:
        """How the peak is come by, for reports."""
        ram = (
            "the process's peak resident memory, started anew for each mode"
            if _CLEAR.exists()
            else "not told by this system"
        )
        return f"{ram}; VRAM: torch's peak of allocated memory" if self._cuda else ram

    def now(self) -> float:
        """Seconds from some moment on."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        return time.process_time() if self._cpu_time else time.perf_counter()

    def reset(self) -> None:
        """Give unused memory back and let the peaks start anew."""
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        if _CLEAR.exists():
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
            if trim is not None:
                trim(0)
            _CLEAR.write_text("5", encoding="ascii")

    def peak_bytes(self) -> int | None:
        """Peak of resident memory since ``reset``; None where the system doesn't tell."""
        return status("VmHWM") if _CLEAR.exists() else None

    def resident_bytes(self) -> int | None:
        """Resident memory now; None where the system doesn't tell."""
        return status("VmRSS") if _CLEAR.exists() else None

    def vram_bytes(self) -> int | None:
        """Peak of torch's memory on the GPU since ``reset``; None on a CPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._cuda else None
