"""Python processes that begin with Transformers imported, for which each would take five seconds of its own.

They are forks of one process that has imported it and done nothing else; hf_lora is imported by each.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

METHOD = "forkserver"
_CONTEXT = multiprocessing.get_context(METHOD)
_CONTEXT.set_forkserver_preload(["torch", "transformers.trainer", "sklearn.model_selection"])


def run(code: str, cwd: Path) -> CompletedProcess[str]:
    """Run code as a program in a folder, and return its status and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _CONTEXT.Process(target=_become, args=(code, cwd, files))
        process.start()
        process.join()
        assert process.exitcode is not None
        done = CompletedProcess(code, process.exitcode, *(file.read_text() for file in files))
        process.close()
    return done


def _become(code: str, cwd: Path, files: list[Path]) -> None:
    import torch

    gc.freeze()  # a training collects garbage, a third of a second each with all that is imported
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdin.close()
    os.chdir(cwd)
    torch.set_num_threads(1)
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
