"""Which Transformers this is: some names and sources that tests speak of have changed within version 5."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version

# The tests were written with 5.23. Before it ViT and Swin called their projections query and value, Mamba called its
# dt_proj, and PEFT 0.21 cannot load what it saved of a mixture.
OLDER = Version(transformers.__version__) < Version("5.23")
not_older = pytest.mark.skipif(OLDER, reason="speaks of names and sources of transformers 5.23")
