"""All that we know of vLLM: sampling from a server (`VLLMPolicy`) and steering it (`VLLMControl`), over HTTP.

The server is another process in another environment, often another image: only HTTP joins us. Written against vLLM
0.32; `wire` has the shapes of what goes over it. The flags that the server needs are those of `serving.py`;
tests/integration/trainer/test_vllm_contract.py holds this package against a real server.
"""

from cellar_trainer.policy.vllm.control import ControlFailed, RouteMissing, VLLMControl
from cellar_trainer.policy.vllm.policy import VLLMPolicy

__all__ = ["ControlFailed", "RouteMissing", "VLLMControl", "VLLMPolicy"]
