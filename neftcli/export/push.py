"""`neft push`: upload the model of a run to a repository on the hub.

The upload is one commit: either all files arrive, or the repository stays as it was. Files that arrived before a
connection broke are not sent again.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from neftcli.errors import Checks, InputError, Interrupted, NeftError, Problem, describe_error, first_line
from neftcli.evaluation.progress import ProgressReporter
from neftcli.events import Notice, Phase, PhaseId, PushedFile, PushFinished, PushPlanned
from neftcli.export.hub_card import hub_card
from neftcli.export.merge import CARD, write_merged
from neftcli.export.output import ExportError
from neftcli.export.tuned_model import resolve_finished_run
from neftcli.runs.directory import RECIPE
from neftcli.system.files import (
    remove_if_possible,
    remove_stale_files,
    require_no_link,
    require_no_links,
    temporary_name,
)
from neftcli.system.hub import HUB, go_offline_if_unreachable, hub_endpoint, token_source
from neftcli.system.libraries import capture_library_output

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from neftcli.evaluation.targets import EvalTarget
    from neftcli.events import Observer
    from neftcli.runs.directory import RunDirectory

LOGIN = f"hf auth login, or HF_TOKEN=... with a token from {HUB}/settings/tokens that can write"
MAX_NAME = 96
"""Characters of a repository's name on the hub."""
GIT_FILE = ".gitattributes"
"""The only file of a new repository."""
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, SERVER_ERROR = 401, 403, 404, 500
Content = Path | bytes
"""A file's path, or its bytes."""


