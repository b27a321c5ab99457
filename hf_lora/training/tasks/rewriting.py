"""A text from another one: summaries and translations, by an encoder-decoder, or by a decoder that goes on writing.

A decoder reads the text and a line that says what comes next, and learns what follows: the target and its end. Of a
summary that line begins with "TL;DR:" (Radford et al. 2019, Language models are unsupervised multitask learners).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ConfigError, DataError
from ..columns import IGNORED, Columns, as_objects
from ..data.columns import Role
from .generating import Generating, generate
from .languages import LANGUAGES, is_language, language_of, set_languages, task_prefix, tokenization
from .preparation import LONGEST
from .texts import is_text, mean_length

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SUMMARY_ROLES", "TRANSLATION_ROLES", "Rewriting"]

logger = logging.getLogger(__name__)
_LOOKED_AT = 1000  # rows whose targets are measured, spread over all
_LANGUAGES = (*LANGUAGES, *(name.lower() for name in LANGUAGES.values()))
SUMMARY_ROLES = (
    Role(
        "source", ("document", "article", "dialogue", "report", "source", "text", "content", "body", "input", "正文"),
        is_text, preference=mean_length,
    ),
    Role(
        "target", ("summary", "highlights", "abstract", "headline", "title", "target", "output", "摘要"), is_text,
        is_label=True,
    ),
)  # fmt: skip
TRANSLATION_ROLES = (
    Role("source", ("source", "src", "input", *_LANGUAGES), is_text, unless=("pair",)),
    Role(
        "target", ("target", "tgt", "translation", "output", *_LANGUAGES), is_text, is_label=True, unless=("pair",)
    ),
    Role("pair", ("translation", "translations"), lambda value: isinstance(value, dict), is_required=False),
)  # fmt: skip


class Rewriting(Generating):
    """A text a row, and the one that is to be made of it.

    `source_lang`, `target_lang`: of a translation, or of a summary by a model of many languages; columns that are named
    as languages say them. `prefix`: what stands before each text. A column "translation" may hold both texts, by
    language. Where the base is a decoder, `separator` is what it reads between them; it is None for encoder-decoders.
    max_length is then that of both texts, of which the target has at most half.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (
        "max_length", "max_target_length", "prefix", "source_lang", "target_lang", "separator",
    )  # fmt: skip
    trainer_class: ClassVar[str] = "transformers.Seq2SeqTrainer"
    arguments_class: ClassVar[str] = "transformers.Seq2SeqTrainingArguments"

    _model: Any = None  # generates while a decoder is evaluated

    @classmethod
    def suits(cls, config: Any) -> bool:
        return bool(config.is_encoder_decoder)  # what a decoder read before it wrote, only its training tells

    def know_base(self, config: Any) -> None:
        self.options["separator"] = None if config.is_encoder_decoder else ""

    @property
    def goes_on(self) -> bool:
        """Whether the base is a decoder."""
        return self.options.get("separator") is not None

    def learn(self, rows: Dataset, processor: Any) -> None:
        super().learn(rows, processor)
        least = self.options.pop("max_new_tokens")
        if "pair" in self.columns and (texts := next(filter(None, (row[self.columns["pair"]] for row in rows)), None)):
            self._choose_languages(texts)
        for name in ("source", "target"):
            column, given = self.columns.get(name), self.options.get(f"{name}_lang")
            if given and language_of(column) and not is_language(str(column), given):
                raise ConfigError(
                    f"{name}_lang={given}: the {name} is the column {column!r}; take another with --column {name}=NAME."
                )
            self.options[f"{name}_lang"] = given or (column if language_of(column) else None)
        if self.goes_on:
            into = LANGUAGES.get(language_of(self.options["target_lang"]) or "", "Translation")
            self.options["separator"] = f"\n{'TL;DR' if self.task.name == 'summarization' else into}:"
        self._fit_targets(rows, processor, least)

    def _fit_targets(self, rows: Dataset, processor: Any, least: int) -> None:
        """Set how many tokens a target has, where nobody says it, and tell which are cut. least: of those, at least."""
        looked_at = rows.select(range(0, len(rows), max(len(rows) // _LOOKED_AT, 1))) if len(rows) else ()
        texts = [str(text) for row in looked_at if (text := self.value(row, "target")) is not None]
        tokens = [len(ids) for ids in processor(text_target=texts)["input_ids"]] if texts else [0]
        if not self.options.get("max_target_length"):
            self.options["max_target_length"] = min(max(least, *tokens), LONGEST)
        most = self._target_length if self.goes_on else self.options["max_target_length"]
        if cut := sum(length > most for length in tokens):
            logger.warning(
                "%.1f%% of the targets have more than %d tokens and are cut, also where they are measured; the longest "
                "has %d. --max-target-length says how many stay.", 100 * cut / len(tokens), most, max(tokens)
            )  # fmt: skip

    def fit_model(self, model: Any, processor: Any) -> None:
        super().fit_model(model, processor)
        self._model = model
        source, target = self.options.get("source_lang"), self.options.get("target_lang")
        if self.options.get("prefix") is None:
            self.options["prefix"] = task_prefix(self.task.name, model, processor, source, target)
        set_languages(model, processor, source, target)

    def collator(self, processor: Any, model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        if self.goes_on:
            return super().collator(processor, model)
        from transformers import DataCollatorForSeq2Seq

        # With what the decoder reads: where labels are smoothed, the Trainer keeps them from the model.
        made: Callable[[list[dict[str, Any]]], dict[str, Any]] = DataCollatorForSeq2Seq(processor, model=model)
        return made

    def training_arguments(self) -> dict[str, Any]:
        if self.goes_on:
            return {}
        return {"predict_with_generate": True, "generation_max_length": self.options["max_target_length"]}

    def compute_metrics(self, names: Sequence[str], processor: Any) -> Any:
        from ..metrics import metrics

        words = tokenization(self.options.get("target_lang"))
        options = {"sacrebleu": {"tokenize": words}} if "sacrebleu" in names and words != "13a" else {}
        return metrics(*names, processing_class=processor, options=options)

    def needed(self, labelled: bool) -> tuple[str, ...]:
        return ("source", "target")[: 1 + labelled]

    def value(self, row: Mapping[str, Any], role: str) -> Any:
        pair = super().value(row, "pair")
        if pair is None or role not in ("source", "target"):
            return super().value(row, role)
        return next((text for key, text in pair.items() if is_language(key, self.options[f"{role}_lang"])), None)

    def features(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, labelled: bool = True
    ) -> list[dict[str, Any]]:
        texts = [(self.options.get("prefix") or "") + str(self.value(row, "source")) for row in rows]
        if self.goes_on:
            prompts = self._prompts(texts, processor)
            if not labelled:
                return [{"input_ids": ids} for ids in prompts]
            targets = [f" {self.value(row, 'target')}" for row in rows]
            how = {"add_special_tokens": False, "truncation": True, "max_length": self._target_length - 1}
            answers = [[*ids, processor.eos_token_id] for ids in processor(targets, **how)["input_ids"]]
            pairs = zip(prompts, answers, strict=True)
            return [{"input_ids": ids + new, "labels": [IGNORED] * len(ids) + new} for ids, new in pairs]
        found = processor(texts, truncation=True, max_length=self.options["max_length"])
        features = [{"input_ids": ids} for ids in found["input_ids"]]
        if labelled:
            most = self.options["max_target_length"]
            targets = [str(self.value(row, "target")) for row in rows]
            wanted = processor(text_target=targets, truncation=True, max_length=most)["input_ids"]
            for feature, ids in zip(features, wanted, strict=True):
                ends = processor.eos_token_id in ids[-2:] or len(ids) == most
                feature["labels"] = ids if ends else [*ids, processor.eos_token_id]
        return features

    def predictions(self, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        import torch

        if self.goes_on:
            prompts = [feature["input_ids"] for feature in self.features(rows, processor, labelled=False)]
            texts = generate(model, processor, prompts, self._target_length)
            return [{"generated_text": text.strip()} for text in texts]
        batch = self.collator(processor, model)(self.features(rows, processor, labelled=False))
        with torch.inference_mode():
            found = model.generate(
                input_ids=batch["input_ids"].to(model.device),
                attention_mask=batch["attention_mask"].to(model.device),
                max_length=self.options["max_target_length"],
            )
        return [{"generated_text": text.strip()} for text in processor.batch_decode(found, skip_special_tokens=True)]

    def compared(self, rows: Dataset, processor: Any, predictions: Any, labels: Any) -> dict[str, Columns]:
        if not self.goes_on:
            return {}
        texts: list[str] = []
        for start in range(0, len(rows), self.task.batch_size):
            batch = rows.select(range(start, min(start + self.task.batch_size, len(rows)))).to_list()
            texts += [said["generated_text"] for said in self.predictions(self._model, processor, batch)]
        wanted = [str(self.value(row, "target")).strip() for row in rows]
        return {"texts": Columns(as_objects(texts), as_objects(wanted))}

    @property
    def _target_length(self) -> int:
        """The tokens that a decoder writes at most."""
        return int(min(self.options["max_target_length"], max(self.options["max_length"] // 2, 1)))

    def _prompts(self, texts: Sequence[str], processor: Any) -> list[list[int]]:
        """Return the tokens behind which a decoder writes: of a long text the beginning, so that the rest has room."""
        line = processor(self.options["separator"], add_special_tokens=False)["input_ids"]
        room = max(self.options["max_length"] - self._target_length - len(line), 1)
        found = processor(texts, truncation=True, max_length=room)["input_ids"]
        return [(ids[:-1] if ids[-1:] == [processor.eos_token_id] else ids) + line for ids in found]

    def _choose_languages(self, texts: Mapping[str, Any]) -> None:
        """Set the languages of cells with several texts; of two that nobody names, the first of LANGUAGES is read."""
        order = list(LANGUAGES)
        given = {name: self.options.get(name) for name in ("source_lang", "target_lang")}
        named = [key for key in texts if any(name and is_language(key, name) for name in given.values())]
        left = sorted(
            (key for key in texts if key not in named), key=lambda key: order.index(language_of(key) or order[-1])
        )
        unset = [name for name, value in given.items() if not value]
        if len(named) + len(unset) != len(given) or (unset and len(left) != len(unset)):
            raise DataError(
                f"column {self.columns['pair']!r} has texts in {', '.join(texts)}: say which two with --source-lang "
                "and --target-lang."
            )
        self.options.update(zip(unset, left, strict=True) if unset else ())
