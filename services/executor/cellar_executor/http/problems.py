"""A refusal as an answer: `application/problem+json` (RFC 9457)."""

import math
from collections.abc import Mapping

from fastapi import Response

from cellar_executor.errors import Refusal, problem_of

MEDIA_TYPE = "application/problem+json"


def respond(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    problem = problem_of(refusal)
    all_headers = dict(headers or {})
    if problem.retry_after_s is not None:
        all_headers["Retry-After"] = str(math.ceil(problem.retry_after_s))
    if problem.status == 401:
        all_headers["WWW-Authenticate"] = "Bearer"
    return Response(problem.model_dump_json(), problem.status, all_headers, MEDIA_TYPE)
