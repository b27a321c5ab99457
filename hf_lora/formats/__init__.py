"""How adapters look on disk, one file a format. PEFT's is the one written; it is what every other tool reads."""
