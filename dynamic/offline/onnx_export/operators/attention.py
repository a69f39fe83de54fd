"""Attention over tensors of any rank in ONNX. The exporter writes that of four dimensions alone."""

import math
from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto


def attention_of_any_rank() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export` needs to write `scaled_dot_product_attention`, for its `custom_translation_table`."""
    return {torch.ops.aten.scaled_dot_product_attention.default: _attention}


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`[..., L, E]`, `[..., S, E]`, `[..., S, V]` -> `[..., L, V]` (Vaswani et al. 2017, equation 1)."""
    from onnxscript import opset18 as op

    if is_causal or enable_gqa:
        raise NotImplementedError("attention that is causal or has groups of queries, of other than four dimensions")
    rank = len(query.shape)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    turned = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, op.Constant(value_float=scale)), turned)
    if attn_mask is not None and attn_mask.dtype == TensorProto.BOOL:
        scores = op.Where(attn_mask, scores, op.Constant(value_float=float("-inf")))
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)
