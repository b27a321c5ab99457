"""Run the examples and keep the card of each as model_cards/NAME.md.

    python examples/cards.py                         # all: whole where the model is in a package, else with --smoke
    python examples/cards.py ner qlora               # these two
    python examples/cards.py --smoke ner             # a small part of it

hf_lora writes the cards, in the examples' own runs. Below what it generated stands how the numbers came about: the
command, and what it printed.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CARDS = HERE.parent / "model_cards"
OTHERS = {"cards", "ratings"}  # which train nothing


def examples() -> list[str]:
    """Return the names of the examples that train."""
    return sorted({path.stem for path in HERE.glob("*.py")} - OTHERS)


def needs_hub(name: str) -> bool:
    """Return whether an example takes its model from the Hub, unless it is told `--smoke`."""
    return "options(__doc__, model=" in (HERE / f"{name}.py").read_text("utf-8")


def card(name: str, folder: Path, printed: str, command: str) -> str:
    """Return the card in a folder that an example wrote, with how it was made below it."""
    path = min(folder.rglob("README.md"), key=lambda path: (len(path.parts), path))  # several adapters: the first's
    text = path.read_text("utf-8")
    head = (HERE / f"{name}.py").read_text("utf-8").split('"""')[1].split("\n")[0]
    shown = "\n".join(line.rstrip() for line in printed.splitlines() if not re.match(r"\{'|\s*$", line))
    if "--smoke" in command:
        part = (
            "the model is tiny and its weights are random" if needs_hub(name) else "it learns from a part of the data"
        )
        head += f" With `--smoke` {part}: the numbers show what is measured, not how good an adapter can be."
    return f"{text}\n## How it was made\n\n{head}\n\n```sh\n{command}\n```\n\n```text\n{shown}\n```\n"


def main(arguments: list[str]) -> None:
    """Run examples, each in a process, and write their cards."""
    smoke = [argument for argument in arguments if argument == "--smoke"]
    for name in [argument for argument in arguments if argument not in smoke] or examples():
        options = smoke or (["--smoke"] if needs_hub(name) else [])
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, f"{name}.py", *options, "--output", folder]
            done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}.py failed:\n{done.stderr}")
            text = card(name, Path(folder), done.stdout, " ".join(["python", f"examples/{name}.py", *options]))
        (CARDS / f"{name}.md").write_text(text, "utf-8")
        print(f"model_cards/{name}.md")


if __name__ == "__main__":
    main(sys.argv[1:])
