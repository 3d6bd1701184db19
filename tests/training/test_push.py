from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from melora import MeloraError
from melora.training.failures import TrainingError
from melora.training.push import check_hub, push


class FakeApi:
    calls: list[tuple[str, dict[str, Any]]]
    broken: str | None

    def whoami(self) -> dict[str, str]:
        if self.broken == "whoami":
            raise OSError("no route")
        return {"name": "me"}

    def create_repo(self, repo_id: str, **kwargs: Any) -> huggingface_hub.RepoUrl:
        self.calls.append(("create_repo", {"repo_id": repo_id, **kwargs}))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id if '/' in repo_id else f'me/{repo_id}'}")

    def upload_folder(self, **kwargs: Any) -> None:
        if self.broken == "upload":
            raise OSError("connection lost")
        self.calls.append(("upload_folder", kwargs))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    FakeApi.calls, FakeApi.broken = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    return FakeApi


def test_the_adapter_folder_is_uploaded(api: type[FakeApi], trained_run: Path) -> None:
    check_hub("movie-adapter")
    assert push(trained_run, "movie-adapter", private=True) == "https://huggingface.co/me/movie-adapter"
    (first, made), (second, sent) = api.calls
    assert (first, second) == ("create_repo", "upload_folder")
    assert made == {"repo_id": "movie-adapter", "repo_type": "model", "private": True, "exist_ok": True}
    assert sent["repo_id"] == "me/movie-adapter"
    assert sent["folder_path"] == trained_run / "adapter"
    assert (sent["folder_path"] / "README.md").is_file()


def test_a_failed_upload_says_how_to_go_on(api: type[FakeApi], trained_run: Path) -> None:
    api.broken = "upload"
    with pytest.raises(TrainingError, match=r"connection lost.*the run is whole in .*melora push .* me/x"):
        push(trained_run, "me/x")


def test_what_the_hub_would_refuse_is_refused_before(api: type[FakeApi], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeloraError, match="no name of a repository"):
        check_hub("a b")
    api.broken = "whoami"
    with pytest.raises(MeloraError, match=r"can't be reached \(no route\)"):
        check_hub("me/x")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(MeloraError, match="no token; run `hf auth login`, or set HF_TOKEN"):
        check_hub("me/x")
