"""What each stage would work out anew, once in the server whose forks they are.

transformers builds 260 rules that rename the tensors of checkpoints when the first model is loaded
(0.25 s), and keeps them.
"""

from no_waiting import wait_for_no_disk
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("llama")
wait_for_no_disk()
