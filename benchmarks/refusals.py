"""How well judges tell refusals that people labelled, and the training of the one that comes with excise.

    python -m benchmarks.refusals             # the halves that nothing was developed on; writes weights and docs
    python -m benchmarks.refusals --develop   # the other halves, where the classifier is judged by cross-validation

Two sets, both under the MIT license, are fetched at a commit, or read from clones in the folder of `--data`. Half of
the prompts of each, by their SHA-256, were put aside before anything was written. The figures are of a classifier that
is trained on the other halves; the one that is written to excise/judges/ is then trained on all. Nothing of their texts
is kept: the weights know n-grams by number. A minute on one core.
"""

import argparse
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import httpx2
import numpy as np
from safetensors.numpy import save
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from excise.comparison.intervals import rate_interval
from excise.gitops.experiments.tables import written_into
from excise.judges.classifier import NGRAMS, Ngrams, ngrams
from excise.judges.ensemble import Ensemble, join
from excise.judges.keywords import judge_by_keywords
from excise.plumbing.errors import StageError
from excise.plumbing.files import write_text
from schemas.results import Verdict

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "judges.md"
BEFORE = "443bf31"
"""The last commit whose judge `keywords` knew only phrases."""

_FEWEST_ANSWERS = 5  # that an n-gram occurs in
_INVERSE_PENALTY = 10.0
_FOLDS = 5


@dataclass(frozen=True)
class Source:
    """A public repository at a commit, and the SHA-256 of what is read of it."""

    repository: str
    commit: str
    places: tuple[str, ...]
    """Files, or folders of them."""
    sha256: str
    read: Callable[[dict[str, bytes]], list["Labelled"]]


@dataclass(frozen=True)
class Labelled:
    prompt: str
    text: str
    label: str
    """`refusal`, `compliance`, or a name of the set's own for what is neither."""
    group: str
    """A model and language, or empty."""

    @property
    def kept_back(self) -> bool:
        return hashlib.sha256(self.prompt.encode()).digest()[-1] % 2 == 1


def _chatgpt_refusals(files: dict[str, bytes]) -> list[Labelled]:
    names = {"rejected": "refusal", "complied": "compliance"}
    (content,) = files.values()
    return [
        Labelled(item["prompt"], item["response"], names.get(item["tone"], "between"), "")
        for item in json.loads(content)
    ]


def _latent_jailbreak(files: dict[str, bytes]) -> list[Labelled]:
    """Answers that do not follow are refusals, others compliance; each pair of a prompt and an answer once."""
    answers: dict[tuple[str, str], Labelled] = {}
    for name, content in sorted(files.items()):
        item, model = json.loads(content), name.split("/")[2]
        prompt, text = item["context"], item["response"]
        signs = sum("\u4e00" <= sign <= "\u9fff" for sign in text)
        language = "Chinese" if signs > len(text) / 10 else "English"
        label = "refusal" if item["following"] == "not_follow" else "compliance"
        answers.setdefault((prompt, text), Labelled(prompt, text, label, f"{model}, {language}"))
    return list(answers.values())


SOURCES = {
    "chatgpt-refusals": Source(
        repository="maxwellreuter/chatgpt-refusals",
        commit="37d405b88624b2512b4ad44efa4067a73713aeec",
        places=("data/all_hand_labeled.json",),
        sha256="bf209378af45616be4226abc607e73ecb58a3efad09e8dae7286279a7e3ab215",
        read=_chatgpt_refusals,
    ),
    "latent-jailbreak": Source(
        repository="qiuhuachuan/latent-jailbreak",
        commit="e659ed787673fbf87c9b9ec0d83459af16587bf4",
        places=("human_annotated_data/P1", "human_annotated_data/P2", "human_annotated_data/P3"),
        sha256="d9cb0c0c2dd540c12e137f8291004b734fda9fe31460474b6c89dca7e35790aa",
        read=_latent_jailbreak,
    ),
}


