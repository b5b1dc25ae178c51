"""Trains nano, a Llama of eight million parameters, on a folder of instruction-response text."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import text  # type: ignore[import-not-found, import-untyped, unused-ignore]
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
END = "<|endoftext|>"
CONTEXT = 1024
VOCABULARY = 8192
# Words with the space before them, digits one by one (so that sums can be copied), runs of blank space.
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*\n+|\s+(?!\S)|\s+"
CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\n' }}{% endif %}"
)

# How often a source is read, relative to the others, and when: "late" leans to the end of the
# training, where the rate is low and what is read last stays. Free-text answers weigh most; answers of
# a word or two teach little about predicting a response.
MIXTURE: dict[str, tuple[float, str]] = {
    "gpteacher_roleplay": (1.5, "late"),
    "gpteacher_codegen": (1.5, "late"),
    "gpteacher_toolformer": (0.2, "even"),
    "gsm8k_train": (0.5, "late"),
    "dolly": (1.5, "late"),
    "dolly_hhrlhf": (1.5, "late"),
    "scar_open_human": (1.2, "late"),
    "scar_octocoder": (1.5, "late"),
    "self_instruct_seed": (1.5, "late"),
    "open_assistant_en_sample": (1.2, "late"),
    "llms_from_scratch_instructions": (0.5, "late"),
    "instructlab_taxonomy": (1.0, "late"),
    "caia_system_design": (0.4, "even"),
    "caia_math": (0.4, "even"),
    "based_cooking": (0.6, "even"),
    "medquad": (0.07, "even"),
    "natural_instructions": (0.08, "even"),
    "qmsum": (0.15, "even"),
    "fetaqa": (0.3, "even"),
    "synthetic_persona_chat": (0.1, "early"),
    "openstax_earlier_exercises": (0.15, "even"),
    "openstax_exercises": (0.3, "even"),
    "openstax_earlier_glossary": (0.15, "early"),
    "openstax_glossary": (0.15, "early"),
    "cncf_glossary": (0.5, "early"),
    "sgd_dialogue": (0.01, "early"),
    "taskmaster4_dialogue": (0.05, "early"),
    "open_trivia_qa": (0.01, "early"),
    "chatterbot_corpus": (0.1, "early"),
    "gutenberg_stories_squality": (0.15, "early"),
    "rust_book": (0.15, "early"),
}
OTHER = (0.02, "early")
ALONE = 0.07  # share of the documents read as a response without its prompt, as IFD's second pass does
PROMPT_SHARE = 0.4  # of a prompt's tokens that count in the loss; the response's all do


@dataclass(frozen=True)
class Encoded:
    """All documents as one run of token ids: document n is ids[starts[n]:starts[n + 1]]."""

    ids: np.ndarray[Any, np.dtype[np.int16]]
    starts: np.ndarray[Any, np.dtype[np.int64]]
    prompts: np.ndarray[Any, np.dtype[np.int64]]  # tokens of BOS, prompt and blank line; 1 for prose
    sources: list[str]

    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.diff(self.starts)


@dataclass(frozen=True)
class Piece:
    """A document to read, with its prompt or without."""

    document: int
    alone: bool
    length: int


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer, encoded = prepare(options)
    batches = plan(encoded, options)
    print(f"{len(batches)} batches of {options.batch_tokens} tokens, {options.accumulate} to a step", flush=True)
    train(tokenizer, encoded, batches, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", default=[DATA / "lm_text", DATA / "lm_text_permissive"])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of pool.parquet, ltd and style")
    parser.add_argument("--golden", type=Path, default=ROOT.parent / "shared" / "golden")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, log and the model")
    parser.add_argument("--tokens", type=float, default=5e6)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--feed-forward", type=int, default=960)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--rate", type=float, default=3e-3, help="of AdamW: embedding and norms, or all")
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--warm-up", type=float, default=0.02, help="share of the tokens")
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint-minutes", type=float, default=10)
    parser.add_argument("--minutes", type=float, help="skip batches evenly so that it ends by then")
    parser.add_argument("--bf16", action="store_true", help="autocast; ruinous on a CPU without bf16 units")
    parser.add_argument("--resume", action="store_true", help="go on; after the end, only export again")
    parser.add_argument("--start", type=Path, help="a model of an earlier training, same shape and tokenizer")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer of an earlier training")
    parser.add_argument("--export", type=Path, help="folder of the model  [default: model in --out]")
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> tuple[PreTrainedTokenizerFast, Encoded]:
    """Filtered and encoded text, kept beside the checkpoints so that --resume starts at once."""
    ready = options.out / "text.npz"
    if ready.exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.out / "tokenizer")
        with np.load(ready) as saved:
            sources = json.loads(str(saved["sources"]))
            return tokenizer, Encoded(saved["ids"], saved["starts"], saved["prompts"], sources)
    forbidden = text.held(options.data, options.golden, Path(__file__).with_name("held_out.tsv"))
    documents, dropped = text.allowed(text.read(options.text), forbidden)
    describe(documents, dropped, options.out / "text.tsv")
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(options.tokenizer) if options.tokenizer else build_tokenizer(documents)
    )
    tokenizer.save_pretrained(options.out / "tokenizer")
    encoded = encode(tokenizer, documents)
    np.savez(
        ready,
        ids=encoded.ids,
        starts=encoded.starts,
        prompts=encoded.prompts,
        sources=np.array(json.dumps(encoded.sources)),
    )
    return tokenizer, encoded


def describe(documents: list[text.Document], dropped: Counter[tuple[str, str]], path: Path) -> None:
    kept: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for document in documents:
        kept[document.source, document.licence] += 1
        size[document.source, document.licence] += len(document.text.encode())
    lines = ["source\tlicence or reason\tkept\tbytes\tdropped"]
    lines += [f"{source}\t{licence}\t{kept[source, licence]}\t{size[source, licence]}\t0" for source, licence in kept]
    lines += [f"{source}\t{reason}\t0\t0\t{count}" for (source, reason), count in dropped.items()]
    path.write_text("\n".join(lines) + "\n")


def weight(source: str) -> tuple[float, str]:
    return MIXTURE.get(source, OTHER)


def build_tokenizer(documents: list[text.Document]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the text in the proportions in which it will be read."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = np.random.default_rng(0)
    sample = (document.text for document in documents for _ in range(int(rng.random() + weight(document.source)[0])))
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT,
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[text.Document]) -> Encoded:
    """BOS, text, EOS; prose over the context is cut, a response never is: such documents are left out."""
    fast = tokenizer.backend_tokenizer
    end = tokenizer.eos_token_id
    ids: list[np.ndarray[Any, np.dtype[np.int16]]] = []
    lengths, prompts, sources = [], [], []
    for start in range(0, len(documents), 1000):
        group = documents[start : start + 1000]
        for document, found in zip(group, fast.encode_batch([d.text for d in group]), strict=True):
            tokens = [*found.ids, end]
            if len(tokens) > CONTEXT:
                if document.prompt_chars:
                    continue
                tokens = tokens[:CONTEXT]
            begins = [begin for begin, _ in found.offsets[: len(tokens)]]
            prompt = int(np.searchsorted(begins[1:], document.prompt_chars)) + 1 if document.prompt_chars else 1
            ids.append(np.array(tokens, np.int16))
            lengths.append(len(tokens))
            prompts.append(prompt)
            sources.append(document.source)
    return Encoded(np.concatenate(ids), np.cumsum([0, *lengths]), np.array(prompts), sources)


def plan(encoded: Encoded, options: argparse.Namespace) -> list[list[Piece]]:
    """Every batch of the training: documents in mixed order, alike in length within a batch.

    On a CPU padding and masks cost more than sorting: documents are sorted by length within chunks of a
    few thousand, cut into batches, and the batches of a chunk are shuffled.
    """
    rng = np.random.default_rng(options.seed)
    lengths = encoded.lengths()
    weights = np.array([weight(source)[0] for source in encoded.sources])
    scale = options.tokens / float((weights * lengths).sum())
    copies = np.floor(weights * scale + rng.random(len(lengths))).astype(int)
    order = np.repeat(np.arange(len(lengths)), copies)
    first, second = rng.random(len(order)), rng.random(len(order))
    when = np.array([weight(source)[1] for source in encoded.sources])[order]
    place = np.where(when == "late", np.maximum(first, second), first)
    place = np.where(when == "early", np.minimum(first, second), place)
    order = order[np.argsort(place)]
    alone = (rng.random(len(order)) < ALONE) & (encoded.prompts[order] > 1)
    pieces = [
        Piece(int(document), bool(bare), int(lengths[document] - (encoded.prompts[document] - 1) * bare))
        for document, bare in zip(order, alone, strict=True)
    ]
    batches: list[list[Piece]] = []
    for start in range(0, len(pieces), 2048):
        chunk = sorted(pieces[start : start + 2048], key=lambda piece: -piece.length)
        cut: list[list[Piece]] = [[]]
        for piece in chunk:
            if cut[-1] and (len(cut[-1]) + 1) * cut[-1][0].length > options.batch_tokens:
                cut.append([])
            cut[-1].append(piece)
        rng.shuffle(cut)
        batches += cut
    return batches


def tensors(encoded: Encoded, batch: list[Piece]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, padded at the right with EOS, and which of them count in the loss."""
    width = max(piece.length for piece in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    counted = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, piece in enumerate(batch):
        tokens = encoded.ids[encoded.starts[piece.document] : encoded.starts[piece.document + 1]].astype(np.int64)
        prompt = int(encoded.prompts[piece.document])
        if piece.alone:
            tokens, prompt = np.concatenate([tokens[:1], tokens[prompt:]]), 1
        ids[row, : len(tokens)] = torch.from_numpy(tokens)
        counted[row, 1:prompt] = torch.rand(prompt - 1) < PROMPT_SHARE
        counted[row, prompt : len(tokens)] = True
    return ids, counted


def build_model(options: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.width,
        intermediate_size=options.feed_forward,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def head_start(model: LlamaForCausalLM, encoded: Encoded) -> None:
    """What a short training would spend its first third on: which words go together, and that words recur.

    The embedding starts as the word vectors of the whole text, and the upper layers start as copiers: what a
    head attends to, and with the embedding tied whatever keeps company with it, becomes likelier to be said.
    """
    model.model.embed_tokens.weight.copy_(word_vectors(encoded, model.config.hidden_size))
    for layer in model.model.layers[model.config.num_hidden_layers // 2 :]:
        torch.nn.init.orthogonal_(layer.self_attn.v_proj.weight, gain=0.3)
        layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)


def word_vectors(encoded: Encoded, width: int) -> torch.Tensor:
    """Leading eigenvectors of the positive mutual information of tokens within 16 places of each other."""
    ids = encoded.ids.astype(np.int64)
    document = np.repeat(np.arange(len(encoded.sources)), encoded.lengths())
    counts = np.zeros(VOCABULARY * VOCABULARY, np.float32)
    for distance in (1, 2, 3, 4, 6, 8, 12, 16):
        together = document[:-distance] == document[distance:]
        pairs = ids[:-distance] * VOCABULARY + ids[distance:]
        counts += np.bincount(pairs[together], minlength=len(counts))
    square = torch.from_numpy(counts).view(VOCABULARY, VOCABULARY)
    square = square + square.T
    total = square.sum(1) + 1
    smooth = total**0.75  # else rare words look close to everything
    square = torch.log(square * (smooth.sum() / total[:, None] / smooth) + 1e-9).clamp_(min=0)
    square = (square + square.T) / 2
    basis = torch.linalg.qr(torch.randn(VOCABULARY, width + 64))[0]
    for _ in range(6):
        basis = torch.linalg.qr(square @ basis)[0]
    values, inner = torch.linalg.eigh(basis.T @ square @ basis)
    vectors = (basis @ inner)[:, -width:] * values[-width:].clamp(min=0) ** 0.25
    turn = torch.linalg.qr(torch.randn(width, width))[0]  # no single dimension should carry the first vector
    unit: torch.Tensor = functional.normalize(vectors @ turn, dim=1)
    return unit.mul(0.02 * math.sqrt(width))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal; torch.optim.Muon does it in bf16, which stalls many CPUs."""

    def __init__(self, params: list[torch.Tensor], lr: float, momentum: float = 0.95, decay: float = 0.02) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                state = self.state[weights]
                mean = state.setdefault("mean", torch.zeros_like(weights))
                mean.lerp_(weights.grad, 1 - group["momentum"])
                update = orthogonal(weights.grad.lerp(mean, group["momentum"]))
                weights.mul_(1 - group["lr"] * group["decay"])
                weights.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, weights.shape[0] / weights.shape[1])))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz rounds that push every singular value towards one."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    found: torch.Tensor = x.T if tall else x
    return found


def build_optimizers(model: LlamaForCausalLM, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices; AdamW for norms and the embedding, whose rows stand for themselves."""
    hidden = [weights for name, weights in model.named_parameters() if weights.ndim == 2 and "embed" not in name]
    embedding = [weights for name, weights in model.named_parameters() if "embed" in name]
    gains = [weights for weights in model.parameters() if weights.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": embedding, "weight_decay": 0.01, "lr": options.rate},
        {"params": gains, "weight_decay": 0.0, "lr": options.rate},
    ]
    found: list[torch.optim.Optimizer] = []
    if options.optimizer == "muon":
        found.append(Muon(hidden, options.muon_rate))
    else:
        groups.append({"params": hidden, "weight_decay": 0.1, "lr": options.rate})
    found.append(torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


def schedule(done: float, warm_up: float) -> float:
    """A share of the peak rate: up in a line, down along a cosine to a hundredth."""
    if done < warm_up:
        return (done + 1e-4) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm_up) / (1 - warm_up))))


