"""What the Hub's library raises, in one line that says what to do. Used wherever something is fetched from the Hub."""

import contextlib
import errno
import json
import re
from collections.abc import Iterator
from typing import Literal

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from excise.plumbing.errors import StageError

Kind = Literal["model", "dataset"]

_AGAIN = "run again: what was fetched whole is kept"

# hf_xet, by which large files come, raises plain RuntimeErrors, and two classes that only some machines have.
_OF_XET = re.compile(r"\bCAS\b|\bxet\b|reconstruction", re.IGNORECASE)


@contextlib.contextmanager
def hub_errors(where: str, name: str, kind: Kind = "model") -> Iterator[None]:
    """Within the block, what goes wrong with the Hub is a `StageError` of one line, without any secret. `where` is what
    names the repository, such as `params.yaml: model.source`, and `name` that name."""
    try:
        yield
    except Exception as error:
        if (told := hub_error(error, where, name, kind)) is None:
            raise
        raise told from None


def hub_error(error: BaseException, where: str, name: str, kind: Kind = "model") -> StageError | None:
    """The one line for an error of the Hub's library, or for one that such an error caused; None for any other."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    # The cause first: what follows from it tells less, and the library's own texts hold addresses, which may be signed.
    for cause in reversed(chain):
        if (what := _words(cause, name, kind)) is not None:
            return StageError(f"{where}: {what}")
    return None


def _words(error: BaseException, name: str, kind: Kind) -> str | None:
    page = f"{constants.ENDPOINT.rpartition('@')[2]}/{'datasets/' if kind == 'dataset' else ''}{name}"
    broke_off = f"the connection to the Hub broke off while {name} was fetched; {_AGAIN}"
    match error:
        case GatedRepoError():
            return f"{name} is gated; accept its licence on its page ({page}), and set HF_TOKEN to a token of yours"
        case RevisionNotFoundError():
            return f"{name} has no such commit on the Hub; `make pin {kind.upper()}={name}` finds the newest"
        case RemoteEntryNotFoundError():
            return f"{name} lacks a file that was asked for; look at its page ({page})"
        case RepositoryNotFoundError():
            return f"the Hub has no {kind} {name}, or none that HF_TOKEN may see; check the name"
        case HfHubHTTPError() if error.response.status_code == 401:
            return "the Hub does not know HF_TOKEN; make a new token, or unset it"
        case HfHubHTTPError() if error.response.status_code == 403:
            return f"HF_TOKEN may not read {name}; accept its licence on its page ({page}), or let the token read it"
        case HfHubHTTPError():
            return f"the Hub answered {error.response.status_code} for {name}; later, {_AGAIN}"
        case OfflineModeIsEnabled() | LocalEntryNotFoundError() if constants.is_offline_mode():
            return f"{name} is not wholly in the Hub's cache, and HF_HUB_OFFLINE is set; unset it to fetch the rest"
        case httpx2.RemoteProtocolError() | httpx2.ReadError() | httpx2.ReadTimeout():
            return broke_off
        case Exception() if type(error).__name__.startswith("Xet"):
            return broke_off
        case RuntimeError() if _OF_XET.search(str(error)):
            return broke_off
        case httpx2.TransportError():
            return f"the Hub cannot be reached for {name}; check the network, and HF_ENDPOINT if set, then {_AGAIN}"
        case FileMetadataError() | json.JSONDecodeError() | httpx2.TooManyRedirects() | httpx2.DecodingError():
            return f"what answered for {name} is no Hub; check HF_ENDPOINT, and the network's proxy"
        case UnicodeEncodeError():
            return "HF_TOKEN holds a character that no token has; set it again"
        case HFValidationError():
            return f"{name} is no name on the Hub"
        case LocalEntryNotFoundError():
            return f"{name} is not wholly in the Hub's cache, and cannot be fetched; check the network, then {_AGAIN}"
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"free some space, or set HF_HOME to another, and {_AGAIN}"
            return f"the disk is full that {name} is fetched to; {remedy}"
        case OSError() if str(error).startswith("Consistency check failed"):
            return f"a file of {name} came short from the Hub; {_AGAIN}"
    return None
