"""What people call languages, and how a model is told which one to read and which one to write."""

from __future__ import annotations

import difflib
from typing import Any

from ...errors import ConfigError

__all__ = ["LANGUAGES", "is_language", "language_of", "set_languages", "task_prefix", "tokenization"]

# ISO 639-1 -> the English name, and what NLLB calls it. Without codes that are other words besides: id, is, no, to, as.
_TABLE = """
en English eng, de German deu, fr French fra, es Spanish spa, it Italian ita, pt Portuguese por, nl Dutch nld,
pl Polish pol, ru Russian rus, uk Ukrainian ukr, zh Chinese zho, ja Japanese jpn, ko Korean kor, ar Arabic arb,
fa Persian pes, he Hebrew heb, ur Urdu urd, hi Hindi hin, bn Bengali ben, ta Tamil tam, te Telugu tel, tr Turkish tur,
vi Vietnamese vie, th Thai tha, cs Czech ces, sk Slovak slk, sl Slovenian slv, hr Croatian hrv, sr Serbian srp,
bg Bulgarian bul, ro Romanian ron, hu Hungarian hun, el Greek ell, sv Swedish swe, da Danish dan, nb Norwegian nob,
fi Finnish fin, et Estonian est, lv Latvian lvs, lt Lithuanian lit, sw Swahili swh, ca Catalan cat, eu Basque eus,
gl Galician glg, ga Irish gle, cy Welsh cym
"""
LANGUAGES = {code: name for code, name, _ in (entry.split() for entry in _TABLE.split(","))}
_CODES = {word.lower(): entry.split()[0] for entry in _TABLE.split(",") for word in entry.split()}


def language_of(name: str | None) -> str | None:
    """Return the code of a language by its code, its English name, or a model's word for it; None for another.

    >>> language_of("German"), language_of("de_DE"), language_of("deu_Latn"), language_of("source")
    ('de', 'de', 'de', None)
    """
    return _CODES.get((name or "").lower().replace("-", "_").partition("_")[0])


def is_language(name: str, wanted: str) -> bool:
    """Return whether a column's or a model's word for a language means the wanted one: "de" is "de_DE", "German"."""
    return name == wanted or (language_of(name) or name) == (language_of(wanted) or wanted)


def task_prefix(task: str, model: Any, processor: Any, source: str | None, target: str | None) -> str:
    """Return what a base was taught to read before a text: T5's task, Marian's language; nothing for others.

    Raffel et al. 2020, arXiv:1910.10683, appendix D.
    """
    if target and f">>{target}<<" in processor.get_vocab():
        return f">>{target}<< "
    if model.config.model_type != "t5":
        return ""
    if task == "summarization":
        return "summarize: "
    names = [LANGUAGES.get(language_of(name) or "") for name in (source, target)]
    return f"translate {names[0]} to {names[1]}: " if all(names) else ""


def set_languages(model: Any, processor: Any, source: str | None, target: str | None) -> None:
    """Tell a tokenizer which languages it reads, and a model with which one it begins (mBART, NLLB, M2M100).

    Raises ConfigError where they have to be told and are not, or are none of the tokenizer's.
    """
    if not hasattr(processor, "src_lang"):
        return
    words = {token.strip("_"): token for token in processor.all_special_tokens if "_" in token}
    chosen = []
    for flag, name in (("--source-lang", source), ("--target-lang", target)):
        found = [word for word in words if word == name] or [word for word in words if name and is_language(word, name)]
        if len(found) != 1:
            near = difflib.get_close_matches(name or "", words, n=4, cutoff=0.3) or list(words)[:8]
            raise ConfigError(
                f"{flag} {name or 'is missing'}: {type(processor).__name__} has to be told one of its own, such as "
                f"{', '.join(found or near)}."
            )
        chosen += found
    processor.src_lang, processor.tgt_lang = chosen
    token = processor.convert_tokens_to_ids(words[chosen[1]])
    # Where the language stands at the end of what is written (the first mBART), the decoder begins with it.
    begins = processor(text_target="a")["input_ids"][-1] == token
    setattr(model.generation_config, "decoder_start_token_id" if begins else "forced_bos_token_id", token)


def tokenization(target: str | None) -> str:
    """Return sacreBLEU's tokenization for a language: characters where words have no spaces between."""
    return {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}.get(language_of(target) or "", "13a")
