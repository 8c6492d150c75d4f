"""The HTTP session of DICOMweb: its allowed addresses, its certificates, and the meaning of its failures.

Only the destination's own URL is called: no proxy or password file of the environment is used, no redirection is followed.
Addresses with a patient's name in the query stay out of messages and logs.
"""

import logging
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter

from dicom_io.errors import NetworkError
from dicom_io.net.destination import Destination, DestinationError, DicomWeb, Tls
from dicom_io.net.tls import client_context
from dicom_io.reading.instances import READ_ERRORS

_ADVICE = {
    401: "set the token that token_env names",
    403: "give our token or certificate access to this in the archive",
    404: "check the URL, and whether the requested object exists",
    413: "allow larger requests in the archive",
    501: "use another way to fetch or send",
}


class _Adapter(HTTPAdapter):
    """Our TLS settings under requests, and queries in the form that most services understand."""

    def __init__(self, tls_context: ssl.SSLContext | None) -> None:
        self.tls_context = tls_context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        if self.tls_context is not None:
            kwargs["ssl_context"] = self.tls_context
            # urllib3 compares the host name itself, beside the TLS context; False turns that off too.
            kwargs["assert_hostname"] = None if self.tls_context.check_hostname else False
        super().init_poolmanager(*args, **kwargs)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Sends a space as %20 and a star as it is (RFC 3986 3.4); Orthanc 1.10 decodes neither + nor %2A."""
        path, mark, query = str(request.url).partition("?")
        request.url = path + mark + query.replace("+", "%20").replace("%2A", "*")
        return super().send(request, *args, **kwargs)


@contextmanager
def web_client(destination: Destination) -> Iterator[DICOMwebClient]:
    """A client of the destination; any failure inside becomes a NetworkError.

    Such an error has no cause: the texts of the causes hold whole addresses.
    """
    _quiet_loggers()
    with _session(destination) as session:
        client = DICOMwebClient(
            _peer(destination).url,
            session=session,
            permissive_uid=True,
            timeout=(destination.connect_s, destination.answer_s),
        )
        client.set_http_retry_params(retry=False)  # it would send a consumed body once more
        try:
            yield client
        except requests.RequestException as error:
            problem, advice = _explain(destination, error)
            raise NetworkError(
                f"{destination.label} {problem}; a DICOMweb service that answers is needed; {advice}"
            ) from None
        except (InvalidDicomError, *READ_ERRORS) as error:  # type: ignore[misc]
            raise NetworkError(
                f"{destination.label} gave an answer that is not DICOMweb ({type(error).__name__}); DICOM JSON or DICOM files "
                "are needed; check the URL"
            ) from None


def _session(destination: Destination) -> requests.Session:
    peer, session = _peer(destination), requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    session.hooks["response"] = [_repair_response]
    if peer.token_env:
        token = os.environ.get(peer.token_env, "").strip()
        if not token:
            raise DestinationError(
                f"the environment variable {peer.token_env} is empty; the bearer token of {destination.name} is needed; set it"
            )
        session.headers["Authorization"] = f"Bearer {token}"
    session.mount("http://", _Adapter(None))
    if peer.url.startswith("https://"):
        tls = peer.tls or Tls()
        session.mount("https://", _Adapter(client_context(tls)))
        if tls.ca is not None:
            session.verify = str(tls.ca)  # else requests adds the public authorities to ours
    return session


def _peer(destination: Destination) -> DicomWeb:
    if not isinstance(destination.peer, DicomWeb):
        raise TypeError(f"{destination.label} does not speak DICOMweb")
    return destination.peer


def _repair_response(response: requests.Response, *args: Any, **kwargs: Any) -> None:
    """Handles two cases that dicomweb-client does not: parameters of a media type, and a multipart body that is cut short."""
    kind = response.headers.get("Content-Type", "")
    if kind.startswith(("application/dicom+json", "application/json", "application/dicom+xml")):
        response.headers["Content-Type"] = kind.split(";")[0].strip()
    boundary = re.search(r'boundary="?([^";]+)', kind, re.IGNORECASE)
    if kind.lower().startswith("multipart/related") and boundary:
        original, end = response.iter_content, f"--{boundary[1].strip()}--".encode()

        def checked_to_the_end(*more: Any, **options: Any) -> Iterator[bytes]:
            # The closing boundary may be split between two chunks, and an epilogue may follow it (RFC 2046 5.1.1). A
            # boundary has at most 70 characters, so the last bytes are enough.
            tail = b""
            for chunk in original(*more, **options):
                tail = (tail + chunk)[-4096:]
                yield chunk
            if end not in tail:
                raise requests.exceptions.ChunkedEncodingError("the body has no closing boundary")

        response.iter_content = checked_to_the_end  # type: ignore[method-assign]


def _explain(destination: Destination, error: requests.RequestException) -> tuple[str, str]:
    """The problem and the remedy; never the error's own text, which holds the address with its query."""
    check = "check the URL and whether the service runs"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        code = error.response.status_code
        return f"answered with HTTP status {code}", _ADVICE.get(code, "look into its log")
    answers: dict[type[Exception], tuple[str, str]] = {  # the first class that fits counts
        requests.exceptions.SSLError: (
            f"broke off TLS ({_tls_reason(error)})", "check ca, certificate, key and host name"
        ),
        # ConnectTimeout is a Timeout too, so it stands first.
        requests.ConnectTimeout: (f"did not answer within {destination.connect_s:g} s", check),
        requests.Timeout: (f"gave no answer within {destination.answer_s:g} s", "check whether it is busy, or raise answer_s"),
        requests.TooManyRedirects: ("redirected to another address, which is not followed", "give the final URL"),
        requests.exceptions.JSONDecodeError: ("gave an answer that is not DICOM JSON", check),
        requests.exceptions.ChunkedEncodingError: (
            "ended in the middle of an answer", "try again, then see its log"
        ),
    }  # fmt: skip
    refused = _cause(error, ConnectionRefusedError)
    other = "refused the connection" if refused else "cannot be reached, or closed the connection"
    return next((answer for kind, answer in answers.items() if isinstance(error, kind)), (other, check))


def _tls_reason(error: BaseException) -> str:
    cause = _cause(error, ssl.SSLError)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return str(cause.verify_message)
    return str(getattr(cause, "reason", None) or "no reason given")


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """The error of a kind among the causes and arguments of another."""
    visited: list[BaseException] = []
    todo: list[object] = [error]
    while todo:
        cause = todo.pop()
        if isinstance(cause, kind):
            return cause
        if isinstance(cause, BaseException) and cause not in visited:
            visited.append(cause)
            # urllib3 and requests keep the error of the socket in `reason` or `args`, not always among the causes.
            todo += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
    return None


def _quiet_loggers() -> None:
    """Keeps addresses with a patient's name in the query out of the logs of HTTP libraries."""
    for name in ("urllib3.connectionpool", "dicomweb_client"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.WARNING:
            logger.setLevel(logging.WARNING)
