"""Places where tests let a job die, as a power cut would: VS_FAILPOINT=embed:after_features python -m jobs.embed_images ..."""

import os

EXIT_CODE = 70


def failpoint(name: str) -> None:
    """Ends the process at once, without any clean-up, where the environment names this point."""
    if os.environ.get("VS_FAILPOINT") == name:
        os._exit(EXIT_CODE)
