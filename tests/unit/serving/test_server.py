"""The network that heat maps need is that of the files that are served, or none."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from tests.contract.serving import save_bundle

from dogbreed.serving import server
from dogbreed.serving.heatmap import NoMapError


def test_the_network_is_that_of_the_served_bundle(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path)
    network = server._load_again(tmp_path / "model", server._state_of(tmp_path / "model"))
    for name, weights in network.state_dict().items():
        torch.testing.assert_close(weights, bundle.weights[name])


def test_files_that_have_changed_since_are_not_explained(tmp_path: Path) -> None:
    save_bundle(tmp_path)
    again = partial(server._load_again, tmp_path / "model", server._state_of(tmp_path / "model"))
    save_bundle(tmp_path, classes=5)
    with pytest.raises(NoMapError, match="the model's files have changed since it was loaded; start the server again"):
        again()


def test_files_that_have_gone_are_a_sentence(tmp_path: Path) -> None:
    save_bundle(tmp_path)
    state = server._state_of(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(NoMapError, match="cannot be loaded again for heat maps"):
        server._load_again(tmp_path / "model", state)
