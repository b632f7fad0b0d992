"""Work on many instances, which goes on after the page that began it, and shows how far it is.

Jobs live in the memory of the process that runs the dashboard. One that the end of the process has
interrupted can be begun again: what is done already is found done.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from pyncette.bulk import BulkFailure, BulkResult
from pyncette.clock import realtime
from pyncette.errors import PyncetteException, describe, printable

logger: Final = logging.getLogger(__name__)

KEPT_MAX: Final = 50
"""Jobs that are remembered; the oldest that has ended gives way."""

RUNNING_MAX: Final = 10
"""Jobs that run at the same time."""

FAILURES_SHOWN_MAX: Final = 20

PATIENCE_S: Final = 1.5
"""How long a page waits for the end of a job before it shows its progress instead."""


class Job:
    """Work that was asked for.

    Attributes:
        id: Names it in addresses; cannot be guessed.
        title: What it does.
        user: Who has asked for it.
        began: When, by the clock of the app.
        back: The page from which it was asked for.
        result: What was done so far; None: nothing, or it does not count.
        error: What has ended it.
        said: What was done, in words, if it does not count instances.
        failures: The first instances that failed, with their errors.
    """

    def __init__(self, title: str, user: str, began: datetime, back: str) -> None:
        self.id = secrets.token_urlsafe(12)
        self.title = title
        self.user = user
        self.began = began
        self.back = back
        self.result: BulkResult | None = None
        self.error: str | None = None
        self.said: str | None = None
        self.failures: list[tuple[str, str]] = []
        self.task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.task is not None and not self.task.done()

    def progress(self, result: BulkResult) -> None:
        """Notes what was done so far."""
        self.result = result

    def failed(self, failure: BulkFailure) -> None:
        """Notes an instance that failed."""
        if len(self.failures) < FAILURES_SHOWN_MAX:
            self.failures.append((printable(failure.name), describe(failure.error)))


class Jobs:
    """The jobs of a dashboard."""

    def __init__(self) -> None:
        """There is none."""
        self._jobs: dict[str, Job] = {}

    def get(self, job_id: str) -> Job | None:
        """Returns a job; None: this process does not know it."""
        return self._jobs.get(job_id)

    def of(self, user: str) -> list[Job]:
        """Returns the jobs of a viewer that run."""
        return [job for job in self._jobs.values() if job.running and job.user == user]

    async def begin(self, job: Job, work: Callable[[Job], Awaitable[BulkResult | None]]) -> bool:
        """Begins a job, and waits for it for a moment.

        Returns:
            Whether it was begun; if not, too many run already.
        """
        if sum(other.running for other in self._jobs.values()) >= RUNNING_MAX:
            return False
        for job_id, other in list(self._jobs.items()):
            if len(self._jobs) >= KEPT_MAX and not other.running:
                del self._jobs[job_id]
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, work), name="pyncette dashboard job")
        try:
            async with realtime.timeout(PATIENCE_S):
                await asyncio.shield(job.task)
        except TimeoutError:
            pass
        return True

    async def _run(self, job: Job, work: Callable[[Job], Awaitable[BulkResult | None]]) -> None:
        try:
            result = await work(job)
            if result is not None:
                job.result = result
        except asyncio.CancelledError:
            job.error = "It was interrupted by the end of the process: begin it again."
            raise
        except (PyncetteException, ValueError, TypeError) as error:
            job.error = describe(error)
        except Exception as error:
            job.error = describe(error)
            logger.exception("An action of the dashboard has failed: %s", job.title)

    async def close(self) -> None:
        """Ends the jobs that run."""
        running = [job.task for job in self._jobs.values() if job.task and job.running]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
