"""Section `evaluate`: what generates the answers."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.basis.document import Count, Section
from schemas.basis.fields import BatchSize
from schemas.params.tasks import Questions


class Vllm(Section):
    """What vLLM is told, as far as it is asked for."""

    tensor_parallel_size: Count = 1
    """GPUs over which each layer is spread."""
    data_parallel_size: Count = 1
    """Copies of the model, over Ray."""
    distributed_executor_backend: Literal["mp", "ray"] | None = None
    """What spreads a layer: processes of one machine, or a Ray cluster; `null`: vLLM decides."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """The share of each GPU's memory that vLLM may take."""
    max_model_len: Count | None = None
    """The longest text, in tokens; `null`: the model's."""


class Answer(Questions):
    """What both models are asked, and what generates the answers: `artifacts/params/answer.json`."""

    backend: Literal["hf", "vllm"] = "hf"
    """What generates the answers: `hf` (transformers), or `vllm`, which is installed apart."""
    vllm: Vllm = Vllm()
    """What vLLM is told, where it is the backend."""
    batch_size: BatchSize = "auto"
    """Samples in one batch; `auto` begins with 64. Where memory runs out it is halved, and said. The edited model is
    asked in the base's batches."""
