"""Recognition of speech: the text of a sound, written by a decoder (Whisper) or read off its frames (CTC, wav2vec 2.0).

CTC's loss needs a letter in the tokenizer for each in the texts. Graves et al. 2006, Connectionist temporal
classification. Radford et al. 2022, arXiv:2212.04356 (Whisper).
"""

from __future__ import annotations

import json
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import logging

from ...errors import ConfigError, DataError, ModelError, some
from ..columns import IGNORED, heard
from ..data import media
from ..data.columns import Role, is_empty
from .preparation import Preparation
from .sounds import encoded, limit_of, longest, opened, shown_values
from .texts import is_text

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

TRANSCRIPT = Role(
    "text",
    ("text", "transcript", "transcription", "sentence", "normalized text", "words", "texto", "texte"),
    is_text, is_label=True,
)  # fmt: skip
_CASES: dict[str, Callable[[str], str]] = {"as it is": str, "upper": str.upper, "lower": str.lower}
_FASTEST = 50  # letters a second: the frames of most CTC models, and three times what anybody says


class Speech(Preparation):
    """The text of each sound.

    options: max_seconds, what is longer is not learnt, as a part of a sound has not its text. language and speech_task
    are Whisper's. Of CTC, which `is_ctc` says: letters, those that the tokenizer knows, and case, how they are written.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("max_seconds", "language", "speech_task")
    _type: str = ""  # the base's model type, of CTC's
    _most: int | None = None  # the tokens of a text that it writes
    _takes: float | None = None  # the seconds of a sound that it takes
    _tokenizer: Any = None
    processor_class: ClassVar[str] = "AutoProcessor"
    trainer_class: ClassVar[str] = "transformers.Seq2SeqTrainer"
    arguments_class: ClassVar[str] = "transformers.Seq2SeqTrainingArguments"

    @classmethod
    def suits(cls, config: Any) -> bool:
        return not hasattr(config, "ctc_loss_reduction")  # which letters CTC learnt, only its rows tell

    def know_base(self, config: Any) -> None:
        is_ctc = hasattr(config, "ctc_loss_reduction")
        self._type = config.model_type if is_ctc else ""
        self._most = None if is_ctc else getattr(config, "max_target_positions", None)

    def load_processor(self, load: Callable[[str], Any], rows: Dataset) -> Any:
        """Return the base's processor. One without a tokenizer (XLS-R) gets the letters of the texts to train on."""
        try:
            found = load(self.processor_class)
        except ModelError:
            if not self._type:
                raise
            found = None
        if hasattr(found, "tokenizer") or not self._type:
            return found
        texts = [value for value in rows[self.columns["text"]] if not is_empty(value)]
        name = PROCESSOR_MAPPING_NAMES.get(self._type, "Wav2Vec2Processor")
        return getattr(transformers, name)(load("AutoFeatureExtractor"), _spelling(texts))

    @property
    def is_ctc(self) -> bool:
        """Whether the model reads letters off frames."""
        return self.options.get("letters") is not None

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        self._takes = limit_of(processor.feature_extractor)
        self.options["max_seconds"] = longest(self.options.get("max_seconds"), processor.feature_extractor)
        self._tokenizer = tokenizer = processor.tokenizer
        if hasattr(tokenizer, "word_delimiter_token"):
            found = Counter(c for value in rows[self.columns["text"]] if not is_empty(value) for c in _plain(value))
            self.options |= _writing(found, tokenizer)
            self.options |= {"vocabulary": len(tokenizer), "blank": tokenizer.pad_token_id}

    def adopt(self, model: Any, processor: Any) -> None:
        self.options["language"] = self.options["language"] or getattr(model.generation_config, "language", None)
        super().adopt(model, processor)

    def model_arguments(self) -> dict[str, Any]:
        if not self.is_ctc:
            return {}
        sizes = {"vocab_size": self.options["vocabulary"], "pad_token_id": self.options["blank"]}
        # Mean, as in the field's recipes; a text with more letters than frames has no finite loss, and counts nothing.
        return {**sizes, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True}

    def training_arguments(self) -> dict[str, Any]:
        return {"predict_with_generate": not self.is_ctc}

    def fit_model(self, model: Any, processor: Any) -> None:
        self._takes = limit_of(processor.feature_extractor)
        if self.is_ctc:
            return
        tokenizer, generation = processor.tokenizer, model.generation_config
        generation.max_length = getattr(model.config, "max_target_positions", None) or generation.max_length
        if hasattr(tokenizer, "set_prefix_tokens"):
            language, task = self._spoken(generation)
            tokenizer.set_prefix_tokens(language=language, task=task, predict_timestamps=False)
            generation.language, generation.task, generation.forced_decoder_ids = language, task, None

    def _spoken(self, generation: Any) -> tuple[str | None, str | None]:
        """Return the language and the task for Whisper's tokens; None for a model of English. Raises ConfigError."""
        from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

        language, task = self.options.get("language"), self.options.get("speech_task")
        if not getattr(generation, "lang_to_id", None):
            if language not in (None, "en", "english") or task == "translate":
                raise ConfigError(
                    f"--language {language}: this Whisper writes English alone; take a multilingual base."
                )
            return None, None
        code = TO_LANGUAGE_CODE.get(str(language).lower(), str(language).lower())
        if f"<|{code}|>" not in generation.lang_to_id:
            raise ConfigError(
                f"--language {language}: say which language is spoken, by its code or name; this Whisper knows "
                f"{some((k.strip('<|>') for k in generation.lang_to_id), 8)}."
            )
        return LANGUAGES.get(code, code), task or "transcribe"

    def text(self, row: Mapping[str, Any]) -> str:
        """Return a row's text as the model learns it."""
        plain = _plain(self.value(row, "text") or "")
        if not self.is_ctc:
            return plain
        known = _CASES[self.options["case"]](plain)
        return _plain("".join(c for c in known if c in self.options["letters"] or c == " "))

    def problem(self, row: Mapping[str, Any], labelled: bool) -> str | None:
        if found := super().problem(row, labelled):
            return found
        try:
            takes = media.seconds(row, self.value(row, "audio"))
        except DataError as error:
            return str(error)
        most = self.options["max_seconds"]
        if labelled and takes > most:
            why = f"the model takes {most:g}: part it, and its text"
            if most != self._takes:
                why = f"{most:g} are used: part it, or train with a larger --max-seconds"
            return f"its sound takes {takes:.1f} seconds, and {why}"
        if labelled and not (letters := len(self.text(row))):
            return f"its text {self.value(row, 'text')!r} has no letter that the tokenizer knows"
        if labelled and self._most and (tokens := len(self._tokenizer(self.text(row)).input_ids) - 1) > self._most:
            return f"its text has {tokens} tokens, and the model writes {self._most}: part its sound"
        if labelled and self.is_ctc and letters > _FASTEST * takes:
            return f"its text has {letters} letters for {takes:.1f} seconds; is it of another sound?"
        return None

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        extractor = processor.feature_extractor
        features = encoded(opened(rows, self.columns["audio"], extractor.sampling_rate), extractor)
        if labelled:
            for feature, row in zip(features, rows, strict=True):
                feature["labels"] = processor.tokenizer(self.text(row)).input_ids
        return features

    def collator(self, processor: Any, model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        start = getattr(model.config, "decoder_start_token_id", None)
        most = None if self.is_ctc else getattr(model.config, "max_target_positions", None)

        def collated(features: list[dict[str, Any]]) -> dict[str, Any]:
            labels = [torch.tensor(feature["labels"]) for feature in features if "labels" in feature]
            sounds = [{key: value for key, value in feature.items() if key != "labels"} for feature in features]
            batch = processor.feature_extractor.pad(sounds, padding=True, return_tensors="pt")
            if labels:
                if not self.is_ctc and all(each[0] == start for each in labels):
                    labels = [each[1:] for each in labels]  # the model puts it before them itself
                if most and max(map(len, labels)) > most:
                    raise DataError(f"a text has more than the {most} tokens that the model writes: part its sound.")
                batch["labels"] = torch.nn.utils.rnn.pad_sequence(labels, True, IGNORED)
            return dict(batch)

        return collated

    def compute_metrics(self, names: Sequence[str], processor: Any) -> Any:
        from ..metrics import metrics

        return metrics(*names, processing_class=processor)

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return each sound's text. A longer one than max_seconds is read in parts that overlap, as Transformers does.

        Its texts are joined where they agree, without time stamps, which the training has not kept up.
        """
        most = self.options["max_seconds"]
        are_long = [media.seconds(row, self.value(row, "audio")) > most for row in rows]
        short = [row for row, is_long in zip(rows, are_long, strict=True) if not is_long]
        texts = iter(self._texts(model, processor, short) if short else ())
        found = []
        for row, is_long in zip(rows, are_long, strict=True):
            text = self._long_text(model, processor, row) if is_long else next(texts)
            found.append({"text": text.strip()})
        return found

    def _long_text(self, model: Any, processor: Any, row: Mapping[str, Any]) -> str:
        extractor = processor.feature_extractor
        (sound,) = opened([row], self.columns["audio"], extractor.sampling_rate)
        reads: Any = transformers.pipeline(
            "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer, feature_extractor=extractor,
            chunk_length_s=self.options["max_seconds"],
        )  # fmt: skip
        return str(reads({"raw": sound, "sampling_rate": extractor.sampling_rate})["text"])

    def _texts(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        if self.is_ctc:
            logits = self.outputs(model, processor, rows).logits.float().cpu().numpy()
            letters = heard(logits, self.options["blank"])
            ids = [[int(letter) for letter in row if letter != IGNORED] for row in letters]
            return list(processor.tokenizer.batch_decode(ids, skip_special_tokens=True, group_tokens=False))
        batch = self.collator(processor, model)(self.features(rows, processor, labelled=False))
        with torch.inference_mode():
            written = model.generate(**{key: value.to(model.device) for key, value in batch.items()})
        return list(processor.tokenizer.batch_decode(written, skip_special_tokens=True))

    def shown(self, feature: Mapping[str, Any], processor: Any) -> dict[str, str]:
        how = {"group_tokens": False} if self.is_ctc else {}
        text = {"labels": processor.tokenizer.decode(feature["labels"], **how)} if "labels" in feature else {}
        return {**shown_values(feature), **text}


def _plain(text: Any) -> str:
    return " ".join(str(text).split())


def _writing(found: Counter[str], tokenizer: Any) -> dict[str, str]:
    """Return which of the letters that were found the tokenizer knows, and the case in which it knows most.

    What it does not know is told. Raises DataError where that is more than half.
    """
    marks = {*tokenizer.all_special_tokens, tokenizer.word_delimiter_token}
    letters = "".join(sorted(c for c in tokenizer.get_vocab() if len(c) == 1 and c not in marks))
    said = Counter({c: number for c, number in found.items() if c != " "})

    def unknown(case: str) -> Counter[str]:
        return Counter({c: n for c, n in said.items() if not set(_CASES[case](c)) <= set(letters)})

    case = min(_CASES, key=lambda case: unknown(case).total())
    left = unknown(case)
    told = some((f"{letter!r} ({number} times)" for letter, number in left.most_common()), 8)
    if 2 * left.total() > said.total():
        raise DataError(
            f"the tokenizer does not know {told}, which is most of the texts; its letters are {letters!r}. Take a base "
            "for this language's script."
        )
    if left:
        logger.warning("The tokenizer does not know %s: left out of the texts, also when they are measured.", told)
    if case != "as it is":
        logger.warning("The tokenizer's letters are in %s case: the texts are put into it.", case)
    return {"letters": letters, "case": case}


def _spelling(texts: Sequence[Any]) -> Any:
    """Return a tokenizer of the letters, marks and digits of texts, in lower case, as recipes for CTC make it."""
    found = Counter(c for text in texts for c in _plain(text).lower())
    letters = sorted(c for c in found if unicodedata.category(c)[0] in "LMN" or c == "'")
    if not letters:
        raise DataError("the texts have no letters, of which the tokenizer that the base lacks could be made.")
    logger.warning("The base has no tokenizer: it gets one of the texts' letters, in lower case: %s.", "".join(letters))
    words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *letters])}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "vocab.json"
        file.write_text(json.dumps(words), encoding="utf-8")
        return transformers.Wav2Vec2CTCTokenizer(str(file))
