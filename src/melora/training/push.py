"""Uploading a run's adapter folder, with its model card, to the Hugging Face hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # in its __init__, not in __all__

from ..errors import MeloraError
from .failures import TrainingError
from .folder import ADAPTER, open_run
from .schema import one_line


def check_hub(repo: str) -> None:
    """Before hours are spent: a possible name, and a token that the hub takes.

    Raises:
        MeloraError: the name can't be one of a repository, there is no token, or the hub does not answer to it.
    """
    try:
        validate_repo_id(repo)
    except huggingface_hub.errors.HFValidationError as error:
        raise MeloraError(f"--push-to-hub {repo}: no name of a repository: {one_line(error)[:200]}") from None
    if huggingface_hub.get_token() is None:
        raise MeloraError(f"--push-to-hub {repo}: no token; run `hf auth login`, or set HF_TOKEN")
    try:
        huggingface_hub.HfApi().whoami()
    except Exception as error:  # whatever the HTTP client in use raises when there is no network
        raise MeloraError(
            f"--push-to-hub {repo}: the hub does not take the token, or can't be reached ({one_line(error)[:160]}); "
            "train without it and upload later with `melora push`"
        ) from None


def push(run: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload a finished run's adapter folder as a model repository, which is made if there is none.

    Args:
        run: the run folder; it stays as it is.
        repo: OWNER/NAME, or NAME for one's own.
        private: of a repository that is made now.

    Returns:
        The repository's address.

    Raises:
        MeloraError: no finished run.
        TrainingError: the upload failed.
    """
    path, _ = open_run(run)
    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=path / ADAPTER, commit_message="Upload adapter trained with melora"
        )
    except Exception as error:  # as above
        raise TrainingError(
            f"the upload to {repo} failed ({type(error).__name__}: {one_line(error)[:200]}); the run is whole in "
            f"{path}: try again with `melora push {path} {repo}`"
        ) from None
    return str(made)
