"""`python -m hf_lora`: the same as the hf-lora command."""

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
