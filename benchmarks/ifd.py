"""IFD's two passes: plain loops against siftune's reader, in one process, on the rows that ship with siftune.

    OMP_NUM_THREADS=1 python benchmarks/ifd.py                        # nano, 300 rows, float32 and bfloat16
    OMP_NUM_THREADS=1 python benchmarks/ifd.py --model 135m --rows 24

`loop` is what the original programs do, at its best: one row at a time, logits of every position, the loss by
labels, two passes. `original` adds what Cherry's does besides: every layer's states are kept, and the loss of
every token is taken once more in a loop over tokens. All sides take turns, piece by piece, so that whatever
else the machine does meets all alike; figures are medians over the repeats with the smallest and largest, in
processor seconds of this process on a processor, in seconds on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from siftune import Sample, Samples, models, prompts
from siftune.models import Encoded, Reader
from siftune_ifd_scorer import pairs

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 operations a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a model, or 135m: a random Llama of that size")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = random_llama(Path(scratch)) if options.model == "135m" else options.model
        told = [measure(model, dtype, options) for dtype in options.dtype]
    if options.json:
        options.json.write_text(json.dumps(told, indent=2))


def measure(model: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    reader = models.reader(model, dtype=dtype, device=options.device)
    samples = real_rows(options.rows, reader)
    encoded = both(samples, reader)
    tokens = sum(len(one.ids) for one in encoded)
    scored = sum(len(one) for one in encoded)
    print(
        f"\n{options.model} in {dtype} on {options.device}, {torch.get_num_threads()} threads: {len(samples)} rows, "
        f"{tokens:,} tokens in both passes, {scored / tokens:.0%} of them scored",
        flush=True,
    )
    with memory() as peak:
        found = ours(samples, reader)
    difference = max(abs(a - b) for a, b in zip(found, loop(samples, reader), strict=True))
    shape = best_shape(reader, options)
    sides = ("loop", "original", "ours", "body", "body and head", "outside")
    spent: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in spent}
    step = max(1, len(samples) // 5)
    parts = [samples[at : at + step] for at in range(0, len(samples), step)]
    for _ in range(options.repeats):
        clock: dict[str, list[float]] = {name: [0.0, 0.0] for name in spent}
        for part in parts:
            some = both(part, reader)
            n, m = sum(len(one.ids) for one in some), sum(len(one) for one in some)
            timed(clock["loop"], lambda part=part: loop(part, reader), options)
            timed(clock["original"], lambda part=part: loop(part, reader, tokens=True), options)
            timed(clock["ours"], lambda part=part: ours(part, reader), options)
            timed(clock["body"], lambda n=n: bare(reader, shape, n, 0), options)
            timed(clock["body and head"], lambda n=n, m=m: bare(reader, shape, n, m), options)
            timed(clock["outside"], lambda part=part: both(part, reader), options)
        for name, (cpu, real) in clock.items():
            spent[name].append(cpu)
            wall[name].append(real)
    times = wall if options.device != "cpu" else spent

    def over_ours(name: str) -> str:
        return spread([a / b for a, b in zip(times[name], times["ours"], strict=True)])

    figures = {
        "model": options.model,
        "dtype": dtype,
        "device": options.device,
        "rows": len(samples),
        "tokens": tokens,
        "seconds": {name: spread(values) for name, values in times.items()},
        "wall seconds": {name: spread(values) for name, values in wall.items()},
        **{f"{name} over ours": over_ours(name) for name in ("loop", "original", "body", "body and head")},
        "tokens per second": tokens / statistics.median(times["ours"]),
        "peak MB above the model": peak[0] / 2**20,
        "largest difference": difference,
        "best shape": shape,
    }
    for name in ("loop over ours", "original over ours", "body over ours", "body and head over ours", "seconds"):
        print(f"  {name}: {figures[name]}")
    print(
        f"  {figures['tokens per second']:,.0f} tokens/s, {peak[0] / 2**20:.0f} MB above the model, "
        f"losses differ by at most {difference:.1e}, bare body at its best with rows x tokens {shape}"
    )
    name = torch.cuda.get_device_name() if options.device != "cpu" else ""
    peaks = [operations for kind, operations in PEAKS.items() if kind in name]
    if peaks:
        share = 2 * reader.model.num_parameters() * figures["tokens per second"] / peaks[0]
        print(f"  {share:.1%} of the peak of {name} by 2 x parameters x tokens")
    return figures


# ---- the two sides ----


def loop(samples: Samples, reader: Reader, tokens: bool = False) -> list[float]:
    """Both mean losses of every row, one row at a time; with `tokens`, token by token besides."""
    template = prompts.template(None, reader.tokenizer)
    opening = "" if template.special else reader.tokenizer.bos_token

    def ids(text: str) -> torch.Tensor:
        words = reader.tokenizer(text, return_tensors="pt", add_special_tokens=template.special)
        return words.input_ids[:, : reader.context]

    found = []
    for sample in samples:
        one = template.pair(sample)
        before, response = one.text[: one.start], one.text[one.start :]
        for prompt, text in ((before, one.text), (opening, opening + response)):
            read = ids(text).to(reader.device)
            labels = read.clone()
            labels[:, : ids(prompt).shape[1]] = -100
            with torch.no_grad():
                answer = reader.model(input_ids=read, labels=labels, output_hidden_states=tokens)
            if tokens:
                for logits, token in zip(answer.logits[0, :-1], read[0, 1:], strict=True):
                    torch.nn.functional.log_softmax(logits.float(), 0)[token].item()
            found.append(float(answer.loss))
    return found


def both(samples: Samples, reader: Reader) -> list[Encoded]:
    """What is done outside the model: render, tokenise, find the response."""
    rows = pairs.forward(None, None, samples, reader, last=True)
    read = [pair for row in rows if not isinstance(row, str) for _, pair in row]
    return [one for pair in read for one in (pair.conditioned, pair.alone)]


def ours(samples: Samples, reader: Reader) -> list[float]:
    return [float(losses.mean(dtype=np.float64)) for losses in reader.token_losses(both(samples, reader))]


def bare(reader: Reader, shape: tuple[int, int], tokens: int, scored: int) -> None:
    """The body alone over as many tokens, in rectangles without padding; then the head, nothing else done."""
    rows, length = shape
    left = max(1, round(tokens / length))
    with torch.inference_mode():
        while left > 0:
            ids = torch.randint(0, reader.model.config.vocab_size, (min(rows, left), length), device=reader.device)
            states = reader.body(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
            left -= rows
        for at in range(0, scored, 128):
            reader.head(states[: min(128, scored - at)])


# ---- measuring ----


def best_shape(reader: Reader, options: argparse.Namespace) -> tuple[int, int]:
    """Rows x tokens at which the bare body reads most tokens a second; the length is that of the real rows."""
    counts = (1, 2, 4, 8, 16) if options.device == "cpu" else (8, 32, 128, 512)
    found = {}
    for rows in counts:
        spent = []
        for _ in range(3):
            clock = [0.0, 0.0]
            timed(clock, lambda rows=rows: bare(reader, (rows, 128), rows * 128, 0), options)
            spent.append(clock[options.device != "cpu"] / rows)
        found[rows] = min(spent)
    return min(found, key=found.__getitem__), 128


def timed(clock: list[float], work: Callable[[], Any], options: argparse.Namespace) -> None:
    cpu, real = time.process_time(), time.perf_counter()
    work()
    if options.device != "cpu":
        torch.cuda.synchronize()
    clock[0] += time.process_time() - cpu
    clock[1] += time.perf_counter() - real


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


@contextlib.contextmanager
def memory() -> Iterator[list[int]]:
    """Peak bytes above what was there before: of the accelerator, or of this process (Linux)."""
    told = [0]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield told
        told[0] = torch.cuda.max_memory_allocated() - before
        return
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _resident("VmRSS")
    yield told
    told[0] = _resident("VmHWM") - before


def _resident(name: str) -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) * 1024


def real_rows(count: int, reader: Reader) -> Samples:
    """Rows of the pool that ships, evenly over it, such that both sides read them whole."""
    text = gzip.decompress(files("siftune").joinpath("quickstart_pool.jsonl.gz").read_bytes()).decode()
    samples = list(Samples.of([json.loads(line) for line in text.splitlines()]))
    template = prompts.template(None, reader.tokenizer)
    kept: list[Sample] = []
    for sample in samples[:: max(1, len(samples) // (2 * count))]:
        if not sample.response.strip() or sample.turns != 1:
            continue
        one = reader.encode([template.pair(sample)], template.special)[0]
        if len(one) > 1 and not one.cut:
            kept.append(sample)
    return Samples.of(kept[:count])


def random_llama(folder: Path) -> str:
    """A Llama of 135 million random weights with 49,152 words, and nano's tokenizer."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    for file in models.folder("nano").glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
