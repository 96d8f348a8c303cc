"""Falcon's attention, which transformers looks up in a table of classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.models.falcon.modeling_falcon import FalconAttention, apply_rotary_pos_emb

from mqa import attention
from mqa.integrations.transformers.attention import attention_forward, refuse_unsupported


class FalconMQAAttention(FalconAttention):
    """Caches the KV heads that the model has, also in the new decoder architecture."""

    def forward(
        self,
        hidden_states: Tensor,
        alibi: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        layer_past: Cache | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of a layer; the arguments are those of ``FalconAttention``."""
        heads = self._split_heads(self.query_key_value(hidden_states))
        query, key, value = (x.transpose(1, 2) for x in heads)
        if position_embeddings is not None and alibi is None:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        if alibi is None:
            out, _ = attention_forward(
                self,
                query,
                key,
                value,
                attention_mask,
                scaling=self.inv_norm_factor,
                output_attentions=output_attentions,
            )
        else:
            out = self._attend_with_alibi(
                query, key, value, alibi, attention_mask, output_attentions=output_attentions
            )
        return self.dense(out.flatten(2)), None

    def _split_heads(self, fused_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.new_decoder_architecture:
            return super()._split_heads(fused_qkv)
        groups = fused_qkv.unflatten(-1, (self.num_kv_heads, -1, self.head_dim))
        return groups[:, :, :, :-2].flatten(2, 3), groups[:, :, :, -2], groups[:, :, :, -1]

    def _attend_with_alibi(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        alibi: Tensor,
        attention_mask: Tensor | None,
        *,
        output_attentions: bool,
    ) -> Tensor:
        """Adds the model's biases, which are rounded to bfloat16, rather than slopes.

        Falcon has merged them with a mask, if there is one: [B, H_q, 1, S], or [B, H_q, T, S] if
        that mask had a pattern of its own.
        """
        refuse_unsupported(
            self,
            dropout=self.attention_dropout.p if self.training else 0.0,
            output_attentions=output_attentions,
        )
        bias = attention_mask
        if bias is None:
            bias = alibi.view(query.size(0), self.num_heads, 1, -1) * self.inv_norm_factor
        out = attention(
            query,
            key,
            value,
            bias,
            is_causal=bias.size(2) == 1,
            scale=self.inv_norm_factor,
            key_scale=getattr(key, "mqa_scale", None),
            value_scale=getattr(value, "mqa_scale", None),
        )
        return out.transpose(1, 2).contiguous()