def labelled(source: Source, clones: Path | None) -> list[Labelled]:
    """The answers of a set. Raises `StageError`: what is found is not what the figures are of."""
    files = _fetched(source) if clones is None else _read(source, clones / source.repository.partition("/")[2])
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    if digest.hexdigest() != source.sha256:
        found = f"{len(files)} files of SHA-256 {digest.hexdigest()}"
        raise StageError(
            f"{source.repository} at {source.commit} should have other content than {found}; fetch it again"
        )
    return source.read(files)


def _read(source: Source, clone: Path) -> dict[str, bytes]:
    places = [clone / place for place in source.places]
    paths = [path for place in places for path in ([place] if place.is_file() else place.rglob("*.json"))]
    return {path.relative_to(clone).as_posix(): path.read_bytes() for path in paths}


def _fetched(source: Source) -> dict[str, bytes]:
    address = f"https://codeload.github.com/{source.repository}/tar.gz/{source.commit}"
    archive = httpx2.get(address, timeout=600, follow_redirects=True).raise_for_status().content
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            name = member.name.partition("/")[2]
            places = [place for place in source.places if name == place or name.startswith(f"{place}/")]
            if member.isfile() and name.endswith(".json") and places:
                content = members.extractfile(member)
                assert content is not None  # it is a file
                files[name] = content.read()
    return files


def train(answers: Sequence[Labelled]) -> Ngrams:
    """The classifier of refusals against compliance that these answers give."""
    known = [answer for answer in answers if answer.label in ("refusal", "compliance")]
    vectorizer = TfidfVectorizer(analyzer=ngrams, min_df=_FEWEST_ANSWERS, sublinear_tf=True)
    model = LogisticRegression(C=_INVERSE_PENALTY, class_weight="balanced", max_iter=2_000)
    model.fit(vectorizer.fit_transform([each.text for each in known]), [each.label == "refusal" for each in known])
    # float32, as they are stored, so that the figures are those of the stored ones.
    idf, coefficients = (values.astype(np.float32).tolist() for values in (vectorizer.idf_, model.coef_[0]))
    pairs = zip(idf, coefficients, strict=True)
    return Ngrams(
        dict(zip(vectorizer.get_feature_names_out().tolist(), pairs, strict=True)), float(model.intercept_[0])
    )


def write_ngrams(classifier: Ngrams) -> None:
    """Write the weights to where the judge reads them."""
    rows = sorted(classifier.weights.items())
    NGRAMS.write_bytes(
        save(
            {
                "ngram": np.array([ngram for ngram, _ in rows], dtype=np.uint32),
                "idf": np.array([idf for _, (idf, _) in rows], dtype=np.float32),
                "coefficient": np.array([coefficient for _, (_, coefficient) in rows], dtype=np.float32),
                "intercept": np.array([classifier.intercept], dtype=np.float64),
            }
        )
    )


def probabilities(parts: dict[str, list[Labelled]]) -> dict[str, list[float]]:
    """For each answer, the probability by a classifier that was trained on all other folds of prompts."""
    answers = [answer for part in parts.values() for answer in part]
    found = np.zeros(len(answers))
    for rows, rest in GroupKFold(_FOLDS).split(answers, groups=[answer.prompt for answer in answers]):
        classifier = train([answers[row] for row in rows])
        found[rest] = [classifier.probability(answers[row].text) for row in rest]
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    return dict(zip(parts, [part.tolist() for part in np.split(found, ends)], strict=True))


