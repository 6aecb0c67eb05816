"""The rating page and its requests. A rater sees only the own session: no system, other rater or check is named.

| request | answer |
|---|---|
| `GET /r/TOKEN` | the page, one file without outside assets |
| `GET /videos/NAME.mp4` | a clip, named by its digest |
| `GET /api/next`, `Authorization: Bearer TOKEN` | the present question, or the end with a completion code |
| `POST /api/vote` {item, question, answer, milliseconds, played} | stores the answer, then answers as `/api/next` |
"""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from mav.errors import UserError
from mav.storage import Folder
from mav.study.votes import UNKNOWN_LINK, RefusedError, Votes

LONGEST_BODY = 4096  # bytes
DAY = 86_400_000  # milliseconds
VIDEO_NAME = re.compile(r"[0-9a-f]{16}\.mp4")
NO_STORE = {"Cache-Control": "no-store"}
ONE_DAY = {"Cache-Control": "private, max-age=86400, immutable"}


class Vote(BaseModel):
    """One answer as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item: Annotated[str, Field(max_length=64)]
    question: Annotated[str, Field(max_length=64)]
    answer: Literal["left", "right"]
    milliseconds: Annotated[int, Field(ge=0, le=DAY)]
    played: Literal[True]  # both clips have played to their end


def make_app(votes: Votes, folder: Folder, prefix: str = "") -> FastAPI:
    """Returns the application. Raises UserError when the study is not on a disk of this machine.

    Behind a proxy it is reached under `prefix`, whether or not the proxy takes that off what it passes on.
    """
    if not folder.local:
        raise UserError(f"{folder.url} is not on this machine: copy the study to a disk to serve it.")
    options: dict[str, Any] = dict.fromkeys(("openapi_url", "docs_url", "redoc_url"))
    app = FastAPI(title="Video comparison", redirect_slashes=False, **options)
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    headers = _headers(page)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        request.scope["root_path"] = prefix
        response = await call_next(request)
        for name, value in headers.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status, NO_STORE)

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.get("/r/{token}")
    @app.get("/r/{token}/")
    async def show(token: str) -> HTMLResponse:
        return HTMLResponse(page, headers=NO_STORE)

    @app.get("/videos/{name}")
    async def video(name: str) -> FileResponse:
        path = folder.path(f"videos/{name}")
        if not VIDEO_NAME.fullmatch(name) or not folder.exists(f"videos/{name}"):
            raise RefusedError(404, "There is no such video.")
        return FileResponse(path, media_type="video/mp4", headers=ONE_DAY)

    @app.get("/api/next")
    async def ask(request: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(votes.next, _token(request)), headers=NO_STORE)

    @app.post("/api/vote")
    async def answer(request: Request) -> JSONResponse:
        token = _token(request)
        try:
            vote = Vote.model_validate_json(await _body(request))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the answer"
            raise RefusedError(422, f"{place}: {first['msg']}.") from None
        fields = (vote.item, vote.question, vote.answer, vote.milliseconds)
        return JSONResponse(await run_in_threadpool(votes.vote, token, *fields), headers=NO_STORE)

    return app


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise RefusedError(401, UNKNOWN_LINK)
    return token


async def _body(request: Request) -> bytes:
    """Returns the body of a request, which is refused as soon as it is longer than any answer."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > LONGEST_BODY:
            raise RefusedError(413, "The answer is too long.")
    return data


def _headers(page: str) -> dict[str, Any]:
    """Returns headers that allow only this page's script, style and clips, and no referrer, which has the token."""

    def digests(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        return " ".join(f"'sha256-{digest}'" for digest in hashes)

    policy = (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; media-src 'self'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Robots-Tag": "noindex",
    }
