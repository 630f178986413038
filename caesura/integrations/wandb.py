"""Weights & Biases: a run of its service, or of a server of one's own, by its own client; or one on disk, offline."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb
from wandb.errors import AuthenticationError, Error

from caesura.integrations.runs import Point, RunSpec, RunUnavailable, Told, config_of
from caesura.integrations.shipping import main
from caesura.jobs import Job, Status
from caesura.settings import Settings

#: What reaching the service may take, and sending the last of a run.
INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 30.0, 60.0
#: How often the service is asked how far the run has come, and how long that may stand still.
ASK_EVERY_S, PATIENCE_S = 10.0, 120.0
#: How often the client sends; it takes whole seconds only. Its own 15 s are for thousands of runs at once.
TRANSMIT_EVERY_S = 2.0
API_TIMEOUT_S = 10
MAX_TAG = 64
UNREACHABLE = "it cannot be reached"
#: How its client words an answer of the service that trying again does not change.
_REFUSAL = re.compile(r"returned error (4\d\d)")


class OnlineRun:
    """The client sends by itself and says nothing of how far it has come, so the service is asked."""

    def __init__(self, run: wandb.Run, api: wandb.Api, step: int, folder: Path) -> None:
        self._run = run
        self._api = api
        #: The last step that was handed to the client, and the last that the service has.
        self._logged = self._come = step
        self._folder = folder
        self._asked_at = self._progress_at = time.monotonic()

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            if point.step > self._logged:
                _log(self._run, point)
                self._logged = point.step

    def last_step(self) -> int:
        now = time.monotonic()
        if self._come == self._logged:
            self._progress_at = now
        elif now - self._asked_at > ASK_EVERY_S:
            self._asked_at = now
            if self._ask() or now - self._progress_at < PATIENCE_S:
                return self._come
            raise RunUnavailable(UNREACHABLE)
        return self._come

    def describe(self, summary: Mapping[str, Told]) -> None:
        _describe(self._run, summary)

    def close(self, status: Status) -> None:
        try:
            self._run.finish(_exit_code(status))
        except (Error, TimeoutError) as error:
            raise RunUnavailable(UNREACHABLE) from error
        give_up_at = time.monotonic() + FINISH_TIMEOUT_S
        while self._come < self._logged:
            if not self._ask():
                if time.monotonic() > give_up_at:
                    raise RunUnavailable("it has not taken all steps")
                time.sleep(1.0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self) -> bool:
        """Whether the service has more than when it was last asked."""
        try:
            step: int = self._api.run(f"{self._run.entity}/{self._run.project}/{self._run.id}").lastHistoryStep
        except (Error, ValueError):  # it is down, or does not show the run yet
            return False
        if step <= self._come:
            return False
        self._come, self._progress_at = min(step, self._logged), time.monotonic()
        return True


class OfflineRun:
    """A folder that `wandb sync` takes, of what was told from opening to closing. It counts once it is whole."""

    def __init__(self, run: wandb.Run, step: int, folder: Path, kept: Path) -> None:
        self._run = run
        self._logged = self._come = step
        self._folder = folder
        self._kept = kept / f"from-step-{step + 1}"

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            _log(self._run, point)
            self._logged = point.step

    def last_step(self) -> int:
        return self._come

    def describe(self, summary: Mapping[str, Told]) -> None:
        _describe(self._run, summary)

    def close(self, status: Status) -> None:
        self._run.finish(_exit_code(status))
        # One of the same name is what a process left that ended before it could say so.
        shutil.rmtree(self._kept, ignore_errors=True)
        self._kept.mkdir(parents=True)
        folder = Path(self._run.settings.sync_dir)
        folder.rename(self._kept / folder.name)  # `wandb sync` goes by this name
        self._come = self._logged
        shutil.rmtree(self._folder, ignore_errors=True)


def _log(run: wandb.Run, point: Point) -> None:
    run.log({**point.values, "_timestamp": float(point.at)}, step=point.step, commit=True)


def _describe(run: wandb.Run, summary: Mapping[str, Told]) -> None:
    for name, value in summary.items():
        run.summary[name] = value


def _exit_code(status: Status) -> int:
    return int(status in (Status.FAILED, Status.CANCELLED))


def tags_of(job: Job, asked: Sequence[str]) -> list[str]:
    """OpenAI's own, then those that were asked for."""
    own = ("openai/finetune", f"openai/{job.base}", f"openai/{job.id}")
    return list(dict.fromkeys(tag[:MAX_TAG] for tag in (*own, *asked)))


def open_run(spec: RunSpec) -> OnlineRun | OfflineRun:
    settings, asked = spec.settings, spec.asked
    folder = settings.data_dir / "wandb" / f".{spec.job.id}-{spec.number}"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that ended before it was done: all in it is told again
    folder.mkdir(parents=True)
    is_offline = settings.wandb_mode == "offline"
    key = None if settings.wandb_api_key is None else settings.wandb_api_key.get_secret_value()
    try:
        run = wandb.init(
            project=asked["project"],
            entity=asked["entity"],
            id=spec.job.id,
            name=asked["name"] or spec.job.id,
            tags=tags_of(spec.job, asked["tags"]),
            config=config_of(spec.job),
            settings=client_settings(settings, key, folder),
        )
        if is_offline:
            return OfflineRun(run, spec.step, folder, settings.data_dir / "wandb" / f"{spec.job.id}-{spec.number}")
        api = wandb.Api({"base_url": run.settings.base_url}, timeout=API_TIMEOUT_S, api_key=key)
    except Error as error:
        raise RunUnavailable(_reason(error)) from error
    # What the service has of a run that is gone on with may be more than is known here.
    return OnlineRun(run, api, max(spec.step, run.starting_step - 1), folder)


def _reason(error: Error) -> str:
    refusal = _REFUSAL.search(str(error))
    if isinstance(error, AuthenticationError) or (refusal is not None and refusal[1] in ("401", "403")):
        return "it does not take the server's key"
    return UNREACHABLE if refusal is None else "it refuses the run"


def client_settings(settings: Settings, key: str | None, folder: Path) -> wandb.Settings:
    is_offline = settings.wandb_mode == "offline"
    told = wandb.Settings(
        mode=settings.wandb_mode,
        api_key=None if is_offline else key,
        resume=None if is_offline else "allow",
        root_dir=str(folder),
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
        x_file_stream_transmit_interval=TRANSMIT_EVERY_S,
        # Of this process it tells nothing: the job is computed in another one.
        console="off",
        silent=True,
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    if settings.wandb_base_url is not None:
        told.base_url = settings.wandb_base_url
    return told


if __name__ == "__main__":
    main(open_run)
