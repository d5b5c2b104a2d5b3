"""ZeRO-3 that shares small weights too, in tests: else each process would have all models whole."""

from typing import Any

import accelerate

SHARE_ALL = "from small_shares import share_all; share_all()"
"""What a fork runs first, to have it."""


def share_all() -> None:
    """Let DeepSpeed keep no weight of fewer than 100,000 numbers whole, in this process."""
    own = accelerate.DeepSpeedPlugin

    def plugin(*, hf_ds_config: dict[str, Any]) -> accelerate.DeepSpeedPlugin:
        hf_ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return own(hf_ds_config=hf_ds_config)

    accelerate.DeepSpeedPlugin = plugin
