"""Triton kernels, one operation per file, forward and backward. `ops.backend("triton")` runs the networks on them.

Where things live:
    attention    softmax attention; attention_gradients, attention_blocks (steps of both), attention_tiles (their sizes)
    group_norm   group normalisation, with a summand per channel before and SiLU after it; group_norm_gradients, pixels
    layer_norm   layer normalisation, with a residual added before it
    geglu        gated GELU, with the bias of the projection before it
    precision    products and roundings
    hardware     what the kernels run on, and what they refuse

Each is a `torch.library.custom_op` with a fake version and a backward, so it works under torch.compile and in CUDA
graphs; sums are float32 whatever the inputs; nothing is added atomically, so equal inputs give equal bits.
Without a GPU they run in Triton's interpreter: set TRITON_INTERPRET=1 before triton is first imported.
"""

from . import attention, geglu, group_norm, layer_norm

__all__ = ["attention", "geglu", "group_norm", "layer_norm"]