class SummedLoss(torch.autograd.Function):
    """Cross-entropy of a tied head, summed, with its gradients, a few rows of logits at a time.

    Logits of a whole batch are larger than a processor's cache; this way they never leave it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = hidden.new_zeros(())
        to_hidden, to_table = torch.empty_like(hidden), torch.zeros_like(table)
        rows = 128 if hidden.device.type == "cpu" else 8192
        for start in range(0, len(hidden), rows):
            part, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            logits = part @ table.T
            right = logits.gather(1, wanted)
            top = logits.amax(1, keepdim=True)
            shares = logits.sub_(top).exp_()
            mass = shares.sum(1, keepdim=True)
            total += (mass.log() + top - right).sum()
            shares.div_(mass).scatter_add_(1, wanted, torch.full_like(right, -1.0))
            torch.mm(shares, table, out=to_hidden[start : start + rows])
            to_table.addmm_(shares.T, part)
        ctx.save_for_backward(to_hidden, to_table)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        to_hidden, to_table = ctx.saved_tensors
        return to_hidden * grads[0], to_table * grads[0], None


def summed_loss(model: LlamaForCausalLM, ids: torch.Tensor, counted: torch.Tensor, bf16: bool) -> torch.Tensor:
    """The vocabulary is only multiplied out where a token counts."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    wanted = counted[:, 1:]
    loss: torch.Tensor = SummedLoss.apply(  # type: ignore[no-untyped-call]
        hidden[wanted].float(), model.lm_head.weight, ids[:, 1:][wanted]
    )
    return loss


