"""A tiny random encoder and a tiny random ranker, and where the original program's numbers are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "scar"


@pytest.fixture(scope="session")
def golden() -> Any:
    if not GOLDEN.is_dir():
        pytest.skip("the original's numbers are not here")
    return json.loads((GOLDEN / "golden.json").read_text())


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers that reads 64 tokens, without a pooler's weights; its tokenizer opens with <s>."""
    import torch
    from safetensors.torch import save_file
    from siftune.testing import tiny_model
    from transformers import BertConfig, BertModel

    words = tiny_model(tmp_path_factory.mktemp("words") / "causal")
    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((words / name).read_bytes())
    size = json.loads((words / "config.json").read_text())["vocab_size"]
    config = BertConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    save_file(BertModel(config, add_pooling_layer=False).state_dict(), folder / "model.safetensors")
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ranker_folder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ranker on it."""
    import torch
    from siftune_scar_ranker import network

    torch.manual_seed(1)
    net, told = network.begin(str(encoder), 16)
    folder = tmp_path_factory.mktemp("rankers") / "tiny"
    network.save(net, {**told, "languages": ["en"]}, encoder, folder)
    return folder
