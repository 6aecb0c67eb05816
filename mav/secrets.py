"""Finds credentials in texts: in addresses, as parameters of addresses, and keys that services mark by their form."""

import re

HIDDEN = "***"
# `user:password@` in any address, and anything before `@` in an address of the web: in that place Azure names a
# container, and others a user. Passwords may have slashes in them.
USER = re.compile(
    r"(?i)\b([a-z][a-z0-9+.-]*://)(?:[^/\s:@?#'\"\[]+:(?!\d*(?:[/?#]|$))[^\s?#'\"]*"
    r"|(?:(?<=http://)|(?<=https://))[^/\s?#'\"]+)@"
)
PARAMETER = re.compile(
    r"(?i)([?&;#]|%3F|%26)((?:[\w.%-]*(?:token|secret|password|passwd|signature|credential|api[-_]?key|access[-_]?key"
    r"(?:id)?|accessid|account[-_]?key)|sig|key|auth|pwd)=)[^&\s'\"#;]+"
)
KEYS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|xox[abpors]-[\w-]{10,}|sk-[\w-]{20,}|pnu_\w{16,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+|AIza[\w-]{35}|glpat-[\w-]{20,}"
    r"|npm_\w{36})"
)
# A header of HTTP, as clients show it in what they log.
HEADER = re.compile(
    r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token|digest|aws4-hmac-sha256)\s+)?)[^\s'\"]+"
)
PEM = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END|$)", re.DOTALL)


def redacted(text: str) -> str:
    """Returns a text with `***` in the place of every credential that can be told by its form."""
    text = USER.sub(rf"\1{HIDDEN}@", text)
    text = PARAMETER.sub(rf"\1\2{HIDDEN}", text)
    text = HEADER.sub(rf"\1{HIDDEN}", text)
    text = PEM.sub(rf"\1{HIDDEN}\2", text)
    return KEYS.sub(HIDDEN, text)
