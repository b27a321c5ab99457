"""Memory of merging: a file at a time, as `hf-lora merge` does, against merging in memory and saving.

    python -m benchmarks.merging

Counts the process's own memory (RssAnon), 500 times a second, above what it has before the base is loaded: pages of the
base's files that are mapped are the system's, which takes them back where it needs them. Linux only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
}
SHARD = "50MB"


def own_bytes() -> int:
    """Return how much memory of this process belongs to no file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def write(folder: Path) -> None:
    """Write a bfloat16 Llama and an adapter of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_lora import LoRAConfig, LoRAModel

    base = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=16, vocab_size=8000)).bfloat16()
    base.save_pretrained(folder / "base", max_shard_size="100MB")
    config = LoRAConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    LoRAModel.from_pretrained(str(folder / "base"), config).save_pretrained(folder / "adapter")


def merge(folder: Path, by_file: bool) -> None:
    """Merge in this process and print the most bytes of its own that it took, and the seconds."""
    from transformers import LlamaForCausalLM  # noqa: F401 (what loading imports is no part of merging)

    from hf_lora import LoRAModel
    from hf_lora.model.merged_files import save_merged

    most = before = own_bytes()
    done = False

    def watch() -> None:
        nonlocal most
        while not done:
            most = max(most, own_bytes())
            time.sleep(0.002)

    watching, began = threading.Thread(target=watch), time.perf_counter()
    watching.start()
    model = LoRAModel.from_pretrained(folder / "adapter")
    if by_file:
        save_merged(model, folder / "by_file", max_shard_size=SHARD)
    else:
        model.merge_and_unload().save_pretrained(folder / "in_memory", max_shard_size=SHARD)
    done = True
    watching.join()
    print(f"{'a file at a time' if by_file else 'in memory'}: {(most - before) / 1e6:.0f} MB, "
          f"{time.perf_counter() - began:.1f} s")  # fmt: skip


def main() -> None:
    """Measure both ways, a process each, and check that they write the same bits."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder)
        for way in ("by_file", "in_memory"):
            subprocess.run([sys.executable, "-m", "benchmarks.merging", way, temporary], check=True)
        written = [{p.name: p.read_bytes() for p in (folder / way).iterdir()} for way in ("by_file", "in_memory")]
        assert written[0] == written[1]
        print(f"the same bits: {sum(map(len, written[0].values())) / 1e6:.0f} MB in {len(written[0])} files")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        merge(Path(sys.argv[2]), sys.argv[1] == "by_file")
    else:
        main()
