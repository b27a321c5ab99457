"""What a base was told beside its checkpoint, by `from_pretrained(..., key=value)` or by a Trainer since.

An adapter is trained on a model, not on a checkpoint: rope scaling, an epsilon, the kind of loss, the token that pads,
the language to generate, the quantisation. The difference from the checkpoint's own config is noted in the adapter's
file, and applied when the base is loaded for it. A file comes from strangers: keys that run code and values that may
name a file or a repo are neither written nor taken.
"""

import json
import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import transformers
from torch import nn
from transformers.utils import logging

from ..errors import some
from ..files.privacy import holds_token, is_path, is_private
from ..targets.names import input_table
from ..targets.source import modules_of, text_of
from .hooks import plainly, quietly

logger = logging.get_logger(__name__)
SETTINGS_NOTE = "settings"  # the key of what is noted here, in the notes of the file
CONFIG, GENERATION, QUANTISATION = "config", "generation_config", "quantization_config"
_ROWS = "rows"  # of the table of tokens, where it has fewer than the checkpoint's
_LONGEST, _DEEPEST = 200_000, 10  # characters of a note, levels of a value

# What says nothing of the numbers (names, versions, what is returned or kept), may run code, or is noted elsewhere.
_NO_SETTINGS = {
    "architectures", "attn_implementation", "auto_map", "cache_config", "cache_implementation", "compile_config",
    "custom_generate", "disable_compile", "dtype", "experts_implementation", "gradient_checkpointing", "id2label",
    "label2id", "model_type", "name_or_path", "num_labels", "output_attentions", "output_hidden_states",
    "output_logits", "output_scores", "quantization_config", "return_dict", "return_dict_in_generate",
    "tokenizer_class", "torch_dtype", "transformers_version", "trust_remote_code", "use_cache",
}  # fmt: skip
# What a forward with labels writes into a config that says nothing, and means the same.
_UNSAID = {"problem_type": "single_label_classification"}
_SIZES_OF_TABLES = {"vocab_size"}  # resizing changes it, and the adapter's rows tell
_TEXTS = {"stop_strings"}  # what is compared with text and opens nothing, whatever it looks like


class Checkpoint(NamedTuple):
    """The config and the generation config of a checkpoint, as they lie on this machine."""

    config: Any
    generation: Any


def settings_of(model: Any, own: Checkpoint | None) -> dict[str, dict[str, Any]] | None:
    """Return in what a model's config, generation config and quantisation differ from its checkpoint's, as JSON.

    own: what `checkpoint_of` the model gives; None where that does.
    """
    if own is None:
        return None
    config, generation = own
    mine = _values(model.config)
    notes: dict[str, Any] = {CONFIG: _difference(mine, _values(config), _skipped(model))}
    theirs = getattr(model, "generation_config", None)
    if theirs is not None and generation is not None:
        generates, before = _values(theirs), _values(generation)
        usual: dict[str, Any] = getattr(generation, "_get_default_generation_params", dict)()
        unsaid = [k for k, v in usual.items() if before.get(k) is None and generates.get(k) == v]  # filled in since
        generates = {k: v for k, v in generates.items() if k not in unsaid}
        notes[GENERATION] = _difference(generates, before, _NO_SETTINGS)
        # Transformers gives what a config is told to the generation config as well, or does not, by the class.
        notes[GENERATION] |= {k: generates[k] for k in notes[CONFIG] if k in generates and _is_value(generates[k])}
    quantised = mine.get(QUANTISATION)
    if isinstance(quantised, dict) and _values(config).get(QUANTISATION) is None:
        public = {k: v for k, v in quantised.items() if not k.startswith("_")}
        notes[QUANTISATION] = public if _is_value(public, hidden=True) else {}
    rows = _rows(model)
    notes[_ROWS] = rows if rows < (getattr(config.get_text_config(), "vocab_size", None) or 0) else 0
    return {key: value for key, value in notes.items() if value}


def differs_in_labels(model: Any, own: Checkpoint | None) -> bool:
    """Tell whether a model's labels are others than its checkpoint's; False where that is not at hand."""
    labels = ("id2label", "label2id")
    return own is not None and any(getattr(own.config, key) != getattr(model.config, key) for key in labels)


def own_numbers(config: Any, own: Checkpoint | None) -> dict[str, int] | None:
    """Return a config's `label2id` where somebody gave it: zero-shot pipelines look for "entailment" there.

    It is left as it was where only `id2label` is set: the checkpoint's, or that of names that Transformers makes up.
    """
    made_up = {f"LABEL_{number}": number for number in config.id2label}
    unsaid = [made_up, {name: number for number, name in config.id2label.items()}, own and own.config.label2id]
    return dict(config.label2id) if own is not None and config.label2id not in unsaid else None


