"""Encrypted connections: TLS 1.2 or newer, with certificates on both sides.

Source: PS3.15 B.12 and B.13 (BCP 195 and RFC 8996 TLS Secure Transport Connection Profiles); RFC 9325 4.2 for the ciphers.
"""

import ssl
from pathlib import Path

from dicom_io.net.destination import DestinationError, Tls

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all of this kind


def client_context(tls: Tls) -> ssl.SSLContext:
    """TLS context of a caller: the server must show a certificate of `tls.ca` that names the host; ours is shown if it exists.

    Raises:
        DestinationError: A file is missing or is no certificate or key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # PROTOCOL_TLS_CLIENT demands a certificate that the authorities signed; only the check of the name may be off.
    context.check_hostname = tls.check_hostname
    if tls.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return _completed(context, tls)


def server_context(tls: Tls) -> ssl.SSLContext:
    """TLS context of a server: every caller must show a certificate of `tls.ca`.

    Raises:
        DestinationError: As `client_context`, or one of the three files is not named.
    """
    absent = [name for name in ("ca", "certificate", "key") if getattr(tls, name) is None]
    if absent:
        raise DestinationError(
            f"tls has no {absent[0]}; to receive over TLS, ca, certificate and key are needed; name the three files"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # By default a server asks its callers for no certificate.
    context.verify_mode = ssl.CERT_REQUIRED
    return _completed(context, tls)


def _completed(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
    files = [path for path in (tls.ca, tls.certificate, tls.key) if path is not None]
    for path in files:
        if not Path(path).is_file():
            raise DestinationError(f"the TLS file {path} does not exist; a PEM file is needed; check the path")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    try:
        if tls.ca is not None:
            context.load_verify_locations(cafile=tls.ca)
        if tls.certificate is not None and tls.key is not None:
            context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        names = ", ".join(path.name for path in files)
        raise DestinationError(
            f"the TLS files {names} cannot be used ({getattr(error, 'reason', None) or type(error).__name__}); PEM "
            "certificates and the key of the certificate, not encrypted, are needed; check them"
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # without this OpenSSL would ask at the terminal
