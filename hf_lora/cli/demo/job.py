"""The demo's job: attach, measure, train, measure, save; through the public surface only."""

from __future__ import annotations

from pathlib import Path

from transformers import set_seed

from ...config.lora_config import LoRAConfig
from ...errors import AdapterFileError
from ...files.names import CARD_NAME, CONFIG_NAME, WEIGHTS_NAMES
from ...model.lora_model import LoRAModel
from .card import describe
from .data import LABELS, Split, base_directory, ratings, split
from .results import RESULTS_NAME, DemoOptions, DemoResults
from .training import build_trainer, one_thread, quiet_loading, scores, train

__all__ = ["open_split", "run"]

LORA_ALPHA = 16
LORA_DROPOUT = 0.05


@one_thread()
def run(options: DemoOptions, output: Path) -> DemoResults:
    """Tune MiniLM on the ratings, save adapter, model card and results into `output`, and print what was found.

    Checkpoints go to `output`/checkpoints. Raises MissingExtraError, ConfigError, and AdapterFileError where `output`
    is a file or holds another adapter.
    """
    config = LoRAConfig(r=options.r, lora_alpha=LORA_ALPHA, lora_dropout=LORA_DROPOUT, task_type="SEQ_CLS")
    _refuse_what_is_not_ours(output)
    data = open_split(options)
    model = _attached(config, options.seed)
    trainable, total = model.get_nb_trainable_parameters()
    print(f"MiniLM-L6 learns the sentiment of words: {len(data.train):,} to train on, {len(data.held_out):,} held out.")
    trainer = build_trainer(model, data, options, output / "checkpoints")
    before = scores(trainer)
    seconds = train(trainer)
    after = scores(trainer)
    model.save_pretrained(output)
    results = DemoResults(
        options=options,
        train_entries=len(data.train),
        held_out_entries=len(data.held_out),
        majority=data.majority,
        before=before,
        after=after,
        trainable=trainable,
        total=total,
        adapter_bytes=(output / WEIGHTS_NAMES[0]).stat().st_size,
        base_bytes=(base_directory() / "model.safetensors").stat().st_size,
        seconds=round(seconds, 1),
    )
    results.save(output)
    describe(output / CARD_NAME, trainer, results)
    print(f"\n{results}\nsaved        {output}")
    return results


def open_split(options: DemoOptions) -> Split:
    """Return the entries that these options train on and hold out: the same ones in every process."""
    entries = ratings()
    if options.entries is not None:
        entries = entries[:: max(1, len(entries) // options.entries)][: options.entries]
    return split(entries, options.seed)


def _attached(config: LoRAConfig, seed: int) -> LoRAModel:
    set_seed(seed)  # the classifier and the adapter start at random
    id2label = dict(enumerate(LABELS))
    with quiet_loading():
        return LoRAModel.from_pretrained(
            base_directory(), config, id2label=id2label, label2id={name: i for i, name in id2label.items()}
        )


def _refuse_what_is_not_ours(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise AdapterFileError(f"{output} is a file; name a directory with --output.")
    taken = [name for name in (CONFIG_NAME, CARD_NAME) if (output / name).exists()]
    if taken and not (output / RESULTS_NAME).is_file():
        raise AdapterFileError(
            f"{output} holds a {taken[0]} that is not a demo's; name another directory with --output."
        )
