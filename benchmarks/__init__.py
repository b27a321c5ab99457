"""Benchmarks, one script a question: ratios measured in one process.

    step.py        what does a training step cost?                        matrix.py  its cells
    memory.py      what does a forward keep for its backward?             saved.py  two ways to count it
    accuracy.py    what does LoRA give up against full fine-tuning?
    operations.py  loading, switching, merging, one token, importing?     floors.py, imports.py

    gpu.py         what can one GPU tell in six minutes? `make gpu`       correctness.py, llama.py  its parts

    arms.py        the contestants;  gradients.py  the proof that they compute the same
    measure.py     arms timed against each other

The library knows nothing of them.
"""
