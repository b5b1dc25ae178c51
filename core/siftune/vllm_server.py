"""vLLM's OpenAI server as a child process that never outlives the run.

A small guard stands between the run and the server. It holds one end of a pipe whose other end only the run
has, so it learns of the run's end even where the run is killed and cannot clean up, and then ends everything
in the server's process group: vLLM's engine and its workers would otherwise go on and hold the GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import logging
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .endpoint import KEYS
from .errors import UserError

POLL = 0.2  # seconds between two looks
GRACE = 10.0  # seconds between SIGTERM and SIGKILL
PYTHON = "SIFTUNE_VLLM_PYTHON"  # the interpreter of the environment that vLLM is installed in
ARGUMENTS = "SIFTUNE_VLLM_ARGS"  # further arguments of the server, such as --tensor-parallel-size 4
GUARD = (
    "import sys; sys.path.insert(0, sys.argv[1]); from siftune.vllm_server import guard; guard(sys.argv[2:])"
)

log = logging.getLogger(__name__)


class Server:
    """A running server: `url` and `key` are what a client needs. It listens on the loopback only."""

    def __init__(
        self,
        model: Path,
        name: str,
        python: str | None = None,
        patience: float = 3600.0,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        """Start the server for a model's folder, served under `name`, and wait until it is healthy.

        Raises UserError with the end of its log if it ends before that, or takes over `patience` seconds.
        """
        wanted = python or os.environ.get(PYTHON) or sys.executable
        found = shutil.which(wanted)
        if not found:
            raise UserError(f"there is no python {wanted!r} to start vLLM with; see {PYTHON}")
        self.python = os.path.abspath(found)
        # nobody else on this machine is to use the server, nor do we take another's for ours
        self.key = secrets.token_hex(16)
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._folder = Path(tempfile.mkdtemp(prefix="siftune-vllm-"))
        say(f"starting vLLM for {name} on port {self._port}, log in {self._folder / 'log'}")
        with (self._folder / "log").open("wb") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-c", GUARD, str(Path(__file__).parents[1]), *self._command(model, name)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=self._environment(),
                cwd=self._folder,  # python -m looks for vllm here first, and should not find the user's files
                start_new_session=True,
            )
        self._ended = False
        atexit.register(self.stop)
        try:
            self._wait(patience)
        except BaseException:
            self.stop()
            raise

    def _command(self, model: Path, name: str) -> list[str]:
        return [
            self.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.absolute()),
            "--served-model-name", name, "--host", "127.0.0.1", "--port", str(self._port),
            "--load-format", "safetensors",
            # the longest context that the memory for keys and values holds, in place of a refusal to start
            "--max-model-len", "auto",
            # the one backend whose answers were all valid JSON
            "--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": true}',
            *shlex.split(os.environ.get(ARGUMENTS, "")),
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if name not in KEYS}
        ours |= {"VLLM_API_KEY": self.key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        # GiB; without a bound vLLM takes nearly all memory of a machine without a GPU
        ours.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
        return ours

    def _wait(self, patience: float) -> None:
        end = time.monotonic() + patience
        while not self._healthy():
            self.check()
            if time.monotonic() > end:
                said = self._last_lines()
                raise UserError(f"vLLM was not healthy after {patience:g} s. Its log ends:\n{said}")
            time.sleep(POLL)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def check(self) -> None:
        """Raises UserError with the end of the log if the server has ended."""
        if self._guard.poll() is None:
            return
        self._end_group()
        said = self._last_lines()
        if "No module named" in said and "vllm" in said:
            raise UserError(
                f"vLLM is not installed for {self.python}: install it, best in an environment of its own, "
                f"and name that environment's python in {PYTHON}"
            )
        raise UserError(f"vLLM ended. Its log ends:\n{said}")

    def _last_lines(self, lines: int = 15) -> str:
        try:
            text = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.rstrip().splitlines()[-lines:]).replace(self.key, "***")

    def stop(self) -> None:
        """End the server and all that it started. Does no harm where it has ended."""
        atexit.unregister(self.stop)
        if self._guard.stdin:
            self._guard.stdin.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):  # then it is ended below
                self._guard.wait(GRACE + 5)
        finally:
            self._end_group()
            self._guard.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_group(self) -> None:
        """The last resort: the guard itself hangs, or was killed by somebody else."""
        if not self._ended:
            self._ended = True  # once only: later, the number may be that of somebody else's processes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def guard(command: Sequence[str]) -> None:
    """Run the command until it ends or standard input does, then end the whole process group, this too."""
    # a handler, not SIG_IGN: what is ignored here would be ignored by the server as well
    signal.signal(signal.SIGTERM, lambda *_: None)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    gone = threading.Event()

    def listen() -> None:
        sys.stdin.buffer.read()
        gone.set()

    threading.Thread(target=listen, daemon=True).start()
    while server.poll() is None and not gone.wait(POLL):
        pass
    if gone.is_set():
        os.killpg(0, signal.SIGTERM)
        try:
            server.wait(GRACE)
        except subprocess.TimeoutExpired:
            pass
    else:
        print(f"(the server ended with exit status {server.returncode})", flush=True)
    os.killpg(0, signal.SIGKILL)
