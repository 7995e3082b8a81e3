"""Section `evaluate`: what generates the answers."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.basis.document import Count, Section
from schemas.basis.fields import BatchSize
from schemas.params.tasks import Questions


class Vllm(Section):
    """Options of vLLM."""

    tensor_parallel_size: Count = 1
    """Number of GPUs that each layer is spread over."""
    data_parallel_size: Count = 1
    """Number of copies of the model, run through Ray."""
    distributed_executor_backend: Literal["mp", "ray"] | None = None
    """How layers are spread: over processes of one machine, or over a Ray cluster; `null`: vLLM decides."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each GPU's memory that vLLM may use."""
    max_model_len: Count | None = None
    """Maximum length of prompt and answer together, in tokens; `null`: the model's."""


class Answer(Questions):
    """What both models are asked, and what generates the answers: `artifacts/params/answer.json`."""

    backend: Literal["hf", "vllm"] = "hf"
    """What generates the answers: `hf` (transformers), or `vllm`, which is installed separately (docs/evidence.md)."""
    vllm: Vllm = Vllm()
    """Options of vLLM, if it is the backend."""
    batch_size: BatchSize = "auto"
    """Samples per batch; `auto` starts at 64. Halved on out-of-memory, with a warning. The edited model is asked in the
    base's batches."""
