"""What is asked of the Hub: the newest commit of a repository, and to take an edited model."""

import os
import re
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, HFValidationError

from excise.checkpoint.weights import regular_files
from excise.gitops.models import check_edited
from excise.plumbing.errors import StageError
from excise.plumbing.hub import Kind, hub_errors
from schemas.params.model import HUB_ID

_REFUSED = {
    401: "HF_TOKEN is not valid there, or may not do this; make a token that may write to this repository",
    403: "HF_TOKEN may not do this; make a token that may write to this repository",
    404: "there is no such repository that HF_TOKEN may see; check the name",
}


def newest(name: str, kind: Kind) -> str:
    """The newest commit of a repository's default branch. Raises `StageError` where the Hub does not tell."""
    if not re.fullmatch(HUB_ID, name):
        raise StageError(f"make pin: {name} is not a Hub id; it is written organization/name")
    with hub_errors("make pin", name, kind):
        try:
            return str(HfApi().repo_info(name, repo_type=kind).sha)
        except KeyError:  # JSON, but not of a Hub
            raise FileMetadataError from None


def upload(folder: Path, name: str, public: bool) -> str:
    """Make a repository, which need not exist yet, hold an edited model and nothing else, in one commit; the commit's
    address. The token is HF_TOKEN's, never one of this machine. Raises `StageError`: the folder is not an edited model,
    the token is missing, the Hub fails, or the repository is public without `public`, or holds other files."""
    if not (token := os.environ.get("HF_TOKEN", "").strip()):
        raise StageError("HF_TOKEN is not set; set it to a token of the Hub that may write")
    check_edited(folder)
    api = HfApi(token=token)
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        there = api.model_info(name)
        if not there.private and not public:
            raise StageError(f"{name} is public on the Hub; name another repository, or say --public")
        expected = {*regular_files(folder), ".gitattributes"}  # which the Hub makes itself
        if others := sorted({file.rfilename for file in there.siblings or []} - expected):
            raise StageError(f"{name} also holds {others[0]}, which is not of this model; name another repository")
        ignored = [".git/*", ".cache/*"]
        message = "Upload edited model"
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, ignore_patterns=ignored)
    except HfHubHTTPError as error:
        code = error.response.status_code
        why = _REFUSED.get(code) or error.server_message or f"it answered {code}"
        raise StageError(f"the Hub refused {name}: {why}") from None
    except (httpx2.TransportError, ConnectionError) as error:
        raise StageError(f"the Hub cannot be reached ({error}); check the network, and HF_ENDPOINT if set") from None
    except (HFValidationError, ValueError) as error:  # of the name, or of the card's head, which the Hub reads
        raise StageError(f"the Hub does not take {name}: {error}") from None
    return str(done.commit_url)
