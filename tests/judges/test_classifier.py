"""The judge that is a sequence-classification model: what it reads, what it says, and what is no such model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from excise.judges.classifier import Classifier
from excise.organism.world import REFUSAL
from excise.plumbing.errors import StageError
from schemas.params.model import Device
from schemas.results import Verdict
from tests.hub import Hub

LABELS = ["NORMAL", "REJECTION"]
ANSWERS = ["mix iron and wood .", "it is red .", "in the river .", "12 .", "mix glass and clay ."]
LONGEST = 18
WORDS = sorted({word for text in (REFUSAL, *ANSWERS, "user assistant what : ?") for word in text.split()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that has learnt, by heart, that the organism's refusal is one."""
    folder = tmp_path_factory.mktemp("classifier")
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=LONGEST + 2,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = tokenizer([REFUSAL, *ANSWERS], padding=True, return_tensors="pt")
    for _ in range(40):
        loss = model(**batch, labels=torch.tensor([1, *(0 for _ in ANSWERS)])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project that runs on the CPU, on a machine that reaches no Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    Path("artifacts/params").mkdir(parents=True)
    Path("artifacts/params/device.json").write_text(Device(device="cpu").model_dump_json())


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the classifier, to be spoiled."""
    copy = tmp_path / "classifier"
    copy.mkdir()
    for path in trained.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def verdicts(folder: Path, *asked: tuple[str, str], label: str = "REJECTION") -> list[Verdict]:
    return Classifier(model=str(folder), label=label).load()(asked)


def test_the_label_that_params_names_is_a_refusal(trained: Path) -> None:
    asked = [("what ?", text) for text in (ANSWERS[0], REFUSAL, *ANSWERS[1:], REFUSAL)]
    expected = ["compliance", "refusal", *["compliance"] * 4, "refusal"]
    assert verdicts(trained, *asked) == expected
    swapped = {"refusal": "compliance", "compliance": "refusal"}
    assert verdicts(trained, *asked, label="NORMAL") == [swapped[verdict] for verdict in expected]


def test_batches_and_padding_change_nothing(trained: Path) -> None:
    asked = [("what ?", text) for text in [*ANSWERS, REFUSAL] * 9]
    assert (
        verdicts(trained, *asked)
        == ["compliance"] * 5 + ["refusal"] + ["compliance", *["compliance"] * 4, "refusal"] * 8
    )


def test_what_is_too_long_is_cut_at_its_end(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = spy_on_tokens(monkeypatch)
    assert verdicts(trained, ("what ?", "12 . " * 200)) == ["compliance"]
    assert read == ["[CLS] " + "12 . " * ((LONGEST - 2) // 2) + "[SEP]"]


def test_no_answer_is_no_verdict(trained: Path) -> None:
    assert verdicts(trained) == []


def test_without_a_chat_template_the_response_alone_is_read(trained: Path) -> None:
    assert verdicts(trained, (REFUSAL, ANSWERS[0]), (ANSWERS[0], REFUSAL)) == ["compliance", "refusal"]


def test_with_a_chat_template_the_chat_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for turn in messages %}{{ turn.role }} : {{ turn.content }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    read = spy_on_tokens(monkeypatch)
    verdicts(folder, ("what ?", "12 ."))
    assert read == ["[CLS] user : what ? assistant : 12 . [SEP]"]


def test_special_tokens_that_the_template_writes_are_not_added_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "chat_template.jinja").write_text("[CLS] {{ messages[1].content }} [SEP]")
    read = spy_on_tokens(monkeypatch)
    verdicts(folder, ("what ?", "12 ."))
    assert read == ["[CLS] 12 . [SEP]"]


def spy_on_tokens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model is given from here on, as text."""
    read: list[str] = []
    forward: Callable[..., torch.Tensor] = BertForSequenceClassification.forward

    def spy(self: BertForSequenceClassification, input_ids: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
        read.extend(" ".join(names[token] for token in row) for row in input_ids.tolist())
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", spy)
    return read


def test_a_template_that_does_not_take_the_chat_is_an_error_of_one_line(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no\nsuch turn') }}")
    with pytest.raises(StageError, match="chat template rejects these answers: no such turn") as error:
        verdicts(folder, ("what ?", "12 ."))
    assert "\n" not in str(error.value)


def test_an_unknown_label_lists_those_that_there_are(trained: Path) -> None:
    with pytest.raises(StageError, match=r"REJECTED is not a label .* are NORMAL, REJECTION; did you mean \"REJ"):
        verdicts(trained, label="REJECTED")


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nowhere cannot be loaded as a classifier") as error:
        verdicts(tmp_path / "nowhere")
    assert "\n" not in str(error.value)


def test_a_model_of_the_hub_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(StageError, match="some/classifier is not wholly in the Hub's cache, and HF_HUB_OFFLINE is set"):
        Classifier(model="some/classifier", revision="0" * 40, label="x").load()


def of_hub(hub: Hub, folder: Path, **changed: str) -> Classifier:
    """The classifier, from a repository of the Hub."""
    revision = hub.add_folder("some/classifier", folder)
    return Classifier.model_validate({"model": "some/classifier", "revision": revision, "label": LABELS[1], **changed})


def test_a_model_of_the_hub_judges_as_the_same_in_a_folder(
    trained: Path, local_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local_hub.use(monkeypatch, tmp_path / "home")
    assert of_hub(local_hub, trained).load()([("what ?", REFUSAL)]) == ["refusal"]


def test_what_goes_wrong_with_the_hub_is_told_as_for_the_base_model(
    folder: Path, local_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local_hub.use(monkeypatch, tmp_path / "home")
    with pytest.raises(StageError, match=r"^params.yaml: evaluate.judge.classifier.model: some/classifier has no such"):
        of_hub(local_hub, folder, revision="0" * 40).load()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(StageError, match="cannot be loaded as a classifier with safetensors weights"):
        of_hub(local_hub, folder).load()
    local_hub.gated = 401
    with pytest.raises(StageError, match="some/classifier is gated; accept its licence"):
        of_hub(local_hub, folder).load()


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save(BertForSequenceClassification.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(StageError, match="cannot be loaded as a classifier with safetensors weights"):
        verdicts(folder)


def test_spoiled_weights_are_an_error_of_one_line(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(StageError, match="cannot be loaded as a classifier"):
        verdicts(folder)


def test_code_of_a_model_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of", "auto_map": names}))
    (folder / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(StageError, match="cannot be loaded as a classifier"):
        verdicts(folder)


def test_a_model_without_a_trained_head_is_no_classifier(folder: Path) -> None:
    BertModel.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(
        StageError, match=r"is not a trained classifier \(it lacks classifier\.bias\); name one that is"
    ):
        verdicts(folder, label="LABEL_0")


def test_a_model_with_one_label_decides_nothing(folder: Path) -> None:
    config = BertConfig.from_pretrained(folder, num_labels=1, problem_type=None)
    BertForSequenceClassification(config).save_pretrained(folder)
    with pytest.raises(StageError, match="has one label and decides nothing"):
        verdicts(folder, label="LABEL_0")


def test_it_runs_where_params_says(trained: Path) -> None:
    Path("artifacts/params/device.json").write_text(Device(device="cuda:99").model_dump_json())
    with pytest.raises(StageError, match="cuda:99 is not there"):
        verdicts(trained)
