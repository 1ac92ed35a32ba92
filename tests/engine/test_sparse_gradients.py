"""sparse_gradients changes how an embedding's gradient travels, not what it is (defect 35)."""

from __future__ import annotations

import pytest
import torch
from support.ranks import run_ranks

# rows that each process looks up: shared ones, rows that sum to 0 (1, 2), a row of zeros (3)
USED = {
    "one process": [[0, 1, 1, 2, 3]],
    "two processes": [[0, 1, 2, 2], [1, 3, 1]],
    "nothing on one": [[1, 2], [3]],
    "nothing at all": [[3], [3]],
}


MODULE = pytest.param(
    "module", marks=pytest.mark.not_on("0.5.4", reason="it takes no sparse gradients")
)


@pytest.mark.parametrize("kind", ["flag", MODULE])
@pytest.mark.parametrize("used", USED)
def test_the_flag_does_not_change_the_gradients(used: str, kind: str) -> None:
    """By the configuration's flag for a dense gradient, and for nn.Embedding(sparse=True)."""
    rows = USED[used]
    flag = kind == "flag"
    for found, expected in run_ranks(len(rows), "embedding_gradients", flag, not flag, rows):
        torch.testing.assert_close(found, expected)
