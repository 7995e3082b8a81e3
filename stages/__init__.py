"""The pipeline, one short file a stage, and the rooms that they call. Python runs this file before any library's."""

import os

STARTED_BY = os.getppid()
"""The process that started this one, as it was before slow imports: if it changes, that process died."""

# Keeps `dvc repro` readable; the libraries read these when they are imported, so they are set here. The user's own win.
for _name, _value in {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",  # its warnings hold addresses, which may be signed
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(_name, _value)