def rows_of_table(notes: Mapping[str, Any]) -> int | None:
    """Return to how many rows the table of tokens was cut before the adapter was trained; None where it was not."""
    found = notes.get(SETTINGS_NOTE)
    rows = found.get(_ROWS) if isinstance(found, Mapping) else None
    return rows if type(rows) is int and rows > 0 else None


def is_quantised(notes: Mapping[str, Any]) -> bool:
    """Return whether an adapter's notes tell of a base that was quantised when it was loaded."""
    return QUANTISATION in _noted(notes)


def settings_for(
    notes: Mapping[str, Any], config: Any, model_type: str | None, given: Collection[str]
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that make a checkpoint the base that an adapter's notes tell of.

    config: the checkpoint's own. model_type: the noted base's, which may be a part of it (the text model of a
    vision-language one). given: the caller's arguments, which stay his.
    """
    noted, skipped = _noted(notes), set(given) | _NO_SETTINGS
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
    part = next((n for n, c in parts.items() if c is not None and c.model_type == model_type != config.model_type), "")
    wanted = _known(noted.get(CONFIG, {}), parts.get(part, config), skipped)
    if part:
        wanted = {part: wanted} if wanted and part not in given else {}
    if QUANTISATION in noted and QUANTISATION not in given and _values(config).get(QUANTISATION) is None:
        from transformers.quantizers import AutoQuantizationConfig  # not above: it takes seconds to import

        wanted[QUANTISATION] = AutoQuantizationConfig.from_dict(dict(noted[QUANTISATION]))
    return wanted


def apply_to_generation(notes: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Give a model that was loaded for an adapter the generation settings of its notes, and return them."""
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return {}
    wanted = _known(_noted(notes).get(GENERATION, {}), generation, _NO_SETTINGS)
    for key, value in wanted.items():
        setattr(generation, key, value)
    return wanted


def warn_of_others(notes: Mapping[str, Any], model: nn.Module, given: Collection[str]) -> None:
    """Warn of settings that an adapter was trained with and a model has otherwise; given: what its caller chose."""
    config, noted = getattr(model, "config", None), _noted(notes)
    if not isinstance(config, transformers.PreTrainedConfig) or not notes.get(SETTINGS_NOTE):
        return
    mine = _values(config)
    skipped = set(given) | _skipped(model)
    skipped |= {key for key in mine if key.endswith("_token_id") and not _is_looked_for(model, key)}
    known = {k: v for k, v in noted.get(CONFIG, {}).items() if k in mine and k not in skipped}
    other = [f"{k}={_shown(v)} (here {_shown(mine[k])})" for k, v in known.items() if not _covers(mine[k], v)]
    quantised, here = noted.get(QUANTISATION), mine.get(QUANTISATION)
    if quantised and QUANTISATION not in given and not (isinstance(here, dict) and _same_bits(quantised, here)):
        now = _method(here) if isinstance(here, dict) else "it is not"
        other.append(f"a base quantised by {_method(quantised)} (here {now})")
    if (rows := rows_of_table(notes)) and rows < _rows(model):
        other.append(f"a vocabulary of {rows} rows (here {_rows(model)})")
    if other:
        warnings.warn(
            f"the adapter was trained with {some(other, 6)}: on this model it computes something else. Load it by its "
            "name alone, and its base is loaded so.",
            stacklevel=4,
        )
    generation = getattr(model, "generation_config", None)
    if generation is not None and GENERATION not in given:
        unlike = _known(noted.get(GENERATION, {}), generation, _NO_SETTINGS)
        if generation.pad_token_id is None and unlike.get("pad_token_id") == generation.eos_token_id:
            unlike.pop("pad_token_id", None)  # generating takes it by itself
        if unlike:
            logger.warning("The adapter was trained with generation_config=%s, which this model has not.", unlike)


def checkpoint_of(model: Any, place: Mapping[str, Any]) -> Checkpoint | None:
    """Return a model's checkpoint; None where it is not at hand (a model made in memory). Nothing is asked of the Hub.

    place: revision, cache_dir and subfolder of the checkpoint, as far as they are known.
    """
    config, name = getattr(model, "config", None), getattr(model, "name_or_path", None)
    if not isinstance(config, transformers.PreTrainedConfig) or not name:
        return None
    revision = getattr(config, "_commit_hash", None) or place.get("revision")
    hub = {**place, "revision": revision, "local_files_only": True}
    hub = {key: value for key, value in hub.items() if value is not None}
    try:
        with quietly(), plainly():
            own = type(config).from_pretrained(name, **hub)
            if getattr(model, "generation_config", None) is None:
                return Checkpoint(own, None)
            try:
                return Checkpoint(own, transformers.GenerationConfig.from_pretrained(name, **hub))
            except OSError:  # there is none: Transformers makes it of the config, as here
                made: dict[str, Any] = {"config_file_name": "config.json", "_from_model_config": True}
                return Checkpoint(own, transformers.GenerationConfig.from_pretrained(name, **made, **hub))
    except Exception:  # not at hand, or of a later Transformers: then nothing is known
        return None


def _values(config: Any) -> dict[str, Any]:
    """Return a config's settings as JSON has them, numbers as they count: Gemma 3 writes another window than it has."""
    values: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    own = {key: getattr(config, key, value) for key, value in values.items() if type(value) in (int, float)}
    return {**values, **{key: value for key, value in own.items() if type(value) in (int, float)}}


def _is_looked_for(model: Any, token: str) -> bool:
    """Tell whether a forward looks for a token's number: a classifier for the one that pads, BART's for the end."""
    if not hasattr(model, "num_labels"):
        return False
    return any((text := text_of(module)) is None or token in text for module in modules_of(type(model)))


def _skipped(model: Any) -> set[str]:
    return _NO_SETTINGS | (_SIZES_OF_TABLES if isinstance(input_table(model), nn.Embedding) else set())


def _rows(model: Any) -> int:
    table = input_table(model)
    return table.num_embeddings if isinstance(table, nn.Embedding) else 0


def _difference(mine: Mapping[str, Any], own: Mapping[str, Any], skipped: set[str]) -> dict[str, Any]:
    """Return what differs, of parts that are configs themselves only that."""
    found: dict[str, Any] = {}
    for key, value in mine.items():
        before = own.get(key)
        if key in skipped or key.startswith("_") or value == before or (before is None and _UNSAID.get(key) == value):
            continue
        if isinstance(value, dict) and isinstance(before, dict) and "model_type" in value:
            value = _difference(value, before, skipped | _SIZES_OF_TABLES)
            if not value:
                continue
        if _is_value(value, is_text=key in _TEXTS):
            found[key] = value
    return found


def _noted(notes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings in an adapter's notes, without what no adapter may set; damaged ones are none."""
    found = notes.get(SETTINGS_NOTE)
    if not isinstance(found, Mapping) or len(json.dumps(found)) > _LONGEST:
        return {}
    parts = {part: found[part] for part in (CONFIG, GENERATION, QUANTISATION) if isinstance(found.get(part), dict)}
    safe = {
        part: {k: v for k, v in values.items() if _is_value(v, is_text=k in _TEXTS)} for part, values in parts.items()
    }
    if QUANTISATION in parts:  # all of it or nothing
        safe[QUANTISATION] = parts[QUANTISATION] if _is_value(parts[QUANTISATION], hidden=True) else {}
    return {part: values for part, values in safe.items() if values}


def _known(noted: Mapping[str, Any], config: Any, skipped: Collection[str]) -> dict[str, Any]:
    """Return those of the noted settings that a config has otherwise, nested where a part of it has the noted type."""
    mine = _values(config)
    known = {k: v for k, v in noted.items() if k in mine and k not in skipped and not k.startswith("_")}
    return {k: v for k, v in known.items() if not _covers(mine[k], v)}


def _covers(mine: Any, noted: Any) -> bool:
    """Tell whether a value is the noted one; of a part that is a config itself only what is noted counts."""
    if isinstance(mine, dict) and isinstance(noted, dict) and "model_type" in mine:
        return all(key in mine and _covers(mine[key], value) for key, value in noted.items())
    return bool(mine == noted)


def _is_value(value: object, depth: int = 0, hidden: bool = False, is_text: bool = False) -> bool:
    """Tell whether a value is plain JSON that can neither name a file or a repo nor tell of this machine."""
    # hidden: whether keys may begin with "_", as in torchao's settings; a config means what runs by them. is_text:
    # whether strings are texts, which may have slashes.
    if isinstance(value, str):
        if is_text:
            return len(value) <= 200 and not is_path(value) and not holds_token(value.encode())
        return len(value) <= 200 and not {"/", "\\"} & {*value} and not is_private(value)
    if isinstance(value, dict) and depth < _DEEPEST:
        names = all((hidden or not k.startswith("_")) and k not in _NO_SETTINGS - {"model_type"} for k in value)
        return names and all(_is_value(v, depth + 1, hidden) for v in value.values())
    if isinstance(value, list) and depth < _DEEPEST:
        return all(_is_value(v, depth + 1, hidden, is_text) for v in value)
    return value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _same_bits(noted: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Tell whether two quantisations give a weight the same numbers: all but the type that is computed in is equal."""
    keys = {k for k in (*noted, *here) if not k.startswith("_") and not k.endswith("compute_dtype")}
    return all(noted.get(k) == here.get(k) for k in keys if k in noted and k in here)


def _method(quantised: Mapping[str, Any]) -> str:
    bits = [f"{b} bits" for b in (4, 8) if quantised.get(f"load_in_{b}bit")]
    return " ".join([str(quantised.get("quant_method")), *(f"in {b}" for b in bits)])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