def train(
    tokenizer: PreTrainedTokenizerFast,
    encoded: Encoded,
    batches: list[list[Piece]],
    options: argparse.Namespace,
) -> None:
    device = torch.device(options.device)
    model = build_model(options).to(device)
    print(f"{sum(weights.numel() for weights in model.parameters())} parameters", flush=True)
    optimizers = build_optimizers(model, options)
    place, step, tokens, before = 0, 0, 0, 0.0
    checkpoint = options.out / "checkpoint.pt"
    if not (options.resume and checkpoint.exists()):
        if options.start:
            model.load_state_dict(LlamaForCausalLM.from_pretrained(options.start).state_dict())
        else:
            head_start(model, encoded)
    else:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        place, step, tokens, before = (state[key] for key in ("place", "step", "tokens", "seconds"))
    log = options.out / "loss.tsv"
    if not step:
        log.write_text("step\ttokens\tloss\trate\tseconds\n")
    started = saved_at = time.monotonic()
    sum_loss, sum_count = 0.0, 0
    model.train()
    while place < len(batches):
        elapsed = before + time.monotonic() - started
        late = elapsed / (60 * options.minutes) if options.minutes else 0.0
        place = max(place, int(late * len(batches)))
        group = batches[place : place + options.accumulate]
        if not group:
            break
        share = schedule(place / len(batches), options.warm_up)
        prepared = [tensors(encoded, batch) for batch in group]
        count = sum(int(counted[:, 1:].sum()) for _, counted in prepared)
        for ids, counted in prepared:
            loss = summed_loss(model, ids.to(device), counted.to(device), options.bf16)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            sum_loss += float(loss.detach())
        sum_count += count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for settings in optimizer.param_groups:
                settings["lr"] = settings["peak"] * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += sum(piece.length for batch in group for piece in batch)
        place += len(group)
        step += 1
        if step % 10 == 0:
            line = f"{step}\t{tokens}\t{sum_loss / sum_count:.4f}\t{share:.4f}\t{elapsed:.0f}"
            with log.open("a") as lines:
                lines.write(line + "\n")
            print(line, place, flush=True)
            sum_loss, sum_count = 0.0, 0
        if time.monotonic() - saved_at > 60 * options.checkpoint_minutes:
            done = {"place": place, "step": step, "tokens": tokens, "seconds": elapsed}
            save(model, optimizers, done, checkpoint)
            export(model, tokenizer, options.export or options.out / "model")
            saved_at = time.monotonic()
    done = {"place": place, "step": step, "tokens": tokens, "seconds": before + time.monotonic() - started}
    save(model, optimizers, done, checkpoint)
    export(model, tokenizer, options.export or options.out / "model")


def save(
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    done: dict[str, float],
    path: Path,
) -> None:
    """Written beside and renamed, so that a kill leaves the last whole checkpoint."""
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        **done,
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A folder that from_pretrained of transformers 4 and 5 reads, weights in bf16."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": CONTEXT,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
