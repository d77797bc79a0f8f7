"""Make panels of reviews, for benchmarks with a long context and four answers: panels-train.jsonl and panels-eval.jsonl.

Seven reviews of the demo data each, about 200 tokens; the label says how many of them are positive. The files are written
beside this script; the same data always gives the same bytes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED, SIZE = 2305, 7
PANELS = {"train": 200, "eval": 50}
LABELS = ("bad", "rather bad", "rather good", "good")


def main() -> None:
    """Write both files."""
    for name, count in PANELS.items():
        rows = [json.loads(line) for line in (HERE / f"reviews-{name}.jsonl").read_text().splitlines()]
        random.Random(SEED).shuffle(rows)
        lines = []
        for start in range(0, count * SIZE, SIZE):
            panel = rows[start : start + SIZE]
            positive = sum(row["label"] == "positive" for row in panel)
            text = " ".join(row["text"] for row in panel)
            lines.append(json.dumps({"text": text, "label": LABELS[positive // 2]}))
        (HERE / f"panels-{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
