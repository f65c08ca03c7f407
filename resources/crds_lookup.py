"""Child process: asks the crds package which reference files it selects, and answers in JSON.

Run as a script by `resources/calibration.py`, never imported: crds reads its settings from the environment once and may
end its process. Keep out everything but crds and the standard library.

Input (stdin): ``{"context", "headers": [{keyword: value}], "types": [...], "download": bool}``, or
``{"context": ""}``: which context does the server recommend for the installed jwst? Then the output is ``{"context"}``.
Output (stdout): ``{"references": [{type: {"name", "path"}}]}``, a name being ``N/A`` or ``NOT FOUND <reason>`` where no
file is selected; or ``{"error": text}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def select(context: str, header: dict[str, Any], types: list[str], download: bool) -> dict[str, dict[str, str]]:
    """The files that a context selects for one exposure."""
    from crds.core import config, heavy_client

    if download:
        paths = heavy_client.getreferences(header, reftypes=types, context=context, observatory="jwst")
        selected = {kind: Path(path).name for kind, path in paths.items()}
    else:
        selected = heavy_client.hv_best_references(context, header, types)
    answer = {}
    for kind in types:
        name = selected.get(kind, "NOT FOUND n/a")
        if name.upper() in ("NOT FOUND N/A", "N/A"):
            answer[kind] = {"name": "N/A", "path": ""}
        elif name.upper().startswith("NOT FOUND"):
            answer[kind] = {"name": name, "path": ""}
        else:
            answer[kind] = {"name": name, "path": config.locate_file(name, "jwst")}
    return answer


def main() -> None:
    """Answer one request."""
    question = json.load(sys.stdin)
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever crds prints must not end up in the reply
    from crds.core.exceptions import CrdsError

    try:
        answer: dict[str, Any]
        if question["context"]:
            context, types, download = question["context"], question["types"], question["download"]
            answer = {"references": [select(context, header, types, download) for header in question["headers"]]}
        else:
            from crds.client import api

            answer = {"context": api.get_default_context("jwst")}
    except (CrdsError, OSError, ValueError, KeyError, AssertionError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    with reply:
        json.dump(answer, reply)


if __name__ == "__main__":
    main()
