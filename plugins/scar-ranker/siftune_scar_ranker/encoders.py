"""Text encoders out of their configuration alone, with transformers' own classes and no code from a hub.

The encoders of the published GTE models (`gte-*-en-v1.5`) were written as code on the hub, which transformers 5
no longer runs right. The same network is among transformers' own classes; here are its names and its positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from siftune import UserError

# What the rankers on the hub name as their encoder, so that reading one fetches no second model.
_ROBERTA = {
    "model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
    "layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
_GTE = {
    "model_type": "new", "vocab_size": 30528, "max_position_embeddings": 8192, "pad_token_id": 0,
    "layer_norm_eps": 1e-12, "rope_scaling": {"type": "ntk", "factor": 2.0},
}  # fmt: skip
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "roberta-base": _ROBERTA,
    "FacebookAI/roberta-base": _ROBERTA,
    "Alibaba-NLP/gte-base-en-v1.5": {**_GTE, "type_vocab_size": 0, "rope_theta": 500_000},
    "Alibaba-NLP/gte-large-en-v1.5": {
        **_GTE, "type_vocab_size": 2, "rope_theta": 160_000, "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16,
    },
}  # fmt: skip

# parts of the hub's names, and what transformers calls them
_NATIVE = (
    ("encoder.layer.", "layers."),
    (".attention.o_proj.", ".self_attn.o_proj."),
    (".attn_ln.", ".post_attention_layernorm."),
    (".mlp_ln.", ".post_mlp_layernorm."),
)
_STACKED = (
    (".attention.qkv_proj.", (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj.")),
    (".mlp.up_gate_proj.", (".mlp.up_proj.", ".mlp.gate_proj.")),
)


def configuration(told: Mapping[str, Any]) -> Any:
    """transformers' configuration of an encoder. Raises UserError for one that is none, or is not known."""
    from transformers import AutoConfig

    kind = str(told.get("model_type"))
    if any("ForCausalLM" in str(name) for name in told.get("architectures") or ()) or told.get("is_decoder"):
        raise _none(kind)
    plain = dict(_native(told) if kind == "new" else told)
    plain.pop("auto_map", None)
    try:
        config = AutoConfig.for_model(**plain)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"transformers has no text encoder of the kind {kind!r}: {error}") from error
    sized = all(isinstance(getattr(config, name, None), int) for name in ("hidden_size", "max_position_embeddings"))
    if config.is_encoder_decoder or not sized:
        raise _none(kind)
    return config


def build(config: Any) -> Any:
    """The encoder with random weights, in float32, whatever its checkpoint was written in."""
    import torch
    from transformers import AutoModel

    return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)


def check(encoder: Any) -> None:
    """Raises UserError for a model whose first state has not seen what comes after it, as that of a causal LM."""
    import torch

    size = encoder.config.vocab_size
    ids = torch.tensor([[size - 1, size - 2], [size - 1, size - 3]])
    with torch.no_grad():
        one, other = encoder.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    if torch.allclose(one, other, atol=1e-6):
        raise _none(encoder.config.model_type)


def _none(kind: str) -> UserError:
    return UserError(f"a {kind} is no text encoder; name one such as minilm or FacebookAI/roberta-base")


def limit(encoder: Any) -> int:
    """The longest input in tokens. Some encoders begin to count positions behind that of the padding."""
    place = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(place, "padding_idx", None)
    return int(encoder.config.max_position_embeddings) - (0 if padding is None else padding + 1)


def native(weights: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Weights of a GTE encoder under transformers' names, whichever of the two they came under."""
    return dict(_renamed(weights, prefix))


def _renamed(weights: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, tensor in weights.items():
        if not name.startswith(prefix):
            yield name, tensor
            continue
        rest = name[len(prefix) :]
        for theirs, ours in _NATIVE:
            rest = rest.replace(theirs, ours)
        stack = next((parts for theirs, parts in _STACKED if theirs in rest), ())
        theirs = next((theirs for theirs, _ in _STACKED if theirs in rest), "")
        # rows of one matrix stand for several: queries, keys, values; what goes up, then its gate
        for part, piece in zip(stack, tensor.chunk(len(stack)) if stack else (), strict=True):
            yield prefix + rest.replace(theirs, part), piece.contiguous()
        if not stack:
            yield prefix + rest, tensor


def _native(told: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in the hub code's words, in those of transformers."""
    asks = {
        "position_embedding_type": "rope", "layer_norm_type": "layer_norm", "hidden_act": "gelu",
        "logn_attention_scale": False,
    }  # fmt: skip
    for name, value in asks.items():
        if told.get(name, value) != value:
            raise UserError(f"an encoder with {name} = {told[name]!r} is none that transformers' GTE can be")
    plain = {"hidden_size": 768, "num_attention_heads": 12, "type_vocab_size": 1, "rope_theta": 10_000.0, **told}
    same = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
        "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
        "layer_norm_eps", "pad_token_id",
    )  # fmt: skip
    width = plain["hidden_size"] // plain["num_attention_heads"]
    turns = _turns(float(plain["rope_theta"]), plain.get("rope_scaling"), width)
    return {"model_type": "gte", "rope_parameters": turns} | {name: plain[name] for name in same if name in plain}


def _turns(theta: float, scaling: Mapping[str, Any] | None, width: int) -> dict[str, Any]:
    """Rotary positions: the hub code's ntk scaling by k turns dimension i of a head of that width by
    `(theta k)^(-2i/width) / k^(2/width)`, which is a linear scaling of a larger theta."""
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    k = float(scaling["factor"])
    if scaling.get("type") != "ntk":
        raise UserError(f"an encoder with rope_scaling {dict(scaling)} is none that transformers' GTE can be")
    return {"rope_type": "linear", "rope_theta": theta * k, "factor": k ** (2 / width)}
