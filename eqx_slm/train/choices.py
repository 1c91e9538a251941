"""The words that say how a step is compiled; apart, so that a command's help needs no JAX."""

from typing import Literal

ComputeDtype = Literal["float32", "bfloat16"]
Loop = Literal["auto", "unrolled", "runs"]
Remat = Literal["none", "full", "dots"]
