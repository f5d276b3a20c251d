import subprocess
import sys

import pytest

PREPARE = """
import sys
from dogbreed.deferred import defer_compiler, is_compiled
defer_compiler()
defer_compiler()
import torch, torchvision
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.AdamW(model.parameters())
def step():
    optimizer.zero_grad()
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
step()
assert not is_compiled(model)
assert "sympy" not in sys.modules
assert "torch._dynamo.eval_frame" not in sys.modules
"""


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", PREPARE + script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("", id="torchvision and a step of training load no compiler"),
        pytest.param(
            """
calls = []
def backend(graph, inputs):
    calls.append(graph)
    return graph.forward
compiled = torch.compile(model, backend=backend)
assert torch.equal(compiled(torch.ones(4, 3)), model(torch.ones(4, 3)))
assert calls and is_compiled(compiled) and not is_compiled(model)
step()
""",
            id="who compiles gets the compiler",
        ),
        pytest.param(
            """
import torch._dynamo.config as config
import torch._dynamo as dynamo
assert config.__spec__.loader.get_source("torch._dynamo.config")
assert config is sys.modules["torch._dynamo.config"] is dynamo.config
assert dynamo is torch._dynamo is sys.modules["torch._dynamo"]
assert dynamo.__file__ and dynamo.utils.__file__
assert not [finder for finder in sys.meta_path if "dogbreed" in type(finder).__module__]
step()
""",
            id="a module below it is the real one, once",
        ),
        pytest.param(
            """
add = torch.optim.Optimizer.add_param_group.__wrapped__
assert getattr(add, "__dynamo_disable") is add
from torch._dynamo.utils import counters
assert not hasattr(add, "__dynamo_disable")
torch.optim.SGD(model.parameters(), lr=0.1)
assert getattr(add, "__dynamo_disable") is not add
""",
            id="what was kept from no compiler is kept from the real one",
        ),
        pytest.param(
            """
from torchvision.ops import roi_align
import importlib
ask = importlib.import_module("torchvision.ops.roi_align").is_compile_supported
assert ask("cpu") is True
assert "torch._dynamo.eval_frame" in sys.modules
""",
            id="torchvision's question has the real answer",
        ),
    ],
)
def test_the_compiler_is_put_off(script: str) -> None:
    run(script)
