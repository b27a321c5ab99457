"""Read handwritten digits with a ViT: 1,797 pictures that come with scikit-learn.

    pip install ".[demo]"                    # in a checkout
    python examples/vit_digits.py            # google/vit-base-patch16-224-in21k from the Hub
    python examples/vit_digits.py --smoke    # a tiny ViT with random weights, as small as the pictures (8 x 8)

Query, key, value and the output of every attention get adapters; the head for ten classes is new and trains in full.
"""

import numpy as np
from offline import base_for, options
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from hf_lora import LoRAConfig, LoRAModel, metrics


def main() -> None:
    """Train, measure, save, load, read three digits."""
    given = options(__doc__, model="google/vit-base-patch16-224-in21k")
    set_seed(0)
    base = base_for(given, "vit")
    processor = AutoImageProcessor.from_pretrained(base)
    digits = load_digits()
    pictures = np.repeat((digits.images * 255 / 16).astype(np.uint8)[..., None], 3, axis=-1)  # grey as three colours
    pixels = processor(list(pictures), return_tensors="pt")["pixel_values"]
    rows = [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, digits.target, strict=True)]
    train, test = train_test_split(rows, test_size=0.2, random_state=0, stratify=digits.target)
    config = LoRAConfig(r=8, lora_alpha=16, target_modules="attention")
    model = AutoModelForImageClassification.from_pretrained(base, num_labels=10, lora_config=config)  # a LoRAModel
    model.print_trainable_parameters()
    arguments = TrainingArguments(
        given.output, num_train_epochs=3, learning_rate=5e-3, per_device_train_batch_size=32, save_strategy="no",
        report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=train, eval_dataset=test, compute_metrics=metrics("accuracy")
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"accuracy: {before['eval_accuracy']:.4f} before, {after['eval_accuracy']:.4f} after")
    trainer.save_model()
    trainer.create_model_card(model_name="vit_digits", dataset="scikit-learn's digits")

    loaded = LoRAModel.from_pretrained(given.output)
    read = pipeline("image-classification", model=loaded, image_processor=processor)
    for number in (0, 1, 2):
        print(f"a {digits.target[number]} is read as {read(Image.fromarray(pictures[number]), top_k=1)[0]['label']}")


if __name__ == "__main__":
    main()
