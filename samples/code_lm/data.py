"""The standard library's source text as three token streams: train, calibration and held-out, split by file."""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
# Tables and generated text teach a small model nothing about Python.
SKIPPED_FOLDERS = {"site-packages", "encodings", "pydoc_data", "__pycache__"}
SKIPPED_PREFIXES = ("_sysconfigdata", "bad_", "badsyntax")
LONG_LINE = 24  # characters from which on a line counts as a file's own when two files are compared
MOST_SHARED_WITH_HELD_OUT = 0.2
MOST_SEEN_BEFORE = 0.6
HELD_OUT_PER_MILLE = 30
CALIBRATION_PER_MILLE = 40
# A cap on the tokens from one file, so that no single long file rules the figure.
HELD_OUT_PER_FILE = 2048
CALIBRATION_PER_FILE = 3072
HELD_OUT_TOKENS = 320 * 256
CALIBRATION_TOKENS = 512 * 256


@dataclass
class Split:
    """File texts of the three parts; the same relative path is in one part only, whatever its version."""

    train: list[str]
    calibration: list[str]
    held_out: list[str]


def split_of(relative_path: str) -> str:
    """The part a file belongs to: a fixed function of its path, so every version of a file falls in one part."""
    draw = int.from_bytes(hashlib.sha256(relative_path.encode()).digest()[:8]) % 1000
    if draw < HELD_OUT_PER_MILLE:
        return "held_out"
    return "calibration" if draw < HELD_OUT_PER_MILLE + CALIBRATION_PER_MILLE else "train"


def long_lines(text: str) -> set[str]:
    return {line for line in map(str.strip, text.splitlines()) if len(line) >= LONG_LINE}


def shared_fraction(text: str, seen: set[str]) -> float:
    lines = long_lines(text)
    return len(lines & seen) / len(lines) if lines else 1.0


def read_library(root: Path) -> dict[str, str]:
    """Relative path to text of every usable .py file under `root`."""
    texts = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS & set(relative.parts) or path.name.startswith(SKIPPED_PREFIXES):
            continue
        try:
            text = path.read_text(encoding="utf-8").expandtabs(4)
        except UnicodeDecodeError:
            continue
        if len(text) >= 400 and sum(not c.isascii() for c in text) < 0.02 * len(text):
            texts[relative.as_posix()] = text
    return texts


def split_files(roots: list[Path]) -> Split:
    """Split the libraries under `roots` and drop near copies.

    Evaluation files come from the first root alone. A training file that shares more than a fifth of its long lines
    with them (a module that was moved or renamed between versions) is dropped, and so is a version of a training file
    that brings less than two fifths of new lines.
    """
    libraries = [read_library(root) for root in roots]
    first = libraries[0]
    held_out = [text for path, text in first.items() if split_of(path) == "held_out"]
    held_out_lines = set().union(*map(long_lines, held_out))
    calibration = [
        text
        for path, text in first.items()
        if split_of(path) == "calibration" and shared_fraction(text, held_out_lines) <= MOST_SHARED_WITH_HELD_OUT
    ]
    evaluation_lines = held_out_lines.union(*map(long_lines, calibration))
    train: list[str] = []
    seen: set[str] = set()
    for library in libraries:
        for path, text in library.items():
            if split_of(path) != "train" or shared_fraction(text, evaluation_lines) > MOST_SHARED_WITH_HELD_OUT:
                continue
            if shared_fraction(text, seen) <= MOST_SEEN_BEFORE:
                train.append(text)
                seen |= long_lines(text)
    return Split(train, calibration, held_out)


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str], seed: int, per_file: int | None = None) -> NDArray[np.uint16]:
    """All files in random order, each after one end-of-text token; `per_file` keeps a random run of so many tokens."""
    generator = random.Random(seed)  # noqa: S311
    pieces: list[int] = []
    for text in generator.sample(texts, len(texts)):
        ids = tokenizer.encode(text).ids
        start = generator.randrange(max(1, len(ids) - per_file)) if per_file else 0
        pieces.append(tokenizer.token_to_id(END_OF_TEXT))
        pieces += ids[start : start + per_file] if per_file else ids
    return np.array(pieces, np.uint16)


def prepare(roots: list[Path], vocabulary: int, sample: Path, cache: Path) -> None:
    """Write tokenizer.json, calibration.npy and heldout.npy to `sample` and train.npy to `cache`."""
    split = split_files(roots)
    tokenizer = train_tokenizer(split.train, vocabulary)
    tokenizer.save(str(sample / "tokenizer.json"))
    calibration = token_stream(tokenizer, split.calibration, 1, CALIBRATION_PER_FILE)[:CALIBRATION_TOKENS]
    held_out = token_stream(tokenizer, split.held_out, 2, HELD_OUT_PER_FILE)[:HELD_OUT_TOKENS]
    train = token_stream(tokenizer, split.train, 3)
    np.save(sample / "calibration.npy", calibration)
    np.save(sample / "heldout.npy", held_out)
    cache.mkdir(parents=True, exist_ok=True)
    np.save(cache / "train.npy", train)
    for name, texts, stream in (
        ("train", split.train, train),
        ("calibration", split.calibration, calibration),
        ("held-out", split.held_out, held_out),
    ):
        print(f"{name}: {len(texts)} files, {sum(map(len, texts)) / 1e6:.1f} M characters, {stream.size} tokens")
