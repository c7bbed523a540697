"""Processes that start in milliseconds: forks of one that has imported PyTorch, and nothing of this package.

`Forks("torch")` starts such a process. `run` and `ranks` let it fork, and run code in the fork as `python -c` would.
Run as a program, this file is that process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]


class Forks:
    """A process that has imported `modules`, and forks for each piece of code."""

    def __init__(self, *modules: str) -> None:
        self._connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            number = other.fileno()
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(number), *modules],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )

    def close(self) -> None:
        self._connection.close()
        self._process.terminate()  # whoever else may hold the connection
        self._process.wait(10)

    @contextlib.contextmanager
    def start(
        self, code: str | Path, *arguments: Any, stdout: IO[str] | int, stderr: IO[str] | int, **options: Any
    ) -> Iterator[Fork]:
        """Run code, or the script of a path; what still runs at the end of the block is killed, with what it started.

        Args:
            arguments: what `sys.argv` holds after the program's name.
            options: `env`, added to the environment of now; `cwd`; `warn`, what `python -W` takes: "error" or "ignore".
        """
        request = {"argv": [str(argument) for argument in arguments], "cwd": os.getcwd(), **options}
        request |= {"script": str(code)} if isinstance(code, Path) else {"code": code}
        request["env"] = {**os.environ, "OMP_NUM_THREADS": "1", **options.get("env", {})}
        outputs = [output if isinstance(output, int) else output.fileno() for output in (stdout, stderr)]
        reader, writer = os.pipe()
        with open(reader, "rb", buffering=0) as status:
            try:
                socket.send_fds(self._connection, [json.dumps(request).encode()], [writer, *outputs])
            finally:
                os.close(writer)
            fork = Fork(int(_line(status, 60)), status)
            try:
                yield fork
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(fork.pid, signal.SIGKILL)

    def run(
        self, code: str | Path, *arguments: Any, timeout: float = 100, stdout: Any = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run code to its end, as `subprocess.run(..., capture_output=True, text=True)` does."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            with self.start(code, *arguments, stdout=stdout or out, stderr=errors, **options) as fork:
                returned = fork.wait(timeout)
            said = [file.read() for file in (out, errors) if file.seek(0) == 0]
        return subprocess.CompletedProcess(["fork", *arguments], returned, *said)

    def ranks(self, n: int, code: str | Path, *arguments: Any, timeout: float = 100) -> str:
        """Run code in `n` processes at once, with the environment that torchrun gives; what the first one printed.

        Raises:
            AssertionError: one of them ended with another code than 0.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2 * n)]
            given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
            forks = []
            for rank in range(n):
                env = {**given, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                out, errors = files[2 * rank : 2 * rank + 2]
                forks.append(stack.enter_context(self.start(code, *arguments, stdout=out, stderr=errors, env=env)))
            returned = [fork.wait(timeout) for fork in forks]
            said = [file.read() for file in files if file.seek(0) == 0]
            assert returned == [0] * n, "\n".join(said[1::2])[-5000:]
            return said[0]


class Fork:
    """A process that was forked."""

    def __init__(self, pid: int, status: IO[bytes]) -> None:
        self.pid, self._status = pid, status
        self._returned: int | None = None

    def wait(self, timeout: float) -> int:
        """Its exit code, or minus the signal that ended it; TimeoutError if it still runs after so many seconds."""
        if self._returned is None:
            self._returned = int(_line(self._status, timeout))
        return self._returned

    def runs(self) -> bool:
        return not select.select([self._status], [], [], 0)[0]


def _line(file: IO[bytes], timeout: float) -> bytes:
    if not select.select([file], [], [], timeout)[0]:
        raise TimeoutError(f"a forked process still runs after {timeout} s")
    return file.readline()


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for each request. Returns in the forks only, with the request; exits when the other side has closed."""
    while True:
        message, numbers, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not message:
            sys.exit()
        if os.fork() == 0:
            break
        for number in numbers:
            os.close(number)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    connection.close()
    status, *outputs = numbers
    pid = os.fork()
    if pid:  # this one waits for it, so that the server need not
        for number in outputs:
            os.close(number)
        os.write(status, b"%d\n" % pid)
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    os.setsid()
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
        os.close(output)
    os.close(status)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  the server's can seek
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    return json.loads(message)


def _main(number: int, *modules: str) -> None:
    for module in modules:
        importlib.import_module(module)
    request = _serve(socket.socket(fileno=number))
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    code, name = request.get("code"), request.get("script", "-c")
    if code is None:
        code, main.__file__ = Path(name).read_text(), name
        sys.path[0] = os.path.dirname(name)
    sys.argv = [name, *request["argv"]]
    if "warn" in request:
        warnings.simplefilter(request["warn"])
        warnings.filterwarnings("ignore", ".* deprecated - use ", DeprecationWarning)  # old matplotlib, new pyparsing
    exec(compile(code, name, "exec"), vars(main))


if __name__ == "__main__":
    sys.path[0] = ""  # rather than this file's folder
    _main(int(sys.argv[1]), *sys.argv[2:])
