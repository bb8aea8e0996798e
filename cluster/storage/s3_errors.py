"""Errors of S3 stores: permanent ones, with the remedy that fits each."""

import errno

from botocore.exceptions import (
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as NoConnectionError,
)

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
_REMEDIES = {
    "RequestTimeTooSkewed": "the clock of this machine differs from that of the store; set the "
    "clock, for example by NTP",
    "InvalidObjectState": "the object is archived (Glacier); restore it first: "
    "aws s3api restore-object",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION to that region",
    "AuthorizationHeaderMalformed": "the store expects another region; set AWS_DEFAULT_REGION to "
    "that of the bucket",
    "IllegalLocationConstraintException": "the bucket is in another region; set AWS_DEFAULT_REGION "
    "to that region",
    "InvalidBucketName": "the store does not accept this bucket name; correct the URI",
}
_FULL = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "StorageFull")


def permanent_error(uri: str, error: Exception) -> Exception | None:
    """Return the exception for a permanent error, None for a transient one."""
    if isinstance(error, SSLError):
        return OSError(
            f"{uri}: the certificate of the store is not trusted; set AWS_CA_BUNDLE to the file of "
            "its CA"
        )
    if isinstance(error, HTTPClientError | NoConnectionError):
        return None
    if isinstance(error, ClientError):
        return _rejection(uri, error)
    return _local_error(uri, error)


def _local_error(uri: str, error: Exception) -> Exception:
    """Return the exception for an error in the settings of this process."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return PermissionError(
            f"{uri}: no credentials for S3 in the environment of this process; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node a role"
        )
    if isinstance(error, SSOError | TokenRetrievalError):
        return _expired(uri, error)
    if isinstance(error, ProfileNotFound):
        return OSError(f"{uri}: {error} (AWS_PROFILE); correct it or add it to ~/.aws/config")
    if isinstance(error, ConfigParseError):
        return OSError(f"{uri}: {error}; correct that file")
    if isinstance(error, NoRegionError):
        return OSError(f"{uri}: no region; set AWS_DEFAULT_REGION")
    return OSError(f"{uri}: {error_code(error)}")


def _rejection(uri: str, error: ClientError) -> Exception | None:
    """Return the exception for an answer of the store, None for a transient one."""
    code, text = error_code(error), str(error.response["Error"].get("Message", ""))
    status = http_status(error)
    if code in _EXPIRED:
        return _expired(uri, error)
    if code in _REMEDIES:
        return OSError(f"{uri}: {_REMEDIES[code]} ({code})")
    if code in _FULL or status == 507:
        return OSError(
            errno.ENOSPC, f"{uri}: the store or its quota is full ({code}); free space there"
        )
    if code.startswith("KMS") or "kms:" in text.lower():
        return PermissionError(
            f"{uri}: the encryption key of the bucket (KMS) cannot be used ({code}); allow these "
            "credentials kms:GenerateDataKey and kms:Decrypt, and check that the key is enabled"
        )
    if code == "NoSuchBucket":
        return FileNotFoundError(f"{uri}: no such bucket; create it, or correct the URI")
    if status == 404:
        return FileNotFoundError(f"{uri}: no such object")
    if status in (401, 403):
        return PermissionError(
            f"{uri}: S3 denies access ({code}) with the credentials of this process; use "
            "others, or give these permission to read and write there"
        )
    if status == 412:
        return ValueError(f"{uri} changed while it was read; start again")
    if status == 416:
        return ValueError(f"{uri} is shorter than expected; upload it again")
    if status == 501 or code == "NotImplemented":
        return OSError(f"{uri}: this store does not implement the call ({code}); use another store")
    if status >= 500 or status in (408, 409, 429) or code in ("RequestTimeout", "SlowDown"):
        return None
    return OSError(f"{uri}: S3 rejects the call ({code})")


def _expired(uri: str, error: Exception) -> PermissionError:
    return PermissionError(
        f"{uri}: the credentials of this process have expired ({error_code(error)}); get new "
        "ones in the same way, or give the node a role, which renews them"
    )


def http_status(error: ClientError) -> int:
    """Return the HTTP status of a store's answer, 0 if unknown."""
    return int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))


def error_code(error: Exception) -> str:
    """Return an error's code or class.

    The error's text may contain URIs with passwords.
    """
    if isinstance(error, ClientError):
        return str(error.response["Error"].get("Code", "unknown error"))
    return type(error).__name__
