"""An ordinary folder of a model that exists as a GGUF file: `python -m benchmarks.real.make_model --gguf PATH OUT`.

The weights are those of the GGUF file, dequantised, so it is a copy of the model that the file was made of and not that
model. transformers reads the file for that, with the package `gguf`, which nothing else here needs.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

KNOWN = {
    "SmolLM2-135M-Instruct, Q4_1": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M": "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
}
"""SHA-256 of the files that figures in docs and RESULTS.md were made with."""


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(path: Path, out: Path, dtype: torch.dtype) -> None:
    """Write a model, its tokenizer with its chat template, and what it is."""
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    del loaded.config.quantization_config  # its weights are not quantised any more
    # A model that was loaded from GGUF cannot be saved as it is.
    with torch.device("meta"):
        model = type(loaded)(loaded.config)
    values = {name: value.to(dtype) for name, value in loaded.state_dict().items()}
    model.load_state_dict(values, assign=True)
    model.tie_weights()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True, help="the file")
    parser.add_argument("--sha256", help="of the file, if it is none of the known ones")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("out", type=Path, help="a folder that does not exist")
    arguments = parser.parse_args()
    if not arguments.gguf.is_file():
        sys.exit(f"{arguments.gguf} is no file")
    if arguments.out.exists():
        sys.exit(f"{arguments.out} exists; name another folder")
    found = digest(arguments.gguf)
    names = [name for name, known in KNOWN.items() if known == found]
    if not names and found != arguments.sha256:
        sys.exit(f"{arguments.gguf} has the SHA-256 {found}, which is no known file's; give it as --sha256 to go on")
    try:
        convert(arguments.gguf, arguments.out, getattr(torch, arguments.dtype))
    except ImportError as error:
        sys.exit(f"{' '.join(str(error).split())}; pip install gguf")
    name = names[0] if names else arguments.gguf.name
    print(f"{arguments.out}: {name}, dequantised to {arguments.dtype}; a copy, not the weights that it was made of")


if __name__ == "__main__":
    main()
