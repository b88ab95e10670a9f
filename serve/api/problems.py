"""Errors as RFC 9457 problem JSON: what was given, what is allowed, and the field it is about. Never the input itself."""

import re
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from serve.vision.image import ImageError

MEDIA_TYPE = "application/problem+json"

# What an ImageError becomes; every other code is 422: an image we can name, but not read or not take.
IMAGE_STATUS = {"not_an_image": 415, "unsupported_format": 415, "too_large": 413}

# Field names are named in problems, and unknown ones come from the client: anything that is not a plain name stays out.
PLAIN_NAME = re.compile(r"^[A-Za-z0-9_\-]{1,40}$")


class FieldError(BaseModel):
    """One field and what is wrong with it."""

    field: str = Field(description="name of the field, dotted where it is nested", examples=["k"])
    message: str = Field(examples=["must be from 1 to 100"])


class ProblemBody(BaseModel):
    """RFC 9457 problem details. `code` is for programs, `detail` for people, `errors` names the fields."""

    type: str = Field("about:blank", examples=["about:blank"])
    title: str = Field(examples=["Unprocessable Entity"])
    status: int = Field(examples=[422])
    code: str = Field(examples=["invalid_field"])
    detail: str = Field(examples=["k: must be from 1 to 100"])
    errors: list[FieldError] = []


class Problem(Exception):
    """An answer other than 200: HTTP status, a code that does not change, one sentence, and the field it is about."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        field: str | None = None,
        *,
        errors: list[FieldError] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.headers = headers
        self.body = ProblemBody(
            title=HTTPStatus(status).phrase,
            status=status,
            code=code,
            detail=f"{field}: {detail}" if field else detail,
            errors=errors if errors is not None else [FieldError(field=field, message=detail)] if field else [],
        )

    def response(self) -> JSONResponse:
        """This problem as an HTTP response."""
        return JSONResponse(self.body.model_dump(), self.body.status, self.headers, MEDIA_TYPE)


def image_problem(code: str, detail: str, field: str = "image") -> Problem:
    """What the guarded decoder found wrong with a photo."""
    return Problem(IMAGE_STATUS.get(code, 422), f"{field}_{code.removeprefix('image_')}", detail, field)


def overloaded(detail: str) -> Problem:
    """More queries than this server takes at once."""
    return Problem(429, "overloaded", detail, headers={"Retry-After": "1"})


def invalid_fields(error: ValidationError | RequestValidationError, where: str = "") -> Problem:
    """Every field that a pydantic model refused, without its value."""
    errors = []
    for found in error.errors():
        parts = [str(part) for part in found["loc"] if part not in ("body", "query", "path")]
        name = ".".join(part if PLAIN_NAME.match(part) else "?" for part in parts) or where or "body"
        message = "unknown field" if found["type"] == "extra_forbidden" else found["msg"]
        errors.append(FieldError(field=name, message=message))
    detail = "; ".join(f"{e.field}: {e.message}" for e in errors[:5])
    return Problem(422, "invalid_field", detail, errors=errors[:20])


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""

    @app.exception_handler(Problem)
    async def on_problem(_: Request, problem: Problem) -> JSONResponse:
        return problem.response()

    @app.exception_handler(ImageError)
    async def on_image_error(_: Request, error: ImageError) -> JSONResponse:
        return image_problem(error.code, error.detail).response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return invalid_fields(error).response()

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase
        headers = dict(error.headers) if error.headers else None
        detail = "no such path; see /docs" if error.status_code == 404 else str(error.detail or phrase)
        return Problem(error.status_code, phrase.lower().replace(" ", "_"), detail, headers=headers).response()
