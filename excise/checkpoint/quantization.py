"""Whether a checkpoint's weights are quantised, which an edit of floats cannot change."""

from collections.abc import Iterable, Mapping
from typing import Any

_METHODS = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "fp8",
    "gptq": "GPTQ",
    "mxfp4": "MXFP4",
}
# How the names of tensors end that hold quantised weights or what belongs to them.
_ENDINGS = {
    ".weight_scale_inv": "fp8",
    ".weight_scale": "fp8",
    "_blocks": "MXFP4",
    ".qweight": "GPTQ or AWQ",
    ".weight.absmax": "bitsandbytes",
    ".weight.quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".weight.quant_state.bitsandbytes__fp4": "bitsandbytes",
    ".SCB": "bitsandbytes",
}


def quantization(config: Mapping[str, Any], tensors: Iterable[str]) -> str | None:
    """The name of the format, from config.json or else from the names of the tensors; None for plain weights."""
    declared = config.get("quantization_config")
    if isinstance(declared, Mapping):
        method = str(declared.get("quant_method", "an unnamed format"))
        return _METHODS.get(method, method)
    for name in tensors:
        for ending, method in _ENDINGS.items():
            if name.endswith(ending):
                return method
    return None
