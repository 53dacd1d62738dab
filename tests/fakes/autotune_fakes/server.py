"""A server that speaks enough of the OpenAI API to be measured, and that misbehaves in the way it is told to.

Like a real engine it is two processes: the parent answers HTTP, the child does the work and holds the memory. Written with
plain sockets, because it is started hundreds of times and must start in a few hundredths of a second.

    server.py --port P --speed N [--mode MODE] [--start-s S] [--kv TYPE] [--unknown ...]
"""

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time

MODES = (
    "ok", "refuse", "oom-start", "oom-load", "slow-start", "die-start", "die-load", "child-dies-load", "hang-load",
    "wrong-tokens", "drop", "stubborn", "exit-clean",
)  # fmt: skip


KV = {"auto": (1.0, 0.0), "fp8": (1.5, 0.02), "fp4": (2.0, 0.5), "mute": (1.2, None)}
"""Type of the cache → how much faster it serves, and by how many nats its log-probabilities are off; None gives none."""


def options():
    known = {"port": "0", "speed": "100", "mode": "ok", "start-s": "0.05", "orphan": "no", "imports": ""}
    known["kv"] = "auto"
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        name = argument.removeprefix("--")
        if name not in known:
            say(f"server.py: error: unrecognized arguments: {argument}")
            sys.exit(2)
        known[name] = next(arguments)
    return known


def say(text):
    print(text, flush=True)


class Core:
    """The child: one line in, one line out, as long as its parent lives."""

    def __init__(self, mode):
        asks, answers = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.close(asks[1])
            os.close(answers[0])
            serve_core(os.fdopen(asks[0], "rb"), os.fdopen(answers[1], "wb", 0), mode)
            os._exit(0)
        os.close(asks[0])
        os.close(answers[1])
        self.asks, self.answers = os.fdopen(asks[1], "wb", 0), os.fdopen(answers[0], "rb")
        self.lock = threading.Lock()

    def generate(self, tokens):
        with self.lock:
            try:
                self.asks.write(b"%d\n" % tokens)
                line = self.answers.readline()
            except OSError:
                line = b""
        if not line:
            say("ERROR EngineCore died unexpectedly")
            os._exit(1)
        return int(line)


def serve_core(asks, answers, mode):
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held = bytearray(8 << 20)
    if mode == "stubborn":
        while True:
            time.sleep(60)
    for served, line in enumerate(asks, start=1):
        if served > 3 and mode == "oom-load":
            say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
            os._exit(1)
        if served > 3 and mode == "child-dies-load":
            os.kill(os.getpid(), signal.SIGKILL)
        answers.write(line)
    del held


def main():
    chosen = options()
    mode = chosen["mode"]
    say("starting")
    if chosen["imports"]:
        importlib.import_module(chosen["imports"])
    if mode == "refuse":
        say("ValueError: speed and mode cannot be combined like this")
        sys.exit(1)
    if mode == "die-start":
        os.kill(os.getpid(), signal.SIGKILL)
    core = Core(mode)
    if mode == "oom-start":
        say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.")
        sys.exit(1)
    time.sleep(3600 if mode == "slow-start" else float(chosen["start-s"]))
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(chosen["port"])))
    listener.listen(256)
    say("ready")
    served = [0]
    while True:
        client, _ = listener.accept()
        threading.Thread(target=converse, args=(client, core, chosen, served), daemon=True).start()


def converse(client, core, chosen, served):
    with client, client.makefile("rb") as stream:
        while True:
            head = stream.readline()
            if not head:
                return
            _, path, _ = head.decode().split()
            length = 0
            while line := stream.readline().strip():
                name, _, value = line.decode().partition(":")
                if name.lower() == "content-length":
                    length = int(value)
            body = stream.read(length)
            if path == "/v1/completions" and b"prompt_logprobs" in body:
                read(client, KV[chosen["kv"]][1], json.loads(body))
            elif path == "/v1/completions":
                complete(client, core, chosen, served, json.loads(body))
            elif path == "/health":
                answer(client, {})
            elif path == "/v1/models":
                answer(client, {"data": [{"id": "fake"}]})
            elif path == "/speed":
                answer(client, {"speed": int(chosen["speed"]) * KV[chosen["kv"]][0]})
            else:
                answer(client, {"error": "not found"}, "404 Not Found")


def complete(client, core, chosen, served, request):
    mode = chosen["mode"]
    served[0] += 1
    if served[0] > 3:
        if mode == "die-load":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "hang-load":
            time.sleep(3600)
        if mode == "exit-clean":
            os._exit(0)
        if mode == "drop":
            client.shutdown(socket.SHUT_RDWR)
            return
    asked = int(request.get("max_tokens", 4))
    tokens = core.generate(asked) - (1 if mode == "wrong-tokens" else 0)
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    if not request.get("stream"):
        answer(client, {"choices": [{"text": "x" * tokens}], "usage": usage})
        return
    chunks = [json.dumps({"choices": [{"index": 0, "text": "x"}]}) for _ in range(tokens)]
    chunks += [json.dumps({"choices": [], "usage": usage}), "[DONE]"]
    body = "".join(f"data: {chunk}\n\n" for chunk in chunks).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)


def read(client, off, request):
    """The prompt's tokens are its bytes."""
    if off is None:
        answer(client, {"error": "This server gives no log-probabilities."}, "400 Bad Request")
        return
    tokens = list(request["prompt"].encode())
    places = [{str(token): {"logprob": -1.0 - token % 7 - off, "rank": 1}} for token in tokens]
    written = [{"token_id:65": -0.5 - off, "token_id:66": -1.5}] * request["max_tokens"]
    choice = {
        "prompt_token_ids": tokens,
        "prompt_logprobs": [None, *places[1:]],
        "token_ids": [65] * len(written),
        "logprobs": {"top_logprobs": written},
    }
    answer(client, {"choices": [choice]})


def answer(client, content, status="200 OK"):
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)


if __name__ == "__main__":
    main()
