#!/usr/bin/env -S python3 -IS
"""`healthcheck URL...`: ends well when each of these addresses answers with success. In every image with a Python."""

import sys
import urllib.request

TIMEOUT_S = 3.0


def main() -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for url in sys.argv[1:]:
        try:
            direct.open(url, timeout=TIMEOUT_S).close()
        except OSError as error:  # an answer that is no success included
            sys.exit(f"{url}: {error}")


if __name__ == "__main__":
    main()
