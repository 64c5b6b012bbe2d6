"""The k-th smallest magnitude of many tensors, exactly, without sorting or concatenating them.

The bit pattern of a non-negative float, read as an integer, orders like its value. So magnitudes
are counted by bit pattern, chunk by chunk: 128 bins for fp8, 32,768 for fp16 and bf16. Wider types
take several rounds, 16 bits at a time from the top, each among the values that share the bits
selected so far. One pass over the data costs about as much as reading it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .errors import CRDiffError

DIGIT_BITS = 16
CHUNK_BYTES = 1 << 21
"""What is looked at together on the CPU: it stays in a core's caches, and every temporary small."""
CHUNK_BYTES_ON_GPU = 1 << 24


@dataclass(frozen=True)
class _Format:
    """A floating-point type: the integer type of its size, its magnitude bits, its largest number.

    ``largest`` is the pattern of infinity, or of the largest finite number where there is none;
    every magnitude pattern above it is a NaN.
    """

    integer: torch.dtype
    bits: int
    largest: int


_FORMATS = {
    torch.float16: _Format(torch.int16, 15, 0x7C00),
    torch.bfloat16: _Format(torch.int16, 15, 0x7F80),
    torch.float32: _Format(torch.int32, 31, 0x7F80_0000),
    torch.float64: _Format(torch.int64, 63, 0x7FF0_0000_0000_0000),
    torch.float8_e4m3fn: _Format(torch.uint8, 7, 0x7E),
    torch.float8_e5m2: _Format(torch.uint8, 7, 0x7C),
}


def common_dtype(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """The type in which all tensors are compared: their own if they share it, else a wide one.

    fp8, fp16 and bf16 values are all exact in fp32, and everything is in fp64, so mixed groups are
    still compared exactly. Raises CRDiffError for types that are no plain floats.
    """
    dtypes = {tensor.dtype for tensor in tensors}
    for dtype in dtypes - _FORMATS.keys():
        raise CRDiffError(
            f"weights of type {dtype_name(dtype)} can't be pruned by magnitude: load the model in "
            f"one of {', '.join(map(dtype_name, _FORMATS))}"
        )
    if len(dtypes) == 1:
        return dtypes.pop()
    return torch.float64 if torch.float64 in dtypes else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float16`` -> "float16"."""
    return str(dtype).removeprefix("torch.")


def chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor's elements in C order as 1-d pieces of bounded size; views where possible."""
    size = CHUNK_BYTES_ON_GPU if tensor.device.type == "cuda" else CHUNK_BYTES
    size //= tensor.element_size()
    tensor = tensor.detach()
    if tensor.is_contiguous():
        flat = tensor.view(-1)
        for start in range(0, flat.numel(), size):
            yield flat[start : start + size]
        return
    rows = max(1, size // max(1, tensor[0].numel()))
    for start in range(0, tensor.shape[0], rows):
        yield tensor[start : start + rows].reshape(-1)


def kth_magnitude(tensors: Sequence[torch.Tensor], n: int) -> float:
    """The n-th smallest |w| (n from 1) of all tensors together, as a float that is exactly it.

    Args:
        tensors: any shapes, of floating types, of the same or different devices; not changed.
        n: rank, 1 <= n <= number of elements.

    Infinities count as the largest numbers. Raises CRDiffError for types that can't be counted and
    ``NotANumberError`` when a tensor holds a NaN.
    """
    dtype = common_dtype(tensors)
    form = _FORMATS[dtype]
    pattern, remaining, shift = 0, n, form.bits
    while shift:
        width = shift % DIGIT_BITS or DIGIT_BITS
        shift -= width
        first = shift + width == form.bits
        counts = _count_digits(tensors, dtype, None if first else pattern, (shift, width))
        if first and int(counts[(form.largest >> shift) + (shift == 0) :].sum()):
            # Some value is a NaN, or, where the digit can't tell, an infinity or a NaN.
            _refuse_nan(tensors)
        reached = counts.cumsum(0)
        digit = int((reached < remaining).sum())
        remaining -= int(reached[digit - 1]) if digit else 0
        pattern = pattern << width | digit
    return float(torch.tensor([pattern], dtype=form.integer).view(dtype).double())


class NotANumberError(CRDiffError):
    """A tensor holds a NaN; ``index`` says which of those given."""

    def __init__(self, index: int) -> None:
        super().__init__(f"tensor {index} holds NaN: the weights are damaged, get them again")
        self.index = index


def _count_digits(
    tensors: Sequence[torch.Tensor],
    dtype: torch.dtype,
    prefix: int | None,
    place: tuple[int, int],
) -> torch.Tensor:
    """Counts, int64 [2**width], of the digit at ``place = (shift, width)`` of all magnitudes.

    With a ``prefix``, only of those whose bits above the digit are equal to it.
    """
    shift, width = place
    form = _FORMATS[dtype]
    magnitude_mask = (1 << form.bits) - 1
    counts = torch.zeros(1 << width, dtype=torch.int64)
    for tensor in tensors:
        for chunk in chunks(tensor):
            if chunk.device.type not in ("cpu", "cuda"):
                chunk = chunk.cpu()  # other backends may lack bincount or integer views
            # A conversion only in groups of mixed types; each of these is exact.
            digits = chunk.to(dtype).view(form.integer) & magnitude_mask
            if prefix is not None:
                digits = digits[digits >> (shift + width) == prefix]
            if shift:
                digits >>= shift
            if prefix is not None:
                digits &= (1 << width) - 1
            counts += torch.bincount(digits, minlength=1 << width).cpu()
    return counts


def _refuse_nan(tensors: Sequence[torch.Tensor]) -> None:
    for index, tensor in enumerate(tensors):
        for chunk in chunks(tensor):
            if _has_nan(chunk):
                raise NotANumberError(index)


def _has_nan(chunk: torch.Tensor) -> bool:
    form = _FORMATS[chunk.dtype]
    magnitudes = chunk.cpu().view(form.integer) & ((1 << form.bits) - 1)
    return bool((magnitudes > form.largest).any())
