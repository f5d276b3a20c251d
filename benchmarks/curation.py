"""What curation finds of labels that were changed and copies that were planted, among real photos.

    python benchmarks/curation.py --data DOGS --model build/ml/model

Labels: a share of all labels is changed at random, with several seeds; heads, ranking and list are those of curation.
The photos' own wrong and doubtful labels count as false alarms. Copies: each of some photos is changed in several ways
and looked for among all photos, by curation's two steps, by the cosine of the features alone (from 0.88 on, above all
pairs of photos that are no copies) and, where ImageHash is installed, by its perceptual hash (up to 10 bits).

Prints two tables and writes the same figures to build/bench/curation.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from dogbreed import artifacts, backbones, folding
from dogbreed.curation import copies, noise
from dogbreed.preprocessing import decode
from dogbreed.training import folds
from dogbreed.training.sources import find_splits

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench" / "curation.json"
COSINE, BITS = 0.88, 10


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, valid and test")
    parser.add_argument("--model", type=Path, required=True, help="folder of a bundle; its backbone gives the features")
    parser.add_argument("--shares", type=float, nargs="*", default=(0.0, 0.02, 0.05, 0.1), help="of changed labels")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=100, help="that are copied")
    chosen = parser.parse_args()
    splits = find_splits({"train": chosen.data}, validation_fraction=0.5, seed=0)
    samples = [*splits.train, *splits.validation, *(splits.test or ())]
    paths = [sample.path for sample in samples]
    features = make_features(chosen.model)
    features_NF = features(paths)
    given = np.array([sample.index for sample in samples])
    learning = np.arange(len(samples)) < len(splits.train)
    rows = [
        {"share": share, **mean([labels(features_NF, given, learning, share, seed) for seed in range(chosen.seeds)])}
        for share in chosen.shares
    ]
    found = find_copies(paths, features_NF, features, chosen.photos)
    for table in (rows, found):
        print("\n| " + " | ".join(table[0]) + " |\n|" + "---|" * len(table[0]))
        for row in table:
            print(
                "| "
                + " | ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values())
                + " |"
            )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"arguments": vars(chosen), "labels": rows, "copies": found}, default=str, indent=2))
    return 0


def make_features(model: Path) -> Callable[[list[Path]], NDArray[np.float16]]:
    """What gives the features of files, [N, F]."""
    bundle = artifacts.load(model)
    spec = bundle.preprocessing
    frozen = folding.accelerated(
        backbones.cut_at_head(bundle.build()).frozen, torch.float32, torch.randn(1, 3, spec.size_px, spec.size_px)
    )

    @torch.no_grad()
    def features(paths: list[Path]) -> NDArray[np.float16]:
        found = []
        for start in range(0, len(paths), 32):
            views = torch.stack([spec.centre_view(decode(path)) for path in paths[start : start + 32]])
            found.append(frozen(spec.normalise(views).contiguous(memory_format=torch.channels_last)).half().numpy())
            print(f"\r{start} of {len(paths)} photos", end="", file=sys.stderr)
        return np.concatenate(found)

    return features


def labels(
    features_NF: NDArray[np.float16], true: NDArray[np.int64], learning: NDArray[np.bool_], share: float, seed: int
) -> dict[str, float]:
    """What is found of changed labels."""
    rng = np.random.default_rng(seed)
    classes = int(true.max()) + 1
    given, changed = true.copy(), np.zeros(len(true), dtype=bool)
    changed[rng.permutation(len(true))[: round(share * len(true))]] = True
    given[changed] = (true[changed] + 1 + rng.integers(0, classes - 1, changed.sum())) % classes
    dealt = np.full(len(true), folds.NO_FOLD)
    dealt[learning] = folds.deal(given[learning].tolist(), seed=seed)
    probabilities = folds.probabilities(features_NF, given, dealt, learning, classes=classes, seed=seed)
    if probabilities is None:
        raise RuntimeError("nothing asked for a stop")
    doubt = -probabilities[np.arange(len(given)), given]
    found = noise.find(probabilities, given)
    figures = {"changed": float(changed.sum()), "listed": float(len(found.suspects))}
    if not changed.any():
        return {**figures, "precision": 0.0, "recall": 0.0, "AUROC": 0.0, "precision at k": 0.0, "right class": 0.0}
    hit = changed[found.suspects]
    worst = np.argsort(-doubt, kind="stable")[: changed.sum()]
    return {
        **figures,
        "precision": float(hit.mean()),
        "recall": float(hit.sum() / changed.sum()),
        "AUROC": auroc(doubt, changed),
        "precision at k": float(changed[worst].mean()),
        "right class": float((found.likely[hit] == true[found.suspects[hit]]).mean()),
    }


def auroc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """The probability that a positive scores higher than a negative one (Mann and Whitney)."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    count = positive.sum()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def change(image: Image.Image, rng: random.Random) -> dict[str, Image.Image]:
    """A photo as its copies look."""
    width, height = image.size

    def cropped(share: float) -> Image.Image:
        side, top = int(width * share), int(height * share)
        x, y = rng.randint(0, width - side), rng.randint(0, height - top)
        return image.crop((x, y, x + side, y + top))

    return {
        "half the size": image.resize((width // 2, height // 2), Image.Resampling.LANCZOS),
        "1.5 times the size": image.resize((width * 3 // 2, height * 3 // 2), Image.Resampling.BICUBIC),
        "JPEG quality 40": image,
        "mirrored": ImageOps.mirror(image),
        "brighter by 30%": ImageEnhance.Brightness(image).enhance(1.3),
        "grey": image.convert("L"),
        "cropped to 95%": cropped(0.95),
        "cropped to 85%": cropped(0.85),
        "cropped to 70%": cropped(0.7),
    }


def find_copies(
    paths: list[Path],
    features_NF: NDArray[np.float16],
    features: Callable[[list[Path]], NDArray[np.float16]],
    count: int,
) -> list[dict[str, object]]:
    """The share of copies that each way finds, and its false alarms among the photos themselves."""
    rng = random.Random(0)
    originals = sorted(rng.sample(range(len(paths)), count))
    named: dict[str, list[Path]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for position in originals:
            with Image.open(paths[position]) as photo:
                for name, image in change(photo.convert("RGB"), rng).items():
                    file = Path(scratch, f"{name} {position}.jpg")
                    image.save(file, quality=40 if name.startswith("JPEG") else 90)
                    named.setdefault(name, []).append(file)
        rows: list[dict[str, object]] = [{"copies": "none: false alarms", **ways(paths, features_NF, {})}]
        for name, files in named.items():
            everything = np.concatenate([features_NF, features(files)])
            pairs = {(position, len(paths) + number): True for number, position in enumerate(originals)}
            rows.append({"copies": name, **ways([*paths, *files], everything, pairs)})
    return rows


def ways(
    paths: list[Path], features_NF: NDArray[np.float16], wanted: Mapping[tuple[int, int], bool]
) -> dict[str, object]:
    """Of each way the share of wanted pairs that it finds, or how many it finds where none is wanted."""
    likely = copies.candidates(features_NF)
    thumbnails = {}
    for position in {one for pair in (wanted or likely) for one in pair}:
        with Image.open(paths[position]) as image:
            thumbnails[position] = copies.thumbnail(image)
    found = {pair[:2] for pair in copies.compare(likely, thumbnails)}
    directions = features_NF.astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    alike = {tuple(pair) for pair in np.argwhere(np.triu(directions @ directions.T, 1) >= COSINE).tolist()}
    given = {"curation": found, f"cosine from {COSINE}": alike}
    try:
        import imagehash
    except ModuleNotFoundError:
        pass
    else:
        hashes = {}
        for position in {one for pair in wanted for one in pair} if wanted else range(len(paths)):
            with Image.open(paths[position]) as image:
                hashes[position] = imagehash.phash(image.convert("RGB")).hash.ravel()
        pairs = wanted or [(one, other) for one in hashes for other in hashes if one < other]
        given["perceptual hash"] = {pair for pair in pairs if (hashes[pair[0]] != hashes[pair[1]]).sum() <= BITS}
    return {
        name: float(len(pairs & wanted.keys()) / len(wanted)) if wanted else len(pairs) for name, pairs in given.items()
    }


if __name__ == "__main__":
    sys.exit(main())