def phrases_only() -> Callable[[Sequence[tuple[str, str]]], list[Verdict]]:
    """The judge `keywords` of an earlier commit."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("keywords.py", "phrases.yaml"):
            shown = subprocess.run(["git", "show", f"{BEFORE}:excise/judges/{name}"], check=True, capture_output=True)
            Path(folder, name).write_bytes(shown.stdout)
        module = _imported(Path(folder, "keywords.py"))
        module.refuses("")  # reads the phrases while they are there
    return module.judge_by_keywords


def _imported(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location("earlier_keywords", path)
    assert specification is not None and specification.loader is not None  # it is a Python file
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look there
    specification.loader.exec_module(module)
    return module


def table(parts: dict[str, list[Labelled]], chances: dict[str, list[float]], groups: bool) -> str:
    """How each judge does on each set."""
    lines = [
        "| set | judge | refusals found | … or called evasion | compliance called refusal | … or evasion | precision |",
        "| --- | --- | --- | --- | --- | --- | ---: |",
    ]
    earlier = phrases_only()
    between = []
    for name, part in parts.items():
        asked = [("", answer.text) for answer in part]
        keywords = judge_by_keywords(asked)
        judges: dict[str, Sequence[Verdict]] = {
            f"`keywords` of {BEFORE}": earlier(asked),
            "`keywords`": keywords,
            "`classifier`": ["refusal" if chance >= 0.5 else "compliance" for chance in chances[name]],
            "`ensemble`": [
                join(verdict, chance, Ensemble().sure) for verdict, chance in zip(keywords, chances[name], strict=True)
            ],
        }
        for title, verdicts in judges.items():
            lines.append(_line(name, title, part, verdicts))
            others = [verdict for answer, verdict in zip(part, verdicts, strict=True) if answer.label == "between"]
            if others:
                shares = ", ".join(f"{others.count(kind) / len(others):.3f} {kind}" for kind in ("refusal", "evasion"))
                between.append(f"{title} {shares}")
        for group in sorted({answer.group for answer in part} - {""}) if groups else ():
            rows = [row for row, answer in enumerate(part) if answer.group == group]
            for title, verdicts in judges.items():
                lines.append(
                    _line(f"{name}: {group}", title, [part[row] for row in rows], [verdicts[row] for row in rows])
                )
    return "\n".join([*lines, "", f"Answers that people called neither: {'; '.join(between)}."])


def _line(name: str, title: str, part: Sequence[Labelled], verdicts: Sequence[Verdict]) -> str:
    judged = list(zip(part, verdicts, strict=True))

    def rate(label: str, *said: Verdict) -> str:
        values = [verdict in said for answer, verdict in judged if answer.label == label]
        if not values:
            return "–"
        clusters = np.unique([answer.prompt for answer in part if answer.label == label], return_inverse=True)[1]
        interval = rate_interval(values, clusters, 0.95)
        return f"{np.mean(values):.3f} [{interval.low:.3f}, {interval.high:.3f}] of {len(values)}"

    rates = [
        rate(label, *said) for label in ("refusal", "compliance") for said in (("refusal",), ("refusal", "evasion"))
    ]
    said = [answer.label for answer, verdict in judged if verdict == "refusal" and answer.label != "between"]
    precision = f"{said.count('refusal') / len(said):.3f}" if said else "–"
    return f"| {name} | {title} | {' | '.join(rates)} | {precision} |"


def main() -> None:
    """Print or write the table, and the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="a folder with clones of both repositories, in place of fetching them"
    )
    parser.add_argument("--develop", action="store_true", help="the halves that judges may be developed on")
    options = parser.parse_args()
    sets = {name: labelled(source, options.data) for name, source in SOURCES.items()}
    developed = {name: [answer for answer in answers if not answer.kept_back] for name, answers in sets.items()}
    if options.develop:
        print(table(developed, probabilities(developed), groups=True))
        return
    classifier = train([answer for answers in developed.values() for answer in answers])
    kept_back = {name: [answer for answer in answers if answer.kept_back] for name, answers in sets.items()}
    chances = {name: [classifier.probability(answer.text) for answer in part] for name, part in kept_back.items()}
    text = table(kept_back, chances, groups=False)
    write_ngrams(train([answer for answers in sets.values() for answer in answers]))
    write_text(DOCUMENT, written_into(DOCUMENT.read_text(encoding="utf-8"), {"people": text}, {}, DOCUMENT.name))
    print(text)


if __name__ == "__main__":
    main()
