"""The only room that reaches into others' code: Transformers, accelerate, TRL and PEFT; `seams.py` lists the places."""
