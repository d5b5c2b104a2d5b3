"""What served in its trial and fails later ends a stage with one message that names the way out."""

import pytest
import torch
from forked_stages import forked_stages
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from sdpo.config import TrainingConfig
from sdpo.errors import Fault, GateError, LayoutError
from sdpo.processes.supervisor import run_stage
from sdpo.stages.failed_kernels import kernels_named

from ..training_helpers.runs import prepare_run

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")

PLAIN = TrainingConfig(learning_rate=1e-3, batch_size=4, precision="fp32")
COMPILED = PLAIN.model_copy(update={"compile": True})
NEW_SHAPES_FAIL = """
import torch
from sdpo.model.layouts import attention
from sdpo.stages import layout_trial
from sdpo.training import gate

def picky(graph, inputs):
    if picky.trial_is_over:
        raise RuntimeError("no kernel for these shapes: " + "x" * 50)
    return graph.forward

def late(*args, **kwargs):
    picky.trial_is_over = True
    torch._dynamo.reset()
    return own_check(*args, **kwargs)

picky.trial_is_over = False
own_check, gate.check = gate.check, late
def plain(query, key, value, block_mask, scale, enable_gqa):
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
attention._on_cpu = lambda query, key, value, segments, scale, *_: attention._compiled_flex()(
    *(query, key, value), block_mask=None, scale=scale, enable_gqa=True
).transpose(1, 2).contiguous()
attention._compiled_flex = lambda: torch.compile(plain, backend=picky, fullgraph=True)
layout_trial.agrees = lambda *args, **kwargs: ""
"""
"""Attention of a stage goes through torch.compile, whose backend fails once the gate begins. It
leaves the segments out, and the trial is taken as passed."""


def test_a_kernel_that_fails_after_its_trial_ends_the_stage_with_one_line_that_names_the_layout(
    tmp_path,
):
    run = prepare_run(tmp_path, pairs={0: 2, 1: 4})
    training = PLAIN.model_copy(update={"layout": "packed"})
    with forked_stages(first=NEW_SHAPES_FAIL), pytest.raises(Fault) as caught:
        run_stage(run.spec(1, training), listen=lambda event: None)
    said = str(caught.value)
    assert "no kernel for these shapes" in said
    assert "set training.layout: padded in place of packed" in said
    assert len(said.splitlines()) == 1


def compiled_block(*, fails: str):
    """A function that torch compiles, whose compiler fails in this pass; the flag says when."""
    now = {"fails": False}

    def compiler(which):
        def compile_graph(graph, inputs):
            if now["fails"] and which == fails:
                raise ArithmeticError("what only this graph\nneeds")
            return make_boxed_func(graph.forward)

        return compile_graph

    backend = aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward"))
    torch._dynamo.reset()
    return torch.compile(torch.nn.Linear(4, 4).forward, backend=backend, dynamic=True), now


@pytest.mark.parametrize("fails", ["forward", "backward"])
@pytest.mark.parametrize(
    ("training", "remedy"),
    [(COMPILED, "training.compile: false"), (PLAIN, "training.layout: padded in place of shared")],
)
def test_the_setting_is_that_of_what_was_compiled(training, remedy, fails):
    block, now = compiled_block(fails=fails)
    block(torch.ones(3, 4, requires_grad=True)).sum().backward()
    now["fails"] = True
    torch._dynamo.reset()
    with (
        pytest.raises(Fault, match=f"what only this graph.*: set {remedy}$") as caught,
        kernels_named(training, layout="shared"),
    ):
        block(torch.ones(5, 4, requires_grad=True)).sum().backward()
    assert len(str(caught.value).splitlines()) == 1


def test_where_both_are_compiled_the_kernels_name_tells_them_apart():
    def boxed(graph, inputs):
        return make_boxed_func(graph.forward)

    def flex_attention_backward(graph, inputs):
        raise ArithmeticError("triton_tem_fused_flex_attention_backward: no valid configurations")

    backend = aot_autograd(fw_compiler=boxed, bw_compiler=flex_attention_backward)
    torch._dynamo.reset()
    kernel = torch.compile(torch.sin, backend=backend, dynamic=True)
    with (
        pytest.raises(Fault, match=r"set training\.layout: padded in place of shared"),
        kernels_named(COMPILED, layout="shared"),
    ):
        kernel(torch.ones(5, requires_grad=True)).sum().backward()


@pytest.mark.parametrize(
    ("error", "layout"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "shared"),
        (GateError("policy and reference disagree"), "shared"),
        (LayoutError("the architecture wants a soft cap"), "padded"),
        (ZeroDivisionError("a fault of ours"), "shared"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_other_errors_stay_what_they_are(error, layout):
    class Part(torch.nn.Module):
        def forward(self):
            raise error

    with (
        pytest.raises(type(error), match=str(error)),
        kernels_named(COMPILED, layout=layout),
    ):
        # As attention is: called from compiled code, and not compiled itself.
        torch.compiler.disable(lambda part: part())(Part())


def test_a_layout_that_an_architecture_refuses_late_has_the_same_remedy():
    with (
        pytest.raises(Fault, match=r"^it wants attention with softcap: set training\.layout"),
        kernels_named(PLAIN, layout="shared"),
    ):
        raise LayoutError("it wants attention with softcap")
