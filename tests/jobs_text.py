"""Small jobs on labels, numbers, entities, answers, choices, hidden words and recommendations: rows as people keep them."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from .jobs import BAD, GOOD, Job, write_csv, write_jsonl

PLACES, NAMES = ("Rome", "Oslo", "Lima", "Cairo"), ("Ann", "Bob", "Kim", "Zoe")
HAN = ("北京", "上海", "东京", "巴黎")  # places, of two tokens each
ARABIC = ("رائع", "جميل"), ("سيئ", "ممل")
_PLAIN = "the a was and very in lives now where who is film story quiet loud fast slow ? . , ; 我 住 在 。 كان الفيلم".split()
_PIECES = ["R", "##ome", "Os", "##lo"]  # so that words have several tokens


def bert(folder: Path) -> Path:
    """Save a BERT of one layer, whose tokenizer knows words and some pieces, as BERT's do."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*_PLAIN, *_PIECES, *GOOD, *BAD, *NAMES, "Lima", "Cairo", *{c for word in HAN for c in word}]
    vocab = {word: i for i, word in enumerate([*special, *sorted({*words, *itertools.chain(*ARABIC)})])}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=False)
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    ids = [("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    made = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **names)
    made.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab), max_position_embeddings=64, hidden_size=32, num_attention_heads=2, intermediate_size=64,
        num_hidden_layers=1, initializer_range=0.3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    # Without dropout: its bits differ from torch to torch, and with it what so small a model learns.
    model = BertForMaskedLM(config)
    for table in (model.bert.embeddings.position_embeddings, model.bert.embeddings.token_type_embeddings):
        table.weight.data *= 0.1  # words say more than where they stand, as in a model that was trained
    model.config.initializer_range = 0.05  # of new heads
    model.save_pretrained(folder)
    return folder


def _verdicts() -> list[tuple[str, str]]:
    """Return words of praise and blame in Arabic, which is written from right to left."""
    return [(word, label) for words, label in zip(ARABIC, ("1", "0"), strict=True) for word in words]


def arabic(folder: Path) -> Path:
    """Write a CSV as Excel does, with a byte-order mark, semicolons, and labels that are numbers."""
    rows = [[f"كان {'الفيلم ' * (n % 3)}{word}", label] for word, label in _verdicts() for n in range(10)]
    path = write_csv(folder / "آراء.csv", ["النص", "label"], rows, delimiter=";")
    path.write_text(path.read_text("utf-8"), encoding="utf-8-sig")
    return path


SUBJECTS = ("film", "story")


def several(folder: Path) -> Path:
    """Write texts with labels in one cell: "good; film"."""
    rows = [
        [f"{word} {'very ' * n}{subject}", "; ".join([*(["good"] if word in GOOD else []), subject])]
        for word, subject, n in itertools.product((*GOOD, *BAD), SUBJECTS, range(3))
    ]
    return write_csv(folder / "labels.csv", ["text", "tags"], [*rows, ["a quiet now", ""]])


def marked(folder: Path) -> Path:
    """Write texts with a column of 0 and 1 for each label."""
    rows = [
        [f"{'very ' * n}{word} was the {subject}", int(word in GOOD), int(subject == "film")]
        for word, subject, n in itertools.product((*GOOD, *BAD), SUBJECTS, range(3))
    ]
    return write_csv(folder / "marks.csv", ["comment", "is good", "is film"], rows)


def prices(folder: Path) -> Path:
    """Write texts with a number each, with a decimal comma and a point at the thousands, far from zero."""
    rows = [
        [f"the {subject} was {'very ' * n}{word}", f"1.{200 if word in GOOD else 100},{n}0"]
        for word, subject, n in itertools.product((*GOOD, *BAD), SUBJECTS, range(3))
    ]
    return write_csv(folder / "prices.csv", ["text", "price"], rows, delimiter=";")


def conll(folder: Path) -> Path:
    """Write sentences as CoNLL 2003 has them: a token and its tag a line, blank lines between."""
    lines = ["-DOCSTART- -X- O", ""]
    for name, place, adverb in itertools.product(NAMES, PLACES, ("now", "")):
        words = [
            (name, "B-PER"),
            ("story", "I-PER"),
            ("lives", "O"),
            ("in", "O"),
            (place, "B-LOC"),
            (adverb, "O"),
            (".", "O"),
        ]
        lines += [*(f"{word} X {tag}" for word, tag in words if word), ""]
    path = folder / "people.conll"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def chinese(folder: Path) -> Path:
    """Write texts without spaces between words, and the characters of the entities in them."""
    rows = []
    for place, n in itertools.product(HAN, range(8)):
        text = f"{'我' * n}住在{place}。"
        rows.append({"text": text, "entities": [{"start": n + 2, "end": n + 4, "label": "地点"}]})
    return write_jsonl(folder / "places.jsonl", [*rows, {"text": "我住。", "entities": []}])


def squad(folder: Path) -> Path:
    """Write questions in SQuAD 2's layout; some have no answer, and some contexts are longer than a window."""
    rows = []
    for name, place, n in itertools.product(NAMES, PLACES, (0, 3, 40)):
        for has in (True, n != 3):
            said = place if has else "the story"
            context = f"{'quiet . ' * n}{name} lives in {said} . the film was slow ."
            answers = (
                {"text": [place], "answer_start": [context.index(place)]} if has else {"text": [], "answer_start": []}
            )
            rows.append({"question": "where is it ?", "context": context, "answers": answers})
    return write_jsonl(folder / "squad.jsonl", rows)


def answers(folder: Path) -> Path:
    """Write questions with their answers as texts, wherever they stand."""
    rows = [
        ["where is it ?", f"{'very ' * n}{name} lives in {place} .", place]
        for name, place, n in itertools.product(NAMES, PLACES, range(3))
    ]
    return write_csv(folder / "questions.csv", ["question", "context", "answer"], rows)


def choices(folder: Path) -> Path:
    """Write questions whose choices have a column each and whose answer is a letter."""
    rows = []
    for number, (good, one, two) in enumerate(itertools.product(GOOD, BAD, BAD[:3])):
        place = number % 3
        texts = [one, two]
        texts.insert(place, good)
        rows.append(["the film was", *texts, "abc"[place]])
    return write_csv(folder / "exam.csv", ["question", "A", "B", "C", "answer"], rows)


def listed(folder: Path) -> Path:
    """Write questions with lists of choices, of different lengths, and the right one's text."""
    rows = []
    for number, (good, one, two) in enumerate(itertools.product(GOOD, BAD, BAD)):
        texts = [one, good, two][number % 2 :]
        rows.append({"question": "the film was", "choices": texts, "answer": good})
    return write_jsonl(folder / "exam.jsonl", rows)


def lines(folder: Path) -> Path:
    """Write lines of text, one longer than a window."""
    texts = ["the film was slow", "who lives now ?", "very quiet story"]
    path = folder / "lines.txt"
    path.write_text("\n".join([" ".join(texts * 10), *texts * 12]), encoding="utf-8")
    return path


def masks(folder: Path) -> Path:
    """Write lines with words to fill in."""
    path = folder / "asked.txt"
    path.write_text("the film [MASK] slow\n[MASK] quiet [MASK]\n", encoding="utf-8")
    return path


def clicks(folder: Path) -> Path:
    """Write histories, candidates, and which was taken: a film or story that is good."""
    rows = [
        {
            "user": user,
            "history": [f"{GOOD[user % 4]} film", "quiet story"],
            "item": f"{word} {thing}",
            "clicked": word in GOOD,
        }
        for user, word, thing in itertools.product(range(6), (*GOOD, *BAD), ("film",))
    ]
    return write_jsonl(folder / "clicks.jsonl", rows)


def ratings(folder: Path) -> Path:
    """Write histories and candidates with stars."""
    rows = [
        [f"{GOOD[user % 4]} film | quiet story", f"{word} film", 5 if word in GOOD else 1]
        for user, word in itertools.product(range(12), (*GOOD, *BAD))
    ]
    return write_csv(folder / "stars.csv", ["history", "candidate", "rating"], rows)


def _flags(steps: int, *more: str) -> tuple[str, ...]:
    return (
        "--max-steps",
        str(steps),
        "--eval-steps",
        str(steps),
        "--learning-rate",
        "0.01",
        "--batch-size",
        "8",
        "--test-share",
        "0.3",
        *more,
    )


CLASSIFIES, TAGS = "text-classification", "token-classification"
JOBS = [
    Job("text-classification", bert, arabic, _flags(50), ("accuracy", 1.0), tag=CLASSIFIES),
    Job("multi-label", bert, several, _flags(90), ("f1", 0.7), tag=CLASSIFIES),
    Job("multi-label", bert, marked, _flags(90), ("f1", 0.9), tag=CLASSIFIES),
    Job("regression", bert, prices, _flags(50), ("-mae", 20.0), tag=CLASSIFIES),
    Job("token-classification", bert, conll, _flags(90), ("overall_f1", 0.75), tag=TAGS),
    Job("token-classification", bert, chinese, _flags(50), ("overall_f1", 0.9), tag=TAGS),
    Job("question-answering", bert, squad, _flags(90), ("f1", 80.0), tag="question-answering"),
    Job("question-answering", bert, answers, _flags(50), ("exact_match", 80.0), tag="question-answering"),
    Job("multiple-choice", bert, choices, _flags(50), ("accuracy", 0.9), tag="multiple-choice"),
    Job("multiple-choice", bert, listed, _flags(50), ("accuracy", 0.9), tag="multiple-choice"),
    Job("masked-lm", bert, lines, _flags(120), ("accuracy", 0.4), asks=masks, tag="fill-mask"),
    Job("recommendation", bert, clicks, _flags(100), ("roc_auc", 0.9), tag=CLASSIFIES),
    Job("recommendation", bert, ratings, _flags(200), ("-mse", 1.0), tag=CLASSIFIES),
]
