"""The ranker as a network: an encoder for instruction and answer apart, and two heads over what it gives.

With x0 and y0 the first state of instruction and answer (the pooler's, where the encoder has one), and Y all
states of the answer (SCAR, 2406.10882):

    v_c   = MLP_c([x0; y0])          how surprising the answer is after the instruction
    v_p   = max over tokens of Y     the form of its language
    score = MLP_r([v_c; v_p])        unbounded, higher is better

A folder has `config.json`, `model.safetensors` and `tokenizer.json`; the original's checkpoints read the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siftune import UserError, models, readers

from . import encoders

KIND = "style_ranker"
SHOWN = 8  # keys that an error lists of each sort
HEADS = ("relation_network", "output_layer")


def network(config: Any, linear_dim: int) -> Any:
    """Encoder and heads with random weights, under the names that checkpoints use."""
    from torch import nn

    def head(out: int) -> Any:
        return nn.Sequential(nn.Linear(2 * width, linear_dim), nn.ReLU(), nn.Linear(linear_dim, out))

    width = int(config.hidden_size)
    return nn.ModuleDict({"encoder": encoders.build(config), HEADS[0]: head(width), HEADS[1]: head(1)})


def states(net: Any, ids: Any, mask: Any) -> tuple[Any, Any]:
    """First states and maxima over the tokens, `(n, width)` each in float32; `mask` is 1 where a token is."""
    import torch

    told = net["encoder"](input_ids=ids, attention_mask=mask)
    every = told.last_hidden_state
    pooled = getattr(told, "pooler_output", None)
    first = every[:, 0] if pooled is None else pooled
    # the least number of the very type: -1e9 would overflow half precision
    form = every.masked_fill(mask[:, :, None] == 0, torch.finfo(every.dtype).min).amax(1)
    return first.float(), form.float()


def judged(net: Any, instruction: Any, answer: Any, form: Any) -> tuple[Any, Any]:
    """Scores `(n,)`, and v_c `(n, width)`, out of first states and the answers' form."""
    import torch

    surprise = net[HEADS[0]](torch.cat([instruction, answer], 1))
    return net[HEADS[1]](torch.cat([surprise, form], 1))[:, 0], surprise


def has_pooler(net: Any) -> bool:
    """Whether the encoder makes its first state anew before it is used."""
    return getattr(net["encoder"], "pooler", None) is not None


def load(reference: str) -> tuple[Any, dict[str, Any]]:
    """A ranker in float32, and what its `config.json` says, with `encoder` filled in.

    Raises UserError for a model that is no ranker, or of which a single key does not fit.
    """
    folder = models.folder(reference)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if told.get("model_type") != KIND:
        raise UserError(
            f"model {reference!r} is no ranker but a {told.get('model_type')}; name one such as "
            "lizhuang144/scar-gte-base, or train one: train scar-ranker"
        )
    told["encoder"] = _encoder_of(told, folder, reference)
    config = encoders.configuration(told["encoder"])
    if int(told.get("hidden_dim", 0)) != config.hidden_size:
        raise UserError(
            f"ranker {reference!r} has heads for states of {told.get('hidden_dim')} numbers, "
            f"and those of its encoder have {config.hidden_size}"
        )
    net = network(config, int(told["linear_dim"]))
    if told.get("pooler", has_pooler(net)) != has_pooler(net):
        raise UserError(f"ranker {reference!r} was trained {'with' if told['pooler'] else 'without'} a pooler")
    fill(net, weights(folder, reference), f"ranker {reference!r}")
    return net.eval(), told


def begin(reference: str, linear_dim: int) -> tuple[Any, dict[str, Any]]:
    """A ranker to train: a trained one, or new heads (drawn from torch's generator) on an encoder.

    An encoder without a pooler's weights gets new ones: it is learned with the heads.
    """
    folder = models.folder(reference)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if told.get("model_type") == KIND:
        return load(reference)
    config = encoders.configuration(told)
    net = network(config, linear_dim)
    prefix = "new." if told.get("model_type") == "new" else f"{net['encoder'].base_model_prefix}."
    found = {_today(name): tensor for name, tensor in weights(folder, reference).items()}
    if any(name.startswith(prefix) for name in found):  # what stands beside it is a head for another task
        found = {name[len(prefix) :]: tensor for name, tensor in found.items() if name.startswith(prefix)}
    if not has_pooler(net):
        found = {name: tensor for name, tensor in found.items() if not name.startswith("pooler.")}
    drawn = {name: one for name, one in net.state_dict().items() if name.startswith((*HEADS, "encoder.pooler."))}
    fill(net, drawn | {f"encoder.{name}": tensor for name, tensor in found.items()}, f"encoder {reference!r}")
    encoders.check(net["encoder"])
    name = Path(reference).name if Path(reference).exists() else reference
    return net, {"encoder_name": name, "encoder": config.to_dict(), "linear_dim": linear_dim}


def save(net: Any, told: Mapping[str, Any], source: Path, folder: Path) -> None:
    """Write a ranker's folder, with the tokenizer that lies in `source`."""
    import shutil

    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    kept = {"model_type": KIND, "architectures": ["StyleRanker"], "hidden_dim": net["encoder"].config.hidden_size}
    config = {**told, **kept, "pooler": has_pooler(net)}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def weights(folder: Path, reference: str) -> dict[str, Any]:
    """Every tensor in a model's folder by name: from safetensors, else from a pickle in which torch reads
    nothing but tensors."""
    import torch
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    if found:
        return found
    pickled = folder / "pytorch_model.bin"
    if not pickled.is_file():
        raise UserError(f"model {reference!r} has no model.safetensors in {folder}")
    try:
        return dict(torch.load(pickled, map_location="cpu", weights_only=True))
    except Exception as error:  # torch names what else it found in the pickle
        raise UserError(f"model {reference!r}: {pickled.name} holds more than weights; it is not read") from error


def fill(net: Any, found: Mapping[str, Any], what: str) -> None:
    """Put the weights in, all of them and nothing else. Raises UserError that lists the keys that do not fit."""
    if net["encoder"].config.model_type == "gte":
        found = encoders.native(found, "encoder.")
    # older transformers wrote these counters beside the weights
    found = {name: tensor for name, tensor in found.items() if not name.endswith(".position_ids")}
    own = net.state_dict()
    shapes = [
        f"{name} {tuple(found[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in found and found[name].shape != own[name].shape
    ]
    wrong = (
        ("it lacks", [name for name in own if name not in found]),
        ("it has besides", [name for name in found if name not in own]),
        ("of another shape are", shapes),
    )
    said = [f"{how} {_listed(names)}" for how, names in wrong if names]
    if said:
        raise UserError(f"{what}: the weights do not fit the network: {'; '.join(said)}")
    with readers.quiet():
        net.load_state_dict(found)


def _today(name: str) -> str:
    """The oldest checkpoints call the weights of a norm by Greek letters."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _encoder_of(told: Mapping[str, Any], folder: Path, reference: str) -> dict[str, Any]:
    """The configuration of a ranker's encoder: its own note of it, one that is known, or a model's by name."""
    if isinstance(told.get("encoder"), dict):
        return dict(told["encoder"])
    name = str(told.get("encoder_name", ""))
    if name in encoders.KNOWN:
        return dict(encoders.KNOWN[name])
    beside = folder / name / "config.json"
    try:
        file = beside if name and beside.is_file() else models.folder(name) / "config.json"
    except UserError as error:
        raise UserError(
            f"ranker {reference!r} names {name!r} as its encoder, which is not to be had: {error}"
        ) from error
    return dict(json.loads(file.read_text(encoding="utf-8")))
