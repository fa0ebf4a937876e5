"""A worker that does what its question says: `python -m tests.engine.misbehaving DEADLINE MEMORY`."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from posttrain.engine.workers import Question, Reply, serve


def act(question: Question) -> Reply:
    match question["do"]:
        case "echo":
            return {"value": question["value"]}
        case "log":
            os.write(int(question["to"]), f"{question['value']}\n".encode())
            if question.get("die"):
                os._exit(9)
            return {"value": question["value"]}
        case "sleep":
            time.sleep(1000)
        case "sleep without alarm":
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            time.sleep(1000)
        case "hang in C":
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "eat memory":
            kept = []
            while True:
                kept.append(bytearray(1 << 24))
        case "fork":
            while True:
                os.fork()
        case "thread":
            threading.Thread(target=time.sleep, args=(1000,)).start()
        case "run":
            os.execv("/bin/sh", ["sh", "-c", f"echo worse > {question['path']}"])
        case "print":
            while True:
                print("x" * 10_000, flush=True)
        case "exit":
            sys.exit(0)
        case "exit at once":
            os._exit(0)
        case "write":
            with Path(question["path"]).open("a") as file:
                file.write("worse")
        case "empty":
            Path(question["path"]).write_text("")
        case "delete":
            Path(question["path"]).unlink()
        case "connect":
            socket.create_connection(("127.0.0.1", question["port"]), timeout=5.0)
        case "ramble":
            return {"value": "x" * 10_000}
    return {"value": "done"}


if __name__ == "__main__":
    serve(act, deadline_s=float(sys.argv[1]), memory_bytes=int(sys.argv[2]), locked=True)
