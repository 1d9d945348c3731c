"""One run of the queue, in the environment of its commit: it ends when the queue does, however that ends.

Called by the queue with a run as JSON, and a pipe that the queue holds as standard input.
"""

import json
import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

INTERRUPTED = 130


def _end_with_the_queue() -> None:
    """Nobody writes to the pipe: it ends when nobody can any more. `sys.stdin` would be locked when Python ends."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _train(fields: dict[str, Any]) -> int:
    from stochgraph.algorithms.training import Configuration, Reporter, train

    class Told(Reporter):
        def say(self, text: str) -> None:
            print(text, flush=True)

    return 0 if train(Configuration.from_mapping(fields), reporters=[Told()]).finished else INTERRUPTED


def main() -> int:
    """Do the run."""
    threading.Thread(target=_end_with_the_queue, daemon=True).start()
    run = json.loads(sys.argv[1])
    if "configuration" in run:
        return _train(run["configuration"])
    script, *arguments = run["script"]
    sys.argv = [script, *arguments, run["output"]]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
