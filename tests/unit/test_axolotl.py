"""The plugin of axolotl, loaded by axolotl's own plugin manager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

PLUGIN = "neftcli.axolotl.NeftunePlugin"


@pytest.fixture
def plugins() -> Iterator[Any]:
    from axolotl.integrations.base import PluginManager

    manager = PluginManager.get_instance()
    manager.register(PLUGIN)
    yield manager
    manager.plugins.clear()


def test_axolotl_configuration_has_the_options_of_the_plugin(plugins: Any) -> None:
    from axolotl.integrations.config import merge_input_args

    from neftcli.axolotl import NeftuneOptions

    for config in merge_input_args():
        assert config.model_fields["neftune"].annotation is NeftuneOptions


def test_neftune_plugin_adds_the_callback(plugins: Any) -> None:
    from axolotl.utils.dict import DictDefault

    from neftcli import NeftuneCallback

    [callback] = plugins.add_callbacks_post_trainer(DictDefault({"neftune": {"alpha": 7, "noise": "gaussian"}}), None)
    assert isinstance(callback, NeftuneCallback)
    assert callback.options == {"alpha": 7, "noise": "gaussian", "length": "tokens", "schedule": "constant"}
    [callback] = plugins.add_callbacks_post_trainer(DictDefault({}), None)
    assert callback.options["alpha"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alfa": 5}, "alfa"),
        ({"alpha": "high"}, "alpha"),
        ({"alpha": -5}, "alpha"),
        ({"noise": "symmetric"}, "noise"),
        ({"length": "token"}, "length"),
    ],
)
def test_neftune_plugin_rejects_invalid_options(plugins: Any, options: dict[str, Any], message: str) -> None:
    from neftcli.axolotl import NeftuneArgs

    with pytest.raises(ValidationError, match=message):
        NeftuneArgs.model_validate({"neftune": options})


def test_neftune_plugin_rejects_the_noise_of_axolotl(plugins: Any) -> None:
    from neftcli.axolotl import NeftuneArgs

    with pytest.raises(ValidationError, match="both add noise"):
        NeftuneArgs.model_validate({"neftune_noise_alpha": 5})
