"""One run of the queue, in the environment of its commit: it ends when the queue does, however that ends.

Called by the queue with a run as JSON, and a pipe that the queue holds as standard input: "s" stops the run, "c" lets
it go on, the end of the pipe ends it. A stopped process cannot read, so that this one reads, and the run is its child.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

INTERRUPTED = 130


def _obey(run: "subprocess.Popen[bytes]") -> None:
    """Pass orders on, until nobody is left who could give any. `sys.stdin` would be locked when Python ends."""
    orders = {b"s": signal.SIGSTOP, b"c": signal.SIGCONT}
    while order := os.read(0, 1):
        run.send_signal(orders[order])
    run.send_signal(signal.SIGTERM)
    run.send_signal(signal.SIGCONT)


def _train(fields: dict[str, Any]) -> int:
    from stochgraph.algorithms.training import Configuration, Reporter, train

    class Told(Reporter):
        def say(self, text: str) -> None:
            print(text, flush=True)

    return 0 if train(Configuration.from_mapping(fields), reporters=[Told()]).finished else INTERRUPTED


def main() -> int:
    """Have the run done, or do it."""
    if sys.argv[1] != "--here":
        command = [sys.executable, "-P", __file__, "--here", sys.argv[1]]
        run_process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        threading.Thread(target=_obey, args=(run_process,), daemon=True).start()
        return run_process.wait()
    run = json.loads(sys.argv[2])
    if "configuration" in run:
        return _train(run["configuration"])
    script, *arguments = run["script"]
    sys.argv = [script, *arguments, run["output"]]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