def push_run(
    name: str,
    repository: str,
    observer: Observer,
    *,
    private: bool = False,
    merged: bool = False,
    update: bool = False,
    dry_run: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Upload the model of a run to a repository on the hub.

    Args:
        name: The run, as typed.
        repository: The repository, as owner/name.
        observer: Receives the events.
        private: Create a private repository.
        merged: Merge the adapter first, and upload a model that needs no base model.
        update: Add a commit to a repository that has files already.
        dry_run: Only notify what would be uploaded.
        trust_remote_code: Run code that comes with the base model, to merge it.

    Raises:
        InputError: The run or the repository can't be used; nothing was uploaded.
        ExportError: The hub or the connection failed; the repository has no new commit.
        Interrupted: It was stopped by a signal; the repository has no new commit.
    """
    started = time.perf_counter()
    checks = Checks()
    with checks:
        _require_repository_name(name, repository, dry_run=dry_run)
    with checks:
        target, run = resolve_finished_run(name, "neft push", observer, trust_remote_code=trust_remote_code)
    checks.raise_errors()
    if merged and not target.has_adapter():
        hint = f"neft push {shlex.quote(name)} {repository}    uploads it as it is"
        raise InputError(Problem("--merged is for runs with an adapter", target.recipe.method().describe(), hint))
    require_no_links(run.model)
    require_no_link(run.path / RECIPE)
    _warn_of_local_base(target, observer, merged=merged)
    url = f"{hub_endpoint().geturl().rstrip('/')}/{repository}"
    if dry_run:
        observer.notify(_plan_push(target, run, repository, url, private=private, merged=merged))
        return
    api = _connect()
    with TemporaryDirectory() as scratch, capture_library_output(Path(scratch) / "log"):
        exists = _require_usable_repository(api, name, repository, private=private, update=update)
        with _merged_model(target, run, observer, trust_remote_code=trust_remote_code, merged=merged) as folder:
            card = hub_card(folder / CARD, run, target, repository)
            files = {**_list_files(folder), CARD: str(card).encode(), RECIPE: run.path / RECIPE}
            if not exists:
                with _explain_failures(repository, "no repository was created"):
                    api.create_repo(repository, private=private)
            message = f"neft push {run.path.name}" + (" --merged" if merged else "")
            commit, size = _upload(api, repository, files, message, observer)
    observer.notify(
        PushFinished(
            run=str(run.path),
            repository=repository,
            url=url,
            commit=commit,
            merged=merged,
            files=len(files),
            size=size,
            seconds=time.perf_counter() - started,
        )
    )


def _require_repository_name(run: str, repository: str, *, dry_run: bool) -> None:
    """Check the name of a repository.

    Raises:
        InputError: It is not owner/name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        if "/" in repository:
            return
        reason = "the owner is missing"
    except HFValidationError:
        reason = f"letters, digits and - _ . without -- or .., not ending in .git, {MAX_NAME} characters at most"
    *owners, name = [
        re.sub(r"[^\w.-]+|-{2,}|\.{2,}", "-", part, flags=re.ASCII).strip("-.")
        for part in repository.rstrip("/").removesuffix(".git").split("/")
    ]
    name = name[:MAX_NAME].rstrip("-.")
    example = f"neft push {shlex.quote(run)} {(owners or [''])[-1] or 'YOUR_NAME'}/{name or Path(run).name}"
    example += " --dry-run" if dry_run else ""
    raise InputError(Problem(f"a repository is owner/name: {reason}", repository or "an empty name", example))


def _warn_of_local_base(target: EvalTarget, observer: Observer, *, merged: bool) -> None:
    """Warn if nobody else can load an adapter's base model."""
    if target.has_adapter() and not merged and target.reference.kind != "hub" and not target.reference.alias:
        text = f"the adapter's base model is on this machine only ({target.reference.name}), so others can't load it"
        observer.notify(Notice(f"{text}; --merged uploads a complete model"))


def _list_files(folder: Path) -> dict[str, Content]:
    """Return the files of a folder by their path in the repository."""
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def _plan_push(
    target: EvalTarget, run: RunDirectory, repository: str, url: str, *, private: bool, merged: bool
) -> PushPlanned:
    """Return what would be uploaded; of a merged model, the files that are known before."""
    card = hub_card(run.model / CARD, run, target, repository)
    files: Mapping[str, Content] = {**_list_files(run.model), CARD: str(card).encode(), RECIPE: run.path / RECIPE}
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    if merged:
        card.data.library_name = "transformers"
        sizes = {name: size for name, size in sizes.items() if not name.startswith("adapter_")}
    listed = tuple(PushedFile(name, sizes[name]) for name in sorted(sizes))
    return PushPlanned(str(run.path), repository, url, private, merged, listed, card.data.to_yaml())


def _connect() -> HfApi:
    """Return the hub's client.

    Raises:
        ExportError: The hub can't be reached.
        InputError: There is no token.
    """
    from huggingface_hub import HfApi

    if reason := go_offline_if_unreachable():
        hint = "HF_ENDPOINT=URL for another hub; --dry-run shows what would be uploaded"
        raise ExportError(Problem("the hub can't be reached; nothing was uploaded", reason, hint))
    if not token_source():
        raise InputError(Problem("to upload, the hub needs a token", "none", LOGIN))
    return HfApi(endpoint=hub_endpoint().geturl().rstrip("/"), library_name="neft")


def _require_usable_repository(api: HfApi, run: str, repository: str, *, private: bool, update: bool) -> bool:
    """Check a repository, and return whether it exists.

    Raises:
        InputError: It has files and is not to be updated, or it is public and must be private.
        ExportError: The hub or the connection failed.
    """
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    with _explain_failures(repository, "nothing was uploaded"):
        try:
            info = api.model_info(repository)
        except HfHubHTTPError as error:
            if isinstance(error, RepositoryNotFoundError) and error.response.status_code == UNAUTHORIZED:
                api.whoami()  # the hub answers 401 for a missing repository, too
            elif error.response.status_code != NOT_FOUND:
                raise
            return False
    files = sorted(file.rfilename for file in info.siblings or [] if file.rfilename != GIT_FILE)
    if files and not update:
        got = ", ".join(files[:4]) + (", ..." if len(files) > 4 else "")
        hint = f"neft push {shlex.quote(run)} {repository} --update    adds a commit"
        raise InputError(Problem(f"{repository}: the repository has files already", got, hint))
    if private and not info.private:
        hint = "make it private in its settings on the hub, or leave out --private"
        raise InputError(Problem(f"{repository}: --private, but the repository exists", "a public one", hint))
    return True


@contextmanager
def _merged_model(
    target: EvalTarget, run: RunDirectory, observer: Observer, *, trust_remote_code: bool, merged: bool
) -> Iterator[Path]:
    """Yield the folder of the run's model; with `merged`, a temporary folder with the merged model."""
    if not merged:
        yield run.model
        return
    parent = run.path.parent
    remove_stale_files(parent)
    folder = parent / temporary_name(f"{run.path.name}-merged")
    try:
        write_merged(target, run, folder, None, observer, trust_remote_code=trust_remote_code)
        yield folder
    finally:
        remove_if_possible(folder)


def _upload(
    api: HfApi, repository: str, files: Mapping[str, Content], message: str, observer: Observer
) -> tuple[str, int]:
    """Upload files and commit them.

    Returns:
        SHA of the commit, and the bytes of all files.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    done, shows_bars = 0, not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with _explain_failures(repository, "it has no new commit"):
            observer.notify(Phase(PhaseId.HASHING_FILES))
            additions = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=file if isinstance(file, bytes) else str(file))
                for name, file in files.items()
            ]
            total = sum(addition.upload_info.size for addition in additions)
            progress = ProgressReporter(PhaseId.UPLOADING, "", 0, total, observer)
            for addition in additions:
                api.preupload_lfs_files(repository, [addition], free_memory=False)
                done += addition.upload_info.size
                progress.add(done, addition.upload_info.size)
            commit = api.create_commit(repository, additions, commit_message=message)
    finally:
        if shows_bars:
            enable_progress_bars()
    return commit.oid, total


@contextmanager
def _explain_failures(repository: str, state: str) -> Iterator[None]:
    """Turn the errors of the hub's client into messages.

    Args:
        repository: The repository.
        state: What is true of the repository after a failure, for the message.

    Raises:
        ExportError: The hub or the connection failed.
        Interrupted: The block was stopped by a signal.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    again = "run the same command again; files that arrived are not sent twice"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(Problem(f"{repository}: stopped; {state}", hint=again)) from None
    except NeftError:
        raise
    except Exception as error:
        cause: Any = error
        while not isinstance(cause, HfHubHTTPError | HTTPError | OSError) and cause.__cause__ is not None:
            cause = cause.__cause__  # the client wraps errors of its threads
        if isinstance(cause, HfHubHTTPError):
            raise ExportError(_describe_response(repository, state, cause)) from error
        if isinstance(cause, OSError) and cause.filename is not None:
            message = f"{cause.filename}: the file can't be read; {state}"
            raise ExportError(Problem(message, cause.strerror or str(cause))) from error
        if isinstance(cause, HTTPError | OSError):
            message = f"{repository}: the connection to the hub failed; {state}"
            raise ExportError(Problem(message, describe_error(cause), again)) from error
        raise


def _describe_response(repository: str, state: str, error: Any) -> Problem:
    """Describe a response of the hub that is an error."""
    status = error.response.status_code
    got = f"{status}: {error.server_message or first_line(error)}"
    if status == UNAUTHORIZED:
        return Problem(f"the hub rejects the token from {token_source()}; {state}", got, LOGIN)
    if status == FORBIDDEN:
        return Problem(f"{repository}: the token from {token_source()} can't write here; {state}", got, LOGIN)
    if status == NOT_FOUND:
        return Problem(f"{repository}: there is no such repository, or the token can't see it; {state}", got, LOGIN)
    hint = "try again later; files that arrived are not sent twice" if status >= SERVER_ERROR else ""
    return Problem(f"{repository}: the hub does not accept the request; {state}", got, hint)
