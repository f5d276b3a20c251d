"""`python -m dogbreed.evaluation FOLDER [OTHER]`: figures and page of answers that were collected before.

Reads run.json and answers.csv, writes evaluation.json and evaluation.html beside them, and prints the figures. With
another folder of the same images it also says whether FOLDER's model is better than OTHER's. Compares nothing but what
stands in the files: no model is asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.evaluation import answers, figures
from dogbreed.evaluation.answers import ResultError, Run
from dogbreed.evaluation.figures import Comparison, Evaluation, Share

FIGURES_FILE = "evaluation.json"
PAGE_FILE = "evaluation.html"

_USAGE = "usage: python -m dogbreed.evaluation FOLDER [OTHER]"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 for a folder that cannot be read or written, 2 for a wrong command line."""
    if len(arguments) not in (1, 2) or any(argument.startswith("-") for argument in arguments):
        print(f"{_USAGE} (found: {' '.join(arguments) or 'nothing'})", file=sys.stderr)
        return 2
    folders = [Path(argument) for argument in arguments]
    try:
        run, rows = answers.read(folders[0])
        evaluation = figures.evaluate(run, rows)
        comparison = figures.compare(answers.read(folders[1]), (run, rows)) if len(folders) > 1 else None
        text = json.dumps(figures.as_document(run, evaluation, comparison), indent=2, ensure_ascii=False) + "\n"
        (folders[0] / FIGURES_FILE).write_text(text, encoding="utf-8")
        print(summary(run, evaluation, comparison))
        page = folders[0] / PAGE_FILE
        page.write_text(_page(run, rows, evaluation, comparison), encoding="utf-8")
    except (ResultError, ValueError, OSError) as error:
        print(f"{folders[0]}: {error}" if isinstance(error, ValueError) else error, file=sys.stderr)
        return 1
    print(page)
    return 0


def summary(run: Run, one: Evaluation, comparison: Comparison | None = None) -> str:
    """The figures for a terminal."""
    lines = [
        f"top-1 accuracy  {_share(one.top1)}",
        f"top-5 accuracy  {_share(one.top5)}",
        f"calibration     expected error {one.calibration_error:.1%} in {len(one.bins)} bins; Brier {one.brier:.4f}; "
        f"log loss {one.log_loss:.4f}",
        f"speed           {one.images_per_s:.1f} images/s with {run.parallel} at once; median "
        f"{one.latency_p50_s * 1000:.0f} ms, 99th percentile {one.latency_p99_s * 1000:.0f} ms",
    ]
    if one.pairs:
        told = ", ".join(
            f"{pair.true} taken for {pair.predicted} ({pair.count} of {pair.images})" for pair in one.pairs[:3]
        )
        lines.append(f"worst pairs     {told}")
    for name, share in (("known", one.known), ("others known", one.others_known)):
        if share is not None:
            lines.append(f"{name:<15} {_share(share)}")
    lines += one.notes
    if comparison is not None:
        lines += [comparison.sentence, *comparison.notes]
    return "\n".join(lines)


def _share(share: Share) -> str:
    interval = share.interval
    return f"{share.value:.1%} ({share.right} of {share.count}; 95% interval {interval.low:.1%} to {interval.high:.1%})"


def _page(run: Run, rows: Sequence[answers.Row], evaluation: Evaluation, comparison: Comparison | None) -> str:
    try:
        from dogbreed.evaluation import page
    except ModuleNotFoundError as error:
        raise ResultError(
            f"the figures are in {FIGURES_FILE}, but the page needs {error.name}, which is not installed: run "
            f"`make install`"
        ) from error
    return page.render(run, rows, evaluation, comparison)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
