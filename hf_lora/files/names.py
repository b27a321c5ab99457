"""What an adapter's files are called, and where they lie."""

from collections.abc import Sequence

CARD_NAME = "README.md"
CONFIG_NAME = "adapter_config.json"
PENDING_NAME = f".{CONFIG_NAME}.pending"
TASK_NAME = "task.json"  # how the rows of a run are prepared
WEIGHTS_NAME = "adapter_model.safetensors"
WEIGHTS_NAMES = (WEIGHTS_NAME, "adapter_model.bin")
NOTES_KEY = "hf_lora"  # of the safetensors metadata: a JSON object


def places_of(names: Sequence[str]) -> dict[str, str]:
    """Return where in a saved folder or a repo each adapter lies: "" for its top, or a folder of its name.

    >>> places_of(["a"]), places_of(["default", "b"])
    ({'a': ''}, {'default': '', 'b': 'b'})
    """
    return {name: "" if len(names) == 1 or name == "default" else name for name in names}
