"""Requests to DynamoDB: limited in number, retried if they were throttled, and timed.

Knows aiobotocore, its errors, and how to open a client that does not retry by itself. Knows no
table. A throttled request was certainly not executed, and is retried after a pause. No other
request is retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

try:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "The store in DynamoDB needs aiobotocore: pip install 'pyncette[dynamodb]'"
    ) from error

from aiohttp import ClientError as HttpError
from botocore import exceptions as failures
from botocore.loaders import Loader, create_loader
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies

from pyncette import chance
from pyncette.clock import realtime, to_microseconds
from pyncette.dynamodb.clock import DateClock
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError

CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 15
"""Longer than the deadline of any call: a limit for calls that have no deadline."""

ATTEMPTS_MAX: Final = 12
"""Maximum attempts of a request that is throttled, before the call fails."""

PAUSE_INITIAL_S: Final = 0.025
PAUSE_MAX_S: Final = 1.0

THROTTLED: Final = frozenset(
    {
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ThrottlingError",
        "ThrottlingException",
        "TransactionConflict",
        "TransactionConflictException",
    }
)
"""Errors of a request or of one statement after which nothing was done, and a retry may help."""

REFUSED: Final = frozenset(
    {
        "413",
        "ItemCollectionSizeLimitExceeded",
        "ItemCollectionSizeLimitExceededException",
        "RequestEntityTooLarge",
        "SerializationException",
        "ValidationError",
        "ValidationException",
    }
)
"""Errors of a request or of one statement after which nothing was done, because a value in it
cannot be stored."""

_MISCONFIGURED: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "OptInRequired",
        "ResourceNotFound",
        "ResourceNotFoundException",
        "SerializationException",
        "SignatureDoesNotMatch",
        "UnknownOperationException",
        "UnrecognizedClientException",
        "ValidationError",
        "ValidationException",
    }
)
_NO_CREDENTIALS: Final = (
    failures.NoCredentialsError,
    failures.PartialCredentialsError,
    failures.CredentialRetrievalError,
    failures.TokenRetrievalError,
)
_TRANSPORT: Final = (
    failures.ConnectionError,
    failures.HTTPClientError,
    HttpError,
    ResponseParserError,
    OSError,
    TimeoutError,
)


@asynccontextmanager
async def open_client(
    region_name: str | None, endpoint: str | None, pool_size: int
) -> AsyncIterator[Any]:
    """Opens a client with the credentials of the environment.

    Raises:
        StoreMisconfiguredError: The environment has no region or no credentials.
    """
    config = AioConfig(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=pool_size,
        parameter_validation=False,
        retries={"mode": "standard", "total_max_attempts": 1},
        tcp_keepalive=True,
        user_agent_extra="pyncette",
    )
    async with AsyncExitStack() as stack:
        try:
            session = get_session()
            path = session.get_config_variable("data_path")
            session.register_component("data_loader", _loader(path))
            client = await stack.enter_async_context(
                session.create_client(
                    "dynamodb",
                    region_name=region_name,
                    endpoint_url=endpoint,
                    config=config,
                    verify=_verification(endpoint),
                )
            )
        except failures.NoRegionError:
            raise StoreMisconfiguredError(
                "DynamoDB: no region is known. Name one with dynamodb_region_name, or in the "
                "environment variable AWS_DEFAULT_REGION"
            ) from None
        except (failures.BotoCoreError, ValueError) as error:
            raise translated(error, "DynamoDB") from None
        yield client


def _verification(endpoint: str | None) -> bool | None:
    """False where no certificate is ever verified; None leaves it to the environment.

    To read the certificates of all authorities takes twice as long as the rest of opening.
    """
    if endpoint is None or urlsplit(endpoint).scheme != "http" or get_environ_proxies(endpoint):
        return None
    return False


@cache
def _loader(path: str | None) -> Loader:
    """Reads the driver's description of the service, once: it takes a tenth of a second."""
    return create_loader(path)


def repeats_by_itself(client: Any) -> bool:
    """Whether a client of the application retries requests by itself."""
    retries: dict[str, Any] = client.meta.config.retries or {}
    return bool(retries.get("total_max_attempts", 2) != 1 and retries.get("max_attempts") != 0)


