"""Transcribe with Whisper: sounds of a second into text. Here they are melodies, and the text names their notes.

    python examples/whisper_notes.py            # openai/whisper-tiny from the Hub
    python examples/whisper_notes.py --smoke    # a tiny Whisper with random weights, 80 melodies

No package holds speech, so the sounds are made; with speech the lines are the same. The melodies to test with are
not among those to train on. The word error rate is of the names.
"""

import torch
from offline import RATE, base_for, melodies, options
from transformers import (
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train, transcribe held-out melodies, measure the word error rate."""
    given = options(__doc__, model="openai/whisper-tiny")
    set_seed(0)
    heard = melodies(80 if given.smoke else 216)
    base = base_for(given, "whisper", [text for _, text in heard])
    tokenizer, extractor = AutoTokenizer.from_pretrained(base), AutoFeatureExtractor.from_pretrained(base)
    test = len(heard) // 5

    def collated(rows: list) -> dict:
        sounds = extractor([wave for wave, _ in rows], sampling_rate=RATE, return_tensors="pt")
        texts = tokenizer([text for _, text in rows], padding=True, return_tensors="pt")
        labels = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
        if (labels[:, 0] == model.config.decoder_start_token_id).all():  # which the model puts there itself
            labels = labels[:, 1:]
        return {"input_features": sounds["input_features"], "labels": labels}

    # Random weights have to learn what words are as well.
    more = {"modules_to_save": ["embed_tokens"]} if given.smoke else {}
    config = LoRAConfig(r=16, lora_alpha=32, target_modules="all-linear", **more)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(base, lora_config=config)  # a LoRAModel
    arguments = Seq2SeqTrainingArguments(
        given.output, num_train_epochs=12, learning_rate=5e-3 if given.smoke else 1e-3, per_device_train_batch_size=8,
        predict_with_generate=True, generation_max_length=16, remove_unused_columns=False, save_strategy="no",
        report_to="none",
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=heard[test:],
        eval_dataset=heard[:test],
        data_collator=collated,
        compute_metrics=metrics("wer", processing_class=tokenizer),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"loss: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after")
    print(f"word error rate {before['eval_wer']:.3f}, then {after['eval_wer']:.3f}")
    trainer.save_model()
    trainer.create_model_card(model_name="whisper_notes", dataset="made melodies")

    loaded = LoRAModel.from_pretrained(given.output).eval()
    for row in heard[:2]:
        with torch.no_grad():
            said = loaded.generate(input_features=collated([row])["input_features"], max_length=16)
        print(f"heard: {tokenizer.decode(said[0], skip_special_tokens=True)!r}, right: {row[1]!r}")


if __name__ == "__main__":
    main()
