"""Reading back what evaluating left behind. Imports no torch."""

from pathlib import Path

from excise.comparison.comparison import DRIFT, Side
from excise.plumbing.aggregations import PAIRS
from excise.plumbing.artifacts import read_document, read_lines, unreadable
from schemas.results import Results, Sample


def read_side(folder: Path) -> Side:
    """The metrics and all samples of one model, from `results/base` or `results/ablated`.

    Raises:
        StageError: a file is missing or not whole, or they do not belong together.
    """
    path = folder / "results.json"
    results = read_document(Results, path)
    tasks = {*results.samples, *([DRIFT] if results.drift else [])}
    samples = {task: read_lines(Sample, folder / f"samples/{task}.jsonl") for task in sorted(tasks)}
    for task, count in results.samples.items():
        if len(samples[task]) != count:
            what = f"holds {len(samples[task])} samples, where {path.name} counts {count}"
            raise unreadable(folder / f"samples/{task}.jsonl", what)
    metrics = {task: names for group in results.metrics.values() for task, names in group.items()}
    for task, names in {**metrics, DRIFT: results.drift}.items():
        for name in names:
            described = results.described.get(task, {}).get(name)
            if described is None or task not in samples:
                raise unreadable(path, f"does not describe {name} of {task}")
            if described.aggregation is not None:
                numbers = {_numbers(sample, name) for sample in samples[task]}
                if len(numbers) > 1 or min(numbers, default=2) < (2 if described.aggregation in PAIRS else 1):
                    raise unreadable(folder / f"samples/{task}.jsonl", f"has a sample without its {name}")
    return Side(results=results, samples=samples)


def _numbers(sample: Sample, name: str) -> int:
    """How many numbers a metric has of a sample."""
    value = sample.metrics.get(name, [])
    return len(value) if isinstance(value, list) else 1