def place_of(client: Any, table_name: str) -> str:
    """The service that a client is connected to, for messages."""
    host = urlsplit(client.meta.endpoint_url).hostname
    return f"DynamoDB table '{table_name}' in {client.meta.region_name} at {host}"


def translated(error: Exception, place: str) -> StoreError:
    """Translates an error of the driver, the service or the network to one of Pyncette's."""
    if isinstance(error, _NO_CREDENTIALS):
        return StoreMisconfiguredError(
            f"{place}: no AWS credentials were found ({type(error).__name__}). They are looked for "
            "where every AWS program does: the variables AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, the shared files, the role of the container or the machine"
        )
    if isinstance(error, failures.ClientError):
        told = error.response.get("Error", {})
        return error_of(str(told.get("Code", "")), str(told.get("Message", "")), place)
    if isinstance(error, _TRANSPORT):
        return StoreUnavailableError(f"{place}: {error or type(error).__name__}")
    return StoreMisconfiguredError(f"{place}: {error}")


def error_of(code: str, message: str, place: str) -> StoreError:
    """Translates an error that the service answered to one of Pyncette's."""
    # The later lines of an error about a signature quote the signed request.
    text = f"{place}: {code}: {message.partition(chr(10))[0]}"
    if code in _MISCONFIGURED:
        return StoreMisconfiguredError(text)
    return StoreUnavailableError(text)


class Patience:
    """The backoff of one call: growing random pauses, and a maximum number of attempts."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._pauses = 0

    async def wait(self, reason: str) -> None:
        """Waits before the next attempt.

        Raises:
            StoreUnavailableError: This was the last attempt.
        """
        self._pauses += 1
        if self._pauses >= ATTEMPTS_MAX:
            raise StoreUnavailableError(
                f"{self._place}: turned away {ATTEMPTS_MAX} times in a row: {reason}"
            )
        longest = min(PAUSE_INITIAL_S * 2**self._pauses, PAUSE_MAX_S)
        await realtime.sleep(chance.current().uniform(0, longest))


class Requests:
    """Makes requests on a shared client, a limited number at a time.

    Args:
        client: A client of aiobotocore.
        place: The service that it is connected to, for messages.
        size: Maximum requests at a time; others wait.
        clock: Reads the server's time from each answer.
    """

    def __init__(self, client: Any, place: str, size: int, clock: DateClock) -> None:
        self.place = place
        self._client = client
        self._clock = clock
        self._room = asyncio.Semaphore(size)

    async def make(
        self, operation: str, *, tolerated: Collection[str] = (), **parameters: Any
    ) -> dict[str, Any]:
        """Makes a request, and retries it while it is throttled.

        Args:
            operation: The client's method, such as ``batch_get_item``.
            tolerated: Error codes that are returned as an answer and not raised.
            parameters: Its parameters.

        Raises:
            StoreError: It failed; whether it took effect is unknown.
        """
        patience = Patience(self.place)
        while True:
            try:
                async with self._room:
                    return await self._once(operation, parameters)
            except failures.ClientError as error:
                code = error.response.get("Error", {}).get("Code", "")
                if code in tolerated:
                    return dict(error.response)
                if code not in THROTTLED:
                    raise translated(error, self.place) from None
                reason = code
            except (*_TRANSPORT, failures.BotoCoreError, ValueError) as error:
                raise translated(error, self.place) from None
            await patience.wait(reason)

    async def _once(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        sent = self._clock.monotonic()
        try:
            answer: dict[str, Any] = await getattr(self._client, operation)(**parameters)
        except failures.ClientError as error:
            self._observe(sent, error.response)
            raise
        self._observe(sent, answer)
        return answer

    def _observe(self, sent: float, answer: dict[str, Any]) -> None:
        date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        try:
            instant = to_microseconds(parsedate_to_datetime(date))
        except (ValueError, TypeError):
            return  # no date, or an unreadable one
        self._clock.observe(sent, self._clock.monotonic(), instant)
