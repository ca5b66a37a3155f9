"""What is global in torch and changes results: set alike for references and for sessions, whatever a model's code set.

Imports torch, so only workers call this.
"""

from __future__ import annotations


def set_rules(*, tf32: bool = False) -> None:
    """Let float32 be computed in float32, or with TF32 where a CUDA device multiplies; forget a default device.

    Call it after a model was built: code that is imported for one may set all of this for itself.

    torch has two interfaces to the same switches, and raises where one is read after the other was set alone: its
    own autotuner and `cudnn.flags()` still read the older one, so the newer one alone ends them. Both are set, alike.
    """
    import torch

    torch.set_default_device(None)  # a mode around every call, which costs time; and the reference runs on the CPU
    backends, precision = torch.backends, "tf32" if tf32 else "ieee"
    backends.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    backends.cudnn.allow_tf32 = tf32
    for operation in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
        operation.fp32_precision = precision
    for operation in (backends.mkldnn.conv, backends.mkldnn.rnn):  # bfloat16 on a CPU that has it
        operation.fp32_precision = "ieee"
