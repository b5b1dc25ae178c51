"""Draws the loss over the tokens seen, from the log of train.py."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=HERE / "loss.tsv")
    parser.add_argument("--picture", type=Path, default=HERE / "loss.png")
    options = parser.parse_args()
    with options.log.open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    loss = figure.subplots()
    seen = [int(row["tokens"]) / 1e6 for row in rows]
    loss.plot(seen, [float(row["loss"]) for row in rows], color="#1f4e79", linewidth=1.2)
    loss.set(xlabel="million tokens", ylabel="loss, nats a token")
    rate = loss.twinx()
    rate.plot(seen, [float(row["rate"]) for row in rows], color="#999999", linewidth=0.8)
    rate.set(ylabel="share of the peak learning rate", ylim=(0, 1.05))
    figure.savefig(options.picture, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
