"""The hash stage behind bare uvicorn: the same decode, hash and look-up as the endpoint's, and nothing else. For bench_serve.

python -m tests.bench.bare_hash --conf FILE --port N
"""

import argparse
import json
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.api.hash_reader import HashReader
from serve.api.served import ServedRelease
from serve.settings import Settings


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    settings = Settings.load(args.conf)
    hashes = HashReader(ServedRelease.resolve(settings), settings.decode, settings.serve.num_decoders)

    async def search(request: Request) -> Response:
        match = await hashes.match(await request.body(), None)
        found = None if match is None else {"image_id": match.image_id, "product_ids": match.product_ids}
        return Response(json.dumps({"stage": "hash" if found else "none", "found": found}), media_type="application/json")

    app = Starlette(routes=[Route("/v1/search", search, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
