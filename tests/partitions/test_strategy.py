import subprocess
import sys

import pytest

from partitions import OWN, PartitionError, PartitionSettings, get, names, register
from sdpo.config import PartitionConfig
from sdpo.config.strategies import strategy_names


def test_the_recipe_offers_the_strategies_that_are_registered():
    assert strategy_names() == list(OWN)
    assert set(OWN) <= set(names())


def test_settings_can_be_made_from_the_recipe_and_have_its_defaults():
    assert PartitionSettings(**PartitionConfig().model_dump()) == PartitionSettings()


def test_an_unknown_strategy_is_refused_with_the_nearest_known():
    with pytest.raises(PartitionError, match="did you mean `stratified`"):
        get("stratifed")


def test_a_name_is_registered_once():
    with pytest.raises(PartitionError, match="`natural` is registered already"):
        register(get("natural"))


def test_an_unknown_order_is_refused_with_the_nearest_known():
    with pytest.raises(PartitionError, match=r"partition\.order: .*did you mean `easy_first`"):
        PartitionSettings(order="easyfirst")


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused(seed):
    with pytest.raises(PartitionError, match=r"partition\.seed"):
        PartitionSettings(seed=seed)


def test_partitions_are_decided_without_torch_transformers_or_the_engine():
    code = "import sys, partitions; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "partitions" in loaded
    assert not {"torch", "transformers", "sdpo", "flows", "prefect"} & set(loaded)
